"""A dense convolution as a separable one, and back: the arithmetic of the weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from leanconv.errors import Error
from leanconv.techniques.separable.blocks import SeparableConv1d, SeparableConv2d, SeparableConv3d, _Separable

__all__ = [
    "Fitted",
    "decompose",
    "dense_fresh",
    "fitted_separable",
    "fresh_separable",
    "grouped_weight",
    "nearest_separable",
    "separate_weights",
    "weight_curve",
    "weight_error",
]

_SEPARABLE: dict[type[nn.Module], Any] = {
    nn.Conv1d: SeparableConv1d,
    nn.Conv2d: SeparableConv2d,
    nn.Conv3d: SeparableConv3d,
}
DENSE = tuple(_SEPARABLE)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Separable weights for a dense convolution, not yet a layer.

    Attributes:
        depthwise: (Cin m, 1, *kernel).
        pointwise: (Cout, Cin m / groups, 1, ...).
        bias: (Cout,), or None.
        error: what was lost, relative: of the weights or of the outputs, as the function that fitted it says.
    """

    depthwise: Tensor
    pointwise: Tensor
    bias: Tensor | None
    error: float


def decompose(weight: Tensor, rank: int, groups: int = 1) -> tuple[Tensor, Tensor, float]:
    """The separable weights nearest to a dense kernel: per input channel the truncated SVD of its (Cout, K) slices.

    ``W[:, c] = sum over r of u_r s_r v_r``; the best sum of ``rank`` products keeps the largest s_r (Eckart and Young),
    so no separable layer with that depth multiplier has a smaller squared weight error. Each s_r is split evenly:
    pointwise u_r sqrt(s_r), depthwise v_r sqrt(s_r). Computed in float64.

    Args:
        weight: (Cout, Cin / groups, *kernel).
        rank: m, the depth multiplier; from min(K, Cout / groups) on nothing is lost and the rest is zeros.
        groups: of the convolution; each is a convolution of its own.

    Returns:
        depthwise (Cin m, 1, *kernel), pointwise (Cout, Cin m / groups, 1, ...), and the relative error
        ``||W - approximation|| / ||W||`` (Frobenius; 0 for W = 0).

    Raises:
        Error: rank below 1, a weight with fewer than three dimensions, or groups that do not divide Cout.
    """
    if weight.dim() < 3 or rank < 1 or groups < 1 or weight.shape[0] % groups:
        got = f"{tuple(weight.shape)}, rank={rank} and groups={groups}"
        raise Error(f"decompose: needs (Cout, Cin, *kernel), rank >= 1 and groups that divide Cout, got {got}")
    out_channels, in_channels, *kernel = weight.shape
    u, s, v = torch.linalg.svd(_slices(weight, groups), full_matrices=False)
    kept = min(rank, s.shape[2])
    root = s[:, :, :kept].sqrt()
    depthwise = weight.new_zeros(groups, in_channels, rank, prod(kernel))
    pointwise = weight.new_zeros(groups, out_channels // groups, in_channels, rank)
    with torch.no_grad():
        depthwise[:, :, :kept] = (root[..., None] * v[:, :, :kept]).to(weight.dtype)
        pointwise[..., :kept] = (u[..., :kept] * root[:, :, None]).transpose(1, 2).to(weight.dtype)
    ones = [1] * len(kernel)
    return depthwise.reshape(-1, 1, *kernel), pointwise.reshape(out_channels, -1, *ones), _tails(s)[kept - 1]


def _slices(weight: Tensor, groups: int) -> Tensor:
    """(groups, Cin / groups, Cout / groups, K), float64: what each channel adds to the outputs of its group."""
    split = weight.detach().double().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2)


def _tails(singular: Tensor) -> list[float]:
    """Relative weight error of keeping 1, 2, ... singular values of each slice."""
    energy = singular.square().sum((0, 1))
    whole = energy.sum()
    lost = [energy[kept:].sum() for kept in range(1, len(energy) + 1)]
    return [float((part / whole).sqrt()) if whole > 0 else 0.0 for part in lost]


def weight_curve(conv: nn.Module) -> dict[int, float]:
    """Rank -> relative weight error of the nearest separable layer, from one SVD.

    Args:
        conv: an ``nn.Conv1d/2d/3d``, grouped ones too.

    Returns:
        ranks 1 to min(K, Cout / groups), the last one with error 0 up to rounding.

    Raises:
        Error: another kind of layer.
    """
    known: Any = _known(conv)
    singular = torch.linalg.svdvals(_slices(known.weight, known.groups))
    return dict(enumerate(_tails(singular), 1))


def separate_weights(conv: nn.Module, rank: int) -> Fitted:
    """The nearest separable weights (:func:`decompose`) and the bias as it is; the error is that of the weights.

    Args:
        conv: an ``nn.Conv1d/2d/3d``, grouped ones too.
        rank: the depth multiplier.

    Raises:
        Error: another kind of layer, or rank below 1.
    """
    known: Any = _known(conv)
    depthwise, pointwise, error = decompose(known.weight, rank, known.groups)
    return Fitted(depthwise, pointwise, None if known.bias is None else known.bias.detach().clone(), error)


def fitted_separable(conv: nn.Module, fitted: Fitted, act: type[nn.Module] | None = None) -> Any:
    """The separable layer with fitted weights, and training flag, device and dtype of the dense one.

    Args:
        conv: the ``nn.Conv1d/2d/3d`` that it was fitted to; its groups are those of the pointwise half.
        fitted: its depth multiplier is the layer's, and it has a bias exactly where the layer has.
        act: an activation between; with it the layer computes something else.

    Raises:
        Error: another kind of layer.
    """
    known: Any = _known(conv)
    rank = fitted.depthwise.shape[0] // known.in_channels
    layer = _shell(known, rank, act, fitted.bias is not None)
    with torch.no_grad():
        layer.conv_dw.weight.copy_(fitted.depthwise)
        layer.conv_pw.weight.copy_(fitted.pointwise)
        if fitted.bias is not None:
            layer.conv_pw.bias.copy_(fitted.bias)
    return layer


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
    fitted = separate_weights(conv, rank)
    spare = rank - min(rank, weight.shape[0], prod(weight.shape[2:]))
    if spare:
        kernels = fitted.depthwise.view(weight.shape[1], rank, -1)
        kernels[:, -spare:] = _normal(kernels[:, -spare:], seed) / prod(weight.shape[2:]) ** 0.5
    return fitted_separable(conv, fitted, act)


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
    layer = _shell(conv, multiplier, act, conv.bias is not None)
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


def _shell(conv: Any, multiplier: int, act: type[nn.Module] | None, bias: bool) -> Any:
    """A separable layer with the arguments of a dense one and weights to be filled in."""
    where = "between" if act is not None else "both"
    with torch.random.fork_rng(devices=[]):
        layer = _SEPARABLE[type(conv)](
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, bias, conv.padding_mode, conv.weight.device, conv.weight.dtype, multiplier, None, act,
            where,
        )  # fmt: skip
    for half in (layer.conv_dw, layer.conv_pw):
        half.weight.requires_grad_(conv.weight.requires_grad)
    if bias:
        like = conv.weight if conv.bias is None else conv.bias
        layer.conv_pw.bias.requires_grad_(like.requires_grad)
    return layer.train(conv.training)


def _normal(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def grouped_weight(conv: nn.Module) -> Tensor:
    """(groups, Cout / groups, (Cin / groups) K), float64: the weights as matrices that act on patches.

    Raises:
        Error: no ``nn.Conv1d/2d/3d``.
    """
    known: Any = _known(conv)
    weight: Tensor = known.weight.detach().double()
    return weight.reshape(known.groups, known.out_channels // known.groups, -1)


def _known(conv: nn.Module) -> nn.Module:
    if type(conv) not in _SEPARABLE:
        raise Error(f"separable: the layer must be an nn.Conv1d, 2d or 3d, got {conv}")
    return conv


def _dense_weight(conv: nn.Module) -> Tensor:
    if type(conv) not in _SEPARABLE or not isinstance(conv, _ConvNd) or conv.groups != 1:
        raise Error(f"separable: the layer must be an nn.Conv1d, 2d or 3d with groups=1, got {conv}")
    return conv.weight
