"""One plain numpy function per operation of a plan. Maps are (N, height, width, channels)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.runtime.plan import Step, Window

__all__ = ["RUNS", "Array", "Tensors", "activate", "padded", "taps", "window_counts"]

Array = NDArray[Any]
Tensors = Mapping[str, Array]
"""Role, or name -> values."""


def activate(act: str, x: Array) -> Array:
    """One of :data:`leanconv.runtime.plan.ACTIVATIONS` of every element."""
    return _ACTIVATIONS[act](x)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
}


def padded(x: Array, window: Window, value: float) -> Array:
    """A map with its padding around."""
    top, left, below, right = window.padding
    if not any(window.padding):
        return x
    return np.pad(x, ((0, 0), (top, below), (left, right), (0, 0)), constant_values=value)


def taps(x: Array, window: Window) -> list[tuple[int, int, Array]]:
    """For each element of the window what it sees over the map: (row, column, (N, h, w, C))."""
    rows, columns = (
        (n - dilation * (kernel - 1) - 1) // stride + 1
        for n, kernel, stride, dilation in zip(x.shape[1:3], window.size, window.stride, window.dilation, strict=True)
    )
    found = []
    for i in range(window.size[0]):
        for j in range(window.size[1]):
            y, z = i * window.dilation[0], j * window.dilation[1]
            down, right = window.stride
            seen = x[:, y : y + (rows - 1) * down + 1 : down, z : z + (columns - 1) * right + 1 : right]
            found.append((i, j, seen))
    return found


def _conv(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    weight, groups = own["weight"], step.groups
    out, _, _, each = weight.shape
    y: Array | None = None
    for i, j, seen in taps(padded(inputs[0], step.window, 0), step.window):
        if groups == 1:
            part = seen @ weight[:, i, j].T
        else:
            # (N, h, w, groups, 1, in / groups) @ (groups, in / groups, out / groups)
            split = seen.reshape(*seen.shape[:3], groups, 1, each)
            part = split @ weight[:, i, j].reshape(groups, out // groups, each).transpose(0, 2, 1)
            part = part.reshape(*seen.shape[:3], out)
        y = part if y is None else np.add(y, part, out=y)
    assert y is not None  # a window has at least one element
    y = y + own["bias"]
    return y + inputs[1] if len(inputs) > 1 else y


def _depthwise(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    weight = own["weight"]
    x = padded(inputs[0], step.window, 0)
    x = np.repeat(x, weight.shape[2] // x.shape[3], axis=3) if weight.shape[2] != x.shape[3] else x
    y: Array | None = None
    for i, j, seen in taps(x, step.window):
        y = seen * weight[i, j] if y is None else np.add(y, seen * weight[i, j], out=y)
    assert y is not None
    return y + own["bias"]


def _linear(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    x = inputs[0].reshape(len(inputs[0]), -1)
    y = (x @ own["weight"].T + own["bias"])[:, None, None, :]
    return y + inputs[1] if len(inputs) > 1 else y


def _affine(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    return inputs[0] * own["weight"] + own["bias"]


def _max_pool(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    first, *others = (seen for _, _, seen in taps(padded(inputs[0], step.window, -np.inf), step.window))
    y = first.copy()
    for seen in others:
        np.maximum(y, seen, out=y)
    return y


def window_counts(step: Step, x: Array) -> Any:
    """By what avg_pool divides: one number, or (1, h, w, 1)."""
    if step.count_padding:
        return step.window.size[0] * step.window.size[1]
    ones = padded(np.ones((1, *x.shape[1:3], 1)), step.window, 0)
    return sum(seen for _, _, seen in taps(ones, step.window))


def _avg_pool(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    x, window = inputs[0], step.window
    total = sum(seen.astype(np.float64) for _, _, seen in taps(padded(x, window, 0), window))
    return np.asarray(total / window_counts(step, x), x.dtype)


def _mean(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    return np.asarray(inputs[0].mean((1, 2), np.float64, keepdims=True), inputs[0].dtype)


def _softmax(step: Step, inputs: Sequence[Array], own: Tensors) -> Array:
    y = np.exp(inputs[0] - inputs[0].max(-1, keepdims=True))
    return np.asarray(y / y.sum(-1, keepdims=True))


RUNS: Mapping[str, Callable[[Step, Sequence[Array], Tensors], Array]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "linear": _linear,
    "affine": _affine,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": _mean,
    "add": lambda step, inputs, own: inputs[0] + inputs[1],
    "multiply": lambda step, inputs, own: inputs[0] * inputs[1],
    "concat": lambda step, inputs, own: np.concatenate(inputs, -1),
    "activation": lambda step, inputs, own: inputs[0],
    "softmax": _softmax,
}
"""Operation -> what makes its output, without the activation, of its inputs and tensors."""
