"""How well a plan does: right answers, answers that stay, and noise layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.lowering import Lowered
from leanconv.deploy.quantisation.observing import portions, watched
from leanconv.deploy.quantisation.samples import Images
from leanconv.results import Score
from leanconv.runtime.engine import Engine
from leanconv.runtime.plan import Plan

__all__ = ["Measured", "decibel", "judged", "noises", "outputs"]

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Measured:
    """A plan beside the float plan on the same images.

    Attributes:
        score: right answers; None without labels.
        agreement: share of images with the same answer as in float; None where outputs are no classes.
        lost: points of accuracy below float; without labels points of agreement below 100; 0 without classes.
        ratio: signal to noise of the outputs against float, in dB.
    """

    score: Score | None
    agreement: float | None
    lost: float
    ratio: float


def outputs(engine: Engine, images: Images, progress: Watch | None = None) -> Array:
    """All outputs, float32 (N, numbers of an output)."""
    found = []
    for place in portions(engine.plan, len(images)):
        found.append(engine.run(images.batch(place)))
        if progress:
            progress(min(place.stop, len(images)), len(images))
    y = np.concatenate(found)
    return y.reshape(len(y), -1)


def judged(y: Array, reference: Array, labels: NDArray[np.int64] | None = None, classes: bool = True) -> Measured:
    """Outputs beside those of float.

    Args:
        y, reference: (N, K).
        labels: (N,), or None.
        classes: whether the largest output is an answer.
    """
    answers, wanted = y.argmax(1), reference.argmax(1)
    agreement = float((answers == wanted).mean())
    ratio = decibel(
        float(np.square(reference, dtype=np.float64).sum()), float(np.square(y - reference, dtype=np.float64).sum())
    )
    if not classes:
        return Measured(None, None, 0.0, ratio)
    if labels is None:
        return Measured(None, agreement, 100 * (1 - agreement), ratio)
    right, before = int((answers == labels).sum()), int((wanted == labels).sum())
    return Measured(Score(right, len(labels)), agreement, 100 * (before - right) / len(labels), ratio)


def noises(plan: Plan, tensors: Tensors, made: Lowered, images: Images) -> dict[int, float]:
    """Signal to noise of each value of a float plan in a plan of bytes, in dB; all that comes before it counts too.

    Args:
        plan, tensors: in float.
        made: the same in bytes.
        images: to run; a few will do.
    """
    signal = dict.fromkeys(range(len(plan.values)), 0.0)
    noise = dict(signal)
    back = {new: old for held in (made.byte, made.real) for old, new in held.items()}
    quants = [value.quant for value in made.plan.values]
    for i in range(len(images)):
        batch = images.batch(slice(i, i + 1))
        wanted: dict[int, Array] = {}

        def compare(number: int, x: Array, wanted: dict[int, Array] = wanted) -> None:
            old = back.get(number)
            right = None if old is None else wanted.pop(old, None)
            if old is None or right is None:  # the other form of a value that was compared
                return
            quant = quants[number]
            y = x if quant is None else (x.astype(np.float64) - quant.zero) * quant.scale
            signal[old] += float(np.square(right, dtype=np.float64).sum())
            noise[old] += float(np.square(y - right, dtype=np.float64).sum())

        watched(plan, tensors, batch, wanted.__setitem__)
        watched(made.plan, made.tensors, batch, compare)
    return {number: decibel(signal[number], noise[number]) for number in back.values()}


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), at most 200; 0 where there is neither."""
    if not noise > 0:
        return 200.0 if signal > 0 else 0.0
    return max(-200.0, min(200.0, 10 * math.log10(signal / noise))) if signal > 0 else -200.0
