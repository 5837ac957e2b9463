"""The arena: no overlap, and as small as can be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from lean_plans import Builder, Tensors, mobilenet, plans
from leanconv.errors import Error
from leanconv.runtime.checking import check
from leanconv.runtime.memory import bound, place
from leanconv.runtime.plan import Plan, Step, Value


@settings(max_examples=100, deadline=None)
@given(plans(most=12))
def test_places_are_sound_and_close_to_the_bound(made: tuple[Plan, Tensors]) -> None:
    plan, tensors = made
    check(plan, {name: tensor.shape for name, tensor in tensors.items()})
    least = bound(plan.values, plan.steps, plan.input, plan.output)
    assert least <= plan.memory <= 1.5 * least


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    plan, _ = mobilenet(blocks=False)
    assert plan.memory == bound(plan.values, plan.steps, plan.input, plan.output)
    assert plan.memory == 112 * 112 * (32 + 64)
    # In blocks the depthwise output is never in memory as a whole.
    assert mobilenet()[0].memory == 112 * 112 * (32 + 64)


def test_places_are_multiples_of_sixteen() -> None:
    builder = Builder((3, 3, 3))
    x = builder.conv(0, 5)
    y = builder.conv(x, 7)
    builder.add("concat", x, y)
    plan = builder.plan()
    assert sorted(value.offset for value in plan.values if value.offset is not None) == [0, 64]
    assert plan.memory == 112


def test_what_is_read_before_it_is_made_is_told() -> None:
    values = [Value((1, 1, 4))] * 3
    with pytest.raises(Error, match="step 0 must read what a step before it makes, got value 1"):
        place(values, [Step("activation", (1,), 2)], 0, 2)
    with pytest.raises(Error, match="step 0 must name one of the 3 values, got 7"):
        place(values, [Step("activation", (0,), 7)], 0, 2)
