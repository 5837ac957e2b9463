"""Decoupled decay: apart from the gradient, with the learning rate of the moment."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from l2_nets import ROLES, WEIGHTS, net, train
from leanconv.errors import Error
from leanconv.techniques.l2 import decouple, param_groups


def decayed(model: nn.Module, decay: float) -> dict[torch.Tensor, float]:
    return {model.get_parameter(name): decay for name in WEIGHTS}


def distance(a: nn.Module, b: nn.Module) -> float:
    return max((a.get_parameter(name) - b.get_parameter(name)).abs().max().item() for name in WEIGHTS)


def test_under_adam_it_is_adamw() -> None:
    hooked, torchs = net(), net()
    adam = torch.optim.Adam(hooked.parameters(), lr=0.01)
    decouple(adam, decayed(hooked, 0.1))
    train(hooked, adam, 60)
    train(torchs, torch.optim.AdamW(param_groups(torchs, strength=0.1, roles=ROLES), lr=0.01), 60)
    assert distance(hooked, torchs) < 1e-12


def test_under_adam_coupled_and_decoupled_differ() -> None:
    coupled, hooked = net(), net()
    train(coupled, torch.optim.Adam(param_groups(coupled, strength=0.1, roles=ROLES), lr=0.01), 60)
    adam = torch.optim.Adam(hooked.parameters(), lr=0.01)
    decouple(adam, decayed(hooked, 0.1))
    train(hooked, adam, 60)
    assert distance(coupled, hooked) > 1e-2


@pytest.mark.parametrize(("momentum", "equal"), [(0.0, True), (0.9, False)])
def test_under_sgd_it_is_the_coupled_decay_only_without_momentum(momentum: float, equal: bool) -> None:
    coupled, hooked = net(), net()
    groups = param_groups(coupled, strength=0.1, roles=ROLES)
    train(coupled, torch.optim.SGD(groups, lr=0.05, momentum=momentum), 60)
    sgd = torch.optim.SGD(hooked.parameters(), lr=0.05, momentum=momentum)
    decouple(sgd, decayed(hooked, 0.1))
    train(hooked, sgd, 60)
    assert (distance(coupled, hooked) < 1e-12) is equal


def test_the_learning_rate_of_the_moment_counts() -> None:
    w = nn.Parameter(torch.tensor([8.0], dtype=torch.float64))
    sgd = torch.optim.SGD([w], lr=0.0)
    decouple(sgd, {w: 0.5})
    expected = 8.0
    for lr in (1.0, 0.5, 0.25):
        sgd.param_groups[0]["lr"] = lr
        w.grad = torch.zeros_like(w)
        sgd.step()
        expected *= 1 - lr * 0.5
        assert w.item() == expected


def test_a_learning_rate_may_be_a_tensor() -> None:
    w = nn.Parameter(torch.tensor([8.0]))
    adam = torch.optim.Adam([w], lr=torch.tensor(0.5))
    decouple(adam, {w: 0.5})
    w.grad = torch.zeros_like(w)
    adam.step()
    assert w.item() == 6.0


def test_a_parameter_without_gradient_rests() -> None:
    w = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([w], lr=0.1)
    decouple(sgd, {w: 0.5})
    sgd.step()
    assert w.tolist() == [1.0, 1.0]


def test_removing_the_handle_ends_it() -> None:
    w = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([w], lr=0.1)
    decouple(sgd, {w: 0.5}).remove()
    w.grad = torch.zeros_like(w)
    sgd.step()
    assert w.tolist() == [1.0, 1.0]


def test_only_parameters_of_the_optimizer() -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with pytest.raises(Error, match=r"must be the optimizer's, got one of shape \(3,\)"):
        decouple(sgd, {nn.Parameter(torch.ones(3)): 0.1})
    with pytest.raises(Error, match=r"decay must be >= 0, got -0\.1"):
        decouple(sgd, {sgd.param_groups[0]["params"][0]: -0.1})
