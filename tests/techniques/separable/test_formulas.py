"""Closed forms against real layers: the text's counts, bias and norm apart."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanconv.accounting import layer_cost
from leanconv.errors import Error
from leanconv.techniques import separable

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SEPARABLE = {1: separable.SeparableConv1d, 2: separable.SeparableConv2d, 3: separable.SeparableConv3d}
counts = st.integers(1, 12)
kernels = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def weights(layer: nn.Module) -> int:
    return sum(p.numel() for name, p in layer.named_parameters() if name.endswith("weight"))


@pytest.mark.source("S17")
@settings(deadline=None, max_examples=30)
@given(counts, counts, kernels)
def test_standard_convolution_has_cin_k_cout_parameters(cin: int, cout: int, kernel: tuple[int, ...]) -> None:
    layer = CONV[len(kernel)](cin, cout, kernel)
    assert separable.standard_parameters(cin, cout, kernel) == weights(layer) == cin * prod(kernel) * cout
    size = tuple(k + 2 for k in kernel)
    macs = separable.standard_macs(cin, cout, kernel, (3,) * len(kernel))
    assert layer_cost(layer, (1, cin, *size)).macs == macs


@pytest.mark.source("S18")
@settings(deadline=None, max_examples=30)
@given(counts, counts, kernels, st.integers(1, 3))
def test_separable_convolution_has_cin_k_plus_cin_cout(cin: int, cout: int, kernel: tuple[int, ...], m: int) -> None:
    layer = SEPARABLE[len(kernel)](cin, cout, kernel, depth_multiplier=m)
    want = cin * m * prod(kernel) + cin * m * cout
    assert separable.separable_parameters(cin, cout, kernel, m) == weights(layer) == want
    macs = separable.separable_macs(cin, cout, kernel, (3,) * len(kernel), m)
    assert layer_cost(layer, (1, cin, *(k + 2 for k in kernel))).macs == macs


@pytest.mark.source("S19")
@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 300), kernels, st.integers(1, 3))
def test_ratio_does_not_depend_on_the_input_channels(cin: int, cout: int, kernel: tuple[int, ...], m: int) -> None:
    counted = separable.separable_parameters(cin, cout, kernel, m) / separable.standard_parameters(cin, cout, kernel)
    assert separable.ratio(cout, kernel, m) == pytest.approx(counted, rel=1e-12)
    assert separable.ratio(cout, kernel, m) == pytest.approx(m / cout + m / prod(kernel), rel=1e-12)


@pytest.mark.source("S19")
def test_with_many_input_channels_the_saving_is_large() -> None:
    saved = [
        separable.standard_parameters(c, 64, (3, 3)) - separable.separable_parameters(c, 64, (3, 3))
        for c in (1, 8, 64, 512)
    ]
    assert saved == [c * saved[0] for c in (1, 8, 64, 512)]
    assert saved[0] > 0
    real = [weights(nn.Conv2d(c, 64, 3)) - weights(separable.SeparableConv2d(c, 64, 3)) for c in (1, 8, 64, 512)]
    assert real == saved


@pytest.mark.source("S19")
@settings(deadline=None, max_examples=20)
@given(counts, counts)
def test_a_kernel_of_one_or_a_single_output_loses(cin: int, cout: int) -> None:
    assert separable.ratio(cout, (1, 1)) > 1
    assert weights(separable.SeparableConv2d(cin, cout, 1)) > weights(nn.Conv2d(cin, cout, 1))
    assert separable.ratio(1, (3, 3)) > 1
    assert weights(separable.SeparableConv2d(cin, 1, 3)) > weights(nn.Conv2d(cin, 1, 3))


def unshared(x: Tensor, kernel: tuple[int, ...], weight: Tensor) -> Tensor:
    """A locally connected layer: at each position its own (Cout, Cin, K)."""
    windows = x
    for dim, k in enumerate(kernel, 2):
        windows = windows.unfold(dim, k, 1)
    dims = len(kernel)
    windows = windows.reshape(x.shape[0], x.shape[1], prod(windows.shape[2 : 2 + dims]), prod(kernel))
    return torch.einsum("ncpk,pock->nop", windows, weight)


@pytest.mark.source("S26")
@pytest.mark.parametrize(
    ("kernel", "spatial"), [((3,), (7,)), ((3, 1), (5, 4)), ((3, 3), (5, 6)), ((2, 3, 1), (3, 4, 2))]
)
def test_the_ladder_counts_what_real_layers_hold_and_do(kernel: tuple[int, ...], spatial: tuple[int, ...]) -> None:
    cin, cout, dims = 3, 5, len(kernel)
    rungs = {rung.name: rung for rung in separable.ladder(cin, cout, kernel, spatial)}
    output = [n - k + 1 for n, k in zip(spatial, kernel, strict=True)]
    shape = (1, cin, *spatial)

    full = nn.Linear(cin * prod(spatial), cout * prod(output), bias=False)
    assert rungs["fully connected"].parameters == weights(full)
    assert rungs["fully connected"].macs == layer_cost(nn.Sequential(nn.Flatten(), full), shape).macs

    own = torch.randn(prod(output), cout, cin, prod(kernel))
    x = torch.randn(shape)
    assert unshared(x, kernel, own).shape == (1, cout, prod(output))
    same = own[:1].expand_as(own)  # one window's weights everywhere: the standard convolution
    conv = CONV[dims](cin, cout, kernel, bias=False)
    conv.weight = nn.Parameter(same[0].reshape(cout, cin, *kernel).clone())
    torch.testing.assert_close(unshared(x, kernel, same), conv(x).flatten(2))
    assert rungs["unshared"].parameters == own.numel()
    assert rungs["unshared"].macs == own.numel()  # each of its weights is used once

    assert rungs["standard"].parameters == weights(conv)
    assert rungs["standard"].macs == layer_cost(conv, shape).macs
    apart = SEPARABLE[dims](cin, cout, kernel)
    assert rungs["separable"].parameters == weights(apart)
    assert rungs["separable"].macs == layer_cost(apart, shape).macs
    assert [r.macs_per_map * cout for r in rungs.values()] == pytest.approx([r.macs for r in rungs.values()])


@pytest.mark.source("S26")
def test_each_rung_has_fewer_parameters_and_dimension_widens_the_gap() -> None:
    gaps = []
    for dims in (1, 2, 3):
        rungs = separable.ladder(16, 32, (3,) * dims, (10,) * dims, padding=1)
        parameters = [rung.parameters for rung in rungs]
        assert parameters == sorted(parameters, reverse=True)
        gaps.append(rungs[2].parameters / rungs[3].parameters)
    assert gaps == sorted(gaps)


@pytest.mark.source("S26")
def test_each_output_map_of_a_standard_convolution_computes_over_the_whole_input() -> None:
    rungs = {rung.name: rung for rung in separable.ladder(64, 128, (3, 3), (14, 14), padding=1)}
    assert rungs["standard"].macs_per_map == 64 * 9 * 14 * 14
    assert rungs["separable"].macs_per_map == pytest.approx(64 * 14 * 14 * (1 + 9 / 128))


@pytest.mark.source("S21")
def test_growth_over_depth_is_what_stacks_of_layers_hold() -> None:
    for row in separable.growth(6, (3, 3), (1, 2, 5)):
        assert row.standard == weights(nn.Sequential(*[nn.Conv2d(6, 6, 3) for _ in range(row.depth)]))
        stack = nn.Sequential(*[separable.SeparableConv2d(6, 6, 3) for _ in range(row.depth)])
        assert row.separable == weights(stack)
        assert row.separable < row.standard


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: separable.standard_parameters(0, 1, 9), "in_channels must be an integer >= 1"),
        (lambda: separable.separable_parameters(1, 1, 9, 0), "depth_multiplier must be an integer >= 1"),
        (lambda: separable.ratio(8, (3, 0)), "side must be an integer >= 1, got side=0"),
        (lambda: separable.ladder(1, 1, (3, 3), (5,)), "kernel and spatial must have the same one to three sides"),
        (lambda: separable.ladder(1, 1, (7,), (5,)), "the kernel must fit into the map"),
        (lambda: separable.growth(4, 9, (0,)), "depth must be an integer >= 1"),
    ],
)
def test_bad_numbers_are_told(call: object, sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        call()  # type: ignore[operator]
