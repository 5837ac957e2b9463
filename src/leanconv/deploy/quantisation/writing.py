"""An int8 file: made, written, read back, checked and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from leanconv.deploy.quantisation.checked import checked
from leanconv.deploy.quantisation.options import Int8
from leanconv.deploy.quantisation.quantising import quantise
from leanconv.deploy.quantisation.records import Quantised
from leanconv.deploy.quantisation.samples import Samples
from leanconv.runtime import file
from leanconv.runtime.engine import Engine, load
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
        What the file holds now, and how well it does: measured with what was read back from it.

    Raises:
        Error: as of :func:`quantise`; the file does not run as numpy runs it.
    """
    start = time.perf_counter()
    size, memory = path.stat().st_size, 4 * plan.memory
    plan = replace(plan, about={**plan.about, "int8": f"{options.rule} on {len(samples.calibration)} images"})

    def opening(plan: Plan, tensors: Tensors) -> Engine:
        file.write(path, plan, tensors)
        return load(path, verify=True)

    made = quantise(plan, tensors, samples, options, say, opening)
    say("comparing executors")
    with opening(made.lowered.plan, made.lowered.tensors) as engine:  # the last one that was tried may be another
        plan, tensors = file.read(path)
        found = checked(engine, tensors, samples.measured, made.reference)
    counts = len(samples.calibration), len(samples.measured)
    seconds = round(time.perf_counter() - start, 2)
    return plan, tensors, Quantised(
        options, *counts, samples.source, made.links, made.before, made.after, size, memory, made.layers, found,
        seconds, samples.notes,
    )  # fmt: skip
