"""A plan run in float64 numpy, written out plainly, and helpers that write plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from leanconv.runtime.plan import Plan, Step, Value, Window

ACTS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
}


def run_plainly(plan: Plan, tensors: Mapping[str, np.ndarray], batch: np.ndarray) -> np.ndarray:
    values = {plan.input: batch.astype(np.float64)}
    for step in plan.steps:
        for part in step.parts or (step,):
            values[part.output] = _step(part, tensors, [values[i] for i in part.inputs])
    return values[plan.output]


def windows(x: np.ndarray, window: Window, fill: float) -> np.ndarray:
    """(N, out height, out width, kernel height, kernel width, C): what lies under each place of the window."""
    top, left, bottom, right = window.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    reach = [(k - 1) * d + 1 for k, d in zip(window.size, window.dilation, strict=True)]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, (1, 2))
    seen = seen[:, :: window.stride[0], :: window.stride[1], :, :: window.dilation[0], :: window.dilation[1]]
    return np.moveaxis(seen, 3, -1)


def _step(step: Step, tensors: Mapping[str, np.ndarray], inputs: list[np.ndarray]) -> np.ndarray:
    x = inputs[0]
    weight, bias = (
        tensors[step.tensors[r]].astype(np.float64) if r in step.tensors else None for r in ("weight", "bias")
    )
    if step.op == "conv":
        seen, groups = windows(x, step.window, 0.0), []
        for g in range(step.groups):
            each_in, each_out = x.shape[3] // step.groups, len(weight) // step.groups
            part = seen[..., g * each_in : (g + 1) * each_in]
            groups.append(np.einsum("nyxijc,oijc->nyxo", part, weight[g * each_out : (g + 1) * each_out]))
        y = np.concatenate(groups, 3) + bias
    elif step.op == "depthwise":
        spread = np.repeat(x, weight.shape[2] // x.shape[3], 3)
        y = np.einsum("nyxijc,ijc->nyxc", windows(spread, step.window, 0.0), weight) + bias
    elif step.op == "linear":
        y = (x.reshape(len(x), -1) @ weight.T + bias)[:, None, None]
    elif step.op == "affine":
        y = x * weight + bias
    elif step.op == "max_pool":
        y = windows(x, step.window, -np.inf).max((3, 4))
    elif step.op == "avg_pool":
        count = windows(np.ones_like(x), step.window, 1.0 if step.count_padding else 0.0).sum((3, 4))
        y = windows(x, step.window, 0.0).sum((3, 4)) / count
    elif step.op == "mean":
        y = x.mean((1, 2), keepdims=True)
    elif step.op == "multiply":
        y = x * inputs[1]
    elif step.op == "concat":
        y = np.concatenate(inputs, 3)
    elif step.op == "softmax":
        y = np.exp(x - x.max(3, keepdims=True))
        y = y / y.sum(3, keepdims=True)
    else:
        assert step.op in ("add", "activation"), step.op
        y = x
    if len(inputs) == 2 and step.op in ("conv", "linear", "add"):
        y = y + inputs[1]
    return ACTS[step.act](y)


class Writer:
    """Writes a plan step by step, each value in a place of its own."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        self.values = [Value(shape)]
        self.steps: list[Step] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(seed)

    def value(self, shape: tuple[int, int, int]) -> int:
        self.values.append(Value(shape))
        return len(self.values) - 1

    def part(self, op: str, x: int, channels: int | None = None, window: Window | None = None, **fields) -> Step:
        """A step whose output's shape follows from its input."""
        height, width, depth = self.values[x].shape
        window = window or Window()
        channels = channels or depth
        sides = [
            (side + window.padding[i] + window.padding[i + 2] - (window.size[i] - 1) * window.dilation[i] - 1)
            // window.stride[i] + 1
            for i, side in enumerate((height, width))
        ]  # fmt: skip
        shape, tensors = (*sides, channels), None
        if op == "conv":
            tensors = ((channels, *window.size, depth // fields.get("groups", 1)), channels)
        elif op == "depthwise":
            tensors = ((*window.size, channels), channels)
        elif op == "linear":
            shape, tensors = (1, 1, channels), ((channels, height * width * depth), channels)
        elif op == "affine":
            tensors = ((channels,), channels)
        elif op == "mean":
            shape = (1, 1, channels)
        names = {}
        if tensors:
            for role, size in zip(("weight", "bias"), tensors, strict=True):
                names[role] = f"{len(self.tensors)}.{role}"
                scale = 1.0 if role == "bias" else (np.prod(size) / channels) ** -0.5
                self.tensors[names[role]] = (self.random.standard_normal(size) * scale).astype(np.float32)
        inputs = (x, *fields.pop("more", ()))
        if op == "concat":
            shape = (*sides, sum(self.values[i].shape[2] for i in inputs))
        return Step(op, inputs, self.value(shape), tensors=names, window=window, **fields)

    def add(self, op: str, x: int, channels: int | None = None, window: Window | None = None, **fields) -> int:
        self.steps.append(self.part(op, x, channels, window, **fields))
        return self.steps[-1].output

    def block(
        self, x: int, channels: int, out: int, window: Window, acts: tuple[str, ...], more: tuple[int, ...] = ()
    ) -> int:
        """Depthwise, 1x1; or with three activations 1x1 to `channels`, depthwise, 1x1."""
        parts, at = [], x
        if len(acts) == 3:
            parts.append(self.part("conv", at, channels, act=acts[0]))
            at = parts[-1].output
        parts.append(self.part("depthwise", at, channels, window, act=acts[-2]))
        parts.append(self.part("conv", parts[-1].output, out, act=acts[-1], more=more))
        self.steps.append(Step("block", (x, *more), parts[-1].output, parts=tuple(parts)))
        return parts[-1].output

    def plan(self) -> Plan:
        """The last step's output is the network's."""
        end, at, values = self.steps[-1].output, 0, list(self.values)
        for step in self.steps[:-1]:
            values[step.output] = replace(values[step.output], offset=at)
            at += -(-int(np.prod(values[step.output].shape)) // 16) * 16
        return Plan(tuple(values), tuple(self.steps), 0, end, at)
