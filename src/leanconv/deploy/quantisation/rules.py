"""Which range of real numbers the 256 values of a byte stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.histogram import Histogram
from leanconv.errors import Error
from leanconv.runtime.plan import Quant

__all__ = ["RULES", "quant", "within"]

_LEAST, _MOST = 1e-30, 1e30


def quant(low: float, high: float) -> Quant:
    """The bytes of a range that holds 0: scale = (high - low) / 255, zero = round(-low / scale).

    Args:
        low, high: the range; it is widened to hold 0. Where it is empty the scale is 2^-10: the units of a bias.

    Returns:
        A scale that is a float32 in [1e-30, 1e30], and the byte of 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        return Quant(2.0**-10, 0)
    scale = float(np.float32(min(max((high - low) / 255, 2 * _LEAST), _MOST / 2)))
    return Quant(scale, min(max(round(-low / scale), 0), 255))


def within(rule: str, counted: Histogram, percentile: float) -> tuple[float, float]:
    """The range that a rule chooses.

    Args:
        rule: one of :data:`RULES`.
        counted: the numbers of the calibration.
        percentile: of the rule of that name, above 50, at most 100.

    Raises:
        Error: no such rule, or the percentile is out of range.
    """
    if rule not in RULES:
        raise Error(f"int8: rule must be one of {', '.join(RULES)}, got {rule!r}")
    if not 50 < percentile <= 100:
        raise Error(f"int8: percentile must be above 50 and at most 100, got {percentile}")
    if counted.low == counted.high:
        return counted.low, counted.high
    return RULES[rule](counted, percentile)


def _errors(centres: NDArray[np.float64], counts: NDArray[np.int64], tried: list[Quant]) -> NDArray[np.float64]:
    scale = np.array([one.scale for one in tried])[:, None]
    zero = np.array([one.zero for one in tried])[:, None]
    stood = (np.clip(np.rint(centres / scale) + zero, 0, 255) - zero) * scale
    return np.asarray(((stood - centres) ** 2) @ counts)


def _minmax(counted: Histogram, percentile: float) -> tuple[float, float]:
    return counted.low, counted.high


def _percentile(counted: Histogram, percentile: float) -> tuple[float, float]:
    """So that at most 100 - percentile of a hundred numbers lie above, and as many below."""
    total = np.cumsum(counted.counts)
    # In whole numbers as far as it goes: 1 - 0.9999 has no exact value.
    left_out = int(total[-1] * (100 - percentile) / 100)
    first = int(np.searchsorted(total, left_out, side="right"))
    last = int(np.searchsorted(total, total[-1] - left_out, side="left"))
    half = counted.counts.size // 2
    low, high = (first - half) * counted.width, (last + 1 - half) * counted.width
    return max(low, counted.low), min(high, counted.high)


def _mse(counted: Histogram, percentile: float) -> tuple[float, float]:
    """The range of the smallest square error: both ends are drawn in together, then one after the other."""
    filled = counted.counts > 0
    centres, counts = counted.centres[filled], counted.counts[filled]
    shares = np.arange(100, 4, -1) / 100
    ends = [min(counted.low, 0.0), max(counted.high, 0.0)]
    for moved in ((0, 1), (1,), (0,), (1,), (0,)):
        tried = [[end * share if i in moved else end for i, end in enumerate(ends)] for share in shares]
        best = int(_errors(centres, counts, [quant(*pair) for pair in tried]).argmin())
        ends = tried[best]
    return ends[0], ends[1]


RULES: Mapping[str, Callable[[Histogram, float], tuple[float, float]]] = {
    "mse": _mse,
    "percentile": _percentile,
    "minmax": _minmax,
}
