"""The separable block as one operation: against float64 by the error rule, on every instruction set."""

from __future__ import annotations

import copy
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import leanconv
from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import separable as kernels
from leanconv.kernels.norm import Norm, norm_act_reference
from leanconv.kernels.separable import separable_block, separable_reference
from leanconv.kernels.threads import parallel_for
from leanconv.techniques.batchnorm import BatchNorm2d, freeze
from leanconv.techniques.separable import SeparableConv2d

LIBRARY = _native.load()
ISAS = LIBRARY.isas if LIBRARY else ()
NAMES = ("y", "mean1", "var1", "mean2", "var2", "dx", "ddw", "dpw", "dgamma1", "dbeta1", "dgamma2", "dbeta2")
ACTS = ("none", "relu", "relu6", "hardswish", "silu")


@pytest.fixture(params=ISAS)
def isa(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this machine, one after the other; native code for small shapes too."""
    monkeypatch.setenv("LEANCONV_ISA", request.param)
    monkeypatch.setenv("LEANCONV_NATIVE", "1")
    return str(request.param)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(x: tuple[int, ...], out: int, multiplier: int = 1, kernel: int = 3) -> list[Tensor]:
    """x, both weights, gamma and beta of both norms."""
    mid = x[1] * multiplier
    weights = [numbers(mid, 1, kernel, kernel, seed=1) / kernel, numbers(out, mid, 1, 1, seed=2) / mid**0.5]
    norms = [
        numbers(mid, seed=3).abs() + 0.5,
        numbers(mid, seed=4),
        numbers(out, seed=5).abs() + 0.5,
        numbers(out, seed=6),
    ]
    return [numbers(*x).to(memory_format=torch.channels_last), *weights, *norms]


def results(function: Any, inputs: list[Tensor], acts: tuple[str, str], **settings: Any) -> list[Tensor]:
    """What :data:`NAMES` says."""
    x, dw, pw, *norms = (t.detach().clone().requires_grad_() for t in inputs)
    given = settings.pop("given", (None,) * 4)
    first = Norm(norms[0], norms[1], given[0], given[1], 1e-3, acts[0])
    second = Norm(norms[2], norms[3], given[2], given[3], 1e-3, acts[1])
    y, *moments = function(x, dw, pw, first, second, **settings)
    dy = numbers(*y.shape, seed=9).to(y.dtype)
    return [y.detach(), *moments[0], *moments[1], *torch.autograd.grad(y, (x, dw, pw, *norms), dy)]


def torchs(x: Tensor, dw: Tensor, pw: Tensor, *norms: Norm, **geometry: Any) -> tuple[Tensor, Any, Any]:
    """The same layers, torch's own."""
    keep, scale = geometry.pop("keep", None), geometry.pop("scale", 1.0)
    d = F.conv2d(x, dw, None, groups=x.shape[1], **geometry)
    a, first = normed(d, norms[0])
    p = F.conv2d(a if keep is None else a * keep * scale, pw)
    y, second = normed(p, norms[1])
    return y, first, second


def normed(x: Tensor, norm: Norm) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    act: Any = (lambda z: z, F.relu, F.relu6, F.hardswish, F.silu)[ACTS.index(norm.act)]
    var, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
    if norm.mean is not None and norm.var is not None:
        mean, var = norm.mean, norm.var
    y = F.batch_norm(x, norm.mean, norm.var, norm.weight, norm.bias, norm.mean is None, 0.0, norm.eps)
    return act(y), (mean, var)


def by_the_rule(inputs: list[Tensor], acts: tuple[str, str], **settings: Any) -> None:
    """max|ours - ref64| <= 2 max|torch - ref64| + 16 eps scale; sums over all pixels cancel: their scale is larger."""
    wide = {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in settings.items()}
    if "given" in settings:
        wide["given"] = tuple(None if t is None else t.double() for t in settings["given"])
    lean = settings.pop("lean", False)
    wide.pop("lean", None)
    far = results(separable_reference, [t.double() for t in inputs], acts, **wide)
    theirs = results(torchs, inputs, acts, **settings)
    ours = results(separable_block, inputs, acts, lean=lean, **settings)
    # Of terms that cancel: as many as there are pixels, and before the first norm outputs too.
    terms = (far[0].numel() / far[0].shape[1]) ** 0.5
    outer, inner = terms, terms * (1 + far[0].shape[1] ** 0.5)
    sizes = {"dgamma2": outer, "dbeta2": outer, "dpw": outer, "dgamma1": inner, "dbeta1": inner, "ddw": inner}
    for name, mine, other, want in zip(NAMES, ours, theirs, far, strict=True):
        error, allowed, largest = ((t.double()).abs().max() for t in (mine - want, other - want, want))
        scale = max(float(largest), sizes.get(name, 0.0))
        assert error <= 2 * allowed + 16 * torch.finfo(inputs[0].dtype).eps * scale, (name, error, allowed, largest)


@pytest.mark.source("S8", "S17")
@pytest.mark.parametrize(("first", "second"), [*zip(ACTS, ACTS, strict=True), ("relu6", "none"), ("silu", "hardswish")])
def test_forward_and_backward_by_the_error_rule(first: str, second: str, isa: str) -> None:
    by_the_rule(tensors((3, 24, 9, 7), 40), (first, second), padding=1)
    by_the_rule(tensors((3, 24, 9, 7), 40), (first, second), padding=1, stride=2, lean=True)


@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 33, 100])
def test_channels_around_the_vector_width(channels: int, isa: str) -> None:
    by_the_rule(tensors((2, channels, 5, 6), 12), ("silu", "none"), padding=1)
    by_the_rule(tensors((2, 7, 5, 6), channels), ("none", "silu"), padding=1)


def test_wide_layers_cut_the_sums_into_blocks_and_many_rows_into_groups(isa: str) -> None:
    by_the_rule(tensors((4, 500, 5, 5), 470), ("silu", "silu"), padding=1)
    by_the_rule(tensors((2, 16, 130, 130), 24), ("silu", "silu"), padding=1)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 40),
    out=st.integers(1, 40),
    side=st.integers(3, 11),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    multiplier=st.integers(1, 2),
    frozen=st.booleans(),
    dropped=st.booleans(),
    lean=st.booleans(),
)
def test_any_shape(batch, channels, out, side, kernel, stride, multiplier, frozen, dropped, lean):
    inputs = tensors((batch, channels, side, side), out, multiplier, kernel)
    after = (side + 2 * (kernel // 2) - kernel) // stride + 1
    more: dict[str, Any] = {"padding": kernel // 2, "stride": stride, "lean": lean}
    mid = channels * multiplier
    if frozen or batch * after * after < 4:  # few values have variances near zero, whose gradients nobody can compute
        moments = (numbers(mid, seed=11), numbers(mid, seed=12).abs() + 0.5, numbers(out, seed=13))
        more["given"] = (*moments, numbers(out, seed=14).abs() + 0.5)
    if dropped:
        more |= {"keep": numbers(batch, mid, after, after, seed=15) > -1, "scale": 1.2}
    with pytest.MonkeyPatch.context() as environment:
        if LIBRARY and multiplier == 1:  # small shapes would be torch's
            environment.setenv("LEANCONV_NATIVE", "1")
        by_the_rule(inputs, ("silu", "silu"), **more)


def test_a_mask_per_channel_stops_whole_channels(isa: str) -> None:
    inputs = tensors((4, 20, 6, 6), 9)
    keep = numbers(1, 20, 1, 1, seed=3) > 0
    by_the_rule(inputs, ("silu", "silu"), padding=1, keep=keep, scale=2.0)
    found = results(separable_block, inputs, ("silu", "silu"), padding=1, keep=keep, scale=2.0)
    assert not found[NAMES.index("dpw")][:, ~keep.flatten()].any()


def test_bits_do_not_depend_on_threads_nor_on_the_lean_mode(isa: str) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for (shape, out), threads in product((((2, 32, 60, 60), 48), ((4, 300, 6, 6), 260)), (1, 2, 3)):
            torch.set_num_threads(threads)
            for lean in (False, True):
                found.append(results(separable_block, tensors(shape, out), ("relu", "relu"), padding=1, lean=lean))
    finally:
        torch.set_num_threads(before)
    for i, one in enumerate(found):
        first = found[i // 6 * 6]
        assert all(torch.equal(a, b) for a, b in zip(one, first, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_every_pixel_of_its_channel(value: float, isa: str) -> None:
    inputs = tensors((2, 8, 5, 5), 6)
    inputs[0][1, 3, 2, 2] = value
    for function in (separable_reference, separable_block):
        y, mean, *_ = results(function, inputs, ("relu", "relu"), padding=1)
        assert y.isnan().all()
        assert mean.isfinite().tolist() == [c != 3 for c in range(8)]


def test_views_that_overlap_or_lie_otherwise(isa: str) -> None:
    inputs = tensors((2, 8, 6, 6), 10)
    want = results(separable_block, inputs, ("silu", "silu"), padding=1)
    base = torch.zeros(2 * 8 * 36 + 1)
    offset = base[1:].view(2, 6, 6, 8).permute(0, 3, 1, 2)
    for x in (inputs[0].contiguous(), offset.copy_(inputs[0])):
        found = results(separable_block, [x, *inputs[1:]], ("silu", "silu"), padding=1)
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    wide = numbers(2, 8, 1, 1).expand(2, 8, 6, 6)
    by_the_rule([wide, *inputs[1:]], ("silu", "silu"), padding=1)


def test_vectors_and_weights_may_be_strided(isa: str) -> None:
    x, dw, pw, *norms = tensors((2, 8, 6, 6), 10)
    want = results(separable_block, [x, dw, pw, *norms], ("silu", "silu"), padding=1)[0]
    dw, pw, *norms = (torch.stack([t, t + 1], -1)[..., 0] for t in (dw, pw, *norms))
    found = separable_block(
        x,
        dw,
        pw,
        Norm(norms[0], norms[1], eps=1e-3, act="silu"),
        Norm(norms[2], norms[3], eps=1e-3, act="silu"),
        padding=1,
    )[0]
    assert torch.equal(found, want)


def test_the_sums_of_the_product_know_each_half(isa: str) -> None:
    """The native product without the norm before it, and without the one after it."""
    assert LIBRARY is not None
    rows, ins, outs = 301, 37, 53
    x, y, dy = numbers(rows, ins), torch.empty(rows, outs), numbers(rows, outs, seed=1)
    weight, dx, dweight = numbers(outs, ins, seed=2), torch.empty(rows, ins), torch.empty(outs, ins)
    for backward in (False, True):
        at = {"x": x, "y": y, "weight": weight} | ({"dy": dy, "dx": dx, "dweight": dweight} if backward else {})
        addresses = {name: t.data_ptr() for name, t in at.items()}
        call = LIBRARY.pointwise((rows, ins, outs), addresses, threads=2, parallel_for=parallel_for(), isa=isa)
        size = LIBRARY.scratch(call, backward)
        scratch = torch.empty(size + 64, dtype=torch.uint8)
        call.scratch, call.scratch_size = (scratch.data_ptr() + 63) // 64 * 64, size
        LIBRARY.run(call, backward)
        call.scratch_size = size - 1
        with pytest.raises(Error, match="out of range"):
            LIBRARY.run(call, backward)
    for found, want in ((y, x.double() @ weight.t().double()), (dx, dy.double() @ weight.double())):
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dweight.double(), dy.double().t() @ x.double(), rtol=1e-5, atol=1e-4)


def test_the_library_refuses_sizes_out_of_range() -> None:
    for library in filter(None, [LIBRARY]):
        for sizes in ((-1, 4, 4), (4, 0, 4), (4, 4, 0), (1 << 60, 4, 4), (4, 1 << 40, 1 << 40)):
            with pytest.raises(Error, match="out of range"):
                library.scratch(library.pointwise(sizes, {}), True)


def test_huge_sizes_are_counted_in_64_bits() -> None:
    for library in filter(None, [LIBRARY]):
        rows = 1 << 27
        size = library.scratch(library.pointwise((rows, 64, 128), {}), False)
        assert size > rows // 256 * 2 * 128 * 8  # the sums of each chunk alone


def test_gradients_of_gradients_and_the_reference() -> None:
    inputs = [t.double().requires_grad_() for t in tensors((2, 3, 4, 4), 5)]

    def function(*args: Tensor) -> Tensor:
        first, second = Norm(*args[3:5], act="silu"), Norm(*args[5:7], act="silu")
        return separable_reference(args[0], args[1], args[2], first, second, padding=1)[0]

    assert torch.autograd.gradcheck(function, inputs)
    x, *rest = (t.detach().float().requires_grad_() for t in inputs)
    found = []
    for one in (separable_block, separable_reference):
        norms = [Norm(*rest[2:4], act="silu"), Norm(*rest[4:6], act="silu")]
        y = one(x, rest[0], rest[1], *norms, padding=1)[0]
        first = torch.autograd.grad(y.square().sum(), (x, rest[1]), create_graph=True)
        found.append(torch.autograd.grad(first[0].square().sum() + first[1].sum(), (x, *rest[:2])))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


def test_the_operation_passes_torchs_own_checks_and_compiles(isa: str) -> None:
    x, dw, pw, *norms = (t.requires_grad_() for t in tensors((2, 8, 5, 5), 6))
    given_vectors = (norms[0], norms[1], None, None, 1e-3, 1, norms[2], norms[3], None, None, 1e-3, 4)
    arguments = (x, dw, pw, *given_vectors, (1, 1), (1, 1, 1, 1), (1, 1), None, 1.0, False)
    torch.library.opcheck(torch.ops.leanconv.separable_block.default, arguments)

    def step(x: Tensor, dw: Tensor, pw: Tensor, *norms: Tensor) -> Tensor:
        first, second = Norm(norms[0], norms[1], act="relu"), Norm(norms[2], norms[3], act="silu")
        return separable_block(x, dw, pw, first, second, padding=1, lean=True)[0]

    y = step(x, dw, pw, *norms)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x, dw, pw, *norms)
    assert torch.equal(y, compiled)
    for mine, other in zip(*(torch.autograd.grad(t.sum(), (x, pw, norms[0])) for t in (y, compiled)), strict=True):
        assert torch.equal(mine, other)


def test_autocast_inference_mode_and_checkpoints(isa: str) -> None:
    x, dw, pw, *norms = (t.requires_grad_() for t in tensors((2, 8, 5, 5), 6))

    def step(x: Tensor) -> Tensor:
        return separable_block(x, dw, pw, Norm(*norms[:2], act="relu"), Norm(*norms[2:], act="relu"), padding=1)[0]

    y = step(x)
    with torch.inference_mode():
        assert torch.equal(step(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        low = step(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), y, rtol=0.1, atol=0.1)
    (want,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(torch.autograd.grad(checkpoint(step, x, use_reentrant=False).square().sum(), x)[0], want)


def test_it_keeps_three_maps_and_two_in_the_lean_mode(isa: str) -> None:
    shapes: list[tuple[int, ...]] = []

    def pack(t: Tensor) -> Tensor:
        shapes.append(tuple(t.shape))
        return t

    x, dw, pw, *norms = (t.requires_grad_() for t in tensors((2, 8, 6, 6), 12))
    for lean, kept in ((False, [8, 8, 12]), (True, [8, 12])):
        shapes.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            separable_block(x, dw, pw, Norm(*norms[:2]), Norm(*norms[2:]), padding=1, lean=lean)
        assert sorted(s[1] for s in shapes if len(s) == 4 and s[2] > 3) == kept


def network(own: bool) -> nn.Sequential:
    """Two blocks and what surrounds them: as one layer each, or as layers in a row."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        if own:
            like = {"norm_layer": BatchNorm2d, "act_layer": nn.ReLU}
            return [SeparableConv2d(inputs, outputs, 3, stride, 1, bias=False, **like)]
        first = [nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()]
        return [*first, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [*block(4, 12, 1), *block(12, 20, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 3)]
    return nn.Sequential(*layers)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each block that runs as one operation."""
    found: list[bool] = []
    whole = kernels.run_forward

    def told(x: Tensor, lean: bool, specs: list[Any], *rest: Any) -> Any:
        found.extend(True for _ in specs)
        return whole(x, lean, specs, *rest)

    monkeypatch.setattr(kernels, "run_forward", told)
    return found


def test_the_layer_runs_as_one_unless_somebody_looks_on(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = calls(monkeypatch)
    model, x = network(True).train(), numbers(3, 4, 8, 8)
    other = copy.deepcopy(model)
    y = model(x)
    assert len(found) == 2
    seen: list[Tensor] = []
    handle = other[0].norm_dw.register_forward_hook(lambda module, args, out: seen.append(out))
    z = other(x)
    assert len(found) == 3
    assert len(seen) == 1
    torch.testing.assert_close(z, y)
    handle.remove()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)
    freeze(other[0].norm_pw)
    assert torch.isfinite(other(x)).all()
    with pytest.raises(Error, match="more than one value per channel"):
        model(numbers(1, 4, 2, 2))  # 1x1 after the second block's stride


def test_a_norm_with_a_forward_of_its_own_stays_outside(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model, x = network(True).train(), numbers(3, 4, 8, 8)
    found = calls(monkeypatch)
    model[1].norm_pw = Doubled(20)
    model(x)
    assert len(found) == 1


def test_any_network_runs_its_blocks_as_one_and_copies_do(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(False).train(), numbers(6, 4, 9, 9)
    found = calls(monkeypatch)
    fast, told = leanconv.accelerate(model, example=x)
    assert sum("2 separable blocks" in edit.why for edit in told.edits) == 1
    assert [type(m) for m in fast if isinstance(m, nn.Conv2d)] == [nn.Conv2d] * 4
    for one in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        reference = copy.deepcopy(model)
        found.clear()
        y, want = one(x), reference(x)
        assert len(found) == 2
        torch.testing.assert_close(y, want)
        y.square().mean().backward()
        want.square().mean().backward()
        for name, parameter in reference.named_parameters():
            torch.testing.assert_close(one.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(one.state_dict()[name], value, msg=name)
    fast.eval()
    torch.testing.assert_close(fast(x), reference.eval()(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_chain_after_a_norm_by_the_error_rule(frozen: bool, isa: str) -> None:
    shapes = ((3, 24, 9, 7), (3, 40, 9, 7))
    blocks = [tensors(shapes[0], 40)[1:], tensors(shapes[1], 17)[1:]]
    vectors = [numbers(24, seed=21).abs() + 0.5, numbers(24, seed=22)]
    fixed = (numbers(24, seed=23), numbers(24, seed=24).abs() + 0.5) if frozen else (None, None)
    x, dy = tensors(shapes[0], 40)[0], numbers(3, 17, 5, 4, seed=9)

    def outputs(dtype: torch.dtype, one: Any, normal: Any) -> list[Tensor]:
        y, *learned = (t.to(dtype).requires_grad_() for t in (x, *vectors, *blocks[0], *blocks[1]))
        inputs = y
        lead = Norm(learned[0], learned[1], *(None if t is None else t.to(dtype) for t in fixed), 1e-3, "relu6")
        parts = [learned[2:8], learned[8:14]]
        norms = [(Norm(*p[2:4], eps=1e-3, act="silu"), Norm(*p[4:6], eps=1e-3, act="silu")) for p in parts]
        sizes = [{"padding": 1}, {"padding": 1, "stride": 2}]
        if one is None:
            y, moments = kernels.separable_chain(
                y,
                [kernels.BlockInputs(*p[:2], *n, **s) for p, n, s in zip(parts, norms, sizes, strict=True)],
                lead=lead,
            )
            assert len(moments) == 5
            found = list(moments[0])
        else:
            y, found = normal(y, lead)
            for p, n, s in zip(parts, norms, sizes, strict=True):
                y = one(y, *p[:2], *n, **s)[0]
        return [y.detach(), *found, *torch.autograd.grad(y, (inputs, *learned), dy.to(dtype))]

    def reference(x: Tensor, norm: Norm) -> tuple[Tensor, list[Tensor]]:
        y, mean, var = norm_act_reference(x, *norm)
        return y, [mean, var]

    far = outputs(torch.float64, separable_reference, reference)
    theirs, ours = outputs(torch.float32, torchs, normed), outputs(torch.float32, None, None)
    for mine, other, want in zip(ours, theirs, far, strict=True):
        error, allowed, largest = ((t.double()).abs().max() for t in (mine - want, other - want, want))
        assert error <= 2 * allowed + 1e-5 * max(1.0, float(largest)), (error, allowed, largest)


def test_a_norm_before_the_blocks_joins_them(isa: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6())
    model, x = nn.Sequential(stem, network(False)).train(), numbers(6, 3, 11, 11)
    fast, told = leanconv.accelerate(model, example=x)
    assert any(edit.why.startswith("0.1 to 1.10: 2 separable blocks") for edit in told.edits)
    y, want = fast(x), model(x)
    torch.testing.assert_close(y, want)
    y.square().mean().backward()
    want.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, msg=name)
    x.requires_grad_()
    seconds = []
    for one in (fast, model):
        (first,) = torch.autograd.grad(one(x).square().mean(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds, rtol=1e-2, atol=1e-3 * float(seconds[1].abs().max()))


def test_members_run_their_layers_where_the_block_does_not(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(False).train(), numbers(6, 4, 9, 9)
    fast, _ = leanconv.accelerate(model, example=x, lean=True)
    found = calls(monkeypatch)
    fast[1].register_forward_hook(lambda module, args, out: out * 1)
    torch.testing.assert_close(fast(x), model(x))
    assert not found
    monkeypatch.delenv("LEANCONV_NATIVE")
    wide = copy.deepcopy(fast).double()
    torch.testing.assert_close(wide(x.double()), copy.deepcopy(model).double()(x.double()))
    back, changed = leanconv.accelerate(model, example=x)[1].undo(leanconv.accelerate(model, example=x)[0])
    assert not changed
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]


def test_a_layer_that_is_called_twice_or_watched_is_refused() -> None:
    model, x = network(False), numbers(2, 4, 9, 9)
    twice = nn.Sequential(*model[:2], nn.ReLU(), *model[3:5], nn.ReLU(), model[0].requires_grad_())
    twice[6] = nn.Conv2d(12, 4, 1)
    shared = nn.Sequential(twice, twice)
    _, told = leanconv.accelerate(shared, example=x)
    assert not any("separable block" in edit.why for edit in told.edits)
    assert any("is called 2 times" in refusal.why for refusal in told.refusals)


def test_two_hundred_steps_follow_torchs_loss(isa: str) -> None:
    model, x, labels = network(False).train(), numbers(32, 4, 8, 8), torch.arange(32) % 3
    fast, _ = leanconv.accelerate(model, example=x)
    losses = []
    for one in (model, fast):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.02)
        found = []
        for _ in range(200):
            loss = F.cross_entropy(one(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(torch.tensor(found))
    assert losses[0][-1] < 0.9 * losses[0][0]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"pointwise": numbers(5, 7, 1, 1)}, r"pointwise must be \(channels out, 8, 1, 1\)"),
        ({"between": Norm(act="tanh")}, "between.act must be one of"),
        ({"after": Norm(mean=numbers(6))}, "after.mean and after.var must come together"),
        ({"after": Norm(weight=numbers(5))}, r"after.weight must have shape \(6,\), got \(5,\)"),
        ({"stride": 0}, "stride must be ints from 1"),
        ({"x": numbers(2, 8, 2, 2), "padding": 0}, "kernel must fit"),
    ],
)
def test_bad_arguments_are_told(change: dict[str, Any], match: str) -> None:
    x, dw, pw, *_ = tensors((2, 8, 5, 5), 6)
    arguments: dict[str, Any] = {"x": x, "depthwise": dw, "pointwise": pw, "between": Norm(), "after": Norm()}
    with pytest.raises(Error, match=match):
        separable_block(**(arguments | {"padding": 1} | change))
