"""The fit for layers with large patches: against the full moments, against least squares, and against the layers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.errors import Error
from leanconv.techniques.separable import ChannelMoments, FeatureMoments, PatchMoments, fitted_separable, leading
from leanconv.techniques.separable.convert import separate_weights


def maps(images: int, channels: int, seed: int = 0) -> Tensor:
    """Correlated over positions and channels, never negative, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, 14, 14, generator=generator, dtype=torch.float64)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return F.relu(torch.einsum("dc,nchw->ndhw", mix, F.avg_pool2d(x, 5, 1)) + 0.1)


def dense(seed: int = 0, outputs: int = 12, **arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Conv2d(8, outputs, 3, **{"padding": 1, "dtype": torch.float64} | arguments)


def gathered(conv: Any, rank: int, x: Tensor, ref: Tensor | None = None, **given: Any) -> FeatureMoments:
    channels = ChannelMoments(conv, calls=len(x))
    for one in x:
        channels.add(one[None])
    moments = FeatureMoments(conv, leading(conv, channels, rank, **given), channels.level, calls=len(x))
    for i in range(len(x)):
        moments.add(x[i : i + 1], None if ref is None else ref[i : i + 1])
    return moments


@pytest.mark.parametrize("arguments", [{}, {"groups": 2}, {"stride": 2, "padding_mode": "reflect"}], ids=str)
def test_channel_moments_are_the_diagonal_blocks_of_the_full_ones(arguments: Any) -> None:
    conv, x = dense(**arguments), maps(3, 8)
    full, own = PatchMoments(conv, patches=1 << 20), ChannelMoments(conv, calls=3)
    full.add(x)
    for one in x:
        own.add(one)
    blocks = full.covariance.view(conv.groups, 8 // conv.groups, 9, 8 // conv.groups, 9).diagonal(dim1=1, dim2=3)
    want = blocks.permute(0, 3, 1, 2).reshape(8, 9, 9)
    torch.testing.assert_close(own.covariance, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("arguments", [{}, {"groups": 2}, {"bias": False}, {"dilation": 2}], ids=str)
def test_the_error_told_is_that_of_the_layer(arguments: Any, bias: bool) -> None:
    conv, x = dense(**arguments), maps(3, 8)
    for ref in (None, x + 0.2 * maps(3, 8, seed=1)):
        fitted, weighted = gathered(conv, 3, x, ref).fitted(2, bias=bias)
        assert weighted == fitted.error
        assert (fitted.bias is not None) == (bias or conv.bias is not None)
        layer = fitted_separable(conv, fitted)
        with torch.no_grad():
            want, got = conv(x if ref is None else ref), layer(x)
        middle = want.mean((0, 2, 3), keepdim=True) if bias or conv.bias is not None else 0
        lost = (want - got).square().sum() / (want - middle).square().sum()
        assert fitted.error == pytest.approx(float(lost.sqrt()), rel=1e-6)
        if fitted.bias is not None:
            torch.testing.assert_close(got.mean((0, 2, 3)), want.mean((0, 2, 3)))


def test_pointwise_weights_are_those_of_least_squares() -> None:
    conv, x = dense(bias=False), maps(4, 8)
    moments = gathered(conv, 2, x)
    fitted, _ = moments.fitted(2)
    layer = fitted_separable(conv, fitted)
    with torch.no_grad():
        z, y = (t.movedim(1, -1).flatten(0, -2) for t in (layer.conv_dw(x), conv(x)))
    want = torch.linalg.lstsq(z, y).solution.T
    apart = fitted.pointwise.flatten(1) - want  # the ridge keeps it a little nearer to the weights
    assert float(apart.norm() / want.norm()) < 2e-3


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 4), more=st.integers(0, 4), groups=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_lower_ranks_are_nested_in_higher_ones_and_beat_the_plain_svd(
    rank: int, more: int, groups: int, seed: int
) -> None:
    conv, x = dense(seed, 24, groups=groups), maps(2, 8, seed)
    wide, narrow = gathered(conv, rank + more, x).fitted(rank)[0], gathered(conv, rank, x).fitted(rank)[0]
    torch.testing.assert_close(wide.pointwise, narrow.pointwise, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(wide.depthwise, narrow.depthwise, rtol=1e-6, atol=1e-8)

    def lost(fitted: Any) -> float:
        with torch.no_grad():
            apart = conv(x) - fitted_separable(conv, fitted)(x)
        return float((apart - apart.mean((0, 2, 3), keepdim=True)).norm())

    assert lost(wide) <= lost(separate_weights(conv, rank)) * 1.001


def test_at_full_rank_nothing_is_lost_and_importance_counts() -> None:
    conv, x = dense(), maps(3, 8)
    assert gathered(conv, 9, x).fitted(9)[0].error < 1e-6
    importance = torch.tensor([100.0] + [1e-3] * 11)
    fitted, weighted = gathered(conv, 1, x, importance=importance).fitted(1, importance=importance)
    plain, other = gathered(conv, 1, x).fitted(1, importance=importance)
    assert weighted < 0.9 * other
    assert plain.error < fitted.error


def test_dead_and_constant_channels() -> None:
    conv, x = dense(dtype=torch.float32), maps(3, 8).float()
    x[:, 2], x[:, 5] = 0, 3
    moments = gathered(conv, 2, x)
    fitted, _ = moments.fitted(2)
    assert all(bool(t.isfinite().all()) for t in (fitted.depthwise, fitted.pointwise))
    assert fitted.error < 0.5
    nothing, _ = gathered(conv, 2, torch.zeros(2, 8, 12, 12)).fitted(2)
    assert nothing.error == 0
    assert bool(nothing.pointwise.isfinite().all())


def test_bad_arguments_are_told() -> None:
    conv = dense()
    with pytest.raises(Error, match="at least one patch must be added"):
        _ = ChannelMoments(conv).covariance
    with pytest.raises(Error, match=r"needs patches and a rank up to 2, got rank=3 and 300 patches"):
        gathered(conv, 2, maps(3, 8)).fitted(3)
    with pytest.raises(Error, match=r"needs patches and a rank up to 2, got rank=1 and 0 patches"):
        FeatureMoments(conv, torch.zeros(8, 2, 9, dtype=torch.float64), 1.0).fitted(1)
    with pytest.raises(Error, match=r"must be \(N, 8, 2 sides\)"):
        ChannelMoments(conv).add(maps(1, 7))
