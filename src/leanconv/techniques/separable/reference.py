"""Depthwise separable convolution as the text says it, for reading and for tests; slow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from leanconv.errors import Error

__all__ = ["separable_reference"]


def separable_reference(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Each channel is convolved on its own; each output map is a weighted sum over those channels.

    With m filters for every input channel (the depth multiplier, 1 in the text)::

        z[c m + j] = sum over taps t of depthwise[c m + j, t] * x[c, stride * position + dilation * t - padding]
        y[o]       = bias[o] + sum over i of pointwise[o, i] * z[i]

    Args:
        x: (N, Cin, *spatial), one to three spatial dimensions.
        depthwise: (Cin m, 1, *kernel), as torch stores a convolution with ``groups=Cin``.
        pointwise: (Cout, Cin m, 1, ...).
        bias: (Cout,) or None.
        stride: one number, or one per spatial dimension.
        padding: zeros on either side, likewise.
        dilation: distance between taps, likewise.

    Returns:
        (N, Cout, *spatial').

    Raises:
        Error: shapes that do not belong together.

    Source: S18; equation of Howard et al. 2017, section 3.1.
    """
    channels, dims = x.shape[1], x.dim() - 2
    if depthwise.shape[0] % channels or pointwise.shape[1] != depthwise.shape[0]:
        shapes = f"{tuple(x.shape)}, {tuple(depthwise.shape)}, {tuple(pointwise.shape)}"
        raise Error(
            f"separable_reference: depthwise must be (Cin m, 1, ...), pointwise (Cout, Cin m, ...), got {shapes}"
        )
    strides, paddings, dilations = (_each(v, dims) for v in (stride, padding, dilation))
    x = torch.nn.functional.pad(x, [p for pad in reversed(paddings) for p in (pad, pad)])
    multiplier = depthwise.shape[0] // channels
    maps = [_one_channel(x[:, i // multiplier], depthwise[i, 0], strides, dilations) for i in range(depthwise.shape[0])]
    sums = []
    for output in pointwise.flatten(1):
        weighted = [weight * one for weight, one in zip(output, maps, strict=True)]
        sums.append(torch.stack(weighted).sum(0))
    y = torch.stack(sums, 1)
    return y if bias is None else y + bias.reshape(-1, *[1] * dims)


def _one_channel(x: Tensor, kernel: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """One channel (N, *spatial) with one kernel: a sum over its taps of the shifted, strided map."""
    sizes = [
        (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[1:], kernel.shape, stride, dilation, strict=True)
    ]
    y = x.new_zeros(x.shape[0], *sizes)
    for tap in product(*map(range, kernel.shape)):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        window = tuple(slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, stride, sizes, strict=True))
        y = y + kernel[tap] * x[(slice(None), *window)]
    return y


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)
