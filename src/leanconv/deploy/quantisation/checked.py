"""Whether what runs a file of bytes computes what the plan says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.samples import Images
from leanconv.errors import Error
from leanconv.runtime.engine import Engine
from leanconv.runtime.plan import BOUNDED, Plan
from leanconv.runtime.reference import Reference

__all__ = ["checked", "exact"]

IMAGES = 8
NOISE = 0.25
"""Where floats are computed too, executors may differ by so much of what quantising changed."""

Tensors = Mapping[str, NDArray[Any]]


def exact(plan: Plan) -> bool:
    """Whether all executors must give the same bits: no step on floats, no activation but those that bound."""
    for step in plan.steps:
        for part in step.parts or (step,):
            if part.act not in BOUNDED:
                return False
            if plan.values[part.inputs[0]].quant is None and part.op != "quantize":
                return False
    return True


def checked(engine: Engine, tensors: Tensors, images: Images, reference: NDArray[Any]) -> str:
    """Compare an engine with numpy, on images and one by one.

    Args:
        engine: of the file.
        tensors: of the file.
        images: some are taken.
        reference: outputs in float of the same images, (N, K).

    Returns:
        What was found, in words.

    Raises:
        Error: the answers are not the same bits where they must be, or further apart than quantising moved them.
    """
    plan = engine.plan
    count = min(IMAGES, len(images))
    batch = images.batch(slice(0, count))
    wanted = Reference(plan, tensors).run(batch)
    found = engine.run(batch)
    single = np.concatenate([engine.run(np.ascontiguousarray(one[None])) for one in batch[:2]])
    same = np.array_equal(found, wanted) and np.array_equal(single, wanted[:2])
    told = f"leanconv.runtime ({engine.executor}) against numpy on {count} images"
    if same:
        return f"{told}: the same bits"
    apart = float(np.abs(found.astype(np.float64) - wanted).max())
    moved = np.sqrt(np.square(wanted.reshape(count, -1) - reference[:count], dtype=np.float64).mean())
    allowed = 0.0 if exact(plan) else float(max(NOISE * moved, 1e-5 * np.abs(wanted).max()))
    off = float(np.sqrt(np.square(found.astype(np.float64) - wanted).mean()))
    if not off <= allowed:
        raise Error(
            f"int8: the file must run as numpy runs it, got outputs up to {apart:.3g} apart ({off:.3g} on average, "
            f"allowed {allowed:.3g}); the file was not kept"
        )
    return f"{told}: {apart:.2g} apart at most, through float steps or activations that are not exact in bytes"
