"""A plan run by plain numpy, written apart from the runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.runtime.plan import Plan, Step, Window

Map = NDArray[Any]


def run(plan: Plan, tensors: Any, x: Map, dtype: type = np.float32) -> Map:
    """One image (H, W, C) at a time: (N, H, W, C) -> (N, H', W', C')."""
    given = {name: a.astype(dtype) for name, a in tensors.items()}
    return np.stack([_one(plan, given, image.astype(dtype)) for image in x])


def _one(plan: Plan, tensors: Any, x: Map) -> Map:
    values = {plan.input: x}
    for step in plan.steps:
        for part in step.parts or (step,):
            y = _act(_OPS[part.op](part, tensors, [values[v] for v in part.inputs]), part.act)
            assert y.shape == plan.values[part.output].shape, part
            values[part.output] = y
        assert step.output in values
    return values[plan.output]


def _act(x: Map, act: str) -> Map:
    six = x.dtype.type(6)
    gate = np.clip(x + x.dtype.type(3), 0, six) / six
    sigmoid = 1 / (1 + np.exp(-x)) if act in ("silu", "sigmoid") else x
    return {
        "none": x, "relu": np.maximum(x, 0), "relu6": np.clip(x, 0, six), "hardswish": x * gate, "hardsigmoid": gate,
        "silu": x * sigmoid, "sigmoid": sigmoid,
    }[act]  # fmt: skip


def _taps(x: Map, window: Window, fill: float) -> Map:
    """(H', W', kh kw, C): what each window sees."""
    top, left, bottom, right = window.padding
    x = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=fill)
    (kh, kw), (sh, sw), (dh, dw) = window.size, window.stride, window.dilation
    height, width = (x.shape[0] - dh * (kh - 1) - 1) // sh + 1, (x.shape[1] - dw * (kw - 1) - 1) // sw + 1
    seen = [
        x[i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
        for i in range(kh)
        for j in range(kw)
    ]
    return np.stack(seen, 2)


def _conv(step: Step, tensors: Any, inputs: list[Map]) -> Map:
    weight, bias = (tensors[step.tensors[role]] for role in ("weight", "bias"))
    seen, out = _taps(inputs[0], step.window, 0), weight.shape[0]
    groups, per = step.groups, weight.shape[3]
    parts = [
        np.tensordot(
            seen[..., g * per : (g + 1) * per], weight.reshape(groups, out // groups, -1, per)[g], ((2, 3), (1, 2))
        )
        for g in range(groups)
    ]
    y = np.concatenate(parts, -1) + bias
    return y + inputs[1] if len(inputs) > 1 else y


def _depthwise(step: Step, tensors: Any, inputs: list[Map]) -> Map:
    weight, bias = (tensors[step.tensors[role]] for role in ("weight", "bias"))
    seen = np.repeat(_taps(inputs[0], step.window, 0), weight.shape[2] // inputs[0].shape[2], -1)
    return (seen * weight.reshape(-1, weight.shape[2])).sum(2) + bias


def _linear(step: Step, tensors: Any, inputs: list[Map]) -> Map:
    weight, bias = (tensors[step.tensors[role]] for role in ("weight", "bias"))
    y = (weight @ inputs[0].reshape(-1) + bias)[None, None]
    return y + inputs[1] if len(inputs) > 1 else y


def _affine(step: Step, tensors: Any, inputs: list[Map]) -> Map:
    return inputs[0] * tensors[step.tensors["weight"]] + tensors[step.tensors["bias"]]


def _avg(step: Step, tensors: Any, inputs: list[Map]) -> Map:
    total = _taps(inputs[0], step.window, 0).sum(2)
    if step.count_padding:
        return total / inputs[0].dtype.type(np.prod(step.window.size))
    return total / _taps(np.ones_like(inputs[0]), step.window, 0).sum(2)


def _softmax(x: Map) -> Map:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


_OPS: dict[str, Any] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "linear": _linear,
    "affine": _affine,
    "avg_pool": _avg,
    "max_pool": lambda s, t, x: _taps(x[0], s.window, -np.inf).max(2),
    "mean": lambda s, t, x: x[0].mean((0, 1), keepdims=True),
    "add": lambda s, t, x: x[0] + x[1],
    "multiply": lambda s, t, x: x[0] * x[1],
    "concat": lambda s, t, x: np.concatenate(x, -1),
    "activation": lambda s, t, x: x[0],
    "softmax": lambda s, t, x: _softmax(x[0]),
}
