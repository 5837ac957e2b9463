"""What can be asked of a worker. Knows no torch, so that the processes between driver and worker need none."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What is to be done, in plain values, so that it can go to another process or machine.

    Attributes:
        kind: ``pilot``, ``run`` or ``stable``.
        arm: its name.
        seed: of the training.
        variant: tells pilots apart.
        recipe: the whole, seed and rate included, as ``Recipe.to_dict`` gives it.
        name: of the training's folder under ``runs``; empty for what leaves none.
    """

    kind: str
    arm: str
    seed: int
    recipe: dict[str, Any]
    variant: str = ""
    name: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """As :attr:`leanconv.study.store.Row.key`."""
        return self.kind, self.arm, self.seed, self.variant

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
