"""A dense convolution as a separable one, and back: the arithmetic of the weights."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from leanconv.errors import Error
from leanconv.techniques.separable.blocks import SeparableConv1d, SeparableConv2d, SeparableConv3d, _Separable

__all__ = ["decompose", "dense_fresh", "fresh_separable", "nearest_separable", "weight_error"]

_SEPARABLE: dict[type[nn.Module], Any] = {
    nn.Conv1d: SeparableConv1d,
    nn.Conv2d: SeparableConv2d,
    nn.Conv3d: SeparableConv3d,
}
DENSE = tuple(_SEPARABLE)


def decompose(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The separable weights nearest to a dense kernel: per input channel the truncated SVD of its (Cout, K) slices.

    ``W[:, c] = sum over r of u_r s_r v_r``; the best sum of ``rank`` products keeps the largest s_r (Eckart and Young),
    so no separable layer with that depth multiplier has a smaller squared weight error. Each s_r is split evenly:
    pointwise u_r sqrt(s_r), depthwise v_r sqrt(s_r). Computed in float64.

    Args:
        weight: (Cout, Cin, *kernel).
        rank: m, the depth multiplier; from min(K, Cout) on nothing is lost and the rest is zeros.

    Returns:
        depthwise (Cin m, 1, *kernel), pointwise (Cout, Cin m, 1, ...), and the relative error
        ``||W - approximation|| / ||W||`` (Frobenius; 0 for W = 0).

    Raises:
        Error: rank below 1, or a weight with fewer than three dimensions.
    """
    if weight.dim() < 3 or rank < 1:
        raise Error(f"decompose: needs (Cout, Cin, *kernel) and rank >= 1, got {tuple(weight.shape)} and rank={rank}")
    out_channels, in_channels, *kernel = weight.shape
    slices = weight.detach().double().flatten(2).transpose(0, 1)
    u, s, v = torch.linalg.svd(slices, full_matrices=False)
    kept = min(rank, s.shape[1])
    root = s[:, :kept].sqrt()
    depthwise = weight.new_zeros(in_channels, rank, prod(kernel))
    pointwise = weight.new_zeros(out_channels, in_channels, rank)
    with torch.no_grad():
        depthwise[:, :kept] = (root[:, :, None] * v[:, :kept]).to(weight.dtype)
        pointwise[:, :, :kept] = (u[:, :, :kept] * root[:, None]).transpose(0, 1).to(weight.dtype)
    lost, whole = s[:, kept:].square().sum(), s.square().sum()
    error = float((lost / whole).sqrt()) if whole > 0 else 0.0
    ones = [1] * len(kernel)
    return depthwise.reshape(-1, 1, *kernel), pointwise.reshape(out_channels, -1, *ones), error


def weight_error(conv: nn.Module, rank: int) -> float:
    """Relative weight error of the nearest separable layer with that depth multiplier, known before any image is seen.

    Args:
        conv: an ``nn.Conv1d/2d/3d`` with groups=1.
        rank: the depth multiplier.

    Raises:
        Error: another kind of layer.
    """
    return decompose(_dense_weight(conv), rank)[2]


def nearest_separable(conv: nn.Module, rank: int, act: type[nn.Module] | None = None, seed: int = 0) -> Any:
    """The separable layer nearest to a dense convolution, with its bias, training flag, device and dtype.

    Args:
        conv: an ``nn.Conv1d/2d/3d`` with groups=1.
        rank: the depth multiplier; where it exceeds the rank of the weights, the spare depthwise kernels are drawn and
            their pointwise weights are 0, so that nothing changes and all can learn.
        act: an activation between; with it the layer computes something else.
        seed: for spare kernels.

    Raises:
        Error: another kind of layer.
    """
    weight = _dense_weight(conv)
    depthwise, pointwise, _ = decompose(weight, rank)
    layer = _shell(conv, rank, act)
    spare = rank - min(rank, weight.shape[0], prod(weight.shape[2:]))
    if spare:
        drawn = _normal(depthwise.view(weight.shape[1], rank, -1)[:, -spare:], seed)
        depthwise.view(weight.shape[1], rank, -1)[:, -spare:] = drawn / prod(weight.shape[2:]) ** 0.5
    with torch.no_grad():
        layer.conv_dw.weight.copy_(depthwise)
        layer.conv_pw.weight.copy_(pointwise)
        if layer.conv_pw.bias is not None:
            layer.conv_pw.bias.copy_(conv.bias)
    return layer


def fresh_separable(conv: nn.Module, multiplier: int, act: type[nn.Module] | None = None, seed: int = 0) -> Any:
    """A separable layer with drawn weights, whose outputs have the scale of those of the dense one; biases 0.

    depthwise ~ N(0, 1 / K), pointwise ~ N(0, K var(W) / m), W the weights that it replaces; with an activation between,
    depthwise ~ N(0, 2 / K).

    Args:
        conv: an ``nn.Conv1d/2d/3d`` with groups=1.
        multiplier: m.
        act: an activation between.
        seed: the same seed gives the same weights; the user's generator is left alone.

    Raises:
        Error: another kind of layer.
    """
    weight = _dense_weight(conv)
    layer = _shell(conv, multiplier, act)
    area = prod(weight.shape[2:])
    scale = weight.detach().double().square().mean().item()
    with torch.no_grad():
        layer.conv_dw.weight.copy_(_normal(layer.conv_dw.weight, seed) * ((2 if act else 1) / area) ** 0.5)
        layer.conv_pw.weight.copy_(_normal(layer.conv_pw.weight, seed + 1) * (area * scale / multiplier) ** 0.5)
        if layer.conv_pw.bias is not None:
            layer.conv_pw.bias.zero_()
    return layer


def dense_fresh(layer: _Separable, seed: int = 0) -> nn.Module:
    """The dense convolution in a separable layer's place, with drawn weights, ~ N(0, 2 / (Cin K)), and its bias.

    What follows the separable layer (norm, activation) follows it; what stood between is gone. Where something
    follows, an ``nn.Sequential`` of ``conv``, ``norm``, ``act``.

    Args:
        layer: a ``SeparableConv*d``.
        seed: the same seed gives the same weights; the user's generator is left alone.
    """
    conv, pw = layer.dense_shell(), layer.pointwise
    with torch.no_grad():
        conv.weight.copy_(_normal(conv.weight, seed) * (2 / prod(conv.weight.shape[1:])) ** 0.5)
        if conv.bias is not None:
            conv.bias.zero_() if pw.bias is None else conv.bias.copy_(pw.bias)
    if not layer.after():
        return conv  # type: ignore[no-any-return]
    block = nn.Sequential()
    block.add_module("conv", conv)
    for number, part in enumerate(layer.after()):
        name = "norm" if any(True for _ in (*part.parameters(), *part.buffers())) else "act"
        block.add_module(name if name not in block._modules else f"{name}{number}", copy.deepcopy(part))
    block.training = layer.training
    return block


def _shell(conv: Any, multiplier: int, act: type[nn.Module] | None) -> Any:
    """A separable layer with the arguments of a dense one and weights to be filled in."""
    where = "between" if act is not None else "both"
    with torch.random.fork_rng(devices=[]):
        layer = _SEPARABLE[type(conv)](
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, 1,
            conv.bias is not None, conv.padding_mode, conv.weight.device, conv.weight.dtype, multiplier, None, act,
            where,
        )  # fmt: skip
    for half in (layer.conv_dw, layer.conv_pw):
        half.weight.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None:
        layer.conv_pw.bias.requires_grad_(conv.bias.requires_grad)
    return layer.train(conv.training)


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def _dense_weight(conv: nn.Module) -> Tensor:
    if type(conv) not in _SEPARABLE or not isinstance(conv, _ConvNd) or conv.groups != 1:
        raise Error(f"separable: the layer must be an nn.Conv1d, 2d or 3d with groups=1, got {conv}")
    return conv.weight
