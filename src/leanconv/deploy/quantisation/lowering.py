"""From a float plan to one whose maps are bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.weights import WEIGHTED, Layer, quantised
from leanconv.runtime.memory import place
from leanconv.runtime.plan import Plan, Quant, Step, Value, Window

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
    """The same plan with each affine map as a depthwise convolution of one tap, which bytes know."""
    made = dict(tensors)
    steps = []
    for step in plan.steps:
        if step.op == "affine":
            name = f"{step.tensors['weight']}.point"
            made[name] = tensors[step.tensors["weight"]].reshape(1, 1, -1)
            step = replace(step, op="depthwise", window=Window(), tensors={**step.tensors, "weight": name})
        steps.append(step)
    named = {name for step in steps for part in (step, *step.parts) for name in part.tensors.values()}
    return replace(plan, steps=tuple(steps)), {name: made[name] for name in made if name in named}


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
            for number in step.inputs:
                if readers[number] == 1 and number != plan.input and number not in pools:
                    if quants[step.output].scale <= 1.42 * quants[number].scale:
                        found[number] = quants[step.output]
    return found


def lower(plan: Plan, tensors: Tensors, quants: Mapping[int, Quant], kept: Collection[int] = (), clipped: bool = False) -> Lowered:
    """Bytes wherever they can be.

    Args:
        plan: of floats, no affine maps in it (:func:`pointed`).
        tensors: by name.
        quants: of every value, those inside blocks too.
        kept: places of steps that stay in float; pooling and the like between two of them stays in float too.
        clipped: as of :func:`leanconv.deploy.quantisation.weights.quantised`.
    """
    return _Lowering(plan, tensors, quants, kept, clipped).done()


class _Lowering:
    def __init__(
        self, plan: Plan, tensors: Tensors, quants: Mapping[int, Quant], kept: Collection[int], clipped: bool
    ) -> None:
        self._plan, self._old, self._clipped = plan, tensors, clipped
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
        for part in (step, *step.parts):
            self._tensors |= {name: self._old[name] for name in part.tensors.values()}
        parts = self._inner(step, inputs, lambda part: self._value(part.output))
        self._real[step.output] = self._value(step.output)
        self._steps.append(self._closed(step, inputs, parts, self._real[step.output]))

    def _bytes(self, step: Step, makes_real: bool) -> bool:
        inputs = [self._as_byte(number) for number in step.inputs[:1]]
        joined = step.op in (*WEIGHTED, "block") and makes_real
        inputs += [self._as_real(n) if joined else self._as_byte(n) for n in step.inputs[1:]]
        scales = [self._quants[number].scale for number in step.inputs]
        names: dict[str, Mapping[str, str]] = {}
        at = scales[0]
        for part in step.parts or (step,):
            last = part.output == step.output
            least = max(at, *scales[1:]) if last else at
            if part.op in WEIGHTED:
                layer = quantised(part.op, *(self._old[part.tensors[role]] for role in ("weight", "bias")), at, self._clipped)
                if not layer.fits:
                    return False
                names[part.tensors["weight"]] = self._written(part, layer)
                least = max(at * float((layer.sums * layer.scale.astype(np.float64)).max()) / _ONE_STEP, (max(scales[1:], default=0) if last else 0) / 2**19)
            elif part.op == "multiply":
                least = scales[0] * scales[1] / 2**13
            else:
                least = max(scales) / 2**19
            self._settle(part, least, makes_real and last)
            at = self._quants[part.output].scale
        parts = self._inner(step, tuple(inputs), lambda part: self._value(part.output, self._quants[part.output]), names)
        output = self._value(step.output, None if makes_real else self._quants[step.output])
        (self._real if makes_real else self._byte)[step.output] = output
        own = {} if step.parts or step.op not in WEIGHTED else {"tensors": names[step.tensors["weight"]]}
        self._steps.append(self._closed(replace(step, **own), tuple(inputs), parts, output))
        if step.output == self._plan.output:
            self._as_real(step.output)
        return True

    def _settle(self, part: Step, least: float, real: bool) -> None:
        """The bytes of a step's output: the input's behind max_pool; never so fine that the result leaves 32 bits."""
        own = self._quants[part.output]
        if part.op == "max_pool":
            self._quants[part.output] = self._quants[part.inputs[0]]
        elif own.scale < least and not real:
            self._quants[part.output] = Quant(float(np.float32(least * 1.001)), own.zero)

    def _written(self, part: Step, layer: Layer) -> dict[str, str]:
        """Put a layer's tensors down; role -> name."""
        found = {}
        for role, values in (("weight", layer.weight), ("bias", layer.bias), ("scale", layer.scale)):
            base = part.tensors["weight"].removesuffix(".weight") + f".{role}" if role == "scale" else part.tensors[role]
            name, turn = base, 1
            while name in self._tensors and not _same(self._tensors[name], values):
                turn += 1
                name = f"{base}.{turn}"
            self._tensors[name] = values
            found[role] = name
        return found

    def _inner(self, step: Step, inputs: tuple[int, ...], made: Any, names: Mapping[str, Mapping[str, str]] | None = None) -> list[Step]:
        """The parts of a block but for the last one's output."""
        parts = []
        at = inputs[0]
        for part in step.parts:
            last = part is step.parts[-1]
            tensors = part.tensors if names is None else names[part.tensors["weight"]]
            reads = (at, *inputs[1:]) if last else (at,)
            at = -1 if last else made(part)
            parts.append(replace(part, inputs=reads, output=at, tensors=tensors))
        return parts

    def _closed(self, step: Step, inputs: tuple[int, ...], parts: list[Step], output: int) -> Step:
        if parts:
            parts[-1] = replace(parts[-1], output=output)
        return replace(step, inputs=inputs, output=output, parts=tuple(parts))

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
