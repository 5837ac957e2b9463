"""Plans for the runtime: a builder, random ones, MobileNetV1's, and torch to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from leanconv.runtime.memory import place
from leanconv.runtime.plan import ACTIVATIONS, Picture, Plan, Step, Value, Window
from leanconv.runtime.shapes import Shape, output_shape

Tensors = dict[str, NDArray[np.float32]]
POINT = Window()


class Builder:
    """Adds steps one after another; each method gives the number of the value that it made."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.values = [Value(shape)]
        self.steps: list[Step] = []
        self.tensors: Tensors = {}
        self._random = np.random.default_rng(seed)

    def shape(self, number: int) -> Shape:
        return self.values[number].shape

    def tensor(self, *shape: int) -> str:
        name = f"t{len(self.tensors)}"
        fan = max(1, int(np.prod(shape[1:])) if len(shape) != 3 else shape[0] * shape[1])
        self.tensors[name] = (self._random.standard_normal(shape) / fan**0.5).astype(np.float32)
        return name

    def weights(self, *shape: int, out: int) -> dict[str, str]:
        return {"weight": self.tensor(*shape), "bias": self.tensor(out)}

    def value(self, step: Step, inputs: tuple[int, ...] | None = None) -> int:
        known = {name: tensor.shape for name, tensor in self.tensors.items()}
        shapes = [self.shape(number) for number in (step.inputs if inputs is None else inputs)]
        self.values.append(Value(output_shape(step, shapes, known)))
        return len(self.values) - 1

    def add(self, op: str, *inputs: int, inner: bool = False, **fields: Any) -> int:
        step = Step(op, inputs, len(self.values), **fields)
        made = self.value(step)
        if not inner:
            self.steps.append(step)
        return made

    def conv(self, x: int, out: int, *more: int, window: Window = POINT, groups: int = 1, act: str = "none") -> int:
        tensors = self.weights(out, *window.size, self.shape(x)[2] // groups, out=out)
        return self.add("conv", x, *more, tensors=tensors, window=window, groups=groups, act=act)

    def depthwise(self, x: int, window: Window, multiplier: int = 1, act: str = "none") -> int:
        channels = self.shape(x)[2] * multiplier
        return self.add(
            "depthwise", x, tensors=self.weights(*window.size, channels, out=channels), window=window, act=act
        )

    def linear(self, x: int, out: int, *more: int, act: str = "none") -> int:
        return self.add("linear", x, *more, tensors=self.weights(out, int(np.prod(self.shape(x))), out=out), act=act)

    def affine(self, x: int, act: str = "none") -> int:
        channels = self.shape(x)[2]
        tensors = {"weight": self.tensor(channels), "bias": self.tensor(channels)}
        return self.add("affine", x, tensors=tensors, act=act)

    def block(
        self, x: int, out: int, window: Window, expand: int = 0, residual: int | None = None, act: str = "relu"
    ) -> int:
        """(conv,) depthwise, conv."""
        first = len(self.steps)
        y = self.conv(x, expand, act=act) if expand else x
        y = self.depthwise(y, window, act=act)
        more = () if residual is None else (residual,)
        self.conv(y, out, *more, act="none" if more else act)
        parts = tuple(self.steps[first:])
        del self.steps[first:]
        self.steps.append(Step("block", (x, *more), parts[-1].output, parts=parts, layer="block"))
        return parts[-1].output

    def plan(self, **fields: Any) -> Plan:
        output = self.steps[-1].output
        values, memory = place(self.values, self.steps, 0, output)
        return Plan(values, tuple(self.steps), 0, output, memory, **fields)


def windows(draw: st.DrawFn, shape: Shape, pool: bool = False) -> Window:
    """One that fits."""
    size, stride, dilation, edges = [], [], [], []
    for n in shape[:2]:
        k, d = draw(st.integers(1, 3)), 1 if pool else draw(st.integers(1, 2))
        spread = d * (k - 1) + 1
        before, after = (draw(st.integers(0, k - 1 if pool else k)) for _ in range(2))
        while n + before + after < spread:
            k, d, spread = k - 1, 1, k - 1
            before, after = (min(pad, k - 1) if pool else pad for pad in (before, after))
        size.append(k)
        stride.append(draw(st.integers(1, 3)))
        dilation.append(d)
        edges.append((before, after))
    padding = (edges[0][0], edges[1][0], edges[0][1], edges[1][1])
    return Window((size[0], size[1]), (stride[0], stride[1]), padding, (dilation[0], dilation[1]))


OPERATIONS = (
    *("conv", "grouped", "added", "depthwise", "linear", "affine", "max_pool", "avg_pool", "mean", "add", "multiply"),
    *("spread", "concat", "activation", "softmax", "block", "residual"),
)


@st.composite
def plans(draw: st.DrawFn, most: int = 6) -> tuple[Plan, Tensors]:
    """Chains and branches of every operation."""
    sides = st.integers(1, 7)
    builder = Builder((draw(sides), draw(sides), draw(st.integers(1, 6))), draw(st.integers(0, 2**32 - 1)))
    x = 0
    for operation in draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=most)):
        x = grow(draw, builder, x, operation)
    classes = tuple(f"class {i}" for i in range(builder.shape(x)[2])) if draw(st.booleans()) else ()
    height, width, channels = builder.shape(0)
    picture = None
    if height == width and channels in (1, 3) and draw(st.booleans()):
        numbers = st.floats(0.1, 1)
        mean, std = (tuple(draw(numbers) for _ in range(channels)) for _ in range(2))
        picture = Picture(height, "L" if channels == 1 else "RGB", mean, std)
    about = {"源": "ä"} if draw(st.booleans()) else {}
    return builder.plan(classes=classes, picture=picture, about=about), builder.tensors


def grow(draw: st.DrawFn, builder: Builder, x: int, operation: str) -> int:
    """One more operation, or a few, after value x."""
    shape, out, act = builder.shape(x), draw(st.integers(1, 6)), draw(st.sampled_from(ACTIVATIONS))
    channels = shape[2]
    if operation == "conv":
        return builder.conv(x, out, window=windows(draw, shape), act=act)
    if operation == "grouped":
        groups = draw(st.sampled_from([g for g in (1, 2, 3, 5) if channels % g == 0]))
        return builder.conv(x, out * groups, window=windows(draw, shape), groups=groups, act=act)
    if operation == "added":
        window = windows(draw, shape)
        other = builder.conv(x, out, window=window)
        return builder.conv(x, out, other, window=window, act=act)
    if operation == "depthwise":
        return builder.depthwise(x, windows(draw, shape), draw(st.integers(1, 2)), act)
    if operation == "linear":
        other = builder.linear(x, out)
        return builder.linear(x, out, other, act=act)
    if operation == "affine":
        return builder.affine(x, act)
    if operation in ("max_pool", "avg_pool"):
        fields: dict[str, Any] = {"count_padding": draw(st.booleans())} if operation == "avg_pool" else {}
        return builder.add(operation, x, window=windows(draw, shape, pool=True), act=act, **fields)
    if operation == "mean":
        return builder.add("mean", x, act=act)
    if operation in ("add", "multiply"):
        return builder.add(operation, *draw(st.permutations((x, builder.affine(x)))), act=act)
    if operation == "spread":
        small = draw(st.sampled_from(("channels", "places", "one")))
        other = builder.add("mean", x) if small != "places" else builder.conv(x, 1)
        other = builder.conv(other, 1) if small == "one" else other
        return builder.add(draw(st.sampled_from(("add", "multiply"))), *draw(st.permutations((x, other))), act=act)
    if operation == "concat":
        return builder.add("concat", x, builder.conv(x, out), x, act=act)
    if operation == "activation":
        return builder.add("activation", x, act=act)
    if operation == "softmax":
        return builder.add("softmax", x)
    expand = draw(st.sampled_from((0, 0, 3, 8)))
    if operation == "block":
        return builder.block(x, out, windows(draw, shape), expand, act=act)
    return builder.block(x, channels, Window((3, 3), padding=(1, 1, 1, 1)), expand, residual=x, act=act)


def mobilenet(width: float = 1.0, side: int = 224, classes: int = 1000, blocks: bool = True) -> tuple[Plan, Tensors]:
    """MobileNetV1 with weights drawn at random: 17 MB at width 1."""
    builder = Builder((side, side, 3))
    x = builder.conv(0, int(32 * width), window=Window((3, 3), (2, 2), (1, 1, 1, 1)), act="relu")
    for out, stride in (
        *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
        *[(512, 1)] * 5,
        *((1024, 2), (1024, 1)),
    ):
        window = Window((3, 3), (stride, stride), (1, 1, 1, 1))
        if blocks:
            x = builder.block(x, int(out * width), window)
        else:
            x = builder.conv(builder.depthwise(x, window, act="relu"), int(out * width), act="relu")
    x = builder.linear(builder.add("mean", x), classes)
    picture = Picture(side, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return builder.plan(classes=tuple(f"class {i}" for i in range(classes)), picture=picture), builder.tensors


ACTS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def by_torch(
    plan: Plan, tensors: Mapping[str, NDArray[np.float32]], batch: NDArray[Any], dtype: torch.dtype
) -> NDArray[Any]:
    """The plan by torch's functional operations; (N, H, W, C) in and out."""
    known = {name: torch.from_numpy(np.array(t)).to(dtype) for name, t in tensors.items()}
    held = {plan.input: torch.from_numpy(batch).to(dtype).permute(0, 3, 1, 2)}
    for step in plan.steps:
        for part in step.parts or (step,):
            held[part.output] = ACTS[part.act](_by_torch(part, [held[i] for i in part.inputs], known))
    return held[plan.output].permute(0, 2, 3, 1).contiguous().numpy()


def allowed(plan: Plan, tensors: Mapping[str, NDArray[np.float32]], batch: NDArray[np.float32]) -> float:
    """By how much an executor may differ from float64: twice torch's own error, 4 eps of the largest output, and one
    rounding of the largest sum of magnitudes, for where terms cancel each other torch may be right by luck."""
    exact, theirs = (by_torch(plan, tensors, batch, dtype) for dtype in (torch.float64, torch.float32))
    sizes = by_torch(plan, {name: np.abs(t) for name, t in tensors.items()}, np.abs(batch), torch.float64)
    eps = float(np.finfo(np.float32).eps)
    return float(2 * np.abs(theirs - exact).max() + eps * (4 * np.abs(exact).max() + np.abs(sizes).max()))


def _padded(x: Tensor, window: Window, value: float = 0.0) -> Tensor:
    top, left, below, right = window.padding
    return F.pad(x, (left, right, top, below), value=value)


def _by_torch(step: Step, inputs: list[Tensor], known: dict[str, Tensor]) -> Tensor:
    x, window = inputs[0], step.window
    weight, bias = (known[step.tensors[role]] if role in step.tensors else None for role in ("weight", "bias"))
    how: dict[str, Any] = {"stride": window.stride, "dilation": window.dilation}
    if step.op == "conv":
        y = F.conv2d(_padded(x, window), weight.permute(0, 3, 1, 2), bias, groups=step.groups, **how)
    elif step.op == "depthwise":
        y = F.conv2d(_padded(x, window), weight.permute(2, 0, 1)[:, None], bias, groups=x.shape[1], **how)
    elif step.op == "linear":
        y = F.linear(x.permute(0, 2, 3, 1).flatten(1), weight, bias)[:, :, None, None]
    elif step.op == "affine":
        y = x * weight[:, None, None] + bias[:, None, None]
    elif step.op == "max_pool":
        y = F.max_pool2d(_padded(x, window, float("-inf")), window.size, **how)
    elif step.op == "avg_pool":
        y = F.avg_pool2d(_padded(x, window), window.size, window.stride)
        if not step.count_padding:
            y = y / F.avg_pool2d(_padded(torch.ones_like(x), window), window.size, window.stride)
    elif step.op == "mean":
        y = x.mean((2, 3), keepdim=True)
    elif step.op == "add":
        y = inputs[0] + inputs[1]
    elif step.op == "multiply":
        y = inputs[0] * inputs[1]
    elif step.op == "concat":
        y = torch.cat(inputs, 1)
    elif step.op == "softmax":
        y = x.softmax(1)
    else:
        assert step.op == "activation"
        y = x
    return y + inputs[1] if step.op in ("conv", "linear") and len(inputs) > 1 else y
