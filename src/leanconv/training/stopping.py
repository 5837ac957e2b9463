"""Leaving a training in good order: Ctrl-C and SIGTERM are noted, and the loop asks where it can stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from leanconv.errors import Error

__all__ = ["Stopped", "Stopper"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Error):
    """A training was told to stop; its checkpoint is written.

    Attributes:
        code: exit code of the command: 128 + the signal's number.
    """

    def __init__(self, sentence: str, number: int) -> None:
        super().__init__(sentence)
        self.code = 128 + number


class Stopper:
    """Which signal has come.

    Between steps the loop asks :meth:`asked`. In :meth:`at_once` (measuring, which repeats on resuming) a signal ends
    the block with :class:`Stopped`. A second Ctrl-C always ends at once.
    """

    def __init__(self) -> None:
        self.number = 0
        self._now = False

    @contextmanager
    def listening(self) -> Iterator[Stopper]:
        """Inside, signals are noted; only the main thread can listen, others go on without."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[signal.Signals, Any] = {s: signal.signal(s, self._note) for s in _SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises; one that came before does too."""
        self._now = True
        try:
            if self.number:
                raise self.stopped()
            yield
        finally:
            self._now = False

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    def stopped(self) -> Stopped:
        """What to raise, with the checkpoint written."""
        name = signal.Signals(self.number or signal.SIGTERM).name
        return Stopped(f"training: stopped by {name}, `--resume` goes on from here", self.number or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.number, number
        if again or self._now:
            raise self.stopped()
