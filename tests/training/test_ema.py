"""The average of the weights, against its formula written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.errors import Error
from leanconv.training.ema import Average


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()


def test_the_average_is_the_formula_with_its_warm_up() -> None:
    net, decay = network(), 0.9
    average = Average(net, decay)
    expected = {n: v.clone() for n, v in net.state_dict().items()}
    for t in range(200):
        net(torch.randn(5, 3, dtype=torch.float64))
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        average.step()
        d = min(decay, (1 + t) / (10 + t))
        for name, value in net.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * value if value.is_floating_point() else value.clone()
    values, steps = average.state()
    assert steps == 200
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, rtol=1e-12, atol=1e-13)


def test_in_place_lends_the_average_and_gives_the_weights_back_by_an_exception_too() -> None:
    net = network()
    average = Average(net, 0.5)
    with torch.no_grad():
        net[0].weight.zero_()

    def fails() -> None:
        with average.in_place():
            assert net[0].weight.abs().sum() > 0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert net[0].weight.abs().sum() == 0


def test_without_a_decay_nothing_is_held() -> None:
    net = network()
    average = Average(net, None)
    before = net[0].weight.clone()
    average.step()
    with average.in_place():
        assert torch.equal(net[0].weight, before)
    assert average.state() == ({}, 0)


def test_averages_of_another_network_are_refused() -> None:
    average = Average(network(), 0.5)
    with pytest.raises(Error, match=r"ema: the averages must be of this network, got a difference at 0\.bias"):
        average.load({"0.weight": torch.zeros(4, 3)}, 1)
