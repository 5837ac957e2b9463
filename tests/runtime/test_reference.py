"""The numpy executor against torch's functional operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lean_plans import OPERATIONS, Builder, Tensors, allowed, by_torch, grow, plans
from leanconv.runtime.plan import ACTIVATIONS, Plan, Step, Value, Window
from leanconv.runtime.reference import Reference


def batch(plan: Plan, n: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (n, *plan.values[plan.input].shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def agrees(plan: Plan, tensors: Tensors, x: NDArray[np.float32]) -> None:
    ours = Reference(plan, tensors).run(x)
    exact = by_torch(plan, tensors, x, torch.float64)
    assert (ours.shape, ours.dtype) == (exact.shape, np.float32)
    assert np.abs(ours - exact).max() <= allowed(plan, tensors, x)
    double = Reference(plan, tensors, np.float64).run(x)
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, exact, rtol=1e-10, atol=1e-12 * np.abs(exact).max() + 1e-300)


@pytest.mark.parametrize("operation", OPERATIONS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_every_operation(operation: str, data: st.DataObject) -> None:
    sides = st.integers(1, 9)
    shape = (data.draw(sides), data.draw(sides), data.draw(st.integers(1, 12)))
    builder = Builder(shape, data.draw(st.integers(0, 99)))
    draw: Any = data.draw
    grow(draw, builder, 0, operation)
    plan = builder.plan()
    agrees(plan, builder.tensors, batch(plan, data.draw(st.integers(1, 3))))


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(1, 3))
def test_random_plans(made: tuple[Plan, Tensors], n: int) -> None:
    agrees(*made, batch(made[0], n))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations_at_the_edges(act: str) -> None:
    """Infinities and NaNs go where torch sends them, and numpy raises no warning."""
    x = np.array(
        [0, -0.0, 3, -3, 6, 6.0001, 1e-30, 88, -88, 1e4, -1e4, 3e38, -3e38, np.inf, -np.inf, np.nan], np.float32
    )
    plan = Plan((Value((1, 1, len(x))),) * 2, (Step("activation", (0,), 1, act),), 0, 1, 0)
    ours = Reference(plan, {}).run(x[None, None, None])
    np.testing.assert_allclose(ours, by_torch(plan, {}, x[None, None, None], torch.float32), rtol=4e-7, atol=1e-37)


def test_a_window_of_padding_alone_gives_minus_infinity_as_in_torch() -> None:
    window = Window((2, 2), (1, 1), (1, 1, 1, 1), (2, 2))
    plan = Plan((Value((1, 1, 1)),) * 2, (Step("max_pool", (0,), 1, window=window),), 0, 1, 0)
    x = np.ones((1, 1, 1, 1), np.float32)
    assert Reference(plan, {}).run(x).item() == by_torch(plan, {}, x, torch.float32).item() == -np.inf


def test_what_is_no_longer_read_is_let_go() -> None:
    builder = Builder((64, 64, 64))
    x = 0
    for _ in range(8):
        x = builder.add("activation", x, act="relu")
    plan = builder.plan()
    import tracemalloc

    x0 = batch(plan, 1)
    runner = Reference(plan, builder.tensors)
    tracemalloc.start()
    runner.run(x0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * x0.nbytes
