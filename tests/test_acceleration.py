"""Kernels put under a network, and taken away again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import leanconv
from leanconv import models
from leanconv.techniques.batchnorm import BatchNorm2d
from surgery.networks import shaken


class Mixed(nn.Module):
    """torch's layers: pairs that can be one operation, a shared activation, a functional one, a norm that two read."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.one = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6())
            self.two = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
            self.three, self.four, self.five = (nn.BatchNorm2d(8) for _ in range(3))
            self.act = nn.ReLU()
            self.head = nn.Linear(8, 4)
            shaken(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(x))
        x = self.act(self.four(self.act(self.three(x))))
        both = self.five(x)
        y: Tensor = self.head((F.relu(both) + both).mean((2, 3)))
        return y


def test_outputs_gradients_and_names_stay_and_undo_gives_the_network_back() -> None:
    model, x = Mixed().train(), torch.randn(6, 3, 9, 9)
    fast, told = leanconv.accelerate(model, example=x)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [m.activation for m in fast.modules() if isinstance(m, BatchNorm2d)] == ["relu6", "silu", None, None, None]
    assert isinstance(fast.one[2], nn.Identity)
    assert {r.path for r in told.refusals} == {"three", "four"}
    assert told.exact is not None
    assert told.exact.relative < 1e-14
    outputs = []
    for network in (model, fast):
        y = network(x)
        y.square().mean().backward()
        outputs.append(y)
    torch.testing.assert_close(*outputs)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fast.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    torch.testing.assert_close(fast.one[1].running_var, model.one[1].running_var)
    back, changed = leanconv.accelerate(model, example=x)[1].undo(leanconv.accelerate(model, example=x)[0])
    assert not changed
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in back.state_dict().items())


@pytest.mark.source("S8")
def test_a_training_follows_that_of_the_network_as_it_was() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.mobilenet_v1(num_classes=4, width=0.25).train()
        x, labels = torch.randn(16, 3, 64, 64), torch.arange(16) % 4
    fast, told = leanconv.accelerate(model, example=x)
    assert len(told.edits) == 28  # the norms with their activations, and one chain of blocks
    losses = []
    for network in (model, fast):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.001)
        found = []
        for _ in range(5):
            loss = F.cross_entropy(network(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)  # rounding grows: the last maps have four pixels


@pytest.mark.parametrize("width", [0.25, 1.0])
def test_checkpoints_recompute_what_ran(width: float) -> None:
    """Layers that torch runs, layers of our own and blocks: the same ones, and statistics move once."""
    model, x = models.small(width=width).train(), torch.randn(16, 3, 32, 32)
    for network in (model, leanconv.accelerate(model, example=x)[0]):
        seen = []
        for run in (network, lambda x, network=network: checkpoint(network, x, use_reentrant=False)):
            image = x.clone().requires_grad_()
            before = {name: value.clone() for name, value in network.state_dict().items()}
            (grad,) = torch.autograd.grad(run(image).square().mean(), image)
            seen.append((grad, {name: value.clone() for name, value in network.state_dict().items()}))
            network.load_state_dict(before)
        torch.testing.assert_close(seen[0], seen[1])


def test_an_optimizer_goes_along() -> None:
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fast, told = leanconv.accelerate(model, example=torch.randn(2, 3, 9, 9), optimizer=optimizer)
    assert told.optimizer is not None
    assert not told.optimizer.fresh
    assert {id(p) for g in told.optimizer.optimizer.param_groups for p in g["params"]} <= {
        id(p) for p in fast.parameters()
    }
