"""Plans on bytes, made of float plans; and what one step on bytes gives, number by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.runtime.memory import place
from leanconv.runtime.operations import activate
from leanconv.runtime.plan import BOUNDED, Plan, Quant, Step, Value
from leanconv.runtime.reference import Reference

Tensors = dict[str, NDArray[Any]]
EITHER = ("conv", "depthwise", "linear", "mean", "avg_pool")


class _Recording(Reference):
    """Keeps the least and the greatest number of every value."""

    def __init__(self, plan: Plan, tensors: Tensors) -> None:
        super().__init__(plan, tensors)
        self.seen: dict[int, tuple[float, float]] = {}

    def _step(self, step: Step, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
        y = super()._step(step, inputs)
        finite = y[np.isfinite(y)]
        self.seen[step.output] = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return y


class _Lowered:
    def __init__(self, plan: Plan, tensors: Tensors, seed: int, floats: float) -> None:
        self.old, self.from_ = plan, tensors
        self.random = np.random.default_rng(seed)
        self.floats = floats
        recording = _Recording(plan, tensors)
        shape = plan.values[plan.input].shape
        recording.run(self.random.standard_normal((2, *shape)).astype(np.float32))
        self.seen = recording.seen | {plan.input: (-3.0, 3.0)}
        self.values = [Value(shape)]
        self.steps: list[Step] = []
        self.tensors: Tensors = {}
        self.as_float, self.as_bytes = {plan.input: 0}, dict[int, int]()

    def value(self, old: int, quant: Quant | None) -> int:
        self.values.append(Value(self.old.values[old].shape, None, quant))
        return len(self.values) - 1

    def quant(self, old: int) -> Quant:
        low, high = (bound * self.random.choice([0.5, 1.0, 1.0, 1.0]) for bound in self.seen[old])
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32(max((high - low) / 255, 1e-6)))
        return Quant(scale, int(np.clip(round(-low / scale), 0, 255)))

    def floating(self, old: int) -> int:
        if old not in self.as_float:
            self.as_float[old] = self.value(old, None)
            self.steps.append(Step("dequantize", (self.as_bytes[old],), self.as_float[old]))
        return self.as_float[old]

    def bytes(self, old: int) -> int:
        if old not in self.as_bytes:
            self.as_bytes[old] = self.value(old, self.quant(old))
            self.steps.append(Step("quantize", (self.as_float[old],), self.as_bytes[old]))
        return self.as_bytes[old]

    def in_bytes(self, step: Step, x: int) -> dict[str, str]:
        """The tensors of a step whose input is new value x."""
        if "weight" not in step.tensors:
            return {}
        weight, bias = (self.from_[step.tensors[role]].astype(np.float64) for role in ("weight", "bias"))
        axes = (0, 1) if step.op == "depthwise" else tuple(range(1, weight.ndim))
        scale = np.maximum(np.abs(weight).max(axes) / 127, 1e-6).astype(np.float32)
        spread = scale if step.op == "depthwise" else scale.reshape(-1, *[1] * (weight.ndim - 1))
        quant = self.values[x].quant
        assert quant is not None
        whole = np.clip(np.rint(bias / (scale.astype(np.float64) * quant.scale)), -(2**26), 2**26)
        made = {"weight": np.clip(np.rint(weight / spread), -128, 127).astype(np.int8)}
        made |= {"scale": scale, "bias": whole.astype(np.int32)}
        names = {role: f"{role}{len(self.tensors)}" for role in made}
        self.tensors |= {names[role]: tensor for role, tensor in made.items()}
        return names

    def step(self, step: Step) -> None:
        last = step.output == self.old.output
        curved = step.op == "max_pool" and step.act not in BOUNDED
        if curved or step.op in ("affine", "softmax") or self.random.random() < self.floats:
            inputs = tuple(self.floating(number) for number in step.inputs)
            parts, x = [], inputs[0]
            for part in step.parts:
                y = self.value(part.output, None)
                parts.append(replace(part, inputs=(x, *inputs[1:]) if part is step.parts[-1] else (x,), output=y))
                x = y
            y = x if parts else self.value(step.output, None)
            self.steps.append(replace(step, inputs=inputs, output=y, parts=tuple(parts)))
            self.as_float[step.output] = y
            for part in (step, *parts):
                self.tensors |= {name: self.from_[name] for name in part.tensors.values()}
            return
        final = step.parts[-1] if step.parts else step
        floats = final.op in EITHER and (last or self.random.random() < self.floats)
        others = [self.floating(n) if floats else self.bytes(n) for n in step.inputs[1:]]
        x = self.bytes(step.inputs[0])
        parts = []
        for part in step.parts or (step,):
            ends = part is final
            quant = self.values[x].quant if part.op == "max_pool" else self.quant(part.output)
            y = self.value(part.output, None if ends and floats else quant)
            inputs = (x, *others) if ends else (x,)
            parts.append(replace(part, inputs=inputs, output=y, tensors=self.in_bytes(part, x)))
            x = y
        made = replace(step, inputs=(self.as_bytes[step.inputs[0]], *others), output=x, parts=tuple(parts))
        self.steps.append(made if step.parts else parts[0])
        (self.as_float if floats else self.as_bytes)[step.output] = x

    def plan(self) -> Plan:
        for step in self.old.steps:
            self.step(step)
        output = self.floating(self.old.output)
        values, memory = place(self.values, self.steps, 0, output)
        return replace(self.old, values=values, steps=tuple(self.steps), input=0, output=output, memory=memory)


def in_bytes(plan: Plan, tensors: Tensors, seed: int = 0, floats: float = 0.15) -> tuple[Plan, Tensors]:
    """A plan whose steps are on bytes, but for some.

    Args:
        plan, tensors: in float32.
        seed: of the ranges, and of which steps stay in float.
        floats: the share of these.
    """
    lowered = _Lowered(plan, tensors, seed, floats)
    return lowered.plan(), lowered.tensors


# --- one step, number by number -------------------------------------------------------------------------------------

F = np.float32


def plainly(
    step: Step,
    inputs: Sequence[NDArray[Any]],
    own: Mapping[str, NDArray[Any]],
    quants: Sequence[Quant | None],
    made: Quant | None,
    shape: tuple[int, int, int],
) -> NDArray[Any]:
    """What a step on bytes gives for one image, (H, W, C) each, by loops over whole numbers of any size."""
    y = np.zeros(shape, np.float32 if made is None else np.uint8)
    bounded = made is not None and step.act in BOUNDED
    unit = made.scale if bounded and made else 1.0
    for place_ in product(*map(range, shape)):
        t = _number(step, inputs, own, quants, unit, place_)
        if not bounded or made is None:
            t = activate(step.act, np.asarray(t, F))[()]
            if made is not None:
                t = F(t * F(1 / made.scale))
        if made is None:
            y[place_] = t
        else:
            low = made.zero if bounded and step.act != "none" else 0
            high = min(255, made.zero + round(6 / made.scale)) if bounded and step.act == "relu6" else 255
            y[place_] = min(max(int(np.rint(np.float64(t))) + made.zero, low), high)
    return y


def _number(
    step: Step,
    inputs: Sequence[NDArray[Any]],
    own: Mapping[str, NDArray[Any]],
    quants: Sequence[Quant | None],
    unit: float,
    place_: tuple[int, int, int],
) -> Any:
    """t of one output, in float32."""
    row, column, channel = place_
    x, window, first = inputs[0], step.window, quants[0]
    if first is None:
        return F(F(x[place_]) * F(1 / unit))
    s, z = first.scale, first.zero
    seen = []
    for i, j in product(range(window.size[0]), range(window.size[1])):
        r = row * window.stride[0] - window.padding[0] + i * window.dilation[0]
        c = column * window.stride[1] - window.padding[1] + j * window.dilation[1]
        if 0 <= r < x.shape[0] and 0 <= c < x.shape[1]:
            seen.append((i, j, x[r, c].astype(int)))
    if step.op in ("conv", "depthwise", "linear"):
        a = int(own["bias"][channel])
        if step.op == "linear":
            a += sum(int(w) * (int(q) - z) for w, q in zip(own["weight"][channel], x.reshape(-1), strict=True))
        elif step.op == "depthwise":
            each = len(own["bias"]) // x.shape[2]
            a += sum(int(own["weight"][i, j, channel]) * (int(q[channel // each]) - z) for i, j, q in seen)
        else:
            each = x.shape[2] // step.groups
            group = channel // (len(own["bias"]) // step.groups) * each
            for i, j, q in seen:
                pairs = zip(own["weight"][channel, i, j], q[group : group + each], strict=True)
                a += sum(int(w) * (int(b) - z) for w, b in pairs)
        t = F(F(a) * F(s * float(own["scale"][channel]) / unit))
        if len(inputs) > 1:
            other = quants[1]
            second = inputs[1][place_]
            t = F(t + (F(second) if other is None else F(F(int(second) - other.zero) * F(other.scale / unit))))
        return t
    if step.op == "max_pool":
        return F(max((int(q[channel]) for _, _, q in seen), default=0) - z)
    if step.op == "avg_pool":
        count = window.size[0] * window.size[1] if step.count_padding else len(seen)
        return F(F(sum(int(q[channel]) - z for _, _, q in seen)) * F(s / count / unit))
    if step.op == "mean":
        area = x.shape[0] * x.shape[1]
        return F(F(int(x[..., channel].astype(int).sum()) - area * z) * F(s / area / unit))
    if step.op == "concat":
        for part, quant in zip(inputs, quants, strict=True):
            if channel < part.shape[2]:
                assert quant is not None
                return F(F(int(part[row, column, channel]) - quant.zero) * F(quant.scale / unit))
            channel -= part.shape[2]
    if step.op in ("add", "multiply"):
        (p, a), (q, b) = ((quant, _spread(part, place_)) for part, quant in zip(inputs, quants, strict=True))
        assert p is not None
        assert q is not None
        if step.op == "multiply":
            return F(F((a - p.zero) * (b - q.zero)) * F(p.scale * q.scale / unit))
        return F(F(F(a - p.zero) * F(p.scale / unit)) + F(F(b - q.zero) * F(q.scale / unit)))
    assert step.op in ("activation", "dequantize")
    return F(F(int(x[place_]) - z) * F(s / unit))


def _spread(x: NDArray[Any], place_: tuple[int, int, int]) -> int:
    return int(x[tuple(min(at, size - 1) for at, size in zip(place_, x.shape, strict=True))])
