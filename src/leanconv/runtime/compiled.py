"""Runs a plan by the native library, in float32 and bytes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv import _native
from leanconv._native.structures import Step as NativeStep
from leanconv.errors import Error
from leanconv.runtime.plan import ACTIVATIONS, OPS, Plan, Step, Value, roles

__all__ = ["Compiled"]

Array = NDArray[Any]
_MOST = 2**62  # what the native library sees as a number at all
_OPS = tuple(OPS)
# Role of a tensor -> field of the native step, type.
_FLOATS = {"weight": ("weight", "float32"), "bias": ("bias", "float32")}
_BYTES = {"weight": ("bytes", "int8"), "bias": ("sums", "int32"), "scale": ("scales", "float32")}


class Compiled:
    """A network that native code runs.

    Weights are packed for this machine once; the tensors are no longer needed afterwards. Calls from several threads
    wait for each other. In a process made by fork the calling thread works alone.

    Args:
        plan: the network.
        tensors: by name; float32, and where a step reads bytes int8 weights and int32 biases.
        threads: how many work at once, 1 to 64; None: as many as there are processors for this process.

    Raises:
        Error: no native library; a tensor is missing or of another type; the plan's numbers do not fit together.
    """

    def __init__(self, plan: Plan, tensors: Mapping[str, Array], threads: int | None = None) -> None:
        library = _native.load()
        if library is None:
            raise Error(f"runtime: a plan needs the native library to be compiled, got {_native.explain()}")
        self.threads = min(_processors(), 64) if threads is None else threads
        if not 1 <= self.threads <= 64:
            raise Error(f"runtime: threads must be 1 to 64, got {self.threads}")
        self.isa = library.isa
        for name, number in (("input", plan.input), ("output", plan.output)):
            if not 0 <= number < len(plan.values):
                raise Error(f"runtime: {name} must be the number of one of {len(plan.values)} values, got {number}")
        self._in, self._out = plan.values[plan.input].shape, plan.values[plan.output].shape
        held = _Held(plan, tensors)
        values = [_told_value(value) for value in plan.values]
        steps = [held.step(step) for step in plan.steps]
        self._engine = _native.Engine(
            library, values, steps, (plan.input, plan.output), _number(plan.memory), self.threads,
            path=_native.int8(),
        )  # fmt: skip

    def run(self, batch: Array) -> Array:
        """The network's output.

        Args:
            batch: (N, height, width, channels), float32, N at least 1.

        Returns:
            (N, height, width, channels) of the output, float32.

        Raises:
            Error: another shape or type; not enough memory.
        """
        if batch.ndim != 4 or batch.shape[1:] != tuple(self._in) or batch.shape[0] == 0 or batch.dtype != np.float32:
            raise Error(f"runtime: the batch must be float32 (N, {_told(self._in)}), got {batch.dtype} {batch.shape}")
        x = _lying(batch)
        y = np.empty((x.shape[0], *self._out), np.float32)
        self._engine.run(x.shape[0], (x.size, y.size), (x.ctypes.data, y.ctypes.data))
        return y

    def times(self) -> list[float]:
        """Seconds that each step took in the last run, in the plan's order; zeros before the first."""
        return self._engine.times()


class _Held:
    """Native steps, and what their pointers point to."""

    def __init__(self, plan: Plan, tensors: Mapping[str, Array]) -> None:
        self._values, self._tensors = plan.values, tensors
        self._alive: list[object] = []

    def step(self, step: Step, inside: bool = False) -> NativeStep:
        if step.op not in OPS or (inside and step.op == "block"):
            raise Error(f"runtime: the operation of a step must be one of {', '.join(OPS)}, got {step.op!r}")
        if step.act not in ACTIVATIONS:
            raise Error(f"runtime: the activation of a step must be one of {', '.join(ACTIVATIONS)}, got {step.act!r}")
        named = roles(step.op, self._quantized(step))
        if set(step.tensors) != set(named):
            raise Error(
                f"runtime: the tensors of {step.op} must be {', '.join(named) or 'none'}, "
                f"got {', '.join(map(str, step.tensors)) or 'none'}"
            )
        window = step.window
        made = NativeStep(_OPS.index(step.op), ACTIVATIONS.index(step.act), bool(step.count_padding))
        inputs = np.array([_number(i) for i in step.inputs], np.int64)
        made.inputs, made.inputs_count, made.output = inputs.ctypes.data, len(inputs), _number(step.output)
        parts = (NativeStep * len(step.parts))(*(self.step(part, True) for part in step.parts))
        made.parts, made.parts_count = ctypes.addressof(parts), len(step.parts)
        made.groups = _number(step.groups)
        for name, pair in (("kernel", window.size), ("stride", window.stride), ("dilation", window.dilation)):
            height, width = _numbers(pair, 2)
            setattr(made, f"{name}_height", height)
            setattr(made, f"{name}_width", width)
        made.pad_top, made.pad_left, made.pad_bottom, made.pad_right = _numbers(window.padding, 4)
        for role, (field, kind) in (_BYTES if "scale" in step.tensors else _FLOATS).items():
            if role in step.tensors:
                tensor = self._tensor(step, role, kind)
                setattr(made, field, tensor.ctypes.data)
                setattr(made, f"{field}_size", tensor.size)
        self._alive += [inputs, parts]
        return made

    def _quantized(self, step: Step) -> bool:
        first = step.inputs[0] if step.inputs else -1
        return 0 <= first < len(self._values) and self._values[first].quant is not None

    def _tensor(self, step: Step, role: str, kind: str) -> Array:
        name = step.tensors[role]
        tensor = self._tensors.get(name)
        if tensor is None or tensor.dtype != kind:
            got = "none" if tensor is None else str(tensor.dtype)
            raise Error(f"runtime: tensor {name!r} must be there in {kind}, got {got}")
        wanted = self._shape(step, role)
        if tensor.shape != wanted:
            raise Error(f"runtime: tensor {name!r} of {step.op} must have shape {wanted}, got {tensor.shape}")
        whole = _lying(tensor)
        self._alive.append(whole)
        return whole

    def _shape(self, step: Step, role: str) -> tuple[int, ...]:
        if not step.inputs or not all(0 <= i < len(self._values) for i in (step.inputs[0], step.output)):
            raise Error(
                f"runtime: {step.op} must read and make values of the plan, got {step.inputs} and {step.output}"
            )
        height, width, channels = self._values[step.inputs[0]].shape
        out = self._values[step.output].shape[2]
        if role != "weight" or step.op == "affine":
            return (out,)
        if step.op == "linear":
            return (out, height * width * channels)
        return (
            (*step.window.size, out)
            if step.op == "depthwise"
            else (out, *step.window.size, channels // max(1, step.groups))
        )


def _lying(array: Array) -> Array:
    """One after another, each number where the processor wants it: in a file they may begin anywhere."""
    return np.require(array, requirements=("C", "A"))


def _number(value: int) -> int:
    if not -1 <= value <= _MOST:
        raise Error(f"runtime: a number of a plan must be 0 to 2^62, got {value}")
    return int(value)


def _told_value(value: Value) -> tuple[int, int, int, int, float, int]:
    quant, offset = value.quant, -1 if value.offset is None else _number(value.offset)
    if quant is None:
        return (*_sides(value.shape), offset, 0.0, 0)
    if not 0 <= quant.zero <= 255 or not quant.scale > 0:
        raise Error(f"runtime: a value's scale must be above 0 and its zero point a byte, got {quant}")
    return (*_sides(value.shape), offset, float(quant.scale), int(quant.zero))


def _sides(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise Error(f"runtime: a value must have a height, a width and channels, got {len(shape)} numbers")
    return _number(shape[0]), _number(shape[1]), _number(shape[2])


def _numbers(values: Sequence[int], count: int) -> list[int]:
    if len(values) != count:
        raise Error(f"runtime: a window must have {count} numbers here, got {len(values)}")
    return [_number(value) for value in values]


def _told(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _processors() -> int:
    counted = getattr(os, "sched_getaffinity", None)
    return len(counted(0)) if counted else os.cpu_count() or 1
