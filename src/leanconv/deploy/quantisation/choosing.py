"""Which layers stay in float, so that the accuracy does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from leanconv.errors import Error

__all__ = ["fewest", "ranked"]


def ranked(units: Sequence[int], cost: Callable[[int], float]) -> dict[int, float]:
    """Units with what quantising each alone costs, the dearest first; of equals the first in the network."""
    costs = {unit: cost(unit) for unit in units}
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def fewest(order: Sequence[int], holds: Callable[[Sequence[int]], bool]) -> int:
    """How many of the first units must stay in float: doubled until the bound holds, then halved.

    Args:
        order: all units; the last one is never asked for, for nothing would be left in bytes.
        holds: whether the bound holds with these in float.

    Raises:
        Error: it never does.
    """
    low, count = 0, 1  # with `low` of them it does not hold
    while count >= len(order) or not holds(order[:count]):
        if count >= len(order) - 1:
            raise Error("int8: a bound must hold with something left in bytes, got none that does")
        low, count = count, min(2 * count, len(order) - 1)
    while count - low > 1:
        middle = (low + count) // 2
        low, count = (low, middle) if holds(order[:middle]) else (middle, count)
    return count
