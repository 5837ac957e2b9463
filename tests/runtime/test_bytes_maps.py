"""Depthwise convolutions, pooling and the like over bytes, on every native way that there is: numpy's bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from byte_plans import in_bytes
from lean_plans import mobilenet
from leanconv import _native
from leanconv.runtime.compiled import Compiled
from leanconv.runtime.memory import place
from leanconv.runtime.plan import ACTIVATIONS, BOUNDED, Plan, Quant, Step, Value, Window
from leanconv.runtime.reference import Reference
from leanconv.runtime.shapes import output_shape

Tensors = dict[str, NDArray[Any]]
LIBRARY = _native.load()
PATHS = () if LIBRARY is None else tuple(LIBRARY.paths)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no native code")

# Fewer channels than a vector, whole vectors of every size, and what is left of them.
CHANNELS = (1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 64, 65, 80, 96, 100, 127, 128, 144, 160)
ZEROS = st.one_of(st.sampled_from((0, 255)), st.integers(0, 255))


class Bytes:
    """A plan that turns its input into bytes first."""

    def __init__(self, shape: tuple[int, int, int], seed: int, zero: int) -> None:
        self.random = np.random.default_rng(seed)
        self.values, self.steps = [Value(shape)], list[Step]()
        self.tensors: Tensors = {}
        self.x = self.add("quantize", 0, quant=Quant(float(np.float32(self.random.uniform(0.005, 0.1))), zero))

    def quant(self, number: int) -> Quant:
        quant = self.values[number].quant
        assert quant is not None
        return quant

    def like(self, number: int, zero: int, least: float = 0.4) -> Quant:
        """One of about another's range."""
        return Quant(float(np.float32(self.quant(number).scale * self.random.uniform(least, 2.5))), zero)

    def add(self, op: str, *inputs: int, quant: Quant | None, **fields: Any) -> int:
        step = Step(op, inputs, len(self.values), **fields)
        known = {name: tensor.shape for name, tensor in self.tensors.items()}
        shape = output_shape(step, [self.values[number].shape for number in inputs], known)
        self.values.append(Value(shape, None, quant))
        self.steps.append(step)
        return step.output

    def depthwise(self, x: int, window: Window, multiplier: int, quant: Quant | None, act: str) -> int:
        out, area = self.values[x].shape[2] * multiplier, window.size[0] * window.size[1]
        unit = (1.0 if quant is None else quant.scale) / self.quant(x).scale / area**0.5
        self.tensors |= {
            "weight": self.random.integers(-128, 128, (*window.size, out)).astype(np.int8),
            "scale": (unit * self.random.uniform(0.001, 0.02, out)).astype(np.float32),
            "bias": self.random.integers(-30000, 30000, out).astype(np.int32),
        }
        names = {name: name for name in self.tensors}
        return self.add("depthwise", x, quant=quant, act=act, window=window, tensors=names)

    def runs(self, n: int, threads: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], float]]:
        """What native code gives on each way, what numpy does, and how far apart both may be."""
        last = self.steps[-1]
        made, quant = last.output, self.values[last.output].quant
        if quant is not None:
            made = self.add("dequantize", made, quant=None)
        values, memory = place(self.values, self.steps, 0, made)
        plan = Plan(values, tuple(self.steps), 0, made, memory)
        first = self.quant(1)
        q = self.random.integers(-20, 276, (n, *self.values[0].shape))
        x = ((q - first.zero) * first.scale * self.random.uniform(0.99, 1.01, q.shape)).astype(np.float32)
        wanted = Reference(plan, self.tensors).run(x)
        curved = last.act not in BOUNDED
        apart = 0.0 if not curved else 2e-6 * np.abs(wanted).max() if quant is None else 1.001 * quant.scale
        for path in PATHS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LEANCONV_INT8", path)
                yield Compiled(plan, self.tensors, threads).run(x), wanted, float(apart)

    def holds(self, n: int, threads: int) -> None:
        for path, (ours, wanted, apart) in zip(PATHS, self.runs(n, threads), strict=True):
            if apart:
                np.testing.assert_allclose(ours, wanted, 0, apart, err_msg=path)
            else:
                np.testing.assert_array_equal(ours, wanted, path)


def small(draw: st.DrawFn, most: int = 9) -> Bytes:
    sides = st.integers(1, most)
    shape = (draw(sides), draw(sides), draw(st.sampled_from(CHANNELS)))
    return Bytes(shape, draw(st.integers(0, 2**32 - 1)), draw(ZEROS))


def window(draw: st.DrawFn, shape: tuple[int, ...], size: tuple[int, int], stride: int, dilation: int) -> Window:
    """One that fits, with enough padding for it."""
    pads = []
    for n, k in zip(shape, size, strict=False):
        reach = dilation * (k - 1) + 1
        before, after = draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))
        pads.append((before + max(0, reach - n - before - after), after))
    padding = (pads[0][0], pads[1][0], pads[0][1], pads[1][1])
    return Window(size, (stride, stride), padding, (dilation, dilation))


@pytest.mark.parametrize("size", [(3, 3), (5, 5)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_depthwise(size: tuple[int, int], stride: int, data: st.DataObject) -> None:
    draw: Any = data.draw
    plan = small(draw, draw(st.sampled_from((9, 9, 62))))
    act, quant = draw(st.sampled_from(ACTIVATIONS)), plan.like(1, draw(ZEROS))
    plan.depthwise(1, window(draw, plan.values[0].shape, size, stride, 1), 1, draw(st.sampled_from((quant, None))), act)
    plan.holds(draw(st.integers(1, 2)), draw(st.integers(1, 3)))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_depthwise_of_any_window(data: st.DataObject) -> None:
    draw: Any = data.draw
    plan, sides = small(draw), st.integers(1, 8)
    size, stride, dilation = (draw(sides), draw(sides)), draw(st.integers(1, 3)), draw(st.sampled_from((1, 1, 2)))
    act, quant = draw(st.sampled_from(ACTIVATIONS)), plan.like(1, draw(ZEROS))
    multiplier = draw(st.sampled_from((1, 1, 2, 3)))
    made = window(draw, plan.values[0].shape, size, stride, dilation)
    plan.depthwise(1, made, multiplier, draw(st.sampled_from((quant, None))), act)
    plan.holds(draw(st.integers(1, 2)), draw(st.integers(1, 3)))


@pytest.mark.parametrize("stride", [1, 2, 3])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_depthwise_of_few_channels(stride: int, data: st.DataObject) -> None:
    draw: Any = data.draw
    side = st.integers(1, 40)
    shape = (draw(st.integers(1, 12)), draw(side), draw(st.integers(1, 31)))
    plan = Bytes(shape, draw(st.integers(0, 2**32 - 1)), draw(ZEROS))
    size = (draw(st.integers(2, 7)),) * 2 if draw(st.booleans()) else (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    act, quant = draw(st.sampled_from(ACTIVATIONS)), plan.like(1, draw(ZEROS))
    plan.depthwise(
        1,
        window(draw, shape, size, stride, draw(st.sampled_from((1, 1, 2)))),
        1,
        draw(st.sampled_from((quant, None))),
        act,
    )
    plan.holds(draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("stride", [1, 16, 17])
def test_depthwise_of_few_channels_under_a_large_window(size: int, stride: int) -> None:
    plan = Bytes((20, 37, 6), size + stride, 90)
    plan.depthwise(1, Window((size, size), (stride, stride), (3, 4, 5, 6)), 1, plan.like(1, 70), "none")
    plan.holds(2, 2)


@pytest.mark.parametrize("op", ["max_pool", "avg_pool"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_pooling(op: str, data: st.DataObject) -> None:
    draw: Any = data.draw
    plan, sides = small(draw), st.integers(1, 4)
    size = draw(sides), draw(sides)
    greatest = op == "max_pool"
    quant = plan.quant(1) if greatest else draw(st.sampled_from((plan.like(1, draw(ZEROS)), None)))
    fields: dict[str, Any] = {} if greatest else {"count_padding": draw(st.booleans())}
    act = draw(st.sampled_from(tuple(BOUNDED) if greatest else ACTIVATIONS))
    edges = tuple(draw(st.integers(0, k // 2)) for k in (*size, *size))
    shape = plan.values[0].shape
    padding = (edges[0] + size[0], edges[1] + size[1], edges[2], edges[3]) if min(shape[:2]) < 4 else edges
    padding = tuple(min(pad, k - 1) for pad, k in zip(padding, (*size, *size), strict=True))
    if any(n + padding[i] + padding[i + 2] < size[i] for i, n in enumerate(shape[:2])):
        size, padding = (1, 1), (0, 0, 0, 0)
    over = Window(size, (draw(sides), draw(sides)), padding)  # type: ignore[arg-type]
    plan.add(op, 1, quant=quant, act=act, window=over, **fields)
    plan.holds(draw(st.integers(1, 2)), draw(st.integers(1, 3)))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_mean(data: st.DataObject) -> None:
    draw: Any = data.draw
    plan = small(draw, 20)
    quant = draw(st.sampled_from((plan.like(1, draw(ZEROS), 0.02), None)))
    plan.add("mean", 1, quant=quant, act=draw(st.sampled_from(ACTIVATIONS)))
    plan.holds(draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@pytest.mark.parametrize("op", ["add", "multiply"])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_two_operands(op: str, data: st.DataObject) -> None:
    draw: Any = data.draw
    plan = small(draw)
    spread = draw(st.sampled_from(("same", "channels")))
    if spread == "same":
        other = plan.add("quantize", 0, quant=plan.like(1, draw(ZEROS)))
    else:
        other = plan.add("mean", 1, quant=plan.like(1, draw(ZEROS), 0.05))
    quant = plan.like(1, draw(ZEROS))
    plan.add(op, *draw(st.permutations((1, other))), quant=quant, act=draw(st.sampled_from(ACTIVATIONS)))
    plan.holds(draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_concat(data: st.DataObject) -> None:
    draw: Any = data.draw
    plan = small(draw, 5)
    inputs = [1] + [plan.add("quantize", 0, quant=plan.like(1, draw(ZEROS))) for _ in range(draw(st.integers(0, 2)))]
    quant = draw(st.sampled_from((plan.quant(1), plan.like(1, draw(ZEROS)))))
    plan.add("concat", *inputs, quant=quant, act=draw(st.sampled_from(ACTIVATIONS)))
    plan.holds(draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_activation(data: st.DataObject) -> None:
    draw: Any = data.draw
    plan = small(draw, 6)
    plan.add("activation", 1, quant=plan.like(1, draw(ZEROS)), act=draw(st.sampled_from(ACTIVATIONS)))
    plan.holds(draw(st.integers(1, 3)), draw(st.integers(1, 3)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("threads", "n"), [(1, 1), (3, 1), (2, 5)])
def test_a_network(path: str, threads: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, and chains of them, whose rows wait in rings."""
    plan, tensors = in_bytes(*mobilenet(0.5, 64, 10), seed=3, floats=0)
    x = np.random.default_rng(n).standard_normal((n, *plan.values[plan.input].shape)).astype(np.float32)
    monkeypatch.setenv("LEANCONV_INT8", path)
    ours = Compiled(plan, tensors, threads).run(x)
    np.testing.assert_array_equal(ours, Reference(plan, tensors).run(x))


def test_what_is_no_number_is_the_least_byte() -> None:
    plan = Bytes((1, 1, 70), 0, 100)
    made = plan.add("dequantize", 1, quant=None)
    values, memory = place(plan.values, plan.steps, 0, made)
    x = np.full((1, 1, 1, 70), np.nan, np.float32)
    x[..., 1], x[..., 2] = np.inf, -np.inf
    scale = plan.quant(1).scale
    for path in PATHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LEANCONV_INT8", path)
            y = Compiled(Plan(values, tuple(plan.steps), 0, made, memory), {}, 1).run(x).ravel() / scale
        assert y[1] == pytest.approx(155)
        assert np.delete(y, 1) == pytest.approx(-100)
