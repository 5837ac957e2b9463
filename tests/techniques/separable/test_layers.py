"""The layers against plain loops, against torch's grouped convolution, and what they refuse."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.techniques import separable
from leanconv.techniques.separable import layers
from leanconv_tests import close

DEPTHWISE = {1: separable.DepthwiseConv1d, 2: separable.DepthwiseConv2d, 3: separable.DepthwiseConv3d}
POINTWISE = {1: separable.PointwiseConv1d, 2: separable.PointwiseConv2d, 3: separable.PointwiseConv3d}
SEPARABLE = {1: separable.SeparableConv1d, 2: separable.SeparableConv2d, 3: separable.SeparableConv3d}
TORCH = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

# dimensions, channels in and out, kernel, stride, padding, dilation, multiplier, size
CASES = [
    (1, 3, 4, (3,), 1, 1, 1, 1, (7,)),
    (1, 1, 2, (5,), 2, 2, 1, 3, (9,)),
    (2, 3, 4, (3, 3), 1, 1, 1, 1, (5, 6)),
    (2, 3, 2, (1, 3), 1, (0, 1), 1, 1, (4, 5)),
    (2, 3, 2, (3, 1), (2, 1), (1, 0), 1, 2, (5, 4)),
    (2, 1, 3, (3, 3), 1, 0, 1, 1, (5, 5)),
    (2, 4, 1, (2, 3), 1, 1, (2, 1), 1, (6, 5)),
    (2, 2, 3, (3, 3), 2, 1, 1, 5, (5, 5)),
    (2, 2, 3, (5, 5), 1, 2, 1, 3, (5, 6)),
    (2, 3, 3, (1, 1), 1, 0, 1, 1, (3, 3)),
    (3, 2, 3, (3, 3, 3), 1, 1, 1, 1, (3, 4, 3)),
    (3, 2, 2, (1, 2, 3), (1, 2, 1), 1, 1, 2, (3, 4, 4)),
]


def each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def loops(x: Tensor, dw: Tensor, pw: Tensor, bias: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """Sentence by sentence, element by element, in float64."""
    dims = x.dim() - 2
    stride, padding, dilation = each(stride, dims), each(padding, dims), each(dilation, dims)
    size, kernel, m = x.shape[2:], dw.shape[2:], dw.shape[0] // x.shape[1]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    x, dw, pw, bias = (t.double() for t in (x, dw, pw, bias))
    y = torch.zeros(x.shape[0], pw.shape[0], *out, dtype=torch.float64)
    for n, at in product(range(x.shape[0]), product(*map(range, out))):
        channels = []
        for i in range(dw.shape[0]):
            total = 0.0
            for tap in product(*map(range, kernel)):
                where = [a * s + t * d - p for a, s, t, d, p in zip(at, stride, tap, dilation, padding, strict=True)]
                if all(0 <= w < limit for w, limit in zip(where, size, strict=True)):
                    total += dw[(i, 0, *tap)].item() * x[(n, i // m, *where)].item()
            channels.append(total)
        for o in range(pw.shape[0]):
            y[(n, o, *at)] = bias[o].item() + sum(pw[o, i].item() * z for i, z in enumerate(channels))
    return y


def build(case: tuple[Any, ...], dtype: torch.dtype = torch.float32) -> tuple[Any, Tensor]:
    dims, cin, cout, kernel, stride, padding, dilation, m, size = case
    torch.manual_seed(0)
    layer = SEPARABLE[dims](cin, cout, kernel, stride, padding, dilation, depth_multiplier=m, dtype=dtype)
    return layer, torch.randn(2, cin, *size, dtype=dtype)


@pytest.mark.source("S18")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_channel_on_its_own_then_a_weighted_sum_per_output(case: tuple[Any, ...]) -> None:
    layer, x = build(case)
    _, cin, cout, _, stride, padding, dilation, m, _ = case
    weights = (layer.conv_dw.weight, layer.conv_pw.weight, layer.conv_pw.bias)
    want = loops(x, *weights, stride, padding, dilation)
    torchs = TORCH[case[0]](cin, cin * m, case[3], stride, padding, dilation, groups=cin, bias=False)
    torchs.weight = layer.conv_dw.weight
    mix = TORCH[case[0]](cin * m, cout, 1)
    mix.weight, mix.bias = layer.conv_pw.weight, layer.conv_pw.bias
    close(layer(x), mix(torchs(x)), want)
    with torch.no_grad():
        close(layer(x), mix(torchs(x)), want)
    reference = separable.separable_reference(
        x.double(), *(w.double() for w in weights), stride=stride, padding=padding, dilation=dilation
    )
    torch.testing.assert_close(reference, want, rtol=1e-12, atol=1e-12)


@pytest.mark.source("S18")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_input_and_weights(case: tuple[Any, ...]) -> None:
    layer, x = build(case)
    dims, cin, cout, kernel, stride, padding, dilation, m, _ = case
    reference_x = x.double().requires_grad_()
    wide = [w.detach().double().requires_grad_() for w in layer.parameters()]
    dw, pw, bias = wide
    y = separable.separable_reference(reference_x, dw, pw, bias, stride, padding, dilation)
    seed = torch.randn(y.shape, dtype=torch.float64)
    want = torch.autograd.grad(y, [reference_x, *wide], seed)

    def gradients(first: Any, second: Any) -> tuple[Tensor, ...]:
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *first.parameters(), *second.parameters()]
        return torch.autograd.grad(second(first(leaf)), inputs, seed.float())

    torchs = TORCH[dims](cin, cin * m, kernel, stride, padding, dilation, groups=cin, bias=False)
    mix = TORCH[dims](cin * m, cout, 1)
    torchs.weight = layer.conv_dw.weight
    mix.weight, mix.bias = layer.conv_pw.weight, layer.conv_pw.bias
    ours = gradients(layer.conv_dw, layer.conv_pw)
    for got, torch_says, reference in zip(ours, gradients(torchs, mix), want, strict=True):
        close(got, torch_says, reference)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 4, 5])
@pytest.mark.parametrize("learns", [True, False])
def test_depthwise_stores_and_orders_as_torch_does(dims: int, m: int, learns: bool) -> None:
    torch.manual_seed(1)
    ours = DEPTHWISE[dims](3, 3, padding=1, depth_multiplier=m)
    torch.manual_seed(1)
    torchs = TORCH[dims](3, 3 * m, 3, padding=1, groups=3)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in torchs.state_dict().items()}
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), torchs.parameters(), strict=True))
    x = torch.randn(2, 3, *[4, 5, 3][:dims])
    with torch.set_grad_enabled(learns):
        close(ours(x), torchs(x), copy.deepcopy(torchs).double()(x.double()))


def test_both_ways_of_running_a_multiplier_agree_bit_for_bit_in_shape_and_closely_in_value() -> None:
    layer = separable.DepthwiseConv2d(4, 5, padding=2, depth_multiplier=3)
    x = torch.randn(2, 4, 6, 7)
    padded, pad = layer._pad(layer._channels_last(x))
    split = layer._split(padded, pad)
    whole = nn.functional.conv2d(x, layer.weight, layer.bias, 1, 2, 1, 4)
    assert split.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(split, whole)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_maps_come_out_channels_last(m: int) -> None:
    layer = separable.SeparableConv2d(4, 6, 3, padding=1, depth_multiplier=m)
    for x in (torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
    volume, before = separable.SeparableConv3d(4, 6, 3, padding=1, depth_multiplier=m), torch.get_num_threads()
    for threads in (1, 2):  # torch chooses another kernel
        torch.set_num_threads(threads)
        y = volume(torch.randn(2, 4, 3, 5, 5))
        torch.set_num_threads(before)
        assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's layer, not ours
@pytest.mark.parametrize("mode", layers.PADDING_MODES)
@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 1)])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4)])
def test_padding_as_in_torch(mode: str, padding: Any, kernel: tuple[int, int]) -> None:
    ours = separable.DepthwiseConv2d(3, kernel, padding=padding, padding_mode=mode)
    torchs = nn.Conv2d(3, 3, kernel, padding=padding, padding_mode=mode, groups=3)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(ours(x), torchs(x))


def test_no_batch_dimension_is_needed() -> None:
    layer = separable.SeparableConv2d(3, 4, 3, padding=1, depth_multiplier=2)
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("m", [1, 2])
def test_groups_belong_to_the_pointwise(groups: int, m: int) -> None:
    layer = separable.SeparableConv2d(4, 8, 3, groups=groups, depth_multiplier=m)
    assert layer.conv_pw.weight.shape == (8, 4 * m // groups, 1, 1)
    assert layer.conv_dw.groups == 4


@settings(deadline=None, max_examples=25)
@given(
    dims=st.integers(1, 3),
    per_group=st.integers(1, 3),
    groups=st.integers(1, 3),
    m=st.integers(1, 3),
    bias=st.booleans(),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "circular"]),
)
def test_dense_computes_the_same(
    dims: int, per_group: int, groups: int, m: int, bias: bool, stride: int, dilation: int, mode: str
) -> None:
    layer = SEPARABLE[dims](
        per_group * groups, 2 * groups, 3, stride, 2, dilation, groups, bias, mode, None, torch.float64, m
    )
    x = torch.randn(2, per_group * groups, *[6, 5, 5][:dims], dtype=torch.float64)
    dense = layer.dense()
    assert type(dense) is TORCH[dims]
    torch.testing.assert_close(dense(x), layer(x), rtol=1e-10, atol=1e-12)


def test_dense_where_groups_cut_through_a_channel() -> None:
    layer = separable.SeparableConv2d(3, 4, 3, groups=2, depth_multiplier=2, dtype=torch.float64)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.dense()(x), layer(x), rtol=1e-10, atol=1e-12)


def test_dense_takes_what_follows_along_and_refuses_what_stands_between() -> None:
    after = separable.SeparableConv2d(3, 4, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU, where="after").eval()
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(after.dense()(x), after(x))
    assert not after.dense().training
    between = separable.SeparableConv2d(3, 4, 3, act_layer=nn.ReLU, where="between")
    with pytest.raises(Error, match="nothing between depthwise and pointwise, got ReLU"):
        between.dense()


def test_dense_takes_a_folded_depthwise_bias_along() -> None:
    layer = separable.SeparableConv2d(3, 4, 3, padding=1, dtype=torch.float64)
    layer.conv_dw.bias = nn.Parameter(torch.randn(3, dtype=torch.float64))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(layer.dense()(x), layer(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("both", ["conv_dw", "norm_dw", "act_dw", "conv_pw", "norm_pw", "act_pw"]),
        ("between", ["conv_dw", "norm_dw", "act_dw", "conv_pw"]),
        ("after", ["conv_dw", "conv_pw", "norm_pw", "act_pw"]),
    ],
)
def test_norm_and_activation_between_and_after(where: str, names: list[str]) -> None:
    layer = separable.SeparableConv2d(3, 4, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU, where=where)
    assert [name for name, _ in layer.named_children()] == names
    x = torch.randn(4, 3, 6, 6)
    want = x
    for child in layer.children():
        want = child(want)
    assert torch.equal(layer(x), want)


def test_a_half_that_surgery_has_wrapped_is_found() -> None:
    layer = separable.SeparableConv2d(3, 4, 3)
    layer.conv_pw = nn.Sequential(layer.conv_pw, nn.BatchNorm2d(4))
    assert (layer.in_channels, layer.out_channels, layer.depth_multiplier) == (3, 4, 1)
    assert [type(part) for part in layer.after()] == [nn.BatchNorm2d]
    layer.eval()
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(layer.dense()(x), layer(x))
    layer.conv_pw = nn.Identity()
    with pytest.raises(Error, match="must hold a depthwise and a pointwise convolution, got DepthwiseConv2d"):
        _ = layer.out_channels


def test_they_are_convolutions_to_other_tools() -> None:
    layer = separable.SeparableConv2d(3, 4, 3)
    assert isinstance(layer.conv_dw, nn.Conv2d)
    assert isinstance(layer.conv_pw, nn.Conv2d)
    clone = copy.deepcopy(layer)
    assert torch.equal(clone(torch.ones(1, 3, 4, 4)), layer(torch.ones(1, 3, 4, 4)))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: separable.SeparableConv2d(0, 4, 3), "in_channels must be an integer >= 1, got in_channels=0"),
        (lambda: separable.SeparableConv2d(3, 0, 3), "out_channels must be an integer >= 1, got out_channels=0"),
        (lambda: separable.SeparableConv2d(3, 4, 0), "kernel_size must be an integer >= 1 or 2 of them, got"),
        (lambda: separable.SeparableConv2d(3, 4, (3, 3, 3)), "kernel_size must be an integer >= 1 or 2 of them"),
        (lambda: separable.SeparableConv2d(3, 4, 3, padding=-1), "padding must be an integer >= 0 or 2 of them"),
        (lambda: separable.SeparableConv2d(3, 4, 3, padding="some"), "padding must be one of same, valid, got"),
        (lambda: separable.SeparableConv2d(3, 4, 3, 2, "same"), 'padding="same" needs stride 1, got'),
        (lambda: separable.SeparableConv2d(3, 4, 3, groups=2), "groups must divide in_channels and out_channels"),
        (lambda: separable.SeparableConv2d(3, 4, 3, depth_multiplier=-3), "depth_multiplier must be an integer >= 1"),
        (lambda: separable.SeparableConv2d(3, 4, 3, padding_mode="wrap"), "padding_mode must be one of zeros, reflect"),
        (lambda: separable.SeparableConv2d(3, 4, 3, where="here"), "where must be one of both, between, after"),
        (lambda: separable.DepthwiseConv1d(2.5, 3), "in_channels must be an integer >= 1, got in_channels=2.5"),
        (lambda: separable.DepthwiseConv2d(3, 3)(torch.ones(1, 4, 5, 5)), r"shape \(N, 3, H, W\), got \(1, 4, 5, 5\)"),
        (lambda: separable.PointwiseConv1d(3, 3)(torch.ones(5)), r"shape \(N, 3, L\), got \(5,\)"),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        make()


def test_reference_refuses_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(Error, match="separable_reference"):
        separable.separable_reference(torch.ones(1, 2, 4), torch.ones(3, 1, 2), torch.ones(1, 3, 1))


def test_float64_gradients_by_differences() -> None:
    layer = separable.SeparableConv2d(2, 2, 3, padding=1, depth_multiplier=2, dtype=torch.float64)
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
