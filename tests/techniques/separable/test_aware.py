"""Fits of outputs: against the layers themselves, against plain SVD, and where the data say little or nothing."""

from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.errors import Error
from leanconv.techniques import separable
from leanconv.techniques.separable import Fitted, PatchMoments, separate_outputs, separate_weights, whitened
from leanconv.techniques.separable.aware import error_curve, output_error
from leanconv.techniques.separable.convert import fitted_separable, weight_curve

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def smooth(images: int, channels: int, side: int = 12, seed: int = 0) -> Tensor:
    """Maps as they come out of a ReLU: correlated over positions and channels, never negative."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, channels, side + 4, side + 4, generator=generator, dtype=torch.float64)
    mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    return F.relu(torch.einsum("dc,nchw->ndhw", mix, F.avg_pool2d(x, 5, 1)) + 0.1)


def dense(inputs: int = 8, outputs: int = 16, seed: int = 0, **arguments: Any) -> Any:
    torch.manual_seed(seed)
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, "dtype": torch.float64} | arguments)


def moments_of(conv: nn.Module, x: Tensor, ref: Tensor | None = None) -> PatchMoments:
    moments = PatchMoments(conv, patches=1 << 20)
    moments.add(x, ref)
    return moments


def with_mean_met(conv: Any, fitted: Fitted, moments: PatchMoments) -> Fitted:
    """The same weights; the bias makes up for the mean, so that nothing but the weights is compared."""
    layer = fitted_separable(conv, fitted)
    missing = moments.target - torch.einsum("goi,gi->go", separable.convert.grouped_weight(layer.dense()), moments.mean)
    return Fitted(fitted.depthwise, fitted.pointwise, conv.bias.detach() + missing.flatten(), fitted.error)


def real_error(
    conv: nn.Module, layer: nn.Module, x: Tensor, ref: Tensor | None = None, about_mean: bool = True
) -> float:
    """sqrt(E |y - y'|^2 / E |y|^2) of what the layers put out; y about its mean or about the bias."""
    with torch.no_grad():
        want, got = conv(x if ref is None else ref), layer(x)
    lost = (want - got).square().sum()
    middle = want.mean((0, 2, 3), keepdim=True) if about_mean else 0
    return float((lost / (want - middle).square().sum()).sqrt())


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize(
    "arguments", [{}, {"stride": 2, "padding_mode": "reflect"}, {"groups": 2, "dilation": 2}], ids=str
)
def test_the_error_told_is_that_of_the_layer(m: int, arguments: Any) -> None:
    conv = dense(**arguments)
    x = smooth(3, 8)
    ref = x + 0.2 * smooth(3, 8, seed=1)
    for other in (None, ref):
        moments = moments_of(conv, x, other)
        fitted = separate_outputs(conv, m, moments)
        layer = fitted_separable(conv, fitted)
        assert fitted.error == pytest.approx(real_error(conv, layer, x, other), rel=1e-6)
        assert output_error(conv, fitted, moments) == pytest.approx(fitted.error, rel=1e-9)
        with torch.no_grad():  # the bias meets the mean
            want, got = conv(x if other is None else other), layer(x)
        torch.testing.assert_close(got.mean((0, 2, 3)), want.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 3])
def test_layers_of_every_dimension_keep_their_arguments(dims: int, groups: int) -> None:
    conv = CONV[dims](6, 12, 3, 2, 1, 1, groups, True, "circular", dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 6, *[8] * dims, dtype=torch.float64).cumsum(-1)
    fitted = separate_outputs(conv, 2, moments_of(conv, x))
    layer = fitted_separable(conv, fitted)
    assert (layer.pointwise.groups, layer.depth_multiplier, layer.training) == (groups, 2, False)
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True]
    assert layer.dense().weight.shape == conv.weight.shape
    want, got = conv(x).detach(), layer(x).detach()
    lost = (want - got).square().sum() / (want - want.mean((0, *range(2, dims + 2)), keepdim=True)).square().sum()
    assert fitted.error == pytest.approx(float(lost) ** 0.5, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(
    m=st.integers(1, 8),
    outputs=st.sampled_from([4, 12]),
    groups=st.sampled_from([1, 2]),
    images=st.integers(1, 3),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["smooth", "white", "few", "scaled"]),
)
def test_never_worse_than_plain_svd(m: int, outputs: int, groups: int, images: int, seed: int, kind: str) -> None:
    conv = dense(4, outputs, seed, groups=groups)
    x = smooth(images, 4, 6, seed)
    if kind == "white":
        x = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    if kind == "few":
        x = x[:1, :, :2, :2]
    if kind == "scaled":
        x = x * torch.tensor([1e-6, 1.0, 0.0, 1e3], dtype=x.dtype).view(-1, 1, 1)
    moments = moments_of(conv, x)
    fitted, plain = separate_outputs(conv, m, moments), separate_weights(conv, m)
    assert fitted.error <= output_error(conv, plain, moments) * (1 + 1e-6) + 1e-6
    assert all(t.isfinite().all() for t in (fitted.depthwise, fitted.pointwise, fitted.bias))


def test_more_rounds_are_never_worse_and_reach_a_stationary_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitened, "_STALLED", 0.0)
    conv, x = dense(4, 8), smooth(2, 4, 8)
    moments = moments_of(conv, x)
    errors = [separate_outputs(conv, 2, moments, rounds=n).error for n in (0, 1, 3, 10, 30)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))
    # Gradient descent on both halves from there finds nothing better.
    layer = fitted_separable(conv, separate_outputs(conv, 2, moments, ridge=1e-9, rounds=100))
    reached = real_error(conv, layer, x)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (layer(x) - conv(x).detach()).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert real_error(conv, layer, x) >= 0.995 * reached


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_on_correlated_inputs_it_loses_less_than_0_7_of_what_svd_loses(m: int) -> None:
    conv, x = dense(16, 32), smooth(6, 16)
    moments = moments_of(conv, x)
    plain = with_mean_met(conv, separate_weights(conv, m), moments)
    ours = real_error(conv, fitted_separable(conv, separate_outputs(conv, m, moments)), x)
    assert ours < 0.7 * real_error(conv, fitted_separable(conv, plain), x)


@pytest.mark.parametrize(("kernel", "outputs"), [(3, 16), (3, 4), (1, 8)])
@pytest.mark.parametrize("paired", [False, True])
def test_full_rank_is_what_decompose_gives(kernel: int, outputs: int, paired: bool) -> None:
    conv = nn.Conv2d(6, outputs, kernel, dtype=torch.float64)
    x = smooth(2, 6)
    moments = moments_of(conv, x, x + 1 if paired else None)
    for rank in (min(kernel**2, outputs), kernel**2 + 2):
        fitted, plain = separate_outputs(conv, rank, moments), separate_weights(conv, rank)
        assert torch.equal(fitted.depthwise, plain.depthwise)
        assert torch.equal(fitted.pointwise, plain.pointwise)
        assert fitted.error < 1e-6
        if not paired:
            torch.testing.assert_close(fitted.bias, conv.bias.detach())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("what", ["zeros", "constant", "one", "dead", "copies", "dead weights"])
def test_where_the_data_say_little(what: str, bias: bool) -> None:
    conv = dense(4, 12, bias=bias)
    x = smooth(2, 4)
    if what == "zeros":
        x = torch.zeros_like(x)
    if what == "constant":
        conv.padding_mode = "circular"
        x = torch.full_like(x, 3)
    if what == "one":
        conv.padding, conv._reversed_padding_repeated_twice = (0, 0), [0] * 4
        x = x[:1, :, :3, :3]
    if what == "dead":
        x[:, 1] = 0
    if what == "copies":
        x = x[:, :1].expand(-1, 4, -1, -1)
    if what == "dead weights":
        conv.weight.data[:, 2] = 0
    moments = moments_of(conv, x)
    for word in ("keep", "add", "norm"):
        fitted = separate_outputs(conv, 2, moments, bias=word)  # type: ignore[arg-type]
        assert (fitted.bias is not None) == (bias or word == "add")
        assert all(t.isfinite().all() for t in (fitted.depthwise, fitted.pointwise))
        plain = output_error(conv, separate_weights(conv, 2), moments, bias=word)  # type: ignore[arg-type]
        assert 0 <= fitted.error <= plain + 1e-6
        if what in ("zeros", "one", "constant") and (bias or word != "keep"):  # nothing varies: the weights decide
            product, nearest = (fitted_separable(conv, f).dense().weight for f in (fitted, separate_weights(conv, 2)))
            torch.testing.assert_close(product, nearest)
    dead = fitted_separable(conv, separate_outputs(conv, 2, moments)).dense().weight
    if what == "dead":  # a channel that is silent here keeps what its weights know
        torch.testing.assert_close(dead[:, 1], fitted_separable(conv, separate_weights(conv, 2)).dense().weight[:, 1])


def test_copies_of_a_channel_share_their_kernels() -> None:
    conv = dense(3, 12)
    x = smooth(4, 1).expand(-1, 3, -1, -1)  # so m = 3 for each make nine for all
    assert separate_outputs(conv, 3, moments_of(conv, x), ridge=1e-9, rounds=50).error < 0.05
    assert output_error(conv, separate_weights(conv, 3), moments_of(conv, x)) > 0.5


def test_a_fit_to_what_was_makes_up_for_what_is() -> None:
    conv, x = dense(), smooth(6, 8)
    now = 0.6 * x + 0.4 * x.roll(1, 1) + 0.1 * smooth(6, 8, seed=3)
    for m in (2, 4):
        blind = fitted_separable(conv, separate_outputs(conv, m, moments_of(conv, now)))
        aware = fitted_separable(conv, separate_outputs(conv, m, moments_of(conv, now, x)))
        assert real_error(conv, aware, now, x) < 0.8 * real_error(conv, blind, now, x)


def test_groups_are_fitted_each_on_its_own() -> None:
    conv = dense(8, 12, groups=2)
    x = smooth(3, 8)
    whole = separate_outputs(conv, 2, moments_of(conv, x))
    for g in range(2):
        own = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
        own.weight.data, own.bias.data = conv.weight.data[6 * g : 6 * g + 6], conv.bias.data[6 * g : 6 * g + 6]
        part = separate_outputs(own, 2, moments_of(own, x[:, 4 * g : 4 * g + 4]))
        torch.testing.assert_close(whole.depthwise[8 * g : 8 * g + 8], part.depthwise)
        torch.testing.assert_close(whole.pointwise[6 * g : 6 * g + 6], part.pointwise)
    assert weight_curve(conv)[2] == pytest.approx(separate_weights(conv, 2).error)


def test_without_a_bias_outputs_are_fitted_as_they_are_or_left_to_a_norm() -> None:
    conv, x = dense(bias=False), smooth(3, 8) + 1
    moments = moments_of(conv, x)
    kept, added, normed = (separate_outputs(conv, 2, moments, bias=word) for word in ("keep", "add", "norm"))  # type: ignore[arg-type]
    assert kept.bias is normed.bias is None
    assert kept.error == pytest.approx(real_error(conv, fitted_separable(conv, kept), x, about_mean=False), rel=1e-6)
    assert added.error == pytest.approx(real_error(conv, fitted_separable(conv, added), x), rel=1e-6)
    assert torch.equal(added.depthwise, normed.depthwise)
    norm = nn.BatchNorm2d(16, momentum=1.0, affine=False, dtype=torch.float64)
    torch.testing.assert_close(norm(fitted_separable(conv, added)(x)), norm(fitted_separable(conv, normed)(x)))


def test_important_outputs_are_met_better() -> None:
    conv, x = dense(), smooth(4, 8)
    moments = moments_of(conv, x)
    weights = torch.ones(16)
    weights[3] = 100.0
    alike, one = separate_outputs(conv, 1, moments), separate_outputs(conv, 1, moments, importance=weights)
    full = torch.diag(weights)[None]
    torch.testing.assert_close(separate_outputs(conv, 1, moments, importance=full).depthwise, one.depthwise)

    def of_that(fitted: Fitted) -> float:
        return float((conv(x) - fitted_separable(conv, fitted)(x))[:, 3].detach().square().mean())

    assert of_that(one) < 0.7 * of_that(alike)
    only = torch.zeros(16)
    only[3] = 1.0
    assert output_error(conv, one, moments, importance=only) < output_error(conv, alike, moments, importance=only)


def test_curves_fall_and_agree_with_the_fits() -> None:
    conv, x = dense(), smooth(4, 8)
    moments = moments_of(conv, x)
    curve = error_curve(conv, moments)
    assert list(curve) == list(range(1, 10))
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    assert curve[9] < 1e-6
    for m in (1, 4):
        assert separate_outputs(conv, m, moments).error == pytest.approx(curve[m], rel=0.02)
    assert error_curve(conv, moments, [3], rounds=10)[3] == separate_outputs(conv, 3, moments).error
    weights = weight_curve(conv)
    assert weights == pytest.approx({m: separable.weight_error(conv, m) for m in range(1, 10)}, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions_lose_only_their_rounding(dtype: torch.dtype) -> None:
    conv, x = dense(), smooth(4, 8)
    small = dense(dtype=dtype)
    small.load_state_dict(conv.state_dict())
    ours = separate_outputs(small, 3, moments_of(small, x.to(dtype)))
    assert ours.depthwise.dtype == ours.pointwise.dtype == ours.bias.dtype == dtype
    exact = separate_outputs(conv, 3, moments_of(conv, x)).error
    assert ours.error == pytest.approx(exact, rel=0.05)


@pytest.mark.source("S18")
def test_what_is_fitted_is_depthwise_then_pointwise_with_their_counts() -> None:
    conv, x = dense(), smooth(2, 8)
    fitted = separate_outputs(conv, 2, moments_of(conv, x))
    count = separable.separable_parameters(8, 16, (3, 3), 2)
    assert fitted.depthwise.numel() + fitted.pointwise.numel() == count
    mix = fitted.pointwise.flatten(1)
    channels = F.conv2d(x, fitted.depthwise, padding=1, groups=8)
    want = torch.einsum("oi,nihw->nohw", mix, channels) + fitted.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(fitted_separable(conv, fitted)(x), want)
    assert prod(fitted.pointwise.shape[2:]) == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c, m: separate_outputs(nn.Linear(2, 2), 1, m), "must be an nn.Conv1d, 2d or 3d, got Linear"),
        (lambda c, m: separate_outputs(c, 0, m), "rank must be an integer >= 1, got rank=0"),
        (lambda c, m: separate_outputs(c, 1, m, bias="drop"), "bias must be one of keep, add, norm, got bias='drop'"),
        (lambda c, m: separate_outputs(c, 1, m, ridge=0.0), "ridge must be above 0 and finite, got ridge=0.0"),
        (lambda c, m: separate_outputs(c, 1, m, rounds=-1), "rounds must be an integer >= 0, got rounds=-1"),
        (lambda c, m: separate_outputs(c, 1, m, importance=torch.ones(3)), "importance must be finite and"),
        (
            lambda c, m: separate_outputs(c, 1, m, importance=-torch.ones(16)),
            "importance must be positive semidefinite",
        ),
        (lambda c, m: separate_outputs(nn.Conv2d(8, 4, 3), 1, m), "the moments must be those of the layer"),
        (lambda c, m: separate_outputs(c, 1, PatchMoments(c)), "at least one patch must be added"),
        (lambda c, m: error_curve(c, m, [2, 0]), "rank must be an integer >= 1, got rank=0"),
        (lambda c, m: separate_weights(nn.Linear(2, 2), 1), "must be an nn.Conv1d, 2d or 3d"),
        (lambda c, m: fitted_separable(nn.Linear(2, 2), separate_weights(c, 1)), "must be an nn.Conv1d, 2d or 3d"),
    ],
)
def test_bad_arguments_are_told_in_one_sentence(call: Any, sentence: str) -> None:
    conv = dense()
    with pytest.raises(Error, match=sentence):
        call(conv, moments_of(conv, smooth(1, 8, 4)))
