"""What a network may ask of this machine: bounds on memory and arithmetic, for files that may come from anyone."""

from __future__ import annotations

import os

from leanconv.errors import Error
from leanconv.runtime.plan import Plan, Step
from leanconv.runtime.threads import control_group

__all__ = ["ARITHMETIC", "arithmetic", "check_limits", "memory"]

ARITHMETIC = 10**13
"""The most operations for one image: a minute or more of a fast core. VGG-16 at 224 x 224 needs 1.5e10."""


def check_limits(plan: Plan, name: str) -> None:
    """Refuse a network that this machine had better not run.

    Args:
        plan: one that :func:`leanconv.runtime.checking.check` lets pass.
        name: begins the message.

    Raises:
        Error: for one image its maps need more than this machine's memory, or it takes more than
            :data:`ARITHMETIC` operations.
    """
    inner = max((value.floats for value in plan.values if value.offset is None), default=0)
    needed, there = 4 * (plan.memory + 2 * inner), memory()
    if there is not None and needed > there:
        raise Error(
            f"{name}: its maps must fit into this machine's memory, {there / 2**30:.1f} GiB, got "
            f"{needed / 2**30:.1f} GiB for one image; load(..., limits=False) takes it all the same"
        )
    work = arithmetic(plan)
    if work > ARITHMETIC:
        raise Error(
            f"{name}: an image must take at most {ARITHMETIC:.0e} operations, got {work:.1e}; load(..., limits=False) "
            f"takes it all the same"
        )


def arithmetic(plan: Plan) -> int:
    """About how many operations one image takes: taps of convolutions and pooling, numbers of everything else."""
    return sum(_step(plan, part) for step in plan.steps for part in step.parts or (step,))


def memory() -> int | None:
    """Bytes that this machine has, or that the control group grants; None: not known."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return None
    found = pages * size
    granted = control_group("memory.max", "memory/memory.limit_in_bytes")
    if granted is not None and granted[0].isdecimal():
        found = min(found, int(granted[0]))
    return found if found > 0 else None


def _step(plan: Plan, step: Step) -> int:
    height, width, channels = plan.values[step.output].shape
    rows, columns, inputs = plan.values[step.inputs[0]].shape
    taps = step.window.size[0] * step.window.size[1]
    each = {"conv": taps * (inputs // max(1, step.groups)), "linear": rows * columns * inputs}
    return rows * columns * inputs + height * width * channels * each.get(step.op, taps)
