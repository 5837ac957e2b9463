"""Plans run by native code: every operation against float64, on every instruction set, at several thread counts."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from leanconv import _native
from leanconv.errors import Error
from leanconv.runtime.compiled import Compiled
from leanconv.runtime.plan import Value, Window
from plain_runtime import ACTS, Writer, run_plainly

LIBRARY = _native.load()
if LIBRARY is None:
    pytest.skip("there is no native library", allow_module_level=True)


@pytest.fixture(params=LIBRARY.isas)
def isa(request, monkeypatch):
    monkeypatch.setenv("LEANCONV_ISA", request.param)
    return request.param


def check(writer, images=2, threads=(1, 3), tolerance=1e-5, plan=None):
    """The same bits at any number of threads, near those of float64, for other sizes of batches too."""
    plan = plan or writer.plan()
    batch = writer.random.standard_normal((images, *writer.values[0].shape)).astype(np.float32)
    wanted = run_plainly(plan, writer.tensors, batch)
    first = None
    for count in threads:
        compiled = Compiled(plan, writer.tensors, count)
        got = compiled.run(batch)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, atol=tolerance * max(1, np.abs(wanted).max()), rtol=0)
        first = got if first is None else first
        np.testing.assert_array_equal(got, first)
        np.testing.assert_array_equal(compiled.run(batch[:1]), first[:1])
        np.testing.assert_array_equal(compiled.run(batch), first)
        assert len(compiled.times()) == len(plan.steps)


def square(kernel, stride=1, padding=None, dilation=1):
    padding = dilation * (kernel - 1) // 2 if padding is None else padding
    return Window((kernel, kernel), (stride, stride), (padding,) * 4, (dilation, dilation))


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("channels", [3, 40])
def test_every_activation(isa, act, channels):
    writer = Writer((5, 6, channels))
    x = writer.add("activation", 0, act=act)
    x = writer.add("conv", x, 19, act=act)
    x = writer.add("depthwise", x, window=square(3), act=act)
    writer.add("affine", x, act=act)
    check(writer)


CONVOLUTIONS = [
    ((6, 5, 3), 8, square(3, 2), 1),
    ((17, 19, 3), 33, square(3, 2), 1),
    ((9, 9, 16), 24, square(3), 1),
    ((7, 7, 256), 64, square(3), 1),
    ((14, 9, 20), 40, square(1, 2), 1),
    ((8, 8, 12), 6, square(3), 3),
    ((8, 8, 64), 64, square(3), 4),
    ((11, 30, 5), 7, Window((5, 3), (2, 1), (2, 0, 1, 1), (1, 2)), 1),
    ((4, 4, 6), 9, square(4, padding=0), 1),
    ((3, 3, 4), 5, Window((2, 2), (3, 3), (5, 4, 3, 6)), 1),
    ((1, 1, 37), 70, Window(), 1),
    ((5, 3, 512), 48, Window(), 1),
    ((5, 30, 24), 16, Window(), 2),
    ((3, 2, 1), 1, Window(), 1),
]


@pytest.mark.parametrize(("shape", "out", "window", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("added", [False, True])
def test_convolutions(isa, shape, out, window, groups, added):
    writer = Writer(shape)
    x = writer.add("conv", 0, out, window, groups=groups)
    if added:
        y = writer.add("activation", x, act="hardswish")
        writer.steps.append(writer.part("conv", 0, out, window, groups=groups, act="relu6", more=(y,)))
    check(writer)


DEPTHWISE = [
    *(((9, 8 + k, 40), 1, square(k, s)) for k in (3, 5, 7) for s in (1, 2)),
    ((6, 23, 33), 1, square(3, dilation=2)),
    ((9, 9, 17), 1, square(4, padding=0)),
    ((9, 9, 17), 1, square(3, 3)),
    ((5, 6, 16), 1, Window((1, 9), (1, 1), (0, 4, 0, 4))),
    ((5, 3, 6), 1, square(3)),
    ((7, 7, 9), 2, square(3)),
    ((7, 7, 40), 3, square(5, 2)),
    ((2, 2, 20), 1, square(5)),
    *(((6, 11, channels), 1, square(2 + channels % 6, 1 + channels % 3)) for channels in range(1, 16)),
    *(
        ((11, 19, channels), 1, square(size, stride))
        for channels in (3, 8, 13)
        for size in (3, 5, 7)
        for stride in (1, 2)
    ),
]


@pytest.mark.parametrize(("shape", "multiplier", "window"), DEPTHWISE)
def test_depthwise(isa, shape, multiplier, window):
    writer = Writer(shape)
    writer.add("depthwise", 0, shape[2] * multiplier, window, act="relu")
    check(writer)


BLOCKS = [
    ((9, 9, 24), 24, 40, square(3)),
    ((7, 7, 256), 256, 64, square(3)),
    ((14, 14, 32), 32, 96, square(3, 2)),
    ((30, 15, 5), 10, 3, square(5, 2)),
    ((6, 40, 17), 17, 33, square(3, dilation=2)),
    ((4, 5, 8), 8, 8, Window((2, 3), (3, 1), (1, 0, 2, 1))),
]


@pytest.mark.parametrize(("shape", "middle", "out", "window"), BLOCKS)
@pytest.mark.parametrize("act", ["relu6", "silu"])
def test_blocks_of_two(isa, shape, middle, out, window, act):
    writer = Writer(shape)
    writer.block(0, middle, out, window, (act, act))
    check(writer, images=3)


@pytest.mark.parametrize(
    ("shape", "middle", "out", "window"),
    [
        ((20, 20, 8), 48, 16, square(3, 2)),
        ((14, 14, 24), 144, 24, square(3)),
        ((7, 7, 20), 256, 20, square(5)),
        ((40, 6, 3), 17, 5, square(3, 3)),
        ((33, 9, 16), 40, 10, square(3, dilation=3)),
        ((16, 5, 8), 20, 7, Window((2, 2), (4, 1), (0, 1, 0, 0))),
    ],
)
@pytest.mark.parametrize("images", [1, 4])
def test_inverted_residuals(isa, shape, middle, out, window, images):
    writer = Writer(shape)
    added = out == shape[2]
    x = writer.block(0, middle, out, window, ("relu6", "hardswish", "none"), more=(0,) if added else ())
    writer.add("activation", x)
    check(writer, images, threads=(1, 2, 3))


def test_the_depthwise_layer_of_a_block_may_multiply(isa):
    writer = Writer((9, 6, 5))
    parts = [writer.part("conv", 0, 20, act="relu")]
    parts.append(writer.part("depthwise", parts[0].output, 60, square(3)))
    parts.append(writer.part("conv", parts[1].output, 9))
    writer.steps.append(replace(parts[2], op="block", inputs=(0,), tensors={}, parts=tuple(parts)))
    check(writer)


@pytest.mark.parametrize("shape", [(1, 1, 70), (3, 5, 7)])
@pytest.mark.parametrize("images", [1, 2, 37])
def test_linear(isa, shape, images):
    writer = Writer(shape)
    x = writer.add("linear", 0, 35, act="relu")
    writer.add("linear", x, 35, more=(x,))
    check(writer, images)


@pytest.mark.parametrize("channels", [5, 32, 40])
def test_pooling_and_the_rest(isa, channels):
    writer = Writer((11, 8, channels))
    a = writer.add("max_pool", 0, window=square(3, 2))
    b = writer.add("avg_pool", 0, window=Window((3, 3), (2, 2), (1, 1, 1, 1)))
    c = writer.add("avg_pool", 0, window=Window((3, 3), (2, 2), (1, 1, 1, 1)), count_padding=False, act="relu")
    d = writer.add("max_pool", 0, window=Window((2, 3), (2, 2), (1, 2, 0, 1), (1, 2)))
    x = writer.add("concat", a, more=(b, c, d), act="hardswish")
    mean = writer.add("mean", x, act="sigmoid")
    flat = writer.add("mean", mean, act="relu")
    scaled = writer.add("multiply", mean, more=(flat,))
    x = writer.add("affine", x, act="relu6")
    writer.values.append(Value(writer.values[x].shape))
    writer.steps.append(replace(writer.part("multiply", x, more=(scaled,)), act="silu"))
    writer.add("softmax", writer.steps[-1].output)
    check(writer, images=3)


@pytest.mark.parametrize("op", ["add", "multiply"])
@pytest.mark.parametrize("spread", [(4, 6, 18), (1, 1, 18), (4, 6, 1), (1, 1, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_two_values(isa, op, spread, first):
    writer = Writer((4, 6, 18))
    window = Window((4, 6)) if spread[0] == 1 else Window()
    other = writer.add("conv", 0, spread[2], window)
    x = writer.add("activation", 0, act="relu")
    step = writer.part(op, x, more=(other,), act="hardsigmoid")
    writer.steps.append(replace(step, inputs=step.inputs[::-1]) if first else step)
    check(writer)


def small_network():
    writer = Writer((16, 16, 3))
    x = writer.add("conv", 0, 16, square(3, 2), act="relu6")
    x = writer.block(x, 16, 24, square(3), ("relu6", "relu6"))
    x = writer.block(x, 96, 24, square(3), ("relu6", "relu6", "none"), more=(x,))
    x = writer.add("mean", x)
    writer.add("linear", x, 10)
    return writer


@pytest.mark.parametrize("first", [square(3, 2), Window((4, 3), (2, 2), (0, 1, 0, 1), (1, 2)), square(1, 2, 0)])
def test_large_maps_that_run_row_by_row(isa, first):
    writer = Writer((130, 118, 3))
    x = writer.add("conv", 0, 32, first, act="silu")
    x = writer.block(x, 32, 33, square(3), ("relu6", "relu"))
    x = writer.add("depthwise", x, window=square(5), act="hardswish")
    x = writer.add("conv", x, 32, act="none")
    x = writer.block(x, 40, 16, square(3, 2), ("relu6", "relu6", "none"))
    writer.block(x, 32, 16, square(3), ("relu6", "relu6", "none"), more=(x,))
    check(writer, images=3, threads=(1, 2, 3))


def test_a_result_may_lie_where_the_input_of_the_step_before_was(isa):
    writer = Writer((60, 60, 28))
    x = writer.add("activation", 0)
    y = writer.block(x, 28, 32, square(3), ("relu6", "relu6"))
    z = writer.block(y, 32, 64, square(3), ("relu6", "relu6"))
    writer.add("activation", z)
    size = 60 * 60 * 64
    places = {x: 0, y: size, z: 0}
    values = [replace(value, offset=places.get(i)) for i, value in enumerate(writer.values)]
    plan = replace(writer.plan(), values=tuple(values), memory=size + 60 * 60 * 32)
    check(writer, images=2, threads=(1, 2, 3), plan=plan)


@pytest.mark.parametrize("threads", [1, 2, 5, 8])
def test_a_network(isa, threads):
    check(small_network(), images=5, threads=(1, threads))


def test_called_from_many_threads():
    writer = small_network()
    engines = [Compiled(writer.plan(), writer.tensors, 2) for _ in range(2)]
    batches = [writer.random.standard_normal((n, 16, 16, 3)).astype(np.float32) for n in (1, 2, 3, 4)]
    wanted = [engines[0].run(batch) for batch in batches]
    wrong = []

    def call(number):
        for turn in range(20):
            got = engines[(number + turn) % 2].run(batches[number])
            if not np.array_equal(got, wanted[number]):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_works_alone():
    writer = small_network()
    compiled = Compiled(writer.plan(), writer.tensors, 3)
    batch = np.ones((2, 16, 16, 3), np.float32)
    wanted = compiled.run(batch)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(compiled.run(batch), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(compiled.run(batch), wanted)


def test_numbers_that_are_none_pass_and_tiny_ones_vanish():
    writer = Writer((4, 4, 20))
    x = writer.add("conv", 0, 20, act="relu6")
    writer.add("depthwise", x, window=square(1), act="relu")
    batch = np.ones((1, 4, 4, 20), np.float32)
    batch[0, 1, 2, 3] = np.nan
    got = Compiled(writer.plan(), writer.tensors, 1).run(batch)
    assert np.isnan(got[0, 1, 2]).all()
    assert np.isfinite(got[0, 0]).all()
    assert np.float32(1e-38) / np.float32(1e3) > 0  # the caller still has them


BAD = {
    "a shape that does not follow": lambda p: change(p, 1, values=Value((8, 8, 17), 0)),
    "a place outside of the arena": lambda p: change(p, 1, values=Value((8, 8, 16), p.memory)),
    "a place before the arena": lambda p: change(p, 1, values=Value((8, 8, 16), -16)),
    "a place off its alignment": lambda p: change(p, 1, values=Value((8, 8, 16), 8)),
    "no place": lambda p: change(p, 1, values=Value((8, 8, 16))),
    "an absurd shape": lambda p: change(p, 0, values=Value((2**40, 2**40, 3))),
    "no rows": lambda p: change(p, 0, values=Value((0, 16, 3))),
    "an absurd arena": lambda p: replace(p, memory=2**60),
    "an output that nobody makes": lambda p: replace(p, output=2),
    "a value that is not there": lambda p: change(p, 0, steps=replace(p.steps[0], inputs=(99,))),
    "a value that is not made yet": lambda p: change(p, 0, steps=replace(p.steps[0], inputs=(p.steps[1].output,))),
    "no input": lambda p: change(p, 0, steps=replace(p.steps[0], inputs=())),
    "an output upon its input": lambda p: change(p, p.steps[1].output, values=Value((8, 8, 24), 0)),
    "no stride": lambda p: change(p, 0, steps=windowed(p, (0, 2), (1,) * 4)),
    "an absurd stride": lambda p: change(p, 0, steps=windowed(p, (2**62, 2), (1,) * 4)),
    "padding below zero": lambda p: change(p, 0, steps=windowed(p, (2, 2), (-1, 1, 1, 1))),
    "groups that do not divide": lambda p: change(p, 0, steps=replace(p.steps[0], groups=2)),
    "no groups": lambda p: change(p, 0, steps=replace(p.steps[0], groups=0)),
    "parts in another order": lambda p: change(p, 1, steps=replace(p.steps[1], parts=p.steps[1].parts[::-1])),
    "one part": lambda p: change(p, 1, steps=replace(p.steps[1], parts=p.steps[1].parts[:1])),
    "parts of something else": lambda p: change(p, 0, steps=replace(p.steps[0], parts=p.steps[1].parts)),
    "an activation of a block": lambda p: change(p, 1, steps=replace(p.steps[1], act="relu")),
    "an unknown operation": lambda p: change(p, 0, steps=replace(p.steps[0], op="eval")),
    "an unknown activation": lambda p: change(p, 0, steps=replace(p.steps[0], act="tanh")),
    "a tensor too many": lambda p: change(p, 3, steps=replace(p.steps[3], tensors={"weight": "0.weight"})),
    "a tensor that is not there": lambda p: change(p, 0, steps=renamed(p, "?", "?")),
    "a tensor of another size": lambda p: change(p, 0, steps=renamed(p, "1.bias", "1.bias")),
    "a tensor of another shape": lambda p: change(p, 0, steps=renamed(p, "0.weight", "0.weight")),
    "no steps": lambda p: replace(p, steps=()),
    "an output that is the input": lambda p: replace(p, output=0),
    "an input beyond all values": lambda p: replace(p, input=10**30),
    "a number beyond 64 bits": lambda p: replace(p, memory=10**30),
}


def windowed(plan, stride, padding):
    return replace(plan.steps[0], window=Window((3, 3), stride, padding))


def renamed(plan, weight, bias):
    return replace(plan.steps[0], tensors={"weight": weight, "bias": bias})


def change(plan, number, **lists):
    ((name, new),) = lists.items()
    old = getattr(plan, name)
    return replace(plan, **{name: (*old[:number], new, *old[number + 1 :])})


@pytest.mark.parametrize("case", BAD)
def test_bad_plans_are_refused(case):
    writer = small_network()
    with pytest.raises(Error, match=", got "):
        Compiled(BAD[case](writer.plan()), writer.tensors, 2)


def test_bad_tensors_and_batches_are_refused():
    writer = small_network()
    plan, tensors = writer.plan(), writer.tensors
    with pytest.raises(Error, match=r"must be there in float32, got float64$"):
        Compiled(plan, {name: t.astype(np.float64) for name, t in tensors.items()}, 1)
    for threads in (0, 65):
        with pytest.raises(Error, match=f"threads must be 1 to 64, got {threads}$"):
            Compiled(plan, tensors, threads)
    compiled = Compiled(plan, tensors, 1)
    for bad in (np.ones((16, 16, 3), np.float32), np.ones((0, 16, 16, 3), np.float32), np.ones((1, 16, 16, 3))):
        with pytest.raises(Error, match=r"the batch must be float32 \(N, 16, 16, 3\), got "):
            compiled.run(bad)


def test_without_native_code_there_is_an_error(monkeypatch):
    monkeypatch.setenv("LEANCONV_NATIVE", "0")
    with pytest.raises(Error, match="needs the native library"):
        Compiled(small_network().plan(), small_network().tensors)


def moved(array):
    """The same numbers, one byte off."""
    memory = np.zeros(array.nbytes + 1, np.uint8)
    found = memory[1:].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def test_numbers_that_begin_anywhere_are_copied_first(monkeypatch):
    writer = small_network()
    plan, x = writer.plan(), np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    right = Compiled(plan, writer.tensors, 1).run(x)
    seen = []

    def engine(library, values, steps, *rest, **more):
        seen.extend(address for step in steps for address in (step.weight, step.bias) if address)
        return _native.Engine(library, values, steps, *rest, **more)

    monkeypatch.setattr("leanconv.runtime.compiled._native", _Spied(engine))
    compiled = Compiled(plan, {name: moved(tensor) for name, tensor in writer.tensors.items()}, 1)
    assert seen
    assert all(address % 4 == 0 for address in seen)
    np.testing.assert_array_equal(compiled.run(moved(x)), right)


class _Spied:
    """The native package with another way to make engines."""

    def __init__(self, engine):
        self.Engine = engine

    def __getattr__(self, name):
        return getattr(_native, name)
