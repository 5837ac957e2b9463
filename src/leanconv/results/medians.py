"""The median of repeated measurements, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanconv.errors import Error

__all__ = ["median_interval"]


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """The median and an interval for it that assumes nothing of the distribution.

    From the k-th smallest to the k-th largest value, with the largest k at which
    ``1 - 2 sum_{i<k} C(n, i) / 2^n >= level``; the smallest to the largest where no k reaches it (n < 6 for 0.95).

    Args:
        values: at least one.
        level: 0 < level < 1.

    Returns:
        median, low, high.

    Raises:
        Error: no value, or level out of range.

    Source: order statistics of the binomial; Conover, "Practical Nonparametric Statistics", section 3.2.
    """
    if not values or not 0 < level < 1:
        raise Error(f"median: needs a value and 0 < level < 1, got {len(values)} values and level={level}")
    ordered, n = sorted(values), len(values)
    k, outside = 1, 1
    while k < n / 2 and 2 * (outside + math.comb(n, k)) <= (1 - level) * 2**n:
        outside += math.comb(n, k)
        k += 1
    middle = ordered[n // 2] if n % 2 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    return middle, ordered[k - 1], ordered[n - k]
