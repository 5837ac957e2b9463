"""The arithmetic of folding, in float64: what a batch norm does in eval, and a layer that does it as well."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.techniques.batchnorm.places import TRANSPOSED

__all__ = ["Affine", "affine", "denormals", "folded", "folded_forward", "fused", "unfit_statistics"]

SMALLEST = 2.0**-149  # the least positive float32


@dataclass(frozen=True)
class Affine:
    """y = scale (x - mean) + beta per channel, with scale = gamma / sqrt(var + eps); vectors (C,) in float64."""

    scale: Tensor
    mean: Tensor
    beta: Tensor

    @property
    def shift(self) -> Tensor:
        """What a zero becomes: beta - scale mean."""
        return self.beta - self.scale * self.mean

    def repeated(self, times: int) -> Affine:
        """For features that Flatten made of maps: each channel ``times`` times in a row."""
        return Affine(*(v.repeat_interleave(times) for v in (self.scale, self.mean, self.beta)))


def affine(norm: nn.Module) -> Affine:
    """What a batch norm with running statistics does in eval, its activation apart."""
    mean, var = _vector(norm, "running_mean", 0), _vector(norm, "running_var", 1)
    scale = _vector(norm, "weight", 1) * _inverse_deviation(var, norm)
    return Affine(scale, mean, _vector(norm, "bias", 0))


def unfit_statistics(norm: nn.Module) -> str:
    """Why these statistics and parameters make no finite function; empty where they do."""
    mean, var = _vector(norm, "running_mean", 0), _vector(norm, "running_var", 1)
    of = f"of {var.numel()} channels"
    bad = int((~torch.isfinite(var) | (var < 0)).sum())
    if bad:
        return f"the running variance of {bad} {of} is NaN, negative or infinite"
    bad = int((~torch.isfinite(_inverse_deviation(var, norm))).sum())
    if bad:
        return f"1 / sqrt(variance + eps) of {bad} {of} is not finite (eps={norm.eps})"
    finite = (
        torch.isfinite(mean) & torch.isfinite(_vector(norm, "weight", 1)) & torch.isfinite(_vector(norm, "bias", 0))
    )
    return "" if finite.all() else f"mean, gamma or beta of {int((~finite).sum())} {of} is NaN or infinite"


def denormals(norm: nn.Module) -> int:
    """How many running variances are positive, but below the least normal number of float32 (1.2e-38)."""
    var = _vector(norm, "running_var", 1)
    return int(((var > 0) & (var < torch.finfo(torch.float32).tiny)).sum())


def _inverse_deviation(var: Tensor, norm: nn.Module) -> Tensor:
    eps = float(norm.eps)  # type: ignore[arg-type]
    return 1 / (var + eps).sqrt()


def _vector(norm: nn.Module, name: str, default: float) -> Tensor:
    value = getattr(norm, name)
    if isinstance(value, Tensor):
        return _double(value.detach())
    return torch.full_like(norm.running_mean, default, dtype=torch.float64)  # type: ignore[arg-type]


def _double(t: Tensor) -> Tensor:
    """To float64, denormals by their bits: where the processor takes them for zero, it does so in a conversion too."""
    if t.dtype == torch.float64:
        return t
    single = t.float()
    bits = single.contiguous().view(torch.int32)
    small = (bits & 0x7F800000) == 0
    value = (bits & 0x007FFFFF).double() * SMALLEST
    return torch.where(small, torch.where(bits < 0, -value, value), single.double())


@torch.no_grad()
def fused(layer: nn.Module, before: Affine | None = None, after: Affine | None = None) -> tuple[nn.Module, bool]:
    """A copy of a convolution or Linear that also does what stands before it and after it, per channel.

    W' = a2 W a1 and b' = a2 (b + W.shift1 - mean2) + beta2, in float64, cast to the dtype of the weight at the end.
    ``before`` needs a layer that pads nothing, or a shift of 0 (:func:`leanconv.techniques.batchnorm.fit`).

    Returns:
        The copy, and whether the cast kept every digit.
    """
    old: Tensor = layer.weight  # type: ignore[assignment]
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    weight, b = old.double(), None if bias is None else bias.double()
    if before is not None:
        if before.shift.any():
            b = _response(layer, weight, before.shift) + (0 if b is None else b)
        weight = weight * _inputs(layer, before.scale)
    if after is not None:
        b = after.scale * ((0 if b is None else b) - after.mean) + after.beta
        weight = weight * _outputs(layer, after.scale)
    new = copy.deepcopy(layer)
    lossless = _set(new, "weight", weight, old)
    if b is not None:
        lossless &= _set(new, "bias", b, old if bias is None else bias)
    return new, lossless


def _set(layer: nn.Module, name: str, value: Tensor, like: Tensor) -> bool:
    cast = value.to(like)
    setattr(layer, name, nn.Parameter(cast, requires_grad=like.requires_grad))
    return torch.equal(cast.double(), value)


def folded(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A copy of a convolution or Linear that also does what the batch norm after it does in eval, activation apart.

    With a = gamma / sqrt(var + eps) per output channel: W' = a W, b' = a (b - mean) + beta, in float64.

    Args:
        layer: Conv1d/2d/3d, ConvTranspose1d/2d/3d, of any groups, or Linear.
        norm: a batch norm with running statistics, ours or torch's.

    Returns:
        A copy with a bias, in the dtype of the layer's weight.
    """
    return fused(layer, after=affine(norm))[0]


def folded_forward(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """A copy of a convolution or Linear that also does what the batch norm before it does in eval.

    With a = gamma / sqrt(var + eps) per input channel: W' = W a, b' = b + W.(beta - a mean), in float64. Equal only
    where the layer pads nothing, pads with what is there (reflect, replicate, circular), or beta - a mean is 0.

    Args:
        norm: a batch norm with running statistics and no activation, ours or torch's.
        layer: as in :func:`folded`; a Linear may read each channel several times in a row (after Flatten).

    Returns:
        A copy in the dtype of the layer's weight, with a bias unless there was none and the shift is 0.
    """
    first = affine(norm)
    times = layer.in_features // first.mean.numel() if isinstance(layer, nn.Linear) else 1
    return fused(layer, before=first.repeated(times))[0]


def _outputs(layer: nn.Module, scale: Tensor) -> Tensor:
    """A value per output channel, so that it meets the weight: (Cout, Cin/g, ...), transposed (Cin, Cout/g, ...)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return _across(layer, scale) if isinstance(layer, TRANSPOSED) else scale.view(-1, *[1] * (weight.dim() - 1))


def _inputs(layer: nn.Module, scale: Tensor) -> Tensor:
    """A value per input channel, so that it meets the weight: (Cout, Cin/g, ...), transposed (Cin, Cout/g, ...)."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return scale.view(-1, *[1] * (weight.dim() - 1)) if isinstance(layer, TRANSPOSED) else _across(layer, scale)


def _across(layer: nn.Module, values: Tensor) -> Tensor:
    """Values of channels that a weight counts within their group (in dimension 1), for each of its dimension 0."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups = int(getattr(layer, "groups", 1))
    each = weight.shape[0] // groups
    spread = values.view(groups, 1, -1).expand(groups, each, -1)
    return spread.reshape(weight.shape[0], -1, *[1] * (weight.dim() - 2))


def _response(layer: nn.Module, weight: Tensor, shift: Tensor) -> Tensor:
    """What the layer gives, its bias apart, for the constant input ``shift`` (Cin,) with all taps: (Cout,)."""
    response = (weight * _inputs(layer, shift)).flatten(2).sum(2) if weight.dim() > 2 else weight * shift
    if not isinstance(layer, TRANSPOSED):
        return response.sum(1)
    groups = int(getattr(layer, "groups", 1))
    return response.view(groups, -1, response.shape[1]).sum(1).flatten()
