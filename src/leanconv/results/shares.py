"""Shares of right answers, with the intervals that tell how far they can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from leanconv.errors import Error

__all__ = ["Difference", "Score", "difference", "wilson"]


def wilson(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share.

    ``(p + z^2/2n +- z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)`` with p = correct / total, n = total and z the
    normal quantile at (1 + level) / 2.

    Args:
        correct: from 0 to ``total``.
        total: from 1.
        level: probability that the interval is meant to cover, 0 < level < 1.

    Returns:
        Lower and upper bound, between 0 and 1.

    Raises:
        Error: an argument is out of range.

    Source: Wilson, "Probable inference", JASA 22 (1927) 209-212; method 3 of Newcombe, Statistics in Medicine 17
        (1998) 857-872.
    """
    if total < 1 or not 0 <= correct <= total:
        raise Error(f"wilson: needs 0 <= correct <= total and total >= 1, got correct={correct}, total={total}")
    z = _quantile("wilson", level)
    p, share = correct / total, z * z / total
    centre = p + share / 2
    half = z * math.sqrt(p * (1 - p) / total + share / (4 * total))
    low, high = (centre - half) / (1 + share), (centre + half) / (1 + share)
    return (0.0 if correct == 0 else max(low, 0.0)), (1.0 if correct == total else min(high, 1.0))


@dataclass(frozen=True)
class Score:
    """So many of so many right; ``loss`` is their mean cross entropy in nats, where it was measured."""

    correct: int
    total: int
    loss: float | None = None

    def __post_init__(self) -> None:
        wilson(self.correct, self.total)

    @property
    def accuracy(self) -> float:
        """The share, 0..1."""
        return self.correct / self.total

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The share's :func:`wilson` interval."""
        return wilson(self.correct, self.total, level)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.accuracy:.1%} ({low:.1%} to {high:.1%})"


@dataclass(frozen=True)
class Difference:
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def difference(a: Score, b: Score, level: float = 0.95) -> Difference:
    """Accuracy of ``a`` minus that of ``b``, measured on different images, such as training and validation: the gap.

    The interval is Newcombe's hybrid of the two Wilson intervals:
    ``d - sqrt((pa - la)^2 + (ub - pb)^2)`` to ``d + sqrt((ua - pa)^2 + (pb - lb)^2)``.

    Source: method 10 of Newcombe, "Interval estimation for the difference between independent proportions", Statistics
        in Medicine 17 (1998) 873-890.
    """
    (la, ua), (lb, ub) = a.interval(level), b.interval(level)
    value = a.accuracy - b.accuracy
    low = value - math.hypot(a.accuracy - la, ub - b.accuracy)
    return Difference(value, low, value + math.hypot(ua - a.accuracy, b.accuracy - lb))


def _quantile(subject: str, level: float) -> float:
    if not 0 < level < 1:
        raise Error(f"{subject}: level must satisfy 0 < level < 1, got level={level}")
    return NormalDist().inv_cdf((1 + level) / 2)
