"""What becomes one step, and what must not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lean_nets import Function, Residual, drawn, norm_conv, told, translated

IMAGE = (2, 6, 8, 8)


def depthwise(channels: int = 6) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def conv(inputs: int = 6, outputs: int = 6) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Twice(nn.Module):
    """A layer whose output two others read."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y) + y


NETWORKS: list[tuple[nn.Module, list[str]]] = [
    (nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU()), ["conv+relu"]),
    (nn.Sequential(depthwise(), nn.SiLU()), ["depthwise+silu"]),
    (nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), ["max_pool+relu"]),
    (nn.Sequential(conv(), nn.ReLU(), nn.Sigmoid()), ["conv+relu", "activation+sigmoid"]),
    (nn.Sequential(nn.Softmax(1), nn.ReLU()), ["softmax", "activation+relu"]),
    (Twice(conv(), nn.ReLU()), ["conv", "activation+relu", "add"]),
    (Residual(conv(), nn.ReLU()), ["conv+relu+sum"]),
    (Residual(nn.Sequential(conv(), nn.ReLU())), ["conv+relu", "add"]),
    (Residual(depthwise(), nn.ReLU()), ["depthwise", "add+relu"]),
    (Residual(conv(), nn.ReLU(), nn.Conv2d(6, 6, 1)), ["conv", "conv+relu+sum"]),
    (Function(lambda x: x + x, conv()), ["conv", "add"]),
    (Function(lambda x: x + x.mean((2, 3), keepdim=True), conv()), ["conv", "mean", "add"]),
    (nn.Sequential(depthwise(), nn.Conv2d(6, 4, 1)), ["block(depthwise conv)"]),
    (nn.Sequential(depthwise(), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU6()), ["block(depthwise+relu conv+relu6)"]),
    (nn.Sequential(nn.Conv2d(6, 9, 1), nn.ReLU(), depthwise(9), nn.ReLU(), nn.Conv2d(9, 6, 1)),
     ["block(conv+relu depthwise+relu conv)"]),
    (Residual(nn.Sequential(nn.Conv2d(6, 9, 1), depthwise(9), nn.Conv2d(9, 6, 1)), nn.ReLU()),
     ["block(conv depthwise conv+relu+sum)"]),
    (nn.Sequential(depthwise(), nn.Conv2d(6, 4, 1), depthwise(4), nn.Conv2d(4, 6, 1)),
     ["block(depthwise conv)", "block(depthwise conv)"]),
    (nn.Sequential(depthwise(), nn.Conv2d(6, 4, 1, stride=2)), ["depthwise", "conv"]),
    (nn.Sequential(depthwise(), nn.Conv2d(6, 4, 1, groups=2)), ["depthwise", "conv"]),
    (nn.Sequential(depthwise(), nn.Conv2d(6, 4, 1, padding=1)), ["depthwise", "conv"]),
    (nn.Sequential(nn.Conv2d(6, 9, 1), depthwise(9)), ["conv", "depthwise"]),
    (Twice(depthwise(), nn.Conv2d(6, 6, 1)), ["depthwise", "conv+sum"]),
    (Function(lambda x: x, nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 4, 3, 2)), ["conv"]),
    (nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(6, 6, 3, 2, groups=6), nn.Conv2d(6, 4, 1)),
     ["block(depthwise conv)"]),
    (nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), conv()), ["affine+relu", "conv"]),
    (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)), ["conv"]),
    (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2)), ["conv"]),
    (nn.Sequential(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 64, 4)), ["linear"]),
    (nn.Sequential(nn.BatchNorm2d(6), conv()), ["affine", "conv"]),
    (Function(lambda x: 2 * x + 1, conv()), ["conv"]),
    (Function(lambda x: F.max_pool2d(x, 3, 2), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1))), ["activation+relu", "max_pool"]),
    (nn.Sequential(*norm_conv(6, 8, 3, None), nn.ChannelShuffle(2)), ["conv"]),
    (nn.Sequential(nn.ChannelShuffle(2), conv()), ["conv"]),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(NETWORKS)))
def test_what_becomes_one_step(place: int) -> None:
    torch.manual_seed(0)
    network, steps = NETWORKS[place]
    assert told(translated(drawn(network), *IMAGE)) == steps


class Branches(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.a, self.b = conv(6, 4), conv(6, 6)
        self.norm = nn.BatchNorm2d(10) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))


@pytest.mark.parametrize("norm", [False, True])
def test_a_norm_of_a_concatenation_goes_into_its_parts(norm: bool) -> None:
    assert told(translated(drawn(Branches(norm)), *IMAGE)) == ["conv", "conv", "concat+relu"]


def test_parts_of_a_convolution_are_made_where_they_are_read() -> None:
    def function(x: Tensor) -> Tensor:
        first, second = x.relu().chunk(2, 1)
        return torch.cat([second, F.max_pool2d(first, 3, 1, 1)], 1)

    assert told(translated(Function(function, conv(6, 8)), *IMAGE)) == ["conv+relu", "conv+relu", "max_pool", "concat"]


def test_a_layer_that_runs_twice_has_its_weights_once_in_the_file() -> None:
    layer: Any = conv()
    found = translated(nn.Sequential(layer, nn.ReLU(), layer), *IMAGE)
    assert told(found) == ["conv+relu", "conv"]
    assert set(found.tensors) == {"0.weight", "0.bias"}


def test_a_layer_that_runs_twice_may_be_changed_in_one_place() -> None:
    layer: Any = conv()
    network = Function(lambda x: layer(2 * layer(x)))
    network.layer = layer
    found = translated(network, *IMAGE)
    assert told(found) == ["conv", "conv"]
    assert set(found.tensors) == {"layer.weight", "layer.bias", "layer.weight.2", "layer.bias.2"}


def test_what_the_output_does_not_need_is_gone() -> None:
    def function(x: Tensor) -> Tensor:
        F.gelu(x).sum()
        return x

    assert told(translated(Function(function, conv()), *IMAGE)) == ["conv"]
