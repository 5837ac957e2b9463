"""Places of the values in the arena, so that it is small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from leanconv.errors import Error
from leanconv.runtime.checking import lifetimes
from leanconv.runtime.plan import Step, Value

__all__ = ["ALIGNED", "bound", "place"]

ALIGNED = 16
"""Floats: every value begins at a multiple of it, a cache line."""

_Span = tuple[int, int, int]  # first step, last step, floats


def place(values: Sequence[Value], steps: Sequence[Step], input: int, output: int) -> tuple[tuple[Value, ...], int]:
    """Give each value a place in the arena.

    A value must be in memory from the step that makes it to the last one that reads it; two values whose times meet
    (also the input and the output of one step) never overlap. Offsets are found greedily: one value after another, at
    the lowest place that is free over its time, in three orders (largest first, longest-lived first, as they are made),
    of which the best is taken.

    Args:
        values: shapes and quants; offsets that they have are forgotten.
        steps: in order.
        input, output: of the plan; both stay without a place, and so does what lies inside blocks.

    Returns:
        The values with offsets, and how many floats the arena has.

    Raises:
        Error: a step names a value that there is none of, or reads one that no step before it makes.
    """
    spans = _spans(values, steps, input, output)
    orders: tuple[Callable[[int], tuple[int, ...]], ...] = (
        lambda n: (-spans[n][2], spans[n][0]),
        lambda n: (spans[n][0] - spans[n][1], -spans[n][2]),
        lambda n: (spans[n][0],),
    )
    found = [_greedy(spans, sorted(spans, key=order)) for order in orders]
    offsets, memory = min(found, key=lambda one: one[1])
    return tuple(replace(value, offset=offsets.get(number)) for number, value in enumerate(values)), memory


def bound(values: Sequence[Value], steps: Sequence[Step], input: int, output: int) -> int:
    """Floats that no arena can do without: the most that lives at one step, each value rounded up to 16.

    Args:
        values, steps, input, output: as of :func:`place`.
    """
    change = [0] * (len(steps) + 1)
    for first, last, floats in _spans(values, steps, input, output).values():
        change[first] += floats
        change[last + 1] -= floats
    most = alive = 0
    for delta in change:
        alive += delta
        most = max(most, alive)
    return most


def _spans(values: Sequence[Value], steps: Sequence[Step], input: int, output: int) -> dict[int, _Span]:
    made = {input}
    for i, step in enumerate(steps):
        for number in (*step.inputs, step.output):
            if not 0 <= number < len(values):
                raise Error(f"place: step {i} must name one of the {len(values)} values, got {number}")
        for number in step.inputs:
            if number not in made:
                raise Error(f"place: step {i} must read what a step before it makes, got value {number}")
        made.add(step.output)
    return {
        number: (first, last, -(-values[number].floats // ALIGNED) * ALIGNED)
        for number, (first, last) in lifetimes(steps, input).items()
        if number not in (input, output)
    }


def _greedy(spans: dict[int, _Span], order: Sequence[int]) -> tuple[dict[int, int], int]:
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; sorted
    offsets: dict[int, int] = {}
    for number in order:
        first, last, floats = spans[number]
        at = 0
        for begin, end, since, until in placed:
            if since <= last and first <= until:
                if begin - at >= floats:
                    break
                at = max(at, end)
        offsets[number] = at
        placed.append((at, at + floats, first, last))
        placed.sort()
    return offsets, max((end for _, end, _, _ in placed), default=0)
