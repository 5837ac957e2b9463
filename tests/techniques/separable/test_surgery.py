"""Dense convolutions become separable and dense again."""

from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leanconv.contract import Context, Edit, Refusal
from leanconv.errors import Error
from leanconv.rewrite import rewrite
from leanconv.techniques import batchnorm, separable
from leanconv.techniques import roles as all_roles

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def only(proposals: list[Edit | Refusal]) -> Any:
    assert len(proposals) == 1
    return proposals[0]


def apply(model: nn.Module, **options: Any) -> list[Edit | Refusal]:
    return separable.apply(Context(model), separable.Options(**options))


@pytest.mark.parametrize("kernel", [(3,), (1, 3), (3, 3), (5, 1), (2, 2, 3)], ids=str)
@pytest.mark.parametrize("spare", [0, 2])
def test_full_rank_is_exact(kernel: tuple[int, ...], spare: int) -> None:
    conv = CONV[len(kernel)](8, 40, kernel, 2, 1, dtype=torch.float64)
    rank = prod(kernel) + spare
    edit = only(apply(nn.Sequential(conv), depth_multiplier=rank))
    assert edit.claim == "exact"
    x = torch.randn(2, 8, *[6] * len(kernel), dtype=torch.float64)
    layer = edit.put["0"]
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-10, atol=1e-12)
    assert layer.depth_multiplier == rank
    assert all(kernel.any() for kernel in layer.conv_dw.weight)  # spare ones can learn


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_truncated_svd_is_the_nearest_separable_layer(rank: int, seed: int) -> None:
    weight = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    depthwise, pointwise, error = separable.decompose(weight, rank)
    product = torch.einsum("ocj,cjk->ock", pointwise.view(6, 3, rank), depthwise.view(3, rank, 9)).view_as(weight)
    assert error == pytest.approx(((weight - product).norm() / weight.norm()).item(), rel=1e-9)
    # No least-squares improvement of one factor with the other held fixed makes it better.
    better = 0.0
    for c in range(3):
        rows = depthwise.view(3, rank, 9)[c]
        mixed = torch.linalg.lstsq(rows.T, weight[:, c].reshape(6, 9).T).solution
        better += (weight[:, c].reshape(6, 9).T - rows.T @ mixed).square().sum().item()
    assert better**0.5 / weight.norm().item() == pytest.approx(error, rel=1e-9)
    norms = depthwise.view(3, rank, 9).norm(dim=2), pointwise.view(6, 3, rank).norm(dim=0)
    torch.testing.assert_close(*norms)  # the scale is split evenly


def test_error_falls_with_the_rank_and_is_told() -> None:
    conv = nn.Conv2d(8, 16, 3)
    errors = [separable.weight_error(conv, m) for m in range(1, 10)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7
    edit = only(apply(nn.Sequential(conv), depth_multiplier=2))
    assert edit.claim == "approximate"
    assert f"relative weight error {errors[1]:.2g}" in edit.why
    assert edit.keys == {"0.conv_pw.bias": "0.bias"}


def test_a_dense_layer_that_was_separable_comes_back_exactly() -> None:
    layer = separable.SeparableConv2d(8, 16, 3, padding=1, dtype=torch.float64)
    dense = only(separable.remove(Context(nn.Sequential(layer))))
    assert dense.claim == "exact"
    again = only(apply(rewrite(nn.Sequential(layer), [dense]).model))
    assert again.claim == "exact"
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(again.put["0"](x), layer(x), rtol=1e-10, atol=1e-12)


def test_fresh_weights_come_from_the_seed_and_keep_the_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    state = torch.get_rng_state()
    first, second = ([p.put for p in apply(model, init="fresh")] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(first, second, strict=True):
        for a, b in zip(*(next(iter(put.values())).parameters() for put in (one, two)), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(first[0]["0"].conv_dw.weight, first[1]["2"].conv_dw.weight)
    other = separable.apply(Context(model, seed=1), separable.Options(init="fresh"))
    assert not torch.equal(other[0].put["0"].conv_dw.weight, first[0]["0"].conv_dw.weight)  # type: ignore[union-attr]
    x = torch.randn(4, 64, 12, 12)
    scale = (first[0]["0"](x).std() / model[0](x).std()).item()
    assert 0.7 < scale < 1.4
    assert not first[0]["0"].conv_pw.bias.any()


@pytest.mark.parametrize("init", ["keep", "fresh"])
def test_arguments_flags_and_frozen_weights_are_carried_over(init: str) -> None:
    conv = nn.Conv2d(8, 9, (3, 1), (2, 1), (1, 0), (1, 1), padding_mode="circular", dtype=torch.float64).eval()
    conv.weight.requires_grad_(False)
    layer = only(apply(nn.Sequential(conv), init=init)).put["0"]
    dw = layer.conv_dw
    assert (dw.kernel_size, dw.stride, dw.padding, dw.padding_mode) == ((3, 1), (2, 1), (1, 0), "circular")
    assert layer.conv_pw.weight.dtype == torch.float64
    assert not layer.training
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True]


def test_an_activation_between_changes_the_function() -> None:
    edit = only(apply(nn.Sequential(nn.Conv2d(8, 9, 3)), act="relu", init="fresh"))
    assert edit.claim == "changes"
    assert [type(m).__name__ for m in edit.put["0"].flat()] == ["DepthwiseConv2d", "ReLU", "PointwiseConv2d"]


class Special(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[0].weight
    return model


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    model[0].register_forward_hook(lambda *_: None)
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (tied(), "other layers use its parameters too"),
        (hooked(), "hooks on the layer would be lost"),
        (parametrized(), "its weight is parametrized"),
        (nn.Sequential(Special(8, 8, 3)), "Special may compute more than nn.Conv2d does"),
        (nn.Sequential(nn.Conv2d(8, 1, 3)), "one output channel"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "3 input channels are fewer than min_channels=8"),
    ],
)
def test_refusals_say_why(model: nn.Module, why: str) -> None:
    proposals = apply(model)
    assert all(isinstance(p, Refusal) and why in p.why for p in proposals)
    assert proposals


def test_pointwise_grouped_and_transposed_convolutions_are_no_candidates() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 8, 3))
    assert apply(model) == []


def test_a_module_under_two_paths_is_replaced_under_both() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    edit = only(apply(nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})))
    assert set(edit.put) == {"a", "b.0"}
    assert len({id(m) for m in edit.put.values()}) == 1


def test_remove_is_exact_or_says_that_it_changes() -> None:
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    plain = nn.Sequential(separable.SeparableConv2d(8, 4, 3), separable.DepthwiseConv2d(4, 3)).double()
    done = rewrite(plain, separable.remove(Context(plain)))
    assert [type(m) for m in done.model] == [nn.Conv2d, nn.Conv2d]
    assert [e.claim for e in done.edits] == ["exact", "exact"]
    torch.testing.assert_close(done.model(x), plain(x), rtol=1e-10, atol=1e-12)
    between = nn.Sequential(separable.SeparableConv2d(8, 4, 3, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU))
    edit = only(separable.remove(Context(between)))
    assert edit.claim == "changes"
    assert [name for name, _ in edit.put["0"].named_children()] == ["conv", "norm", "act"]


def test_fold_proposes_nothing_and_says_why() -> None:
    refusal = only(separable.fold(Context(nn.Sequential(separable.SeparableConv2d(8, 4, 3)))))
    assert isinstance(refusal, Refusal)
    assert "`remove`" in refusal.why


def test_after_batchnorm_the_layer_is_still_separable() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
    model = rewrite(model, apply(model)).model
    from leanconv.graph import record

    x = torch.randn(2, 8, 6, 6)
    edits = batchnorm.apply(Context(model, graph=record(model, x)), batchnorm.Options(init="fresh"))
    model = rewrite(model, edits).model.eval()
    layer = model[0]
    assert layer.out_channels == 8
    assert list(separable.check(Context(model))) == []
    assert separable.cost(layer, (2, 8, 6, 6)).macs == 2 * 16 * (8 * 9 + 64)
    torch.testing.assert_close(layer.dense()(x), layer(x))


def test_roles_are_those_of_depthwise_weights_ours_and_torchs() -> None:
    model = nn.Sequential(
        separable.SeparableConv2d(4, 8, 3),
        nn.Conv2d(8, 16, 3, groups=8),
        nn.Conv2d(16, 16, 3, groups=2),
        nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, groups=4)),
        separable.SeparableConv2d(1, 8, 3),
    )
    found = separable.roles(model)
    assert set(found.values()) == {"depthwise"}
    assert set(found) == {
        "0.conv_dw.weight",
        "1.weight",
        "3.parametrizations.weight.original0",
        "3.parametrizations.weight.original1",
        "4.conv_dw.weight",
    }
    joined = all_roles(model)
    assert joined["0.conv_pw.weight"] == "weight"
    assert joined["1.bias"] == "bias"


@pytest.mark.parametrize("options", [{"depth_multiplier": 0}, {"min_channels": -3}, {"init": "new"}, {"act": "gelu"}])
def test_bad_options_are_told(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(Error, match=f"separable: {name} must .* got {name}={value!r}"):
        separable.Options(**options)


def test_decompose_refuses_what_is_no_kernel() -> None:
    with pytest.raises(Error, match="decompose"):
        separable.decompose(torch.ones(3, 3), 1)
    with pytest.raises(Error, match="groups=1"):
        separable.weight_error(nn.Conv2d(4, 4, 3, groups=2), 1)
    zero, _, error = separable.decompose(torch.zeros(4, 2, 3, 3), 1)
    assert error == 0.0
    assert not zero.any()
