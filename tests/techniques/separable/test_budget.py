"""A budget over layers against every choice there is."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.errors import Error
from leanconv.techniques.separable import budget
from leanconv.techniques.separable.budget import Option, choose

numbers = st.integers(0, 50)
layers = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=5)


def named(rows: list[list[tuple[float, float]]]) -> dict[str, list[Option]]:
    return {f"layer{n}": [Option(i, *pair) for i, pair in enumerate(row)] for n, row in enumerate(rows)}


def totals(options: dict[str, list[Option]], picks: dict[str, int | None]) -> tuple[float, float]:
    taken = [next(o for o in found if o.rank == picks[path]) for path, found in options.items()]
    return sum(o.cost for o in taken), sum(o.damage for o in taken)


def least_damage(options: dict[str, list[Option]], limit: float) -> float:
    every = [(sum(o.cost for o in some), sum(o.damage for o in some)) for some in product(*options.values())]
    return min(damage for cost, damage in every if cost <= limit)


@settings(deadline=None, max_examples=150)
@given(layers, st.floats(0, 1))
def test_no_choice_within_the_limit_is_better(rows: Any, share: float) -> None:
    options = named(rows)
    least, most = (sum(end(o.cost for o in row) for row in options.values()) for end in (min, max))
    limit = least + share * (most - least)
    cost, damage = totals(options, choose(options, limit))
    assert cost <= limit
    assert damage == least_damage(options, limit)


@settings(deadline=None, max_examples=20)
@given(layers, st.floats(0, 1), st.integers(0, 1000))
def test_rounded_costs_keep_the_limit_and_lose_a_cell_a_layer(rows: Any, share: float, seed: int) -> None:
    options = named(
        [[(cost + 0.37 * (seed % (i + 7)) / 7, damage) for i, (cost, damage) in enumerate(r)] for r in rows]
    )
    least, most = (sum(end(o.cost for o in row) for row in options.values()) for end in (min, max))
    limit = least + share * (most - least)
    cost, damage = totals(options, choose(options, limit))
    assert cost <= limit * (1 + 1e-12)
    lower = limit - len(options) * (limit - least) / budget._CELLS
    assert damage <= least_damage(options, max(lower, least))


def test_what_rounding_leaves_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_CELLS", 2)
    options = named([[(0, 9), (3, 1)], [(0, 5), (2, 0)], [(0, 1), (0.5, 0)]])
    assert choose(options, 5.25) == {"layer0": 1, "layer1": 1, "layer2": 0}


def test_order_of_options_and_worse_ones_do_not_matter() -> None:
    options = {"a": [Option(None, 9, 0), Option(1, 1, 5), Option(2, 4, 7), Option(3, 4, 2)]}
    assert choose(options, 9) == {"a": None}
    assert choose(options, 8.5) == {"a": 3}
    assert choose(options, 3) == {"a": 1}
    assert choose({}, 0) == {}


def test_a_network_of_large_costs_is_settled() -> None:
    rows: Any = [[(m * (900_001 + 7 * n), 1 / m**2 / (n + 1)) for m in range(1, 11)] for n in range(40)]
    options = named(rows)
    limit = 5 * sum(row[0][0] for row in rows)
    cost, _ = totals(options, choose(options, limit))
    assert 0.99 * limit <= cost <= limit


@pytest.mark.parametrize(
    ("rows", "limit", "sentence"),
    [
        ([[(2, 0)], [(4, 1), (3, 2)]], 4.5, "the limit must be at least 5, every layer at its cheapest, got limit=4.5"),
        ([[(2, 0)]], float("nan"), "got limit=nan"),
        ([[]], 1, "layer0 must have options"),
        ([[(float("inf"), 0)]], 1, "layer0 must have options with finite cost and damage"),
    ],
)
def test_what_cannot_be_is_told(rows: Any, limit: float, sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        choose(named(rows), limit)
