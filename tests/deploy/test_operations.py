"""Every operation of torch that a plan has, as module, function and method; each must answer as torch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lean_nets import Function, told, translated
from leanconv import nn as ours

IMAGE = (2, 6, 9, 7)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


LAYERS: list[tuple[nn.Module, tuple[int, ...], list[str]]] = [
    (nn.Conv2d(6, 8, 3), IMAGE, ["conv"]),
    (nn.Conv2d(6, 8, (3, 1), (2, 1), (1, 0), (1, 2), bias=False), IMAGE, ["conv"]),
    (nn.Conv2d(6, 8, 4, padding="same"), IMAGE, ["conv"]),
    (nn.Conv2d(6, 9, 3, padding="valid", groups=3, dilation=2), IMAGE, ["conv"]),
    (nn.Conv2d(6, 6, 3, 2, 1, groups=6), IMAGE, ["depthwise"]),
    (nn.Conv2d(6, 18, 5, padding=2, groups=6), IMAGE, ["depthwise"]),
    (nn.Conv1d(6, 8, 3, 2, 1), (2, 6, 11), ["conv"]),
    (nn.Conv1d(6, 6, 3, padding=1, groups=6), (2, 6, 11), ["depthwise"]),
    (nn.Conv2d(1, 4, 3), (2, 1, 8, 8), ["conv"]),
    (nn.Linear(6, 5), (2, 6), ["linear"]),
    (nn.Sequential(nn.Flatten(), nn.Linear(6 * 63, 5)), IMAGE, ["linear"]),
    (nn.Sequential(nn.Conv1d(6, 4, 1), nn.Flatten(), nn.Linear(44, 5)), (2, 6, 11), ["conv", "linear"]),
    (nn.BatchNorm2d(6), IMAGE, ["affine"]),
    (nn.BatchNorm1d(6), (2, 6), ["affine"]),
    (nn.BatchNorm1d(6), (2, 6, 5), ["affine"]),
    (nn.MaxPool2d(3, 2, 1), IMAGE, ["max_pool"]),
    (nn.MaxPool2d(2, ceil_mode=True), IMAGE, ["max_pool"]),
    (nn.MaxPool2d(2, dilation=2, stride=1), IMAGE, ["max_pool"]),
    (nn.MaxPool1d(3), (2, 6, 11), ["max_pool"]),
    (nn.AvgPool2d(3, 2, 1), IMAGE, ["avg_pool"]),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE, ["avg_pool"]),
    (nn.AvgPool2d(2, ceil_mode=True), IMAGE, ["avg_pool"]),
    (nn.AvgPool1d(3), (2, 6, 11), ["avg_pool"]),
    (nn.AdaptiveAvgPool2d(1), IMAGE, ["mean"]),
    (nn.AdaptiveAvgPool2d((3, None)), IMAGE, ["avg_pool"]),
    (nn.AdaptiveMaxPool2d((3, 1)), IMAGE, ["max_pool"]),
    (nn.AdaptiveAvgPool1d(1), (2, 6, 11), ["mean"]),
    (nn.ZeroPad2d((1, 2, 3, 0)), IMAGE, ["depthwise"]),
    (nn.Softmax(1), IMAGE, ["softmax"]),
    (nn.Softmax(-1), (2, 6), ["softmax"]),
    *((act, IMAGE, [f"activation+{name}"]) for act, name in (
        (nn.ReLU(), "relu"), (nn.ReLU6(), "relu6"), (nn.Hardswish(), "hardswish"), (nn.SiLU(), "silu"),
        (nn.Sigmoid(), "sigmoid"), (nn.Hardsigmoid(), "hardsigmoid"), (nn.Hardtanh(0, 6), "relu6"),
    )),
    (nn.LeakyReLU(0.1), IMAGE, ["activation+relu", "affine", "affine", "add"]),
    (nn.PReLU(6), IMAGE, ["activation+relu", "affine", "affine", "add"]),
    (nn.Hardtanh(), IMAGE, ["affine+relu6", "affine"]),
    (nn.Tanh(), IMAGE, ["affine+sigmoid", "affine"]),
    (ours.BatchNorm2d(6, activation="relu"), IMAGE, ["affine+relu"]),
    (ours.SeparableConv2d(6, 4, 3, padding=1), IMAGE, ["block(depthwise conv)"]),
    (ours.DepthwiseConv2d(6, 3, depth_multiplier=2, padding="same"), IMAGE, ["depthwise"]),
    (ours.DepthwiseConv2d(6, 2, padding="same"), IMAGE, ["depthwise"]),
    (ours.DepthwiseConv1d(6, 4, padding="same"), (2, 6, 11), ["depthwise"]),
    (ours.PointwiseConv2d(6, 4, groups=2), IMAGE, ["conv"]),
    (nn.Sequential(ours.Dropout(0.5), nn.Conv2d(6, 2, 1), nn.Identity(), nn.Dropout2d(0.1)), IMAGE, ["conv"]),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("layer", "shape", "steps"), LAYERS, ids=lambda v: type(v).__name__)
def test_a_layer(layer: nn.Module, shape: tuple[int, ...], steps: list[str]) -> None:
    torch.manual_seed(0)
    for module in layer.modules():
        if isinstance(getattr(module, "running_mean", None), Tensor):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    assert told(translated(layer, *shape, fold=False)) == steps


FUNCTIONS: list[tuple[Any, list[str]]] = [
    (lambda x: x.mean((2, 3)), ["mean"]),
    (lambda x: x.mean([-1, -2], keepdim=True), ["mean"]),
    (lambda x: x.flatten(2).mean(-1), ["mean"]),
    (lambda x: x.mean(3), ["avg_pool"]),
    (lambda x: x.mean(1, keepdim=True), ["conv"]),
    (lambda x: x.amax((2, 3)), ["max_pool"]),
    (lambda x: F.relu(x, inplace=True), ["activation+relu"]),
    (lambda x: x.clamp(0, 6), ["activation+relu6"]),
    (lambda x: x.clamp(min=0), ["activation+relu"]),
    (lambda x: x.clamp(0, 1), ["affine+relu6", "affine"]),
    (swish, ["activation+silu"]),
    (lambda x: F.relu6(x + 3) / 6, ["activation+hardsigmoid"]),
    (lambda x: x * F.relu6(x + 3) / 6, ["activation+hardswish"]),
    (lambda x: x * (F.relu6(x + 3) * (1 / 6)), ["activation+hardswish"]),
    (lambda x: 2 * x - 1, ["affine"]),
    (lambda x: 1 - x / 4, ["affine"]),
    (lambda x: -x, ["affine"]),
    (lambda x: x + torch.ones_like(x), ["affine", "add"]),
    (lambda x: x - torch.linspace(0, 1, 6)[:, None, None], ["affine"]),
    (lambda x: (x - torch.linspace(0, 1, 6).view(1, 6, 1, 1)) / torch.linspace(1, 2, 6).view(1, 6, 1, 1), ["affine"]),
    (lambda x: x + x, ["add"]),
    (lambda x: x - F.relu(x), ["activation+relu", "affine", "add"]),
    (lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)), ["mean+sigmoid", "multiply"]),
    (lambda x: x * x.mean((2, 3), keepdim=True).expand_as(x), ["mean", "multiply"]),
    (lambda x: x * x.mean(1, keepdim=True), ["conv", "multiply"]),
    (lambda x: x + x.mean((2, 3))[:, :, None, None], ["mean", "add"]),
    (lambda x: x.mean((2, 3), keepdim=True) * x[:, :1], ["mean", "conv", "conv", "multiply"]),
    (lambda x: x[:, :1] + x.mean((2, 3), keepdim=True), ["conv", "mean", "conv", "add"]),
    (lambda x: torch.cat([x, F.relu(x)], 1), ["activation+relu", "concat"]),
    (lambda x: torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:], dtype=x.dtype)], 1), ["conv"]),
    (lambda x: torch.chunk(x, chunks=2, dim=1)[1], ["conv"]),
    (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), ["conv", "conv", "conv", "concat"]),
    (lambda x: x[:, 1:4], ["conv"]),
    (lambda x: x.mean((2, 3))[:, 1], ["mean", "conv"]),
    (lambda x: F.conv1d(x.mean(3), torch.ones(2, 6, 3, dtype=x.dtype)), ["avg_pool", "conv"]),
    (lambda x: F.max_pool1d(x.mean(3), 3), ["avg_pool", "max_pool"]),
    (lambda x: x.index_select(1, torch.tensor([5, 0, 0])), ["conv"]),
    (lambda x: x[:, :, ::2, ::3], ["max_pool", "max_pool"]),
    (lambda x: x[:, :, 1:, 1:-1], ["depthwise", "depthwise"]),
    (lambda x: x.view(len(x), 2, 3, 9, 7).transpose(1, 2).reshape(len(x), 6, 9, 7), ["conv"]),
    (lambda x: F.softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2), ["softmax"]),
    (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), ["conv"]),
    (lambda x: F.max_pool2d(F.pad(F.relu(x), (0, 1, 0, 1)), 3, 2), ["activation+relu", "max_pool"]),
    (lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2), ["depthwise", "max_pool"]),
    (lambda x: F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2), ["avg_pool"]),
    (lambda x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 1, 2), ["depthwise", "avg_pool"]),
    (lambda x: F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 3, 2, 1), ["avg_pool"]),
    (lambda x: F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 3, 2, 1), ["depthwise", "avg_pool"]),
    (lambda x: F.relu(x.contiguous().to(torch.float32) if x.dtype == torch.float32 else x), ["activation+relu"]),
    (lambda x: x.flatten(1).relu().unflatten(1, (6, 9, 7)), ["activation+relu"]),
    (lambda x: x.squeeze(0).unsqueeze(2).squeeze(2) * 3, ["affine"]),
]  # fmt: skip


@pytest.mark.parametrize("place", range(len(FUNCTIONS)))
def test_a_function(place: int) -> None:
    function, steps = FUNCTIONS[place]
    assert told(translated(Function(function), *IMAGE, fold=False)) == steps


def test_linear_over_the_last_dimension_is_a_pointwise_convolution() -> None:
    tokens = Function(lambda x: x.transpose(1, 2), Function(lambda x: x.flatten(2).transpose(1, 2)), nn.Linear(6, 4))
    assert told(translated(tokens, *IMAGE)) == ["conv"]


def test_weights_behind_a_flatten_are_in_the_order_of_memory() -> None:
    layer = nn.Linear(2 * 3 * 4, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(24.0))
    found = translated(nn.Sequential(nn.Flatten(), layer), 1, 2, 3, 4)
    weight = found.tensors["1.weight"].reshape(3, 4, 2)
    assert weight[1, 2, 0] == 6
    assert weight[1, 2, 1] == 18


def test_an_operation_in_place_on_a_view_is_seen_in_the_other_views() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        y.flatten(1).relu_()
        return y + 1

    assert told(translated(Function(function), *IMAGE)) == ["affine+relu", "affine"]


def test_a_network_that_lies_otherwise_gives_its_output_otherwise() -> None:
    from leanconv.deploy.translation import translate

    found = translate(Function(lambda x: x.permute(0, 2, 3, 1), nn.Conv2d(6, 2, 1)), torch.zeros(IMAGE))
    assert found.order == ("h", "w", "c")
    assert found.plan.values[found.plan.output].shape == (9, 7, 2)
