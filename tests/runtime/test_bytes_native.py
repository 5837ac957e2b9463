"""Products over bytes, alone and in blocks, on every native way that there is: numpy's bits."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byte_plans import in_bytes
from leanconv import _native
from leanconv.errors import Error
from leanconv.runtime.compiled import Compiled
from leanconv.runtime.plan import BOUNDED, Plan, Quant, Step, Value, Window
from leanconv.runtime.reference import Reference
from plain_runtime import Writer

LIBRARY = _native.load()
if LIBRARY is None:
    pytest.skip("there is no native library", allow_module_level=True)
PATHS = tuple(LIBRARY.paths)

# Around four bytes, tiles of 64 bytes and vectors of every size.
INPUTS = (1, 3, 4, 5, 8, 16, 24, 31, 32, 60, 64, 65, 68, 96, 130, 192, 260)
OUTPUTS = (1, 3, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 40, 48, 64, 70)
SIDES = st.sampled_from((1, 2, 3, 5, 7, 9, 14))


def holds(writer: Writer, draw: Any, bits: bool = True) -> None:
    """The same bits as numpy; else, of a plan whose last step is curved, within one step of its byte."""
    plan, tensors = in_bytes(writer.plan(), writer.tensors, draw(st.integers(0, 2**16)), 0.0)
    threads, images = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    x = np.random.default_rng(images).standard_normal((images, *plan.values[0].shape)).astype(np.float32)
    wanted = Reference(plan, tensors).run(x)
    steps = [value.quant.scale for value in plan.values if value.quant]
    apart = 0.0 if bits else 1.001 * max(steps) + 2e-6 * float(np.abs(wanted).max())
    for path in PATHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LEANCONV_INT8", path)
            compiled = Compiled(plan, tensors, threads)
            np.testing.assert_allclose(compiled.run(x), wanted, 0, apart, err_msg=path)
            np.testing.assert_array_equal(compiled.run(x[:1]), compiled.run(x)[:1], path)


def windows(draw: Any, shape: tuple[int, ...]) -> Window:
    if draw(st.booleans()):
        return Window()
    size = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 2))))
    pads = [(draw(st.integers(0, k)), draw(st.integers(0, k))) for k in size]
    for axis in (0, 1):  # enough of it
        short = (size[axis] - 1) * dilation[axis] + 1 - shape[axis] - sum(pads[axis])
        pads[axis] = (pads[axis][0] + max(0, short), pads[axis][1])
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Window(size, stride, (pads[0][0], pads[1][0], pads[0][1], pads[1][1]), dilation)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_convolutions(data: st.DataObject) -> None:
    draw: Any = data.draw
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    channels, out = groups * draw(st.sampled_from(INPUTS)), groups * draw(st.sampled_from(OUTPUTS))
    writer = Writer((draw(SIDES), draw(SIDES), channels), draw(st.integers(0, 99)))
    window, act = windows(draw, writer.values[0].shape), st.sampled_from(BOUNDED)
    x = writer.add("conv", 0, out, window, groups=groups, act=draw(act))
    if draw(st.booleans()):  # another is added, of the same shape
        x = writer.add("conv", 0, out, window, groups=groups, act=draw(act), more=(x,))
    if draw(st.booleans()):  # else the last one makes floats
        writer.add("activation", x, act=draw(act))
    holds(writer, draw)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_curved_activations(data: st.DataObject) -> None:
    draw: Any = data.draw
    writer = Writer((draw(SIDES), 5, draw(st.sampled_from(INPUTS))))
    out, act = draw(st.sampled_from(OUTPUTS)), draw(st.sampled_from(("hardswish", "silu", "sigmoid", "hardsigmoid")))
    before = (writer.add("conv", 0, out),) if draw(st.booleans()) else ()
    x = writer.add("conv", 0, out, act=act, more=before)
    if draw(st.booleans()):
        writer.add("activation", x)
    holds(writer, draw, bits=False)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_linear(data: st.DataObject) -> None:
    draw: Any = data.draw
    writer = Writer((draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from(INPUTS))))
    x = writer.add("linear", 0, draw(st.sampled_from(OUTPUTS)), act=draw(st.sampled_from(BOUNDED)))
    if draw(st.booleans()):
        writer.add("activation", x)
    holds(writer, draw)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_blocks(data: st.DataObject) -> None:
    """Depthwise and 1x1, with and without a 1x1 before, with and without the input added."""
    draw: Any = data.draw
    channels, out = draw(st.sampled_from(INPUTS)), draw(st.sampled_from(OUTPUTS))
    writer = Writer((draw(SIDES), draw(SIDES), channels), draw(st.integers(0, 99)))
    acts, expands, added = st.sampled_from(BOUNDED), draw(st.booleans()), draw(st.booleans())
    kernel, stride = draw(st.sampled_from((3, 5))), 1 if added else draw(st.integers(1, 2))
    window = Window((kernel, kernel), (stride, stride), (kernel // 2,) * 4)
    middle = draw(st.sampled_from((5, 16, 40, 64, 72))) if expands else channels
    made = tuple(draw(acts) for _ in range(3 if expands else 2))
    x = writer.block(0, middle, channels if added else out, window, made, (0,) if added else ())
    if draw(st.booleans()):
        writer.add("activation", x, act=draw(acts))
    holds(writer, draw)


@pytest.mark.parametrize("path", PATHS)
def test_the_largest_sums_are_exact(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All products at their largest: what multiplies with 16 bits between would saturate."""
    monkeypatch.setenv("LEANCONV_INT8", path)
    for weight, zero in ((-128, 0), (127, 0), (-128, 255), (127, 255)):
        values = (Value((4, 5, 1024)), Value((4, 5, 1024), 0, Quant(1.0, zero)), Value((4, 5, 33)))
        steps = (
            Step("quantize", (0,), 1),
            Step("conv", (1,), 2, tensors={"weight": "w", "bias": "b", "scale": "s"}),
        )
        tensors = {
            "w": np.full((33, 1, 1, 1024), weight, np.int8),
            "b": np.full(33, 2**20, np.int32),
            "s": np.ones(33, np.float32),
        }
        x = np.full((1, 4, 5, 1024), 255.0 if zero == 0 else -255.0, np.float32)
        y = Compiled(Plan(values, steps, 0, 2, 5120), tensors, 1).run(x)
        assert np.all(y == np.float32(2**20 + int(x[0, 0, 0, 0]) * weight * 1024))


def test_the_way_can_be_asked_and_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEANCONV_INT8", raising=False)
    assert PATHS[0] == "scalar"
    monkeypatch.setenv("LEANCONV_ISA", "scalar")
    assert _native.int8() == "scalar"
    for path in PATHS:
        monkeypatch.setenv("LEANCONV_INT8", path)
        assert _native.int8() == path
    monkeypatch.setenv("LEANCONV_INT8", "mmx")
    with pytest.raises(Error, match=r"^LEANCONV_INT8: must be one of scalar, avx2, .*, got 'mmx'$"):
        _native.int8()


def conv() -> tuple[Plan, dict[str, np.ndarray]]:
    writer = Writer((5, 6, 7))
    writer.add("conv", 0, 9, Window((3, 3), (1, 1), (1, 1, 1, 1)))
    x = writer.add("depthwise", 1, window=Window((3, 3), (1, 1), (1, 1, 1, 1)))
    writer.add("mean", writer.add("conv", x, 5))
    return in_bytes(writer.plan(), writer.tensors, 0, 0.0)


def refused(plan: Plan, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(Error):
        Compiled(plan, tensors, 1)


def with_quant(plan: Plan, number: int, quant: Quant | None) -> Plan:
    values = list(plan.values)
    values[number] = replace(values[number], quant=quant)
    return replace(plan, values=tuple(values))


def test_what_does_not_hold_is_refused() -> None:
    """The native library checks for itself: nothing before it does here."""
    plan, tensors = conv()
    Compiled(plan, tensors, 1)
    quantised = [number for number, value in enumerate(plan.values) if value.quant]
    first = next(step for step in plan.steps if step.op == "conv")
    for quant in (
        Quant(1e-31, 0),
        Quant(1e31, 0),
        Quant(float("nan"), 0),
        Quant(float("inf"), 0),
        Quant(1.0, 256),
        Quant(1.0, -1),
    ):
        refused(with_quant(plan, quantised[1], quant), tensors)
    refused(with_quant(plan, plan.input, Quant(1.0, 0)), tensors)
    refused(with_quant(plan, plan.output, Quant(1.0, 0)), tensors)
    refused(with_quant(plan, first.output, Quant(1e-30, 0)), tensors)  # sums in units of that leave 30 bits
    for role, value in (("bias", 2**31 - 1), ("bias", -(2**31)), ("scale", np.nan), ("scale", -1.0), ("scale", np.inf)):
        name = first.tensors[role]
        refused(plan, tensors | {name: np.full_like(tensors[name], value)})
    for role in ("weight", "bias", "scale"):
        name = first.tensors[role]
        refused(plan, tensors | {name: tensors[name].astype(np.float64)})
        refused(plan, tensors | {name: tensors[name][:-1]})


@pytest.mark.skipif("amx" not in PATHS, reason="no AMX")
def test_tiles_after_a_small_signal_stack() -> None:
    """Where the system does not let tiles be, another way is taken, or they work."""
    code = (
        "import faulthandler; faulthandler.enable(); import leanconv._native as n;"
        "assert n.int8() in n.load().paths; print(n.int8())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_way_that_the_library_lacks_is_refused() -> None:
    plan = _native.structures.Plan(ctypes.sizeof(_native.structures.Plan), LIBRARY.number(None))
    made = ctypes.c_void_p()
    plan.path, plan.values_count, plan.steps_count, plan.threads = 99, 1, 1, 1
    assert LIBRARY.handle.lc_engine_new(ctypes.byref(plan), ctypes.byref(made)) == 2
