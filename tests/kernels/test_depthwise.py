"""Depthwise convolution: every path against float64 by the error rule, and torch's rules for operations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import depthwise
from leanconv.kernels.depthwise import depthwise_conv1d, depthwise_conv2d, depthwise_reference
from leanconv.techniques.separable import DepthwiseConv2d

LIBRARY = _native.load()
ISAS = LIBRARY.isas if LIBRARY else ()
CHANNELS = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33)  # around the vector widths 4, 8, 16
GEOMETRIES = [  # kernel, stride, padding, dilation
    ((3, 3), 1, 1, 1),
    ((3, 3), 2, 1, 1),
    ((3, 3), 1, 2, 2),
    ((3, 3), 2, 3, 3),
    ((3, 3), 3, 0, 2),
    ((5, 5), 1, 2, 1),
    ((5, 5), 2, 2, 1),
    ((7, 7), 1, 3, 1),
    ((7, 7), 2, 3, 1),
    ((7, 7), 1, 6, 2),
    ((1, 1), 1, 0, 1),
    ((1, 1), 2, 1, 1),
    ((2, 4), 1, 1, 1),
    ((4, 2), 2, 5, 1),
    ((3, 5), (2, 1), (0, 7), (1, 2)),
    ((1, 9), 1, (0, 4), 1),
    ((1, 11), (1, 2), (0, 12), 1),
    ((6, 6), 4, 3, 1),
]


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Native code, with each instruction set of this machine."""
    monkeypatch.setenv("LEANCONV_NATIVE", "1")
    monkeypatch.setenv("LEANCONV_ISA", request.param)
    return request.param


@pytest.fixture(params=["0", "1"], ids=["torch", "native"])
def path(request, monkeypatch):
    if request.param == "1" and not ISAS:
        pytest.skip("there is no native library")
    monkeypatch.setenv("LEANCONV_NATIVE", request.param)
    monkeypatch.delenv("LEANCONV_ISA", raising=False)


def follows(ours, theirs, exact):
    """max|ours - ref64| <= 2 max|torch - ref64| + 4 eps max|ref64|."""
    assert ours.shape == exact.shape
    assert ours.dtype == theirs.dtype
    if exact.numel():
        limit = 2 * (theirs.double() - exact).abs().max() + 4 * torch.finfo(ours.dtype).eps * exact.abs().max()
        assert (ours.double() - exact).abs().max() <= limit


def all_passes(run, x, weight, bias, grad=None):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = run(*leaves)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype) if grad is None else grad
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))], grad


def compare(x, weight, bias, stride, padding, dilation):
    groups = x.shape[1]
    ours, grad = all_passes(lambda *t: depthwise_conv2d(*t, stride, padding, dilation), x, weight, bias)
    theirs, _ = all_passes(lambda *t: F.conv2d(*t, stride, padding, dilation, groups), x, weight, bias, grad)
    exact, _ = all_passes(
        lambda *t: F.conv2d(*t, stride, padding, dilation, groups), x.double(), weight.double(), bias.double(), grad
    )
    for found, other, reference in zip(ours, theirs, exact, strict=True):
        follows(found, other, reference)


def made(channels, kernel, multiplier=1, size=(11, 19), images=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (images, channels, *size), (channels * multiplier, 1, *kernel), (channels * multiplier,)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_geometries(isa, geometry, dtype):
    kernel, *rest = geometry
    for channels, multiplier in ((17, 1), (16, 2), (5, 3)):
        compare(*made(channels, kernel, multiplier, dtype=dtype), *rest)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_channels_around_the_vector_width(isa, multiplier):
    for channels in CHANNELS:
        compare(*made(channels, (3, 3), multiplier, (6, 9)), 1, 1, 1)
        compare(*made(channels, (3, 3), multiplier, (6, 9), dtype=torch.bfloat16), 2, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (14, 14), (3, 30)])
def test_sizes_around_the_tile(isa, size):
    for kernel in ((3, 3), (7, 7)):
        compare(*made(20, kernel, 1, size, 3), 1, kernel[0] // 2, 1)


def test_long_sums_stay_exact(isa):
    """The weight gradient adds 32,768 products: errors must not grow with their number."""
    x, weight, bias = made(16, (3, 3), 1, (64, 64), 8)
    compare(x + 1, weight, bias, 1, 1, 1)


SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2), st.sampled_from(CHANNELS), st.integers(1, 3), SIZES, SIZES, PAIRS, PAIRS, st.data())
def test_anything(images, channels, multiplier, size, kernel, stride, dilation, data):
    least = [max(0, -(-(d * (k - 1) + 1 - n) // 2)) for n, k, d in zip(size, kernel, dilation, strict=True)]
    padding = tuple(data.draw(st.integers(low, low + 4)) for low in least)
    name = data.draw(st.sampled_from(ISAS)) if ISAS else ""
    tensors = made(channels, kernel, multiplier, size, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEANCONV_NATIVE", "1" if name else "0")
        patch.setenv("LEANCONV_ISA", name)
        compare(*tensors, stride, padding, dilation)


def test_the_reference_is_torchs_convolution():
    x, weight, bias = (t.double() for t in made(3, (3, 2), 2))
    for settings_of in ((1, 1, 1), ((2, 3), (0, 2), (2, 1))):
        ours = depthwise_reference(x, weight, bias, *settings_of)
        assert torch.allclose(ours, F.conv2d(x, weight, bias, *settings_of, 3), rtol=1e-12, atol=1e-12)


def test_derivatives_of_the_reference_and_agreement(isa):
    x, weight, bias = (t.double().requires_grad_() for t in made(2, (3, 3), 2, (5, 4), 1))
    run = lambda *t: depthwise_reference(*t, 2, ((1, 0), (2, 1)), 1)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, bias))
    exact, grad = all_passes(run, x, weight, bias)
    ours, _ = all_passes(
        lambda *t: depthwise_conv2d(*t, 2, ((1, 0), (2, 1)), 1), x.float(), weight.float(), bias.float(), grad
    )
    for found, reference in zip(ours, exact, strict=True):
        assert torch.allclose(found.double(), reference, rtol=1e-5, atol=1e-5)


def test_second_derivatives(monkeypatch):
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    x, weight, bias = (t.double().requires_grad_() for t in made(2, (3, 3), 2, (5, 4), 1))
    run = lambda *t: depthwise_conv2d(*t, 2, ((1, 0), (2, 1)), 1)  # noqa: E731
    assert torch.autograd.gradcheck(run, (x, weight, bias))
    assert torch.autograd.gradgradcheck(run, (x, weight, bias))


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's own convolution says so once
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_padding_of_two_sides_and_words(path, dtype, monkeypatch):
    if dtype in (torch.float64, torch.float16):
        monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    x, weight, bias = made(18, (4, 3), dtype=dtype)
    y, _ = all_passes(lambda *t: depthwise_conv2d(*t, padding="same"), x, weight, bias)
    exact, _ = all_passes(
        lambda *t: F.conv2d(*t, padding="same", groups=18), x.double(), weight.double(), bias.double()
    )
    for found, reference in zip(y, exact, strict=True):
        assert torch.allclose(found.double(), reference, rtol=0.02, atol=200 * torch.finfo(dtype).eps)
    assert depthwise_conv2d(x, weight, padding="valid").shape == (2, 18, 8, 17)
    assert torch.equal(depthwise_conv2d(x[0], weight, bias), depthwise_conv2d(x[:1], weight, bias)[0])


def test_sequences(path):
    generator = torch.Generator().manual_seed(0)
    for length, kernel, stride, padding, dilation in ((50, 31, 1, 15, 1), (40, 5, 2, 1, 3), (9, 3, 1, "same", 1)):
        x, weight, bias = (torch.randn(s, generator=generator) for s in ((2, 20, length), (40, 1, kernel), (40,)))
        y, grad = all_passes(lambda *t: depthwise_conv1d(*t, stride, padding, dilation), x, weight, bias)  # noqa: B023
        theirs, _ = all_passes(lambda *t: F.conv1d(*t, stride, padding, dilation, 20), x, weight, bias, grad)  # noqa: B023
        exact, _ = all_passes(
            lambda *t: F.conv1d(*t, stride, padding, dilation, 20),  # noqa: B023
            *(t.double() for t in (x, weight, bias)),
            grad,
        )
        for found, other, reference in zip(y, theirs, exact, strict=True):
            follows(found, other, reference)
    assert depthwise_conv1d(x, weight, bias, padding=(2, 0)).shape == (2, 40, 9)


def test_any_layout_of_memory(isa):
    x, weight, bias = made(18, (3, 3))
    expected = depthwise_conv2d(x, weight, bias, 1, 1)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    views = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "strided": torch.stack((x, x), -1)[..., 0],
        "misaligned": torch.cat((torch.zeros(1), x.permute(0, 2, 3, 1).flatten()))[1:]
        .view(2, 11, 19, 18)
        .permute(0, 3, 1, 2),
    }
    for name, view in views.items():
        assert torch.equal(depthwise_conv2d(view, weight, bias, 1, 1), expected), name
    turned = weight.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(depthwise_conv2d(x, turned, bias, 1, 1), expected)
    row = torch.randn(1, 18, 1, 1)
    wide = row.expand(2, 18, 5, 6)  # every element is the same memory
    compare(wide, weight, bias, 1, 1, 1)
    y = depthwise_conv2d(x.requires_grad_(), weight, bias, 1, 1)
    (from_expanded,) = torch.autograd.grad(y, x, torch.ones(()).expand(y.shape), retain_graph=True)
    assert torch.equal(from_expanded, torch.autograd.grad(y, x, torch.ones(y.shape))[0])


def test_nothing_outside_is_read_or_written(isa):
    """Guards around every tensor: NaN before and after the input must not be read, marks around the output stay."""
    for channels in (1, 7, 16, 17, 33):
        x, weight, _ = made(channels, (3, 3), 1, (5, 9), 1)
        guarded = torch.full((x.numel() + 128,), torch.nan)
        guarded[64:-64] = x.permute(0, 2, 3, 1).flatten()
        inner = guarded[64:-64].view(1, 5, 9, channels).permute(0, 3, 1, 2)
        assert torch.equal(depthwise_conv2d(inner, weight, None, 1, 1), depthwise_conv2d(x, weight, None, 1, 1))
        out = torch.full((x.numel() + 128,), 7.0)
        library, sizes = _native.load(), (0, 1, 5, 9, channels, 1, 5, 9, 3, 3, 1, 1, 1, 1, 1, 1)
        floats = library.depthwise_scratch(sizes)
        scratch = torch.full((floats + 128,), 7.0)
        at = inner.data_ptr(), out[64:].data_ptr(), weight.data_ptr(), None, scratch[64:].data_ptr()
        library.depthwise("forward", sizes, at, floats)
        for guard in (out, scratch):
            assert guard[:64].eq(7).all()
            assert guard[-64:].eq(7).all()


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_special_values_propagate_as_in_torch(isa, special):
    def where(t):
        return torch.stack((t.isnan(), t == torch.inf, t == -torch.inf))

    for kernel, size in (((3, 3), (5, 9)), ((5, 5), (9, 12)), ((1, 9), (1, 20))):
        x, weight, bias = made(18, kernel, 1, size)
        x[0, 3, 0, 2] = x[1, 17, -1, -1] = special
        padding = tuple(k // 2 for k in kernel)
        ours, grad = all_passes(lambda *t: depthwise_conv2d(*t, 1, padding), x, weight, bias)  # noqa: B023
        theirs, _ = all_passes(lambda *t: F.conv2d(*t, 1, padding, 1, 18), x, weight, bias, grad)  # noqa: B023
        for found, other in zip(ours, theirs, strict=True):
            assert torch.equal(where(found), where(other))


def test_bfloat16_rounds_to_nearest_even(isa):
    x = torch.tensor([1.0, 1.0078125, torch.nan, torch.inf, 3.3895e38, -0.0]).bfloat16().repeat(1, 20, 1, 1)
    for factor in (1.00390625, 1.01171875, 1.5):
        weight = torch.full((20, 1, 1, 1), factor).bfloat16()
        expected = (x.float() * weight[0].float()).bfloat16()
        assert torch.equal(depthwise_conv2d(x, weight).isnan(), expected.isnan())
        assert torch.equal(depthwise_conv2d(x, weight).nan_to_num(), expected.nan_to_num())


def test_denormals_among_numbers(isa):
    x, weight, bias = made(18, (3, 3))
    x[:, :, ::2] *= 1e-40
    compare(x, weight, bias, 1, 1, 1)
    assert torch.tensor(1e-40) * 1 > 0  # the caller's denormals are as they were


def test_any_number_of_threads_gives_the_same_bits(isa):
    x, weight, bias = made(48, (5, 5), 1, (37, 41), 3)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found.append(all_passes(lambda *t: depthwise_conv2d(*t, 1, 2), x, weight, bias)[0])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_no_images(path):
    x, weight, bias = made(20, (3, 3), 2, images=0)
    (y, dx, dw, db), _ = all_passes(lambda *t: depthwise_conv2d(*t, 1, 1), x, weight, bias)
    assert (y.shape, dx.shape) == ((0, 40, 11, 19), x.shape)
    assert not dw.any()
    assert not db.any()


GEOMETRY = ([2, 1], [1, 1, 0, 2], [1, 2])


def test_operations_keep_torchs_rules(path):
    ops = torch.ops.leanconv
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias = (t.requires_grad_() for t in made(18, (3, 3), 2, dtype=dtype))
        tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        checks = tests if dtype == torch.float32 else tests[:3]
        y = depthwise_conv2d(x, weight, bias, (2, 1), ((1, 1), (0, 2)), (1, 2)).detach().requires_grad_()
        torch.library.opcheck(ops.depthwise_conv2d.default, (x, weight, bias, *GEOMETRY), test_utils=checks)
        torch.library.opcheck(
            ops.depthwise_conv2d_input.default, (y, weight, list(x.shape), *GEOMETRY), test_utils=checks
        )
        torch.library.opcheck(ops.depthwise_conv2d_weight.default, (y, x, [3, 3], *GEOMETRY, True), test_utils=checks)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(path, dynamic):
    run = lambda *t: depthwise_conv2d(*t, 1, 1).relu()  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for images in (2, 3):
        x, weight, bias = made(18, (3, 3), images=images)
        ours, grad = all_passes(compiled, x, weight, bias)
        expected, _ = all_passes(run, x, weight, bias, grad)
        assert all(map(torch.equal, ours, expected))


def test_autocast_inference_mode_and_checkpoints(path):
    x, weight, bias = made(18, (3, 3))
    with torch.autocast("cpu"):
        theirs = F.conv2d(x, weight, bias, 1, 1, 1, 18)
        ours, _ = all_passes(lambda *t: depthwise_conv2d(*t, 1, 1), x, weight, bias)
        mixed = depthwise_conv2d(x.bfloat16(), weight, bias, 1, 1)
        assert depthwise_conv2d(x, weight).requires_grad is False
    assert ours[0].dtype == theirs.dtype == torch.bfloat16
    assert [t.dtype for t in ours[1:]] == [torch.float32] * 3
    assert torch.equal(mixed, ours[0])
    assert (ours[0].float() - theirs.float()).abs().max() <= 0.04
    with torch.inference_mode():
        plain = depthwise_conv2d(x, weight, bias, 1, 1)
    run = lambda *t: depthwise_conv2d(*t, 1, 1)  # noqa: E731
    expected, grad = all_passes(run, x, weight, bias)
    kept, _ = all_passes(lambda *t: checkpoint(run, *t, use_reentrant=False), x, weight, bias, grad)
    assert torch.equal(plain, expected[0])
    assert all(map(torch.equal, kept, expected))


def test_one_layer_used_twice(path):
    x, weight, bias = made(18, (3, 3))
    run = lambda *t: depthwise_conv2d(depthwise_conv2d(*t, 1, 1), *t[1:], 1, 1)  # noqa: E731
    ours, grad = all_passes(run, x, weight, bias)
    twice = lambda *t: F.conv2d(F.conv2d(*t, 1, 1, 1, 18), *t[1:], 1, 1, 1, 18)  # noqa: E731
    for found, other in zip(ours, all_passes(twice, x, weight, bias, grad)[0], strict=True):
        assert torch.allclose(found, other, rtol=1e-4, atol=2e-3)


def test_bad_arguments():
    x, weight, bias = made(4, (3, 3))
    bad = [
        ((x[0, 0], weight), {}, r"x must be \(N, C, H, W\) with C > 0, got \(11, 19\)"),
        ((x, weight[:3]), {}, r"for 4 channels, got \(3, 1, 3, 3\)"),
        ((x, weight, bias[:3]), {}, r"bias must be \(4,\), got \(3,\)"),
        ((x, weight.double()), {}, "must have one dtype, got torch.float32, torch.float64"),
        ((x, weight), {"stride": 0}, "stride must be ints from 1, one or two, got stride=0"),
        ((x, weight), {"padding": -1}, "padding must be ints from 0"),
        ((x, weight), {"padding": "full"}, "padding must be ints, 'same' or 'valid', got padding='full'"),
        ((x, weight), {"padding": "same", "stride": 2}, "padding='same' needs stride 1"),
        ((x, weight), {"dilation": 9}, r"must fit into the padded input, got \[19, 19\] against \[11, 19\]"),
    ]
    for arguments, named, message in bad:
        with pytest.raises(Error, match=message):
            depthwise_conv2d(*arguments, **named)
    with pytest.raises(Error, match=r"weight must be \(channels \* multiplier, 1, K\), got \(4, 1, 3, 3\)"):
        depthwise_conv1d(x[..., 0], weight)


def test_a_layer_remembers_what_it_decided_until_it_changes(monkeypatch):
    monkeypatch.delenv("LEANCONV_NATIVE", raising=False)
    ran = []
    pass_ = depthwise._native_pass
    monkeypatch.setattr(depthwise, "_native_pass", lambda *a: ran.append(a[0]) or pass_(*a))
    layer, x = DepthwiseConv2d(16, 3, padding=1), torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)

    def check(x=x):
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        want = torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride, padding, dilation, 16)
        for _ in range(3):
            got = layer(x)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            assert got.is_contiguous(memory_format=torch.channels_last)

    check()
    check(x.contiguous())
    assert ran == []
    layer.stride = (2, 2)
    check()
    with torch.no_grad():
        check()
    if _native.available():
        monkeypatch.setenv("LEANCONV_NATIVE", "1")
        check()
        assert set(ran) == {"forward"}
        layer(x).sum().backward()
        assert set(ran) == {"forward", "backward_weight"}
    layer.double()
    with pytest.raises(RuntimeError):
        layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
