"""Batch norm with activation in native code: against float64 by the error rule, on every instruction set."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels.norm import ACTIVATIONS, norm_act, norm_act_reference
from leanconv.techniques.batchnorm import BatchNorm1d, BatchNorm2d

LIBRARY = _native.load()
ISAS = LIBRARY.isas if LIBRARY else ()  # none: torch's path alone, in the tests that name no instruction set
LANES = {"scalar": 4, "avx2": 8, "avx512": 16, "neon": 4}
TORCH = {"none": lambda z: z, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu}


@pytest.fixture(params=ISAS)
def isa(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine, one after the other."""
    monkeypatch.setenv("LEANCONV_ISA", request.param)
    return str(request.param)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, last: bool = True) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3
    x = x.to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last and x.dim() > 2 else x


def torchs(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, eps: float, act: str) -> Tensor:
    y: Tensor = TORCH[act](F.batch_norm(x, mean, var, weight, bias, mean is None, 0.0, eps))
    return y


def results(function: Any, tensors: tuple[Tensor, ...], dy: Tensor, given: Any, act: str) -> list[Tensor]:
    """y and the gradients of x, weight and bias."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in tensors)
    y = function(x, weight, bias, *given, 1e-3, act)
    y = y[0] if isinstance(y, tuple) else y
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy.to(y.dtype))]


def by_the_rule(x: Tensor, act: str, frozen: bool = False, seed: int = 1) -> None:
    """max|ours - ref64| <= 2 max|torch - ref64| + 4 eps max|ref64|, of y and of each gradient.

    Gradients are sums whose terms cancel (that of x where a channel has few values): their eps is of the size that a
    sum of such terms has, root of their number times the largest.
    """
    channels = x.shape[1]
    weight, bias = drawn(channels, seed=seed) * 0.3, drawn(channels, seed=seed + 1) - 3
    dy = drawn(*x.shape, dtype=x.dtype, seed=seed + 2) - 3
    given: Any = (drawn(channels, seed=5), drawn(channels, seed=6).abs()) if frozen else (None, None)
    wide = tuple(t.double() for t in (x, weight, bias))
    far = results(norm_act_reference, wide, dy, tuple(None if g is None else g.double() for g in given), act)
    ours = results(norm_act, (x, weight, bias), dy, given, act)
    theirs = results(torchs, (x, weight, bias), dy, given, act)
    over = [d for d in range(x.dim()) if d != 1]
    spread = wide[0].var(over, correction=0) if given[1] is None else given[1].double()
    largest, count = float(dy.abs().max()), x.numel() / channels
    slope = float((wide[1].abs() * (spread + 1e-3).rsqrt()).max())
    normed = float(
        norm_act_reference(wide[0], None, None, *(g if g is None else g.double() for g in given))[0].abs().max()
    )
    total = largest * count**0.5
    sizes = {"y": 0.0, "dx": largest * slope, "dgamma": total * normed, "dbeta": total}
    for name, mine, other, want in zip(("y", "dx", "dgamma", "dbeta"), ours, theirs, far, strict=True):
        assert mine.dtype == other.dtype
        error, allowed = ((t.double() - want).abs().max() for t in (mine, other))
        eps = torch.finfo(torch.float32 if name.startswith("d") and name != "dx" else x.dtype).eps
        scale = max(float(want.abs().max()), sizes[name])
        assert float(error) <= 2 * float(allowed) + 4 * eps * scale, (name, act, tuple(x.shape))


@pytest.mark.source("S8")
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_forward_and_backward_by_the_error_rule(act: str, dtype: torch.dtype, isa: str) -> None:
    lanes = LANES[isa]
    for shape, frozen in product([(8, 5, 3, 3), (6, 2 * lanes + 1, 4, 5), (3, 6 * lanes, 6, 6)], [False, True]):
        by_the_rule(drawn(*shape, dtype=dtype), act, frozen)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(2, 9),
    channels=st.integers(1, 140),
    sides=st.lists(st.integers(1, 7), max_size=3),
    act=st.sampled_from(ACTIVATIONS),
    half=st.booleans(),
    frozen=st.booleans(),
)
def test_any_shape(batch: int, channels: int, sides: list[int], act: str, half: bool, frozen: bool) -> None:
    by_the_rule(drawn(batch, channels, *sides, dtype=torch.bfloat16 if half else torch.float32), act, frozen)


def test_lengths_around_the_vector_and_many_rows(isa: str) -> None:
    lanes = LANES[isa]
    for channels in (1, lanes - 1, lanes, lanes + 1, 4 * lanes - 1, 4 * lanes, 4 * lanes + 1):
        by_the_rule(drawn(7, channels, 3, 3), "relu")
    by_the_rule(drawn(16, 24, 40, 40), "relu")  # several chunks, several pixels in a row
    by_the_rule(drawn(33, 9), "silu")


@pytest.mark.parametrize("act", ["none", "relu"])
def test_a_large_mean_costs_no_digits(act: str, isa: str) -> None:
    noise = torch.randn(16, 20, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    x = (1e4 + noise).float().to(memory_format=torch.channels_last)
    y, mean, var = norm_act(x, eps=1e-5, act=act)
    far = norm_act_reference(x.double(), eps=1e-5, act=act)
    assert float((y.double() - far[0]).abs().max()) < 2e-6 * 5
    assert float((mean.double() - far[1]).abs().max()) <= 1e4 * 2**-24
    torch.testing.assert_close(var.double(), far[2], rtol=1e-6, atol=0)


def test_outliers_do_not_cancel(isa: str) -> None:
    x = torch.randn(64, 16, 4, 4).to(memory_format=torch.channels_last)
    x[0, :, 0, 0] = 1e5  # the value that the first tile is shifted by
    _, _, var = norm_act(x)
    torch.testing.assert_close(var.double(), norm_act_reference(x.double())[2], rtol=1e-6, atol=0)


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    x, before = drawn(16, 48, 30, 30), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(norm_act, (x, torch.ones(48), torch.zeros(48)), x, (None, None), "relu"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_what_is_not_finite_shows_as_in_torch(act: str, value: float, isa: str) -> None:
    x = drawn(4, 6, 3, 3)
    x[1, 2, 0, 1] = value
    for used in ((None, None), (torch.zeros(6), torch.ones(6))):
        ours = norm_act(x, None, None, *used, act=act)[0]
        theirs = torchs(x, None, None, *used, 1e-5, act)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


def test_denormals_are_zero_inside_and_stay_outside(isa: str) -> None:
    x = torch.full((4, 8, 3, 3), 1e-39).to(memory_format=torch.channels_last)
    y, _, _ = norm_act(x, None, None, torch.zeros(8), torch.ones(8), 0.0)
    assert float(y.abs().max()) <= 1.2e-38
    assert float(torch.tensor([1e-39]) * 2) > 0  # the thread's own setting is back


def test_the_steps_where_activations_bend(isa: str) -> None:
    z = torch.tensor([-4.0, -3.0, -2.9999, -0.0, 0.0, 1e-30, 2.9999, 3.0, 5.9999, 6.0, 7.0, 100.0, -100.0, 88.0, -88.0])
    x = z.repeat(16, 1).requires_grad_()
    for act in ACTIVATIONS:
        y = norm_act(x, None, None, torch.zeros(15), torch.ones(15), 0.0, act)[0]
        dx = torch.autograd.grad(y.sum(), x)[0]
        other = TORCH[act](x)
        torch.testing.assert_close(y, other, rtol=2e-6, atol=1e-37)
        torch.testing.assert_close(dx, torch.autograd.grad(other.sum(), x)[0], rtol=2e-6, atol=1e-6)


def test_views_that_overlap_are_offset_or_lie_otherwise(isa: str) -> None:
    whole = drawn(6, 5, 7, 7)
    for x in (
        whole[:, :, 1:-1, 1:-1],
        whole[1::2],
        drawn(6, 5, 7, 7, last=False),
        torch.randn(6, 1, 4, 4).expand(6, 5, 4, 4),
        torch.randn(1 + 6 * 5 * 9)[1:].view(6, 3, 3, 5).movedim(-1, 1),  # not aligned to a vector
    ):
        by_the_rule(x, "relu")


def test_gradients_of_gradients_and_the_reference() -> None:
    x, weight, bias = drawn(5, 3, 2, 2).double(), drawn(3, seed=1).double(), drawn(3, seed=2).double()
    tensors = tuple(t.requires_grad_() for t in (x, weight, bias))
    for act in ("none", "silu"):
        run = lambda *t, act=act: norm_act(*t, None, None, 1e-3, act)[0]  # noqa: E731
        assert torch.autograd.gradcheck(run, tensors)
        assert torch.autograd.gradgradcheck(run, tensors)
    single = tuple(t.detach().float().requires_grad_() for t in tensors)
    loss = lambda f, t: f(*t, None, None, 1e-3, "silu")[0].square().sum()  # noqa: E731
    grads = [torch.autograd.grad(loss(norm_act, s), s, create_graph=True) for s in (single, tensors)]
    second = [torch.autograd.grad(g[0].square().sum(), s) for g, s in zip(grads, (single, tensors), strict=True)]
    for a, b in zip(*second, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_the_operation_passes_torchs_own_checks() -> None:
    x = drawn(4, 6, 3, 3).requires_grad_()
    inputs = (x, torch.rand(6, requires_grad=True), torch.zeros(6, requires_grad=True), None, None, 1e-5, 1)
    torch.library.opcheck(torch.ops.leanconv.norm_act.default, inputs)
    torch.library.opcheck(
        torch.ops.leanconv.norm_act.default, (x.detach(), None, None, torch.zeros(6), torch.ones(6), 1e-5, 4)
    )


def test_compile_autocast_inference_mode_and_checkpoints(isa: str) -> None:
    x, weight, bias = drawn(4, 6, 3, 3), torch.rand(6), torch.zeros(6)
    run = lambda *t: norm_act(*t, act="relu")[0]  # noqa: E731
    want = run(x, weight, bias)
    with torch.inference_mode():
        assert torch.equal(run(x, weight, bias), want)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(x, weight, bias), want)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    wanted, got = (
        results(lambda *t, f=f: f(*t[:3]), (x, weight, bias), x, (None, None), "relu") for f in (run, compiled)
    )
    assert all(torch.equal(g, w) for g, w in zip(got, wanted, strict=True))
    learned = x.clone().requires_grad_()
    checkpoint(run, learned, weight, bias, use_reentrant=False).sum().backward()
    other = x.clone().requires_grad_()
    run(other, weight, bias).sum().backward()
    assert torch.equal(learned.grad, other.grad)


def test_a_layer_keeps_nothing_but_its_input(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANCONV_NATIVE", "1")
    layer = BatchNorm2d(6, activation="relu").train()
    x = drawn(4, 6, 3, 3).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert [t.data_ptr() for t in kept if t.numel() > 18] == [x.data_ptr()]


@pytest.mark.source("S8")
def test_two_hundred_steps_follow_torchs_loss(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANCONV_NATIVE", "1")

    def losses(norm: Any) -> list[float]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 12, 3), norm(12), nn.ReLU(), nn.Conv2d(12, 8, 3), norm(8), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))  # fmt: skip
        net = net.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        x = torch.randn(64, 3, 8, 8).to(memory_format=torch.channels_last)
        y = (x.mean((1, 2, 3)) * 40).long().clamp(-2, 1) + 2
        found = []
        for _ in range(200):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    ours, theirs = losses(BatchNorm2d), losses(nn.BatchNorm2d)
    assert max(abs(a - b) for a, b in zip(ours[:50], theirs[:50], strict=True)) < 2e-4
    assert abs(ours[-1] - theirs[-1]) < 0.1 * theirs[0]


def test_features_and_sequences_take_the_same_way() -> None:
    for layer, x in ((BatchNorm1d(7), torch.randn(12, 7)), (BatchNorm1d(7), torch.randn(4, 5, 7).movedim(-1, 1))):
        twin = nn.BatchNorm1d(7)
        torch.testing.assert_close(layer.train()(x), twin(x))
        torch.testing.assert_close(layer.running_var, twin.running_var)


def test_bad_arguments_are_told() -> None:
    x = drawn(2, 3, 2, 2)
    with pytest.raises(Error, match=r"act must be one of none, relu, relu6, hardswish, silu, got act='gelu'"):
        norm_act(x, act="gelu")
    with pytest.raises(Error, match=r"x must be \(N, C, \.\.\.\) with elements, got shape \(0, 3\)"):
        norm_act(torch.zeros(0, 3))
    with pytest.raises(Error, match="mean and var must come together"):
        norm_act(x, mean=torch.zeros(3))
    with pytest.raises(Error, match=r"weight must have shape \(3,\), got \(4,\)"):
        norm_act(x, torch.ones(4))


def test_the_library_refuses_sizes_out_of_range() -> None:
    if LIBRARY is None:
        pytest.skip("there is no native library")
    assert LIBRARY.norm_scratch(2**40, 2048) > 0  # more elements than memory: only arithmetic
    for rows, channels in ((-1, 4), (4, 0), (2**62, 2**10)):
        with pytest.raises(Error, match="rows and channels must be in range"):
            LIBRARY.norm_scratch(rows, channels)
    with pytest.raises(Error, match="native norm: an argument is out of range"):
        LIBRARY.norm(False, (4, 4), {}, act=9)
    with pytest.raises(Error, match="native norm: this processor lacks"):
        LIBRARY.norm(False, (4, 4), {}, isa="mmx")


@pytest.mark.parametrize("act", [a for a in ACTIVATIONS if a != "none"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("native", ["", "1"] if LIBRARY else [""])
def test_layers_agree_with_torchs_whatever_runs(
    act: str, momentum: float | None, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANCONV_NATIVE", native)
    ours, torchs = BatchNorm2d(16, momentum=momentum, activation=act), nn.BatchNorm2d(16, momentum=momentum)
    for step in range(4):  # the first call of a shape decides, the others remember
        x = drawn(4, 16, 6, 6, seed=step)
        pairs = []
        for layer, after in ((ours, TORCH["none"]), (torchs, TORCH[act])):
            layer.train(step < 2)
            learned = (x.clone().requires_grad_(), layer.weight, layer.bias)
            y = after(layer(learned[0]))
            pairs.append([y, *torch.autograd.grad(y.square().sum(), learned), *layer.buffers()])
            with torch.no_grad():
                pairs[-1].append(after(layer.eval()(x)))
        for mine, other in zip(*pairs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(4, 16, 6, 6), (8, 32, 32, 32)])
def test_the_first_call_of_a_shape_has_the_bits_of_the_others(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    x, layer = drawn(*shape), BatchNorm2d(shape[1], activation="relu")
    first = layer(x)
    assert torch.equal(layer(x), first)
    layer.eval()
    first = layer(x)
    assert torch.equal(layer(x), first)


def test_a_layer_forgets_what_it_decided_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    x, layer = drawn(4, 16, 6, 6), BatchNorm2d(16, activation="relu")
    layer(x), layer(x)
    layer.activation = None
    assert layer(x).min() < 0
    double = layer.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), layer.float()(x), rtol=1e-4, atol=1e-4)
    layer.eval()
    layer.running_mean = torch.full((16,), 100.0)
    assert layer(x).max() < 0
    with pytest.raises(Error, match="input must have 16 channels"):
        layer(drawn(4, 8, 6, 6))
