"""Steps on bytes: the numpy executor against loops over whole numbers, and what of them is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from byte_plans import in_bytes, plainly
from lean_plans import OPERATIONS, Builder, grow, mobilenet, plans
from leanconv.errors import Error
from leanconv.runtime import file
from leanconv.runtime.checking import check
from leanconv.runtime.kinds import TYPES
from leanconv.runtime.memory import place
from leanconv.runtime.plan import Plan, Quant, Step, Value, Window
from leanconv.runtime.reference import Reference

Tensors = dict[str, NDArray[Any]]
WORDS = {np.dtype(name): word for word, (name, _) in TYPES.items()}


def checked(plan: Plan, tensors: Tensors) -> None:
    types = {name: WORDS[tensor.dtype] for name, tensor in tensors.items()}
    check(plan, {name: tensor.shape for name, tensor in tensors.items()}, types)


def batch(plan: Plan, n: int, seed: int = 0) -> NDArray[np.float32]:
    shape = (n, *plan.values[plan.input].shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class Watched(Reference):
    """Compares every step on bytes with the plain one."""

    compared = 0

    def _step(self, step: Step, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        y = super()._step(step, inputs)
        quants, made = [self._quant(number) for number in step.inputs], self._quant(step.output)
        if step.op != "block" and (any(quants) or made):
            own = {role: self._tensors[name] for role, name in step.tensors.items()}
            for image in range(len(y)):
                shape = self.plan.values[step.output].shape
                wanted = plainly(step, [x[image] for x in inputs], own, quants, made, shape)
                np.testing.assert_array_equal(y[image], wanted, step.op)
            self.compared += 1
        return y


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in ("affine", "softmax")])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_operation(operation: str, data: st.DataObject) -> None:
    sides = st.integers(1, 6)
    builder = Builder((data.draw(sides), data.draw(sides), data.draw(st.integers(1, 6))), data.draw(st.integers(0, 99)))
    draw: Any = data.draw
    grow(draw, builder, 0, operation)
    plan, tensors = in_bytes(builder.plan(), builder.tensors, data.draw(st.integers(0, 99)), floats=0)
    checked(plan, tensors)
    watched = Watched(plan, tensors)
    y = watched.run(batch(plan, data.draw(st.integers(1, 2))))
    assert watched.compared >= sum(step.op != "affine" and bool(step.tensors) for step in plan.steps)
    assert y.dtype == np.float32


@settings(max_examples=25, deadline=None)
@given(plans(), st.integers(0, 99))
def test_random_plans(made: tuple[Plan, Tensors], seed: int) -> None:
    plan, tensors = in_bytes(*made, seed)
    checked(plan, tensors)
    Watched(plan, tensors).run(batch(plan, 1))


def test_bytes_come_near_to_floats() -> None:
    made = mobilenet(0.25, 32, 10)
    plan, tensors = in_bytes(*made, floats=0)
    x = batch(plan, 4)
    exact, ours = Reference(*made).run(x), Reference(plan, tensors).run(x)
    assert np.linalg.norm(ours - exact) < 0.25 * np.linalg.norm(exact)
    assert plan.memory < made[0].memory / 3


@settings(max_examples=25, deadline=None)
@given(plans(), st.integers(0, 99))
def test_a_file_gives_back_what_was_written(tmp_path_factory: Any, made: tuple[Plan, Tensors], seed: int) -> None:
    plan, tensors = in_bytes(*made, seed)
    path = tmp_path_factory.mktemp("lean") / "m.lean"
    file.write(path, plan, tensors)
    again, found = file.read(path, verify=True)
    assert again == plan
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_a_file_of_floats_is_what_version_1_reads(tmp_path: Path) -> None:
    made = mobilenet(0.25, 32, 10)
    file.write(tmp_path / "float.lean", *made)
    file.write(tmp_path / "bytes.lean", *in_bytes(*made))
    assert b'"format_version":"1"' in (tmp_path / "float.lean").read_bytes()[:65536]
    assert b'"format_version":"2"' in (tmp_path / "bytes.lean").read_bytes()[:65536]
    assert (tmp_path / "bytes.lean").stat().st_size < 0.5 * (tmp_path / "float.lean").stat().st_size


def convolution() -> tuple[Plan, Tensors]:
    """quantize, conv, dequantize."""
    quants = (None, Quant(0.5, 3), Quant(0.25, 7), None)
    values = tuple(Value((2, 2, 3), None, quant) for quant in quants)
    names = {"weight": "w", "scale": "s", "bias": "b"}
    steps = (Step("quantize", (0,), 1), Step("conv", (1,), 2, tensors=names), Step("dequantize", (2,), 3))
    placed, memory = place(values, steps, 0, 3)
    tensors: Tensors = {
        "w": np.ones((3, 1, 1, 3), np.int8),
        "s": np.ones(3, np.float32),
        "b": np.zeros(3, np.int32),
    }
    return Plan(placed, steps, 0, 3, memory), tensors


def with_value(plan: Plan, number: int, **fields: Any) -> Plan:
    values = list(plan.values)
    values[number] = replace(values[number], **fields)
    return replace(plan, values=tuple(values))


def with_step(plan: Plan, number: int, **fields: Any) -> Plan:
    steps = list(plan.steps)
    steps[number] = replace(steps[number], **fields)
    return replace(plan, steps=tuple(steps))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: with_value(p, 1, quant=Quant(0.0, 3)), "a scale must be a float32 from 1e-30 to 1e30, got 0.0"),
        (lambda p: with_value(p, 1, quant=Quant(0.1, 3)), "a scale must be a float32 from 1e-30 to 1e30, got 0.1"),
        (lambda p: with_value(p, 1, quant=Quant(1e31, 3)), "a scale must be a float32"),
        (lambda p: with_value(p, 1, quant=Quant(0.5, 256)), "a zero must be a byte, 0 to 255, got 256"),
        (lambda p: with_value(p, 0, quant=Quant(0.5, 0)), "input and output must be float32, got bytes of value 0"),
        (lambda p: with_value(p, 3, quant=Quant(0.5, 0)), "input and output must be float32, got bytes of value 3"),
        (lambda p: with_value(p, 1, quant=None), "it must stand between floats and bytes"),
        (lambda p: with_value(p, 2, quant=None), "it must stand between floats and bytes"),
        (lambda p: with_step(p, 1, op="max_pool", tensors={}), "the scale and zero of its input"),
        (lambda p: with_step(p, 1, op="softmax", tensors={}), "its input must be float32, got bytes"),
        (lambda p: with_step(p, 0, act="relu"), "act must be none, got relu"),
        (
            lambda p: with_step(p, 1, tensors={"weight": "w", "bias": "b"}),
            "weight must be of type F32|scale must be there",
        ),
    ],
)
def test_plans_that_do_not_hold(change: Any, words: str) -> None:
    plan, tensors = convolution()
    checked(plan, tensors)
    with pytest.raises(Error, match=words):
        checked(change(plan), tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("w", np.ones((3, 1, 1, 3), np.float32), "weight must be of type I8 here, got F32"),
        ("b", np.ones(3, np.float32), "bias must be of type I32 here, got F32"),
        ("s", np.ones(3, np.int32), "scale must be of type F32 here, got I32"),
        ("s", np.ones(2, np.float32), "scale must have the shape"),
    ],
)
def test_tensors_of_another_type(name: str, tensor: NDArray[Any], words: str) -> None:
    plan, tensors = convolution()
    with pytest.raises(Error, match=words):
        checked(plan, {**tensors, name: tensor})


def test_sums_that_could_overflow() -> None:
    plan, tensors = convolution()
    Reference(plan, tensors)
    with pytest.raises(Error, match=r"sums must stay below 2\^31"):
        Reference(plan, {**tensors, "b": np.full(3, 2**31 - 1, np.int32)})
    with pytest.raises(Error, match=r"by their factors must stay below 2\^30"):
        Reference(plan, {**tensors, "s": np.full(3, 1e12, np.float32)})
    far = with_step(with_value(plan, 2, quant=Quant(2.0**-25, 7)), 1, op="activation", tensors={})
    with pytest.raises(Error, match=r"within a factor of 2\^20"):
        Reference(far, {})
    with pytest.raises(Error, match=r"scales of weights must be 0 to 1e30, got -1.0"):
        Reference(plan, {**tensors, "s": np.full(3, -1, np.float32)})


def test_numbers_beyond_the_range_are_clipped_and_no_number_is_the_least() -> None:
    quants = (None, Quant(0.5, 3), None)
    values = tuple(Value((1, 1, 7), None, quant) for quant in quants)
    steps = (Step("quantize", (0,), 1), Step("dequantize", (1,), 2))
    placed, memory = place(values, steps, 0, 2)
    x = np.array([0, 0.24, 0.26, 1e30, -np.inf, np.nan, 0.25], np.float32)
    y = Reference(Plan(placed, steps, 0, 2, memory), {}).run(x[None, None, None])
    assert y.ravel().tolist() == [0, 0, 0.5, 126, -1.5, -1.5, 0]


def test_the_first_convolution_by_hand() -> None:
    """x = 1.5 is byte 6 of scale 0.5 and zero 3; three of them, weights 1: 4.5, which is byte 7 + 18."""
    plan, tensors = convolution()
    y = Reference(plan, tensors).run(np.full((1, 2, 2, 3), 1.5, np.float32))
    assert np.unique(y).tolist() == [4.5]


def test_padding_is_zero_and_not_the_byte_zero() -> None:
    quants = (None, Quant(1.0, 100), None)
    values = (Value((1, 1, 1)), Value((1, 1, 1), None, quants[1]), Value((1, 1, 1)))
    window = Window((3, 3), padding=(1, 1, 1, 1))
    names = {"weight": "w", "scale": "s", "bias": "b"}
    steps = (Step("quantize", (0,), 1), Step("depthwise", (1,), 2, tensors=names, window=window))
    placed, memory = place(values, steps, 0, 2)
    tensors: Tensors = {"w": np.full((3, 3, 1), 2, np.int8), "s": np.ones(1, np.float32), "b": np.zeros(1, np.int32)}
    assert Reference(Plan(placed, steps, 0, 2, memory), tensors).run(np.full((1, 1, 1, 1), 5, np.float32)).item() == 10
