"""The residual network: its count, its identity at the start, its options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leanconv import cost, models
from leanconv.errors import Error
from leanconv.models.residual import ResidualBlock
from leanconv.techniques.separable import SeparableConv2d


def counted(width: int, stages: list[list[int]], dense: int, classes: int) -> int:
    """Parameters by hand: 3x3 convolutions without bias, a gamma and beta per channel, the linear layer."""

    def layer(inputs: int, outputs: int, separable: bool) -> int:
        weights = 9 * inputs + inputs * outputs if separable else 9 * inputs * outputs
        return weights + 2 * outputs

    total, channels = layer(3, width, False), width
    for number, (times, blocks) in enumerate(stages):
        lean = number >= dense
        total += layer(channels, width * times, lean)
        channels = width * times
        total += blocks * 2 * layer(channels, channels, lean)
    return total + channels * classes + classes


@pytest.mark.parametrize(
    ("stages", "separable", "dense"),
    [([[2, 1], [4, 2]], False, 2), ([[2, 1], [4, 0], [8, 1]], True, 0), ([[2, 1], [4, 1], [8, 2]], 2, 2)],
)
@pytest.mark.parametrize("width", [1, 8])
def test_parameters_are_those_of_its_layers(stages: list[list[int]], separable: Any, dense: int, width: int) -> None:
    net = models.residual(width=width, stages=stages, separable=separable, num_classes=7)
    found = cost(net, torch.randn(1, 3, 32, 32)).params
    separables = sum(isinstance(m, SeparableConv2d) for m in net.modules())
    assert separables == sum(1 + 2 * blocks for _, blocks in stages[dense:])
    assert found == counted(width, stages, dense, 7) == sum(p.numel() for p in net.parameters())


def test_the_recipe_cifar10_is_below_a_million_parameters() -> None:
    from leanconv import recipe

    options = recipe.load("cifar10").model.options
    assert counted(options["width"], options["stages"], len(options["stages"]), 10) == 759_594


def test_blocks_start_as_the_identity_of_what_is_positive() -> None:
    torch.manual_seed(0)
    net = models.residual(width=4, stages=[[1, 2]])
    x = torch.rand(2, 4, 8, 8)
    blocks = [m for m in net.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 2
    for block in blocks:
        assert torch.equal(block.eval()(x), x)
        assert torch.equal(block(x), torch.relu(x + block.second(block.first(x))))
        with torch.no_grad():
            block.second[1].weight.fill_(0.5)
        assert not torch.equal(block(x), x)


@pytest.mark.parametrize(("dropout", "batchnorm"), [(True, True), (0.3, False), (False, False)])
@pytest.mark.parametrize("side", [28, 33, 96])
def test_each_technique_is_a_switch(dropout: Any, batchnorm: bool, side: int) -> None:
    net = models.residual(dropout=dropout, batchnorm=batchnorm, width=4, in_chans=1, num_classes=5)
    assert net(torch.randn(3, 1, side, side)).shape == (3, 5)
    kinds = {type(m).__name__ for m in net.modules()}
    assert ("Dropout" in kinds, "BatchNorm2d" in kinds) == (bool(dropout), batchnorm)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 0}, "residual: width must be"),
        ({"separable": -1}, "separable must be a bool or a number of stages >= 0, got separable=-1"),
        ({"separable": 0.5}, "separable must be a bool or a number of stages >= 0, got separable=0.5"),
        ({"stages": []}, r"stages must be pairs .*, got stages=\[\]"),
        ({"stages": [[2]]}, r"got stages=\[\[2\]\]"),
        ({"stages": [[2, -1]]}, "residual: stages must be"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Error, match=sentence):
        models.residual(**options)
