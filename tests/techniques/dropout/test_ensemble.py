"""Row S5: the mean and spread of sub-networks, and the case in which weight scaling is exact."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from leanconv import Error
from leanconv.techniques.dropout import (
    Dropout,
    Dropout2d,
    StochasticDepth,
    enumerate_ensemble,
    geometric_mean,
    monte_carlo,
    weight_scaling,
)


def _net(layer: nn.Module, units: int = 10) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(7, units), nn.Tanh(), layer, nn.Linear(units, 4)).double()


def _x() -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.source("S5")
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_geometric_mean_of_all_1024_sub_networks_is_weight_scaling(p: float) -> None:
    """Plainly, without the functions under test: product of Bernoullis, inverted scale, real matrix products."""
    model, x = _net(Dropout(p)), _x()
    hidden, weight, bias = model[1](model[0](x)), model[3].weight, model[3].bias
    total = torch.zeros(5, 4, dtype=torch.float64)
    count = 0
    for mask in product((0.0, 1.0), repeat=10):
        kept = torch.tensor(mask, dtype=torch.float64)
        probability = float((kept * (1 - p) + (1 - kept) * p).prod())
        logits = torch.einsum("nh,h,kh->nk", hidden, kept / (1 - p), weight) + bias
        total += probability * torch.log_softmax(logits, 1)
        count += 1
    assert count == 1024
    assert torch.allclose(torch.softmax(total, 1), weight_scaling(model, x), rtol=1e-12, atol=0)


@pytest.mark.source("S5")
@pytest.mark.parametrize(
    "layer",
    [Dropout(0.5), Dropout(0.3), Dropout(0.5, "batch"), Dropout(0.3, "batch", "exact"), Dropout(0.95)],
    ids=str,
)
def test_the_layer_itself_enumerated(layer: Dropout) -> None:
    model, x = _net(layer).train(), _x()
    ensemble = enumerate_ensemble(model, x)
    assert ensemble.masks.shape == (1024, 10)
    assert len({tuple(m.tolist()) for m in ensemble.masks}) == 1024
    assert ensemble.weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert ensemble.weights[0] == 0, "never all units stop"
    assert torch.allclose(geometric_mean(ensemble), weight_scaling(model, x), rtol=1e-11, atol=0)
    arithmetic = (ensemble.weights.view(-1, 1, 1) * ensemble.log_predictions.exp()).sum(0)
    assert not torch.allclose(arithmetic, weight_scaling(model, x), rtol=1e-6)
    assert model.training
    assert "_draw" not in layer.__dict__


def test_the_weights_are_the_layers_own_frequencies() -> None:
    layer = Dropout(0.6)
    ensemble = enumerate_ensemble(_net(layer, 3), _x())
    torch.manual_seed(0)
    layer.train()(torch.ones(100_000, 3))
    codes = (layer.last_mask.long() * torch.tensor([4, 2, 1])).sum(1).bincount(minlength=8) / 100_000
    assert (codes - ensemble.weights).abs().max() < 0.01
    assert codes[0] == 0


def test_channels_are_units_too() -> None:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), Dropout2d(0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(conv, nn.Linear(6, 3)).double()
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    ensemble = enumerate_ensemble(model, x)
    assert len(ensemble.masks) == 64
    assert torch.allclose(geometric_mean(ensemble), weight_scaling(model, x), rtol=1e-11, atol=0)


def test_behind_a_nonlinearity_the_equality_ends() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Dropout(0.5), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    difference = geometric_mean(enumerate_ensemble(model, _x())) - weight_scaling(model, _x())
    assert difference.abs().max() > 1e-4


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Dropout2d(0.3))
        self.branch = StochasticDepth(0.3)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), Dropout(0.5), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.stem(x)
        return self.head(y + self.branch(y))


@pytest.mark.source("S5")
def test_monte_carlo_runs_dropout_alone_and_restores_everything() -> None:
    torch.manual_seed(0)
    model, x = _Net().train(), torch.randn(6, 1, 6, 6)
    model.head.eval()
    flags = [m.training for m in model.modules()]
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, again, other = monte_carlo(model, x, 5), monte_carlo(model, x, 5), monte_carlo(model, x, 5, seed=1)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items()), "batch norm ran in training mode"
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(first.passes, again.passes)
    assert not torch.equal(first.passes, other.passes)
    assert first.passes.shape == (5, 6, 3)
    assert torch.allclose(first.mean.sum(1), torch.ones(6))
    assert (first.spread > 0).all()
    assert not first.mean.requires_grad


def test_monte_carlo_against_the_enumerated_ensemble() -> None:
    model, x = _net(Dropout(0.5)), _x()
    ensemble = enumerate_ensemble(model, x)
    probabilities = ensemble.log_predictions.exp()
    mean = torch.einsum("s,snk->nk", ensemble.weights, probabilities)
    spread = torch.einsum("s,snk->nk", ensemble.weights, (probabilities - mean) ** 2).sqrt()
    drawn = monte_carlo(model, x, passes=2000)
    assert ((drawn.mean - mean).abs() / (spread / 2000**0.5)).max() < 5
    assert torch.allclose(drawn.spread, spread, rtol=0.15)


def test_flags_are_restored_after_an_error() -> None:
    model = nn.Sequential(Dropout(0.5), nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError):
        monte_carlo(model, torch.ones(2, 5))
    assert all(m.training for m in model.modules())


BAD = [
    (
        lambda: monte_carlo(_net(Dropout()), _x(), passes=1),
        "monte_carlo: passes must be an int of at least 2, got passes=1",
    ),
    (
        lambda: monte_carlo(nn.Linear(7, 2), torch.ones(1, 7)),
        "monte_carlo: the network must have a dropout layer, got Linear",
    ),
    (
        lambda: monte_carlo(Dropout(), torch.ones(7)),
        "monte_carlo: the network must give logits of shape (N, K, ...), got (7,)",
    ),
    (lambda: enumerate_ensemble(_net(nn.Dropout()), _x()), "enumerate_ensemble: a network must have one dropout layer"),
    (
        lambda: enumerate_ensemble(_net(Dropout(), 17), _x()),
        "enumerate_ensemble: a layer must have at most 16 units, got 17",
    ),
    (lambda: enumerate_ensemble(_net(Dropout(0)), _x()), "enumerate_ensemble: a network must have one dropout layer"),
]


@pytest.mark.parametrize(("bad", "sentence"), BAD, ids=range(len(BAD)))
def test_bad_input_is_one_sentence(bad, sentence) -> None:
    with pytest.raises(Error) as caught:
        bad()
    assert str(caught.value).startswith(sentence)
