"""An int8 file: made, written, read back, checked and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from leanconv.deploy.quantisation.checked import checked
from leanconv.deploy.quantisation.measuring import judged, outputs
from leanconv.deploy.quantisation.options import Int8
from leanconv.deploy.quantisation.quantising import quantise
from leanconv.deploy.quantisation.records import Quantised
from leanconv.deploy.quantisation.samples import Samples
from leanconv.errors import Error
from leanconv.runtime import file
from leanconv.runtime.engine import Engine
from leanconv.runtime.plan import Plan

__all__ = ["written"]

Tensors = Mapping[str, NDArray[Any]]


def written(
    path: Path, plan: Plan, tensors: Tensors, options: Int8, samples: Samples, say: Callable[[str], None]
) -> tuple[Plan, Tensors, Quantised]:
    """Put an int8 file in the place of a float file.

    Args:
        path: of the float file.
        plan, tensors: what it holds.
        options: how.
        samples: to calibrate and to measure on.
        say: called with a few words before each stage.

    Returns:
        What the file holds now, and how well it does: measured with the file itself.

    Raises:
        Error: as of :func:`quantise`; the file does not run as numpy runs it, or loses more than is allowed.
    """
    start = time.perf_counter()
    size, memory = path.stat().st_size, 4 * plan.memory
    made = quantise(plan, tensors, samples, options, say)
    file.write(path, made.lowered.plan, made.lowered.tensors)
    plan, tensors = file.read(path, verify=True)
    with Engine(plan, tensors, name=path.name) as engine:
        say("comparing executors")
        found = checked(engine, tensors, samples.measured, made.reference)
        say("measuring the file")
        after = judged(outputs(engine, samples.measured), made.reference, samples.measured.labels)
    if after.lost > options.max_drop:
        raise Error(
            f"int8: at most {options.max_drop:g} points may be lost, got {after.lost:.2f}; the file was not kept"
        )
    return plan, tensors, Quantised(
        options, len(samples.calibration), len(samples.measured), samples.source, made.links, made.before, after, size,
        memory, made.layers, found, round(time.perf_counter() - start, 2), samples.notes,
    )  # fmt: skip
