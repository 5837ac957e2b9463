"""A layer's weights as bytes, and its bias in their units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.runtime.plan import Step

__all__ = ["WEIGHTED", "Layer", "corrected", "quantised", "rows", "spread"]

WEIGHTED = ("conv", "depthwise", "linear")
_BIAS = 2**30
_SUM = 2**31 - 1

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """A conv, depthwise or linear step in bytes.

    Attributes:
        weight: int8, of the shape of the float weights.
        scale: float32 (out,): weight c stands for scale[c] weight.
        bias: int32 (out,), in units of the input's scale times ``scale``.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]

    @property
    def sums(self) -> NDArray[np.int64]:
        """The largest magnitude that the sum of each channel can have, int64 (out,)."""
        w = self.weight if self.weight.ndim != 3 else np.moveaxis(self.weight, -1, 0)
        total = np.abs(w.astype(np.int64)).reshape(len(self.bias), -1).sum(1)
        return np.asarray(255 * total + np.abs(self.bias.astype(np.int64)))

    @property
    def fits(self) -> bool:
        """Whether no sum leaves 32 bits."""
        return bool((self.sums <= _SUM).all())


def rows(op: str, weight: Array) -> Array:
    """The weights of each output channel, (out, K); a view where it can be one."""
    return (
        np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)
        if op == "depthwise"
        else weight.reshape(len(weight), -1)
    )


def spread(step: Step, channels: Array, weight: Array) -> Array:
    """A number per input channel, at each weight that reads this channel: broadcasts against the weights.

    Args:
        step: conv, depthwise or linear.
        channels: (C,).
        weight: its weights.
    """
    if step.op == "depthwise":
        return np.repeat(channels, weight.shape[-1] // len(channels))
    if step.op == "linear":
        return np.tile(channels, weight.shape[1] // len(channels))[None]
    each = weight.shape[-1]
    group = weight.shape[0] // step.groups
    return np.repeat(channels.reshape(step.groups, each), group, 0)[:, None, None, :]


def quantised(op: str, weight: Array, bias: Array, scale_x: float) -> Layer:
    """Symmetric bytes per output channel: w ~ scale[c] q, -127 <= q <= 127.

    The largest weight is never cut off: making a channel's step smaller by d takes 2 d of the rounding, K s^2 / 12, and
    adds (127 s d)^2, which pays with thousands of weights in a channel only.

    Where a channel's weights are so small that its bias would not fit into 2^30 of its units, its scale is raised.

    Args:
        op: conv, depthwise or linear.
        weight, bias: float32.
        scale_x: of the layer's input.
    """
    w = rows(op, weight).astype(np.float64)
    b = bias.astype(np.float64)
    scale = np.abs(w).max(1) / 127
    scale = np.maximum(scale, np.abs(b) / (scale_x * _BIAS))
    # A float32, like everything that the file holds; a little up, so that the bias still fits.
    scale = np.nextafter(scale.astype(np.float32), np.float32(np.inf))
    scale[~(scale > 1e-30)] = 1.0  # no weights, no bias
    real = scale.astype(np.float64)
    q = np.clip(np.rint(w / real[:, None]), -127, 127).astype(np.int8)
    shape = weight.shape
    back = np.moveaxis(q.reshape(shape[-1], *shape[:-1]), 0, -1) if op == "depthwise" else q.reshape(shape)
    return Layer(np.ascontiguousarray(back), scale, np.rint(b / (scale_x * real)).astype(np.int32))


def corrected(step: Step, weight: Array, bias: Array, mean: Array, scale_x: float) -> Array:
    """The bias that makes up for what rounding of the weights adds on average: b - sum (s q - w) E[x].

    Padding is left out of account.

    Args:
        step, weight, bias, scale_x: of the layer.
        mean: E[x] of its input, per channel.
    """
    made = quantised(step.op, weight, bias, scale_x)
    stood = rows(step.op, made.weight).astype(np.float64) * made.scale[:, None].astype(np.float64)
    off = stood - rows(step.op, weight)
    each = rows(step.op, np.broadcast_to(spread(step, mean, weight), weight.shape))
    return np.asarray(bias - (off * each).sum(1), np.float32)
