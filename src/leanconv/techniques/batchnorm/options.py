"""The options of batch normalisation in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from leanconv.contract import Init
from leanconv.errors import Error

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How surgery puts batch norms in, and how training settles them.

    Attributes:
        eps: added to the variance, >= 0.
        momentum: weight of the newest batch in the running statistics, 0 <= momentum <= 1; None averages all alike.
        statistics: what evaluation uses after training: ``running``, ``precise`` or ``exact``.
        on_single: what training does with one value per channel: ``raise``, or ``running`` statistics.
        init: ``keep`` calibrates gamma, beta and statistics so that eval outputs do not change; ``fresh`` starts at
            gamma = 1, beta = 0 and drops the bias before each batch norm.
    """

    eps: float = 1e-5
    momentum: float | None = 0.1
    statistics: Literal["running", "precise", "exact"] = "precise"
    on_single: Literal["raise", "running"] = "raise"
    init: Init = "keep"

    def __post_init__(self) -> None:
        if not _number(self.eps) or self.eps < 0:
            raise Error(f"batchnorm: eps must be a finite number >= 0, got eps={self.eps!r}")
        if self.momentum is not None and not (_number(self.momentum) and 0 <= self.momentum <= 1):
            raise Error(
                f"batchnorm: momentum must satisfy 0 <= momentum <= 1 or be None, got momentum={self.momentum!r}"
            )
        if self.statistics not in ("running", "precise", "exact"):
            raise Error(f"batchnorm: statistics must be running, precise or exact, got statistics={self.statistics!r}")
        if self.on_single not in ("raise", "running"):
            raise Error(f"batchnorm: on_single must be raise or running, got on_single={self.on_single!r}")
        if self.init not in ("keep", "fresh"):
            raise Error(f"batchnorm: init must be keep or fresh, got init={self.init!r}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
