"""A training that is interrupted at a chosen moment."""

from __future__ import annotations

import os
import signal

from leanconv.training.progress import Watch


class Interrupting(Watch):
    """Sends this process a signal after a number of steps, or when an epoch has been measured."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(shown=False)
        self.left, self.number = step, number

    def step(self) -> None:
        super().step()
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
