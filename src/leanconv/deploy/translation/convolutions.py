"""Convolutions, products with matrices, batch norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanconv.deploy.translation.calls import Call, Ref, Rule, Unsupported, array
from leanconv.deploy.translation.draft import Array, slid
from leanconv.deploy.translation.layout import offsets, restrided, sizes
from leanconv.runtime.plan import ACTIVATIONS, Window

__all__ = ["RULES", "affine", "numbers"]


def numbers(value: Any, count: int) -> tuple[int, ...]:
    """One integer per dimension."""
    found = (value,) * count if isinstance(value, int) else tuple(int(v) for v in value)
    return found * count if len(found) == 1 else found


def _bias(bias: Tensor | None, channels: int) -> Array:
    return np.zeros(channels, np.float32) if bias is None else array(bias)


def _conv(call: Call) -> Ref:
    weight = call.constant("weight")
    assert weight is not None
    dims = weight.dim() - 2
    size = tuple(weight.shape[2:])
    stride, dilation = (numbers(call.get(name, 1), dims) for name in ("stride", "dilation"))
    before, after = _padding(call.get("padding", 0), size, dilation)
    return convolved(call, weight, call.constant("bias"), (stride, before, after, dilation), int(call.get("groups", 1)))


def _padding(given: Any, size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros before and after, per dimension; what ``same`` cannot halve goes after."""
    if given == "same":
        total = tuple(d * (k - 1) for k, d in zip(size, dilation, strict=True))
        before = tuple(t // 2 for t in total)
        return before, tuple(t - b for t, b in zip(total, before, strict=True))
    pad = (0,) * len(size) if given == "valid" else numbers(given, len(size))
    return pad, pad


def convolved(
    call: Call, weight: Tensor, bias: Tensor | None, geometry: tuple[tuple[int, ...], ...], groups: int
) -> Ref:
    """A convolution in one or two dimensions; geometry is stride, padding before and after, dilation."""
    stride, before, after, dilation = geometry
    out, _, *kernel = weight.shape
    trivial = set(kernel) == set(stride) == {1} and not any(before + after)
    given = call.ref()
    if trivial and len(given.layout) == len(kernel) + 1:
        ref, order = call.channelled(given), ""
    else:
        ref, order = call.mapped(given)
    if len(order or ref.layout) != len(kernel) + 1:
        raise Unsupported(f"{call.kind} without a batch")
    shape, w = call.shape(ref), array(weight)
    if w.ndim == 3:  # in one dimension: along the axis that there is
        place = 0 if order == "ch" else 1
        w = np.expand_dims(w, 3 - place)
        stride, dilation = (_two(v, place, 1) for v in (stride, dilation))
        before, after = (_two(v, place, 0) for v in (before, after))
    window = Window(
        (w.shape[2], w.shape[3]),
        (stride[0], stride[1]),
        (before[0], before[1], after[0], after[1]),
        (dilation[0], dilation[1]),
    )
    arrays = {"weight": w.transpose(0, 2, 3, 1), "bias": _bias(bias, out)}
    op = "conv"
    if groups == shape[2] and groups > 1:
        op, groups = "depthwise", 1
        arrays["weight"] = w[:, 0].transpose(1, 2, 0)
    arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    value = call.node(op, (ref.value,), (*slid(shape, window), out), arrays=arrays, window=window, groups=groups)
    return call.made(value, order) if order else Ref(value, restrided(ref.layout, 0, shape[2], out))


def _two(values: tuple[int, ...], place: int, other: int) -> tuple[int, int]:
    return (values[0], other) if place == 0 else (other, values[0])


def _depthwise(call: Call) -> Ref:
    """Our own layer, whose forward may be native code."""
    layer = call.module
    if layer.padding_mode != "zeros":
        raise Unsupported(f"a convolution with padding_mode={layer.padding_mode!r}")
    pads = layer._reversed_padding_repeated_twice
    before, after = tuple(pads[-2::-2]), tuple(pads[::-2])  # last dimension first, before and after
    return convolved(call, layer.weight, layer.bias, (layer.stride, before, after, layer.dilation), layer.groups)


def _linear(call: Call) -> Ref:
    ref, weight = call.ref(), call.constant("weight")
    assert weight is not None
    shape, last = call.shape(ref), len(ref.layout) - 1
    if last < 0:
        raise Unsupported(f"{call.kind} without a batch")
    out, w = weight.shape[0], array(weight)
    bias = _bias(call.constant("bias"), out)
    if all(size == 1 for size in sizes(ref.layout)[:-1]):
        index = offsets(ref.layout[-1])
        if np.unique(index).size != np.prod(shape):
            raise Unsupported(f"{call.kind} of a part of a map")
        ordered = np.empty_like(w)
        ordered[:, index] = w
        value = call.node("linear", (ref.value,), (1, 1, out), arrays={"weight": ordered, "bias": bias})
        return Ref(value, (*((),) * last, ((out, 1),) if out > 1 else ()))
    ref = call.channelled(ref, last)
    arrays = {"weight": w[:, None, None, :], "bias": bias}
    value = call.node("conv", (ref.value,), (*shape[:2], out), arrays=arrays)
    return Ref(value, restrided(ref.layout, last, shape[2], out))


def affine(call: Call, ref: Ref, scale: Any, shift: Any, place: int | None = None) -> Ref:
    """y = scale x + shift: numbers, or one per channel where dimension ``place`` is the channels."""
    if place is not None:
        ref = call.channelled(ref, place)
    channels = call.shape(ref)[2]
    weight, bias = (np.ascontiguousarray(np.broadcast_to(np.float32(v), (channels,))) for v in (scale, shift))
    return call.like(ref, "affine", arrays={"weight": weight, "bias": bias})


def _norm(call: Call) -> Ref:
    vectors = [call.constant(name) for name in ("running_mean", "running_var", "weight", "bias")]
    if call.get("training", False) or vectors[0] is None:
        raise Unsupported("batch norm with the statistics of the batch")
    return _normalised(call, vectors, float(call.get("eps", 1e-5)))


def _normalised(call: Call, vectors: list[Tensor | None], eps: float) -> Ref:
    mean, var, weight, bias = (None if v is None else v.detach().double().cpu() for v in vectors)
    assert mean is not None
    assert var is not None
    scale = (torch.ones_like(mean) if weight is None else weight) / (var + eps).sqrt()
    shift = (torch.zeros_like(mean) if bias is None else bias) - scale * mean
    return affine(call, call.ref(), scale.numpy(), shift.numpy(), 0)


def _our_norm(call: Call) -> Ref:
    """Our own layer, with the activation that it may have taken in."""
    layer = call.module
    act = layer.activation
    if act is not None and act not in ACTIVATIONS:
        raise Unsupported(f"batch norm with the activation {act!r}")
    if layer.running_mean is None:
        raise Unsupported("batch norm with the statistics of the batch")
    y = _normalised(call, [layer.running_mean, layer.running_var, layer.weight, layer.bias], layer.eps)
    return y if act is None else call.like(y, "activation", act=act)


_CONV = "input weight bias stride padding dilation groups"
RULES: dict[str, tuple[Rule, str]] = {
    "conv1d": (_conv, _CONV),
    "conv2d": (_conv, _CONV),
    "linear": (_linear, "input weight bias"),
    "batch_norm": (_norm, "input running_mean running_var weight bias training momentum eps"),
    "DepthwiseConv1d": (_depthwise, "input"),
    "DepthwiseConv2d": (_depthwise, "input"),
    "BatchNorm1d": (_our_norm, "input"),
    "BatchNorm2d": (_our_norm, "input"),
}
