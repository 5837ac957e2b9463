"""Running, precise and exact statistics, and freezing."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.techniques.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    exact_statistics,
    freeze,
    frozen,
    precise_statistics,
    unfreeze,
)
from leanconv.techniques.batchnorm.statistics import Moments

KINDS = pytest.mark.parametrize("norm", [BatchNorm2d, nn.BatchNorm2d], ids=["ours", "torch"])


def network(norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        norm(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 5, 3),
        norm(5),
        nn.ReLU(),
        nn.Conv2d(5, 4, 1),
        norm(4),
    ).double()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 9, 9, generator=generator, dtype=torch.float64) * n + n for n in (4, 7, 2)]


def moments(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    together = torch.cat([v.movedim(1, -1).reshape(-1, v.shape[1]) for v in values])
    return together.mean(0), ((together - together.mean(0)) ** 2).mean(0)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.sampled_from([0.0, 1e6]))
def test_pooling_is_exact(sizes: list[int], mean: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    parts = [torch.randn(n, 3, 2, generator=generator, dtype=torch.float64) + mean + i for i, n in enumerate(sizes)]
    pooled = Moments()
    for part in parts:
        pooled.add(part)
    if sum(sizes):
        want_mean, want_var = moments(parts)
        assert torch.allclose(pooled.mean, want_mean, rtol=1e-12)
        assert torch.allclose(pooled.var, want_var, rtol=1e-7)
    else:
        assert pooled.count == 0


@KINDS
def test_precise_pools_what_training_mode_shows(norm: type[nn.Module]) -> None:
    model = network(norm)
    seen: list[list[Tensor]] = [[], [], []]
    hand = copy.deepcopy(model).eval()
    for i, at in enumerate((1, 5, 8)):
        hand[at].train()
        hand[at].register_forward_pre_hook(lambda m, args, i=i: seen[i].append(args[0].detach()))
    for x in batches():
        hand(x)
    assert precise_statistics(model, batches()) == 3
    for i, at in enumerate((1, 5, 8)):
        mean, var = moments(seen[i])
        assert torch.allclose(model[at].running_mean, mean, rtol=1e-10)
        assert torch.allclose(model[at].running_var, var, rtol=1e-10)


@pytest.mark.source("S9b")
@KINDS
def test_exact_statistics_give_beta_and_gamma_over_the_training_set(norm: type[nn.Module]) -> None:
    model = network(norm)
    with torch.no_grad():
        for at in (1, 5, 8):
            model[at].weight.normal_()
            model[at].bias.normal_()
    assert exact_statistics(model, batches()) == 3
    outputs: dict[int, list[Tensor]] = {1: [], 5: [], 8: []}
    inputs: dict[int, list[Tensor]] = {1: [], 5: [], 8: []}
    for at in outputs:
        model[at].register_forward_pre_hook(lambda m, args, at=at: inputs[at].append(args[0]))
        model[at].register_forward_hook(lambda m, args, y, at=at: outputs[at].append(y))
    model.eval()
    with torch.no_grad():
        for x in batches():
            model(x)
    for at, ys in outputs.items():
        mean, var = moments(ys)
        s2 = moments(inputs[at])[1]
        bn = model[at]
        assert torch.allclose(mean, bn.bias, atol=1e-10)
        assert torch.allclose(var.sqrt(), bn.weight.abs() * (s2 / (s2 + bn.eps)).sqrt(), rtol=1e-10)


def test_the_three_kinds_differ() -> None:
    running, precise, exact = (network(BatchNorm2d) for _ in range(3))
    for x in batches():
        running.train()(x)
    precise_statistics(precise, batches())
    exact_statistics(exact, batches())
    assert torch.allclose(precise[1].running_var, exact[1].running_var), "the first layer sees the same input in both"
    assert not torch.allclose(precise[5].running_var, exact[5].running_var, rtol=1e-3)
    assert not torch.allclose(running[1].running_var, precise[1].running_var, rtol=1e-3)


@pytest.mark.parametrize("settle", [precise_statistics, exact_statistics])
def test_nothing_else_changes(settle: object) -> None:
    model = network(BatchNorm2d).train()
    model[4].eval()
    model[5].train()
    freeze(model[8])
    before = copy.deepcopy(model.state_dict())
    flags = [m.training for m in model.modules()]
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    assert settle(model, batches()) == 2
    assert flags == [m.training for m in model.modules()]
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"{i}.running_{what}" for i in (1, 5) for what in ("mean", "var")}


@pytest.mark.parametrize("settle", [precise_statistics, exact_statistics])
def test_no_batches_is_an_error(settle: object) -> None:
    with pytest.raises(Error, match=f"^{settle.__name__}: batches must hold at least one batch, got none$"):
        settle(network(BatchNorm2d), [])


def test_exact_takes_iterators_and_pairs() -> None:
    one, two = network(BatchNorm2d), network(BatchNorm2d)
    exact_statistics(one, batches())
    exact_statistics(two, ((x, None) for x in batches()))
    assert torch.equal(one[8].running_var, two[8].running_var)


def test_exact_refuses_a_layer_that_is_called_twice() -> None:
    norm = BatchNorm2d(3).double()
    with pytest.raises(Error, match=r"^exact_statistics: 0 must be called once per forward pass, got 2 calls$"):
        exact_statistics(nn.Sequential(norm, nn.ReLU(), norm), batches())


@KINDS
@pytest.mark.parametrize("affine", [True, False])
def test_frozen_means_frozen(norm: type[nn.Module], affine: bool) -> None:
    model = network(norm)
    model.train()(batches()[0])
    assert freeze(model, affine=affine) == ["1", "5", "8"]
    freeze(model, affine=affine)
    twin = copy.deepcopy(model)
    before = copy.deepcopy(twin.state_dict())
    x = batches()[1]
    twin.train()
    assert twin[1].training
    layer = twin[5]
    z = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    want = (z - layer.running_mean.view(1, -1, 1, 1)) / (layer.running_var.view(1, -1, 1, 1) + layer.eps).sqrt()
    assert torch.allclose(layer(z), want)
    twin(x)
    assert layer.training, "the flag is put back"
    assert all(torch.equal(v, before[k]) for k, v in twin.state_dict().items())
    assert twin[1].weight.requires_grad is not affine
    assert unfreeze(twin) == ["1", "5", "8"]
    assert not any(frozen(m) for m in twin.modules())
    twin(x)
    assert not torch.equal(twin[1].running_mean, before["1.running_mean"])
    assert twin[1].weight.requires_grad
    assert frozen(model[1]), "the copy alone was unfrozen"


def test_freezing_needs_running_statistics() -> None:
    with pytest.raises(Error, match=r"^freeze: a layer must have running statistics, got track_running_stats=False"):
        freeze(BatchNorm1d(3, track_running_stats=False))
