"""The plan, run by numpy: one plain function per operation.

What the native library is compared with, and what runs where there is none. Maps are (N, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from leanconv.runtime.checking import lifetimes
from leanconv.runtime.plan import Plan, Step, Window

__all__ = ["Reference", "activate"]

Array = NDArray[Any]
_Tensors = Mapping[str, Array]


class Reference:
    """Runs a plan with numpy.

    Args:
        plan: one that :func:`leanconv.runtime.checking.check` lets pass.
        tensors: name -> values.
        dtype: in which everything is computed: float32, or float64 to compare with.
    """

    def __init__(self, plan: Plan, tensors: _Tensors, dtype: DTypeLike = np.float32) -> None:
        self.plan = plan
        self.dtype = np.dtype(dtype)
        self._tensors = {name: np.asarray(tensor, self.dtype) for name, tensor in tensors.items()}
        self._last = {number: last for number, (_, last) in lifetimes(plan.steps, plan.input).items()}

    def run(self, batch: Array) -> Array:
        """The network's output.

        Args:
            batch: (N, H, W, C), channels last.

        Returns:
            (N, h, w, c) in the dtype that was asked for.
        """
        held = {self.plan.input: np.asarray(batch, self.dtype)}
        with np.errstate(all="ignore"):  # infinities and NaNs go through as they do in torch
            for i, step in enumerate(self.plan.steps):
                inputs = [held[number] for number in step.inputs]
                held[step.output] = self._step(step, inputs)
                for number in {*step.inputs, step.output}:
                    if self._last[number] == i and number != self.plan.output:
                        del held[number]
        return held[self.plan.output]

    def _step(self, step: Step, inputs: Sequence[Array]) -> Array:
        if step.op == "block":
            x = inputs[0]
            for part in step.parts:
                x = self._step(part, [x, *inputs[1:]] if part is step.parts[-1] else [x])
            return x
        own = {role: self._tensors[name] for role, name in step.tensors.items()}
        return activate(step.act, _RUNS[step.op](step, inputs, own))


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


def _padded(x: Array, window: Window, value: float) -> Array:
    top, left, below, right = window.padding
    if not any(window.padding):
        return x
    return np.pad(x, ((0, 0), (top, below), (left, right), (0, 0)), constant_values=value)


def _taps(x: Array, window: Window) -> list[tuple[int, int, Array]]:
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


def _conv(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    weight, groups = own["weight"], step.groups
    out, _, _, each = weight.shape
    y: Array | None = None
    for i, j, seen in _taps(_padded(inputs[0], step.window, 0), step.window):
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


def _depthwise(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    weight = own["weight"]
    x = _padded(inputs[0], step.window, 0)
    x = np.repeat(x, weight.shape[2] // x.shape[3], axis=3) if weight.shape[2] != x.shape[3] else x
    y: Array | None = None
    for i, j, seen in _taps(x, step.window):
        y = seen * weight[i, j] if y is None else np.add(y, seen * weight[i, j], out=y)
    assert y is not None
    return y + own["bias"]


def _linear(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    x = inputs[0].reshape(len(inputs[0]), -1)
    y = (x @ own["weight"].T + own["bias"])[:, None, None, :]
    return y + inputs[1] if len(inputs) > 1 else y


def _affine(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    return inputs[0] * own["weight"] + own["bias"]


def _max_pool(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    first, *others = (seen for _, _, seen in _taps(_padded(inputs[0], step.window, -np.inf), step.window))
    y = first.copy()
    for seen in others:
        np.maximum(y, seen, out=y)
    return y


def _avg_pool(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    x, window = inputs[0], step.window
    total = sum(seen.astype(np.float64) for _, _, seen in _taps(_padded(x, window, 0), window))
    count: Any = window.size[0] * window.size[1]
    if not step.count_padding:
        ones = _padded(np.ones((1, *x.shape[1:3], 1)), window, 0)
        count = sum(seen for _, _, seen in _taps(ones, window))
    return np.asarray(total / count, x.dtype)


def _mean(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    return np.asarray(inputs[0].mean((1, 2), np.float64, keepdims=True), inputs[0].dtype)


def _softmax(step: Step, inputs: Sequence[Array], own: _Tensors) -> Array:
    y = np.exp(inputs[0] - inputs[0].max(-1, keepdims=True))
    return np.asarray(y / y.sum(-1, keepdims=True))


_RUNS: Mapping[str, Callable[[Step, Sequence[Array], _Tensors], Array]] = {
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
