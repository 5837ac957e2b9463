"""Whole networks: ours, those that others write, and random ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import leanconv
from lean_nets import Residual, Squeeze, drawn, mobilenet_v2, mobilenet_v3, resnet, told, translated
from leanconv import models

OURS: list[tuple[nn.Module, int, int]] = [
    (models.mobilenet_v1(width=0.25, num_classes=5), 64, 13),
    (models.mobilenet_v1(width=0.25, num_classes=5, separable=False, shallow=True), 32, 0),
    (models.small(width=0.5), 32, 6),
    (models.plain(dropout=0.2, batchnorm=True, separable=True, in_chans=3, width=8, grid=2), 32, 5),
    (models.plain(in_chans=3, width=8), 32, 0),
    (models.residual(dropout=0.2, width=8), 32, 0),
    (models.residual(separable=True, width=8), 32, 8),
    (models.residual(separable=1, batchnorm=False, width=8), 32, 5),
]


@pytest.mark.parametrize("place", range(len(OURS)))
def test_our_networks(place: int) -> None:
    network, side, blocks = OURS[place]
    found = translated(drawn(network), 2, 3, side, side)
    assert sum(step.op == "block" for step in found.plan.steps) == blocks
    assert not any(step.op in ("affine", "activation", "add") for step in found.plan.steps)


def test_a_perceptron() -> None:
    assert told(translated(models.mlp(dropout=0.5), 2, 1, 28, 28)) == ["linear+relu", "linear+relu", "linear"]


@pytest.mark.parametrize("network", [models.small(width=0.25), models.residual(separable=True, width=8)])
def test_networks_on_our_kernels(network: nn.Module) -> None:
    fast, _ = leanconv.accelerate(drawn(network), example=torch.zeros(2, 3, 32, 32), check=False)
    plain, ours = (translated(net, 2, 3, 32, 32) for net in (network, fast))
    assert told(plain) == told(ours)


def test_mobilenet_v2() -> None:
    steps = told(translated(drawn(mobilenet_v2()), 2, 3, 32, 32))
    assert steps == [
        "conv+relu6",
        "block(depthwise+relu6 conv+sum)",
        "block(conv+relu6 depthwise+relu6 conv)",
        "block(conv+relu6 depthwise+relu6 conv+sum)",
        "conv+relu6",
        "mean",
        "linear",
    ]


def test_mobilenet_v3() -> None:
    steps = Counter(told(translated(drawn(mobilenet_v3()), 2, 3, 32, 32)))
    assert steps["block(conv+hardswish depthwise+hardswish conv+sum)"] == 1
    assert steps["multiply"] == 2
    assert steps["conv+hardsigmoid"] == 2
    assert steps["linear+hardswish"] == 1


def test_resnet() -> None:
    steps = told(translated(drawn(resnet()), 2, 3, 48, 48))
    assert steps[:4] == ["conv+relu", "max_pool", "conv+relu", "conv+relu+sum"]
    assert steps.count("conv+relu+sum") == 4
    assert "add" not in steps


def test_efficientnet_lite() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    network = drawn(package.EfficientNet.from_name("efficientnet-lite0"))
    found = translated(network, 1, 3, 64, 64)
    assert Counter(step.op for step in found.plan.steps) == {"conv": 2, "block": 16, "mean": 1, "linear": 1}


# --- random networks -------------------------------------------------------------------------------------------------

CHANNELS = 4
ACTS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Identity, nn.Tanh, nn.Dropout)


@st.composite
def layers(draw: st.DrawFn) -> list[nn.Module]:
    """A few layers that keep (N, 4, 6, 6)."""
    kind = draw(st.sampled_from(("conv", "conv", "depthwise", "separable", "norm", "act", "pool", "squeeze", "pad")))
    if kind in ("conv", "depthwise"):
        size, groups = draw(st.sampled_from((1, 3, 5))), draw(st.sampled_from((1, 2)))
        groups = CHANNELS if kind == "depthwise" else groups
        dilation = draw(st.sampled_from((1, 2)))
        conv = nn.Conv2d(CHANNELS, CHANNELS, size, padding=dilation * (size // 2), dilation=dilation, groups=groups,
                         bias=draw(st.booleans()))  # fmt: skip
        return [conv, *([nn.BatchNorm2d(CHANNELS)] if draw(st.booleans()) else []), draw(st.sampled_from(ACTS))()]
    if kind == "separable":
        wide = draw(st.sampled_from((4, 8)))
        expand: list[Any] = [nn.Conv2d(CHANNELS, wide, 1), draw(st.sampled_from(ACTS))()] if wide > CHANNELS else []
        return [*expand, nn.Conv2d(wide, wide, 3, padding=1, groups=wide), draw(st.sampled_from(ACTS))(),
                nn.Conv2d(wide, CHANNELS, 1)]  # fmt: skip
    if kind == "pool":
        return [draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))(3, 1, 1)]
    if kind == "pad":
        top, left = draw(st.integers(0, 2)), draw(st.integers(0, 2))
        return [nn.ZeroPad2d((left, 2 - left, top, 2 - top)), nn.Conv2d(CHANNELS, CHANNELS, 3)]
    if kind == "squeeze":
        return [Squeeze(CHANNELS)]
    return [nn.BatchNorm2d(CHANNELS)] if kind == "norm" else [draw(st.sampled_from(ACTS))()]


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        chain = [layer for _ in range(draw(st.integers(1, 2))) for layer in draw(layers())]
        how = draw(st.sampled_from(("plain", "residual", "residual", "twice")))
        if how == "residual":
            parts.append(Residual(nn.Sequential(*chain), draw(st.sampled_from((None, nn.ReLU())))))
        else:
            parts += chain * (2 if how == "twice" else 1)
    parts += draw(st.sampled_from(([], [nn.Flatten(), nn.Linear(144, 3)], [nn.AdaptiveAvgPool2d(1), nn.Flatten()])))
    torch.manual_seed(draw(st.integers(0, 99)))
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 1), *parts)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return drawn(model)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_random_networks(network: nn.Module) -> None:
    translated(network, 2, 3, 6, 6)
