"""Moments of patches against all patches written out in float64."""

from itertools import product
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.errors import Error
from leanconv.techniques.separable import patches
from leanconv.techniques.separable.patches import PatchMoments, enough

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def every_patch(conv: Any, x: Tensor) -> Tensor:
    """(groups, N positions, Cin / groups K), tap by tap."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    pads = conv._reversed_padding_repeated_twice
    x = F.pad(x.double(), pads, mode) if any(pads) else x.double()
    sides = [
        (s - d * (k - 1) - 1) // t + 1
        for s, k, d, t in zip(x.shape[2:], conv.kernel_size, conv.dilation, conv.stride, strict=True)
    ]
    taps = []
    for tap in product(*map(range, conv.kernel_size)):
        cut = [
            slice(i * d, i * d + (n - 1) * t + 1, t)
            for i, n, d, t in zip(tap, sides, conv.dilation, conv.stride, strict=True)
        ]
        taps.append(x[(slice(None), slice(None), *cut)])
    found = torch.stack(taps, 2)  # (N, Cin, K, *sides)
    found = found.movedim((1, 2), (-2, -1)).reshape(len(x) * prod(sides), conv.groups, -1)
    return found.transpose(0, 1)


def about_mean(a: Tensor, b: Tensor) -> Tensor:
    return (a - a.mean(1, keepdim=True)).transpose(1, 2) @ (b - b.mean(1, keepdim=True)) / a.shape[1]


@settings(deadline=None, max_examples=30)
@given(
    dims=st.integers(1, 3),
    groups=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    paired=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_moments_are_those_of_all_patches(
    dims: int, groups: int, kernel: int, stride: int, dilation: int, padding: Any, mode: str, paired: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    stride = 1 if padding == "same" else stride
    conv = CONV[dims](2 * groups, 3 * groups, kernel, stride, padding, dilation, groups, padding_mode=mode)
    generator = torch.Generator().manual_seed(dims)
    now = [torch.randn(n, 2 * groups, *[7, 6, 5][:dims], generator=generator).to(dtype) + 5 for n in (2, 1)]
    then = [x + torch.rand(x.shape, generator=generator).to(dtype) for x in now]
    moments = PatchMoments(conv)
    for x, ref in zip(now, then, strict=True):
        moments.add(x, ref if paired else None)
    x, ref = (torch.cat([every_patch(conv, part) for part in parts], 1) for parts in (now, then))
    y = (ref if paired else x) @ moments.weight.transpose(1, 2)
    near: Any = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 2e-5}
    assert moments.count == x.shape[1]
    torch.testing.assert_close(moments.mean, x.mean(1), **near)
    torch.testing.assert_close(moments.target, y.mean(1), **near)
    covariance = moments.covariance
    assert torch.equal(covariance, covariance.transpose(1, 2))
    torch.testing.assert_close(covariance, about_mean(x, x), **near)
    torch.testing.assert_close(moments.cross(covariance), about_mean(y, x), **near)
    torch.testing.assert_close(moments.energy(moments.cross(covariance)), about_mean(y, y), **near)


def test_the_patches_times_the_weights_are_the_layers_outputs() -> None:
    conv = nn.Conv2d(4, 6, (4, 3), 1, "same", (1, 2), 2, padding_mode="reflect").double()
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    outputs = every_patch(conv, x) @ PatchMoments(conv).weight.transpose(1, 2)
    want = conv(x) - conv.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(outputs.transpose(1, 2).reshape(6, 2, 8, 9).transpose(0, 1), want)


def test_chunks_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(5, 4, 3, padding=1).double()
    x = torch.randn(3, 5, 6, 6, dtype=torch.float64)
    whole = PatchMoments(conv)
    whole.add(x)
    before = whole.covariance
    monkeypatch.setattr(patches, "_CHUNK", 45 * 7)
    monkeypatch.setattr(patches, "_BLOCK", 16)
    split = PatchMoments(conv)
    split.add(x[:1])
    assert split.covariance.shape == (1, 45, 45)  # reading it in between does no harm
    split.add(x[1:])
    torch.testing.assert_close(split.covariance, before, rtol=1e-12, atol=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    conv = nn.Conv1d(2, 3, 3)
    x = torch.randn(4, 2, 50) + 4096
    moments = PatchMoments(conv)
    for image in x:
        moments.add(image)
    want = every_patch(conv, x)
    torch.testing.assert_close(moments.covariance, about_mean(want, want), rtol=1e-3, atol=1e-4)


def test_so_many_patches_are_drawn_and_no_more_from_a_seed() -> None:
    conv = nn.Conv2d(2, 3, 3)
    x = torch.randn(4, 2, 12, 12)
    state = torch.get_rng_state()
    first, again, other = (PatchMoments(conv, calls=4, patches=120, seed=s) for s in (0, 0, 1))
    for moments in (first, again, other):
        for image in x:
            moments.add(image[None])
    assert torch.equal(torch.get_rng_state(), state)
    assert first.count == again.count == other.count == 120
    assert torch.equal(first.covariance, again.covariance)
    assert not torch.equal(first.covariance, other.covariance)
    few = PatchMoments(conv, calls=2, patches=1001)
    few.add(x[:1])
    assert few.count == 100  # there are no more


def test_the_default_number_grows_with_the_layer() -> None:
    assert enough(nn.Conv2d(512, 4, 3)) == 8 * 4608
    assert enough(nn.Conv2d(512, 4, 3, groups=4)) == 20_000


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c: PatchMoments(nn.Linear(2, 2)), "must be an nn.Conv1d, 2d or 3d, got Linear"),
        (lambda c: PatchMoments(c, calls=0), "calls must be an integer >= 1, got calls=0"),
        (lambda c: PatchMoments(c, patches=0), "patches must be an integer >= 1, got patches=0"),
        (lambda c: PatchMoments(c).add(torch.ones(1, 3, 5, 5)), r"x must be \(N, 2, 2 sides\), got \(1, 3, 5, 5\)"),
        (lambda c: PatchMoments(c).add(torch.ones(0, 2, 5, 5)), r"got \(0, 2, 5, 5\)"),
        (lambda c: PatchMoments(c).add(torch.ones(1, 2, 2, 5)), "the kernel must fit into the padded map"),
        (lambda c: PatchMoments(c).add(torch.ones(1, 2, 5, 5), torch.ones(1, 2, 6, 5)), "ref must have x's shape"),
        (lambda c: PatchMoments(c).add(torch.full((1, 2, 5, 5), torch.nan)), "must be finite, got inf or nan"),
        (lambda c: PatchMoments(c).covariance, "at least one patch must be added, got none"),
    ],
)
def test_bad_input_is_told(call: Any, sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        call(nn.Conv2d(2, 3, 3))


def test_a_second_input_comes_always_or_never() -> None:
    moments = PatchMoments(nn.Conv2d(2, 3, 3))
    x = torch.ones(1, 2, 5, 5)
    moments.add(x, x)
    with pytest.raises(Error, match="ref must come in every call or in none, got a call without"):
        moments.add(x)
