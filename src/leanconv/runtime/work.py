"""How much arithmetic a plan asks for, from its shapes."""

from __future__ import annotations

from leanconv.runtime.plan import Plan, Step

__all__ = ["macs"]


def macs(plan: Plan, step: Step | None = None) -> int:
    """Multiply-adds for one image.

    Convolutions and linear steps count, padding as if it were numbers; everything else counts as nothing, as in
    :mod:`leanconv.accounting`.

    Args:
        plan: one that :func:`leanconv.runtime.checking.check` lets pass.
        step: one of its steps, or a part of one; None: all of them.
    """
    if step is None:
        return sum(macs(plan, each) for each in plan.steps)
    if step.op == "block":
        return sum(macs(plan, part) for part in step.parts)
    height, width, channels = plan.values[step.output].shape
    outputs = height * width * channels
    rows, columns, inputs = plan.values[step.inputs[0]].shape
    taps = step.window.size[0] * step.window.size[1]
    each = {"conv": taps * (inputs // max(1, step.groups)), "depthwise": taps, "linear": rows * columns * inputs}
    return outputs * each.get(step.op, 0)
