"""The plan, run by numpy: what the native library is compared with, and what runs where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import DTypeLike

from leanconv.runtime import integers
from leanconv.runtime.checking import lifetimes
from leanconv.runtime.operations import RUNS, Array, Tensors, activate
from leanconv.runtime.plan import Plan, Quant, Step

__all__ = ["Reference"]


class Reference:
    """Runs a plan with numpy.

    Args:
        plan: one that :func:`leanconv.runtime.checking.check` lets pass.
        tensors: name -> values.
        dtype: in which float steps are computed: float32, or float64 to compare with. Steps on bytes give the same
            bits in both.

    Raises:
        Error: sums of a step on bytes could overflow (:func:`leanconv.runtime.integers.check`).
    """

    def __init__(self, plan: Plan, tensors: Tensors, dtype: DTypeLike = np.float32) -> None:
        self.plan = plan
        self.dtype = np.dtype(dtype)
        self._tensors = {
            name: np.asarray(tensor, self.dtype) if tensor.dtype.kind == "f" else tensor
            for name, tensor in tensors.items()
        }
        self._last = {number: last for number, (_, last) in lifetimes(plan.steps, plan.input).items()}
        integers.check(plan, tensors)

    def run(self, batch: Array, watch: Callable[[int, Array], None] | None = None) -> Array:
        """The network's output.

        Args:
            batch: (N, H, W, C), channels last.
            watch: called with the number and the numbers of each value that a step makes, as it is made.

        Returns:
            (N, h, w, c) in the dtype that was asked for.
        """
        held = {self.plan.input: np.asarray(batch, self.dtype)}
        with np.errstate(all="ignore"):  # infinities and NaNs go through as they do in torch
            for i, step in enumerate(self.plan.steps):
                inputs = [held[number] for number in step.inputs]
                held[step.output] = self._step(step, inputs)
                if watch is not None:
                    watch(step.output, held[step.output])
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
        quants, made = [self._quant(number) for number in step.inputs], self._quant(step.output)
        if made is None and not any(quants):
            return activate(step.act, RUNS[step.op](step, inputs, own))
        y = integers.run(step, inputs, own, quants, made)
        return y if made else y.astype(self.dtype, copy=False)

    def _quant(self, number: int) -> Quant | None:
        return self.plan.values[number].quant
