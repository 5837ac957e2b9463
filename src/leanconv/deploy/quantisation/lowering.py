"""From a float plan to one whose maps are bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.weights import WEIGHTED, Layer, quantised
from leanconv.runtime.memory import place
from leanconv.runtime.plan import BOUNDED, Plan, Quant, Step, Value, Window

__all__ = ["Lowered", "lower", "pointed", "shared", "units"]

Array = NDArray[Any]
Tensors = Mapping[str, Array]

_REAL = ("softmax",)
_MAKES_REAL = (*WEIGHTED, "block", "mean", "avg_pool")
_ONE_STEP = 2.0**29


@dataclass(frozen=True)
class Lowered:
    """A plan of bytes.

    Attributes:
        plan: placed.
        tensors: by name.
        byte, real: value of the float plan -> the value here that holds it, as bytes or as floats.
        kept: places of the float plan's steps that compute in float, and why.
        left: steps of the float plan whose maps are bytes.
    """

    plan: Plan
    tensors: dict[str, Array]
    byte: dict[int, int]
    real: dict[int, int]
    kept: dict[int, str]
    left: int


def pointed(plan: Plan, tensors: Tensors) -> tuple[Plan, dict[str, Array]]:
    """The same function in steps that bytes know.

    An affine map becomes a depthwise convolution of one tap, an activation that does more than bound stands behind
    max_pool instead of in it.
    """
    made = dict(tensors)
    values, steps = list(plan.values), []
    for step in plan.steps:
        if step.op == "max_pool" and step.act not in BOUNDED:
            values.append(replace(values[step.output], offset=None))
            steps.append(replace(step, act="none", output=len(values) - 1))
            step = Step("activation", (len(values) - 1,), step.output, step.act, layer=step.layer)
        if step.op == "affine":
            name = f"{step.tensors['weight']}.point"
            made[name] = tensors[step.tensors["weight"]].reshape(1, 1, -1)
            step = replace(step, op="depthwise", window=Window(), tensors={**step.tensors, "weight": name})
        steps.append(step)
    named = {name for step in steps for part in (step, *step.parts) for name in part.tensors.values()}
    return replace(plan, values=tuple(values), steps=tuple(steps)), {name: made[name] for name in made if name in named}


def units(plan: Plan) -> list[int]:
    """Places of the steps that may be left in float each by itself: what rounds anew. A block is one of them."""
    rounds = (*WEIGHTED, "block", "add", "multiply", "activation")
    return [i for i, step in enumerate(plan.steps) if step.op in rounds]


def shared(plan: Plan, quants: Mapping[int, Quant]) -> dict[int, Quant]:
    """The bytes of each value, where those that are only concatenated have the whole's if these are nearly as fine.

    They are then copied. Rounding twice adds as much as steps of sqrt(2) times the size.
    """
    found = dict(quants)
    readers: dict[int, int] = {}
    for step in plan.steps:
        for number in step.inputs:
            readers[number] = readers.get(number, 0) + 1
    pools = {step.output for step in plan.steps if step.op == "max_pool"}
    for step in plan.steps:
        if step.op == "concat" and step.act == "none":
            fine = quants[step.output].scale
            alone = [n for n in step.inputs if readers[n] == 1 and n != plan.input and n not in pools]
            found |= {n: quants[step.output] for n in alone if fine <= 1.42 * quants[n].scale}
    return found


def lower(
    plan: Plan,
    tensors: Tensors,
    quants: Mapping[int, Quant],
    kept: Collection[int] = (),
    biases: Mapping[int, Array] | None = None,
) -> Lowered:
    """Bytes wherever they can be.

    Args:
        plan: of floats, no affine maps in it (:func:`pointed`).
        tensors: by name.
        quants: of every value, those inside blocks too.
        kept: places of steps that stay in float; pooling and the like between two of them stays in float too.
        biases: output of a step, or of a block's part -> its bias where it is in bytes; None: the same as in float.
    """
    return _Lowering(plan, (tensors, biases or {}), quants, kept).done()


class _Lowering:
    def __init__(
        self,
        plan: Plan,
        tensors: tuple[Tensors, Mapping[int, Array]],
        quants: Mapping[int, Quant],
        kept: Collection[int],
    ) -> None:
        self._plan = plan
        self._old, self._biases = tensors
        self._quants = dict(shared(plan, quants))
        self._values = [replace(plan.values[plan.input], offset=None)]
        self._steps: list[Step] = []
        self._tensors: dict[str, Array] = {}
        self._byte: dict[int, int] = {}
        self._real = {plan.input: 0}
        self._kept = dict.fromkeys(kept, "to keep the accuracy")
        self._kept |= {i: "softmax" for i, step in enumerate(plan.steps) if step.op in _REAL}
        self._readers: dict[int, list[int]] = {}
        for i, step in enumerate(plan.steps):
            for number in step.inputs:
                self._readers.setdefault(number, []).append(i)
        self._maker = {step.output: i for i, step in enumerate(plan.steps)}
        for i in kept:
            self._beside(i)

    def done(self) -> Lowered:
        while True:
            self._makes_real = self._outputs()
            over = next((i for i in range(len(self._plan.steps)) if not self._step(i)), None)
            if over is None:
                break
            self._kept[over] = "its sums would leave 32 bits"
            self._restart()
        output = self._real[self._plan.output]
        values, memory = place(self._values, self._steps, 0, output)
        made = replace(self._plan, values=values, steps=tuple(self._steps), input=0, output=output, memory=memory)
        left = len(self._plan.steps) - len(self._kept)
        return Lowered(made, self._tensors, self._byte, self._real, dict(sorted(self._kept.items())), left)

    def _restart(self) -> None:
        self._values, self._steps, self._tensors = self._values[:1], [], {}
        self._byte, self._real = {}, {self._plan.input: 0}

    def _beside(self, i: int) -> None:
        """What has no weights and stands between steps in float alone stays in float with them."""
        near = [n for n in (i, *self._neighbours(i)) if n not in self._kept]
        for n in near:
            step = self._plan.steps[n]
            if step.op in (*WEIGHTED, "block"):
                continue
            if all(m in self._kept for m in self._neighbours(n)):
                self._kept[n] = "between layers in float"
                self._beside(n)

    def _neighbours(self, i: int) -> list[int]:
        step = self._plan.steps[i]
        makers = [self._maker[n] for n in step.inputs if n in self._maker]
        return makers + self._readers.get(step.output, [])

    def _outputs(self) -> set[int]:
        """Steps in bytes that make floats: where the network ends, or where nothing reads bytes."""
        found: set[int] = set()
        for i in reversed(range(len(self._plan.steps))):
            step = self._plan.steps[i]
            if step.op in _MAKES_REAL and i not in self._kept:
                wanted = [self._reads_real(r, step.output, found) for r in self._readers.get(step.output, [])]
                if all(wanted) or step.output == self._plan.output:
                    found.add(i)
        return found

    def _reads_real(self, i: int, number: int, real: set[int]) -> bool:
        step = self._plan.steps[i]
        second = step.op in (*WEIGHTED, "block") and number in step.inputs[1:] and number != step.inputs[0]
        return i in self._kept or (second and i in real)

    def _step(self, i: int) -> bool:
        """Add a step; False: it cannot be in bytes."""
        step = self._plan.steps[i]
        if i in self._kept:
            self._floats(step)
            return True
        return self._bytes(step, i in self._makes_real)

    def _floats(self, step: Step) -> None:
        inputs = tuple(self._as_real(number) for number in step.inputs)
        names = [
            {role: self._put(name, self._old[name]) for role, name in part.tensors.items()}
            for part in step.parts or (step,)
        ]
        inner = [self._value(part.output) for part in step.parts[:-1]]
        self._real |= {part.output: number for part, number in zip(step.parts[:-1], inner, strict=False)}
        parts = self._inner(step, inputs, inner, names)
        self._real[step.output] = self._value(step.output)
        self._steps.append(self._closed(step, inputs, parts, names, self._real[step.output]))

    def _bytes(self, step: Step, makes_real: bool) -> bool:
        joined = step.op in (*WEIGHTED, "block") and makes_real
        inputs = (
            *(self._as_byte(number) for number in step.inputs[:1]),
            *(self._as_real(number) if joined else self._as_byte(number) for number in step.inputs[1:]),
        )
        names: list[dict[str, str]] = []
        read = step.inputs[:1] if joined else step.inputs
        for part in step.parts or (step,):
            last = part.output == step.output
            scales = [self._quants[number].scale for number in (read if not step.parts else (part.inputs[0],))]
            if step.parts and last:
                scales += [self._quants[number].scale for number in read[1:]]
            layer = self._layer_of(part, scales[0]) if part.op in WEIGHTED else None
            if layer is not None and not layer.fits:
                return False
            names.append({} if layer is None else self._written(part, layer))
            if not (makes_real and last):
                self._settle(part, self._least(part, scales, layer))
        inner = [self._value(part.output, self._quants[part.output]) for part in step.parts[:-1]]
        self._byte |= {part.output: number for part, number in zip(step.parts[:-1], inner, strict=False)}
        parts = self._inner(step, inputs, inner, names)
        output = self._value(step.output, None if makes_real else self._quants[step.output])
        (self._real if makes_real else self._byte)[step.output] = output
        self._steps.append(self._closed(step, inputs, parts, names, output))
        if step.output == self._plan.output:
            self._as_real(step.output)
        return True

    def _layer_of(self, part: Step, scale: float) -> Layer:
        weight, bias = (self._old[part.tensors[role]] for role in ("weight", "bias"))
        return quantised(part.op, weight, self._biases.get(part.output, bias), scale)

    def _least(self, part: Step, scales: list[float], layer: Layer | None) -> float:
        """The finest scale of an output with which a step's result stays far inside 32 bits."""
        least = max(scales) / 2**19
        if layer is not None:
            least = max(least, scales[0] * float((layer.sums * layer.scale.astype(np.float64)).max()) / _ONE_STEP)
        if part.op in ("mean", "avg_pool"):
            height, width, _ = self._plan.values[part.inputs[0]].shape
            least = max(least, 255 * scales[0] * height * width / _ONE_STEP)
        if part.op == "multiply":
            least = max(least, 255**2 * scales[0] * scales[1] / _ONE_STEP)
        return least

    def _settle(self, part: Step, least: float) -> None:
        """The bytes of a step's output: the input's behind max_pool, and never finer than ``least``."""
        own = self._quants[part.output]
        if part.op == "max_pool":
            self._quants[part.output] = self._quants[part.inputs[0]]
        elif own.scale < least:
            self._quants[part.output] = Quant(float(np.float32(least * 1.001)), own.zero)

    def _written(self, part: Step, layer: Layer) -> dict[str, str]:
        """Put a layer's tensors down; role -> name."""
        weight, bias = part.tensors["weight"], part.tensors["bias"]
        scale = f"{weight.removesuffix('.point').removesuffix('.weight')}.scale"
        values: dict[str, Array] = {weight: layer.weight, bias: layer.bias, scale: layer.scale}
        return {
            role: self._put(name, values[name]) for role, name in zip(("weight", "bias", "scale"), values, strict=True)
        }

    def _put(self, base: str, values: Array) -> str:
        name, turn = base, 1
        while name in self._tensors and not _same(self._tensors[name], values):
            turn += 1
            name = f"{base}.{turn}"
        self._tensors[name] = values
        return name

    def _inner(self, step: Step, inputs: tuple[int, ...], inner: list[int], names: list[dict[str, str]]) -> list[Step]:
        """The parts of a block; the last one's output is for :meth:`_closed` to fill in."""
        parts = []
        for i, part in enumerate(step.parts):
            last = part is step.parts[-1]
            at = inputs[0] if i == 0 else inner[i - 1]
            reads = (at, *inputs[1:]) if last else (at,)
            parts.append(replace(part, inputs=reads, output=-1 if last else inner[i], tensors=names[i]))
        return parts

    def _closed(
        self, step: Step, inputs: tuple[int, ...], parts: list[Step], names: list[dict[str, str]], output: int
    ) -> Step:
        if parts:
            parts[-1] = replace(parts[-1], output=output)
        tensors = {} if parts else names[0]
        return replace(step, inputs=inputs, output=output, parts=tuple(parts), tensors=tensors)

    def _value(self, old: int, quant: Quant | None = None) -> int:
        self._values.append(Value(self._plan.values[old].shape, None, quant))
        return len(self._values) - 1

    def _as_byte(self, old: int) -> int:
        if old not in self._byte:
            self._byte[old] = self._value(old, self._quants[old])
            self._steps.append(Step("quantize", (self._real[old],), self._byte[old], layer=self._layer(old)))
        return self._byte[old]

    def _as_real(self, old: int) -> int:
        if old not in self._real:
            self._real[old] = self._value(old)
            self._steps.append(Step("dequantize", (self._byte[old],), self._real[old], layer=self._layer(old)))
        return self._real[old]

    def _layer(self, old: int) -> str:
        return self._plan.steps[self._maker[old]].layer if old in self._maker else "input"


def _same(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b)
