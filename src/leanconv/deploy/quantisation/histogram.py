"""How often numbers occur: bins of a power of two, so that the order of what is counted does not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Histogram"]

BINS = 2048
"""On each side of zero."""


class Histogram:
    """Counts of numbers. Bin i holds [i w, (i + 1) w), -BINS <= i < BINS; w is the smallest power of two that suffices.

    The bins widen as larger numbers come, and the result is the one that the last width had given from the start.

    Attributes:
        low, high: the smallest and the largest number; 0 where there are none.
        counts: int64 (2 BINS,), bin -BINS first.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)
        self._exponent: int | None = None

    @property
    def width(self) -> float:
        """w; 1 where nothing but zeros was counted."""
        return 1.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middle of each bin, float64 (2 BINS,)."""
        return np.asarray((np.arange(-BINS, BINS) + 0.5) * self.width, np.float64)

    def add(self, x: NDArray[Any]) -> bool:
        """Count numbers.

        Args:
            x: of any shape.

        Returns:
            Whether all of them were finite; else nothing was counted.
        """
        if not x.size:
            return True
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        fresh = not self.counts.any()
        self.low, self.high = (low, high) if fresh else (min(self.low, low), max(self.high, high))
        largest = max(-low, high)
        if largest > 0:
            self._widen(math.frexp(largest)[1] - (BINS.bit_length() - 1))
        index = np.floor(x.reshape(-1) * np.float64(1 / self.width)).astype(np.int64)
        index += BINS
        # -(BINS w) itself lies in the first bin; rounding takes nothing beyond the last.
        self.counts += np.bincount(index.clip(0, 2 * BINS - 1), minlength=2 * BINS)
        return True

    def _widen(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
        shift = exponent - self._exponent
        if shift <= 0:
            return
        index = (np.arange(-BINS, BINS) >> min(shift, 62)) + BINS
        self.counts = np.bincount(index, self.counts.astype(np.float64), 2 * BINS).astype(np.int64)
        self._exponent = exponent
