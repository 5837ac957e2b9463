"""What the values of a plan are like on images: it is run by numpy, blocks opened, and every value looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.histogram import Histogram
from leanconv.errors import Error
from leanconv.runtime.plan import Plan
from leanconv.runtime.reference import Reference

__all__ = ["Channels", "Seen", "observe", "opened", "portions", "watched"]

Array = NDArray[Any]
_AT_ONCE = 2**24
_SOME = 2**16


@dataclass
class Channels:
    """Each channel of a value, float64 (C,).

    Attributes:
        largest: max|x|.
        mean: of x.
        square: of x^2.
    """

    largest: Array
    mean: Array
    square: Array


@dataclass
class Seen:
    """A value on the calibration's images.

    Attributes:
        counted: its numbers; of a large map some of them, evenly spread, and always the smallest and the largest.
        channels: what each channel is like, on all of its numbers.
    """

    counted: Histogram = field(default_factory=Histogram)
    channels: Channels = field(default_factory=lambda: Channels(np.zeros(0), np.zeros(0), np.zeros(0)))
    _numbers: int = 0

    def add(self, x: Array) -> bool:
        """Look at maps (N, H, W, C); whether all numbers were finite."""
        flat = x.reshape(-1, x.shape[-1])
        each = max(1, x[0].size // _SOME)
        # An odd step meets all channels and both parities of rows in turn.
        some = flat.reshape(-1)[:: each | 1]
        ends = np.array([flat.min(), flat.max()])
        if not self.counted.add(np.concatenate([some, ends])):
            return False
        old, n = self._numbers, len(flat)
        new = (np.abs(flat).max(0), flat.mean(0, np.float64), np.einsum("ij,ij->j", flat, flat, dtype=np.float64) / n)
        if not old:
            self.channels = Channels(*(np.asarray(a, np.float64) for a in new))
        else:
            was = self.channels
            mean, square = ((a * old + b * n) / (old + n) for a, b in ((was.mean, new[1]), (was.square, new[2])))
            self.channels = Channels(np.maximum(was.largest, new[0]), mean, square)
        self._numbers = old + n
        return True


def opened(plan: Plan) -> Plan:
    """The plan with the parts of its blocks as steps of their own; it can be run by the reference alone."""
    steps = tuple(part for step in plan.steps for part in (step.parts or (step,)))
    return replace(plan, steps=steps)


def portions(plan: Plan, count: int) -> Iterator[slice]:
    """How so many images fall into batches whose largest map has at most 2^24 numbers."""
    largest = max(math.prod(value.shape) for value in plan.values)
    size = min(64, max(1, _AT_ONCE // largest))
    return (slice(start, start + size) for start in range(0, count, size))


def watched(plan: Plan, tensors: Mapping[str, Array], batch: Array, watch: Callable[[int, Array], None]) -> None:
    """Run a plan by numpy.

    Args:
        plan: of floats, of bytes, or both.
        tensors: by name.
        batch: float32 (N, H, W, C).
        watch: called with the number and the numbers of every value, the input and what blocks have inside too.
    """
    watch(plan.input, batch)
    Reference(opened(plan), tensors).run(batch, watch)


def observe(
    plan: Plan,
    tensors: Mapping[str, Array],
    batches: Iterable[Array],
    progress: Callable[[int], None] | None = None,
) -> dict[int, Seen]:
    """Every value of a float plan on images.

    Args:
        plan: the plan.
        tensors: by name.
        batches: float32 (N, H, W, C).
        progress: called with the number of images that were run.

    Raises:
        Error: a value is not finite.
    """
    seen = {number: Seen() for number in range(len(plan.values))}
    layers = {step.output: step.layer or step.op for step in opened(plan).steps}
    done = 0

    def watch(number: int, x: Array) -> None:
        if not seen[number].add(x):
            raise Error(
                f"int8: the network's numbers must be finite on the images, got others in {layers.get(number, 'input')}"
            )

    for batch in batches:
        watched(plan, tensors, batch, watch)
        done += len(batch)
        if progress:
            progress(done)
    return seen
