"""A budget spent over layers: for each layer one of its options, so that the sum of the costs keeps a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, isfinite

import numpy as np

from leanconv.errors import Error

__all__ = ["Option", "choose"]

_CELLS = 1 << 17


@dataclass(frozen=True)
class Option:
    """What may become of a layer.

    Attributes:
        rank: the depth multiplier; None: it stays dense.
        cost: such as multiply-adds or parameters, in any unit that adds up.
        damage: predicted, such as the squared relative output error, in any unit that adds up.
    """

    rank: int | None
    cost: float
    damage: float


def choose(options: Mapping[str, Sequence[Option]], limit: float) -> dict[str, int | None]:
    """For each layer a rank, or None for dense: the least sum of damages whose sum of costs is at most ``limit``.

    The multiple-choice knapsack, by dynamic programming over what each layer costs above its cheapest option, counted
    in cells: exact where the costs are whole numbers that have a common divisor large enough for 2^17 cells below the
    limit (those of small sets always do). Else costs are rounded up to cells, the limit is kept all the same, and the
    damage is at most that of the best choice for a limit lower by one cell for each layer. What rounding leaves of the
    limit is then spent on the upgrades that gain most.

    Args:
        options: layer -> what may become of it, in any order. Equal sums are settled towards the cheaper option.
        limit: of the sum of the costs.

    Raises:
        Error: a layer without options, a number that is not finite, or a limit below the sum of the cheapest options,
            which is told.

    Source: Dudzinski and Walukiewicz 1987, Exact methods for the knapsack problem and its generalizations, section 4.
    """
    layers = {path: _frontier(path, found) for path, found in options.items()}
    least = sum(found[0].cost for found in layers.values())
    if not isfinite(limit) or limit < least:
        raise Error(f"choose: the limit must be at least {least:,}, every layer at its cheapest, got limit={limit:,}")
    unit, cells = _cells(layers, limit - least)
    steps = [[ceil((o.cost - found[0].cost) / unit) for o in found] for found in layers.values()]
    picks = _spend(steps, [[o.damage for o in found] for found in layers.values()], cells)
    picks = _fill(list(layers.values()), picks, limit)
    return {path: found[i].rank for (path, found), i in zip(layers.items(), picks, strict=True)}


def _frontier(path: str, options: Sequence[Option]) -> list[Option]:
    """By rising cost, each with less damage than all that are cheaper."""
    if not options or any(not isfinite(o.cost) or not isfinite(o.damage) for o in options):
        raise Error(f"choose: {path} must have options with finite cost and damage, got {list(options)}")
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def _cells(layers: Mapping[str, Sequence[Option]], spare: float) -> tuple[float, int]:
    """The size of a cell and how many there are to spend."""
    above = [o.cost - found[0].cost for found in layers.values() for o in found]
    most = min(spare, sum(found[-1].cost - found[0].cost for found in layers.values()))
    if most <= 0:
        return 1.0, 0
    if all(float(a).is_integer() for a in above):
        unit = gcd(*(int(a) for a in above))
        if most // unit <= _CELLS:
            return unit, int(most // unit)
    return most / _CELLS, _CELLS


def _spend(steps: list[list[int]], damages: list[list[float]], cells: int) -> list[int]:
    """For each layer the index of its option: least damage within so many cells."""
    best = np.zeros(cells + 1)
    taken = []
    for step, damage in zip(steps, damages, strict=True):
        found = best + damage[0]
        choice = np.zeros(cells + 1, dtype=np.int16)
        for i in range(1, len(step)):
            if step[i] > cells:
                break
            trial = best[: cells + 1 - step[i]] + damage[i]
            better = trial < found[step[i] :]
            np.copyto(found[step[i] :], trial, where=better)
            np.copyto(choice[step[i] :], i, where=better)
        best = found
        taken.append(choice)
    picks, left = [], cells
    for step, choice in zip(reversed(steps), reversed(taken), strict=True):
        picks.append(int(choice[left]))
        left -= step[picks[-1]]
    return picks[::-1]


def _fill(layers: list[list[Option]], picks: list[int], limit: float) -> list[int]:
    """Upgrades that still fit, the one that saves most damage first."""
    picks = list(picks)
    while True:
        left = limit - sum(found[i].cost for found, i in zip(layers, picks, strict=True))
        fits = [
            (found[i].damage - found[j].damage, n, j)
            for n, (found, i) in enumerate(zip(layers, picks, strict=True))
            for j in range(i + 1, len(found))
            if found[j].cost - found[i].cost <= left
        ]
        if not fits:
            return picks
        _, n, j = max(fits)
        picks[n] = j
