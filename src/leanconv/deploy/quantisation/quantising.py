"""A float plan as a plan of bytes: calibrated, equalised, measured, with what must stay in float."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from leanconv.deploy.quantisation.choosing import fewest, ranked
from leanconv.deploy.quantisation.equalisation import HEADROOMS, equalised
from leanconv.deploy.quantisation.lowering import Lowered, lower, pointed, units
from leanconv.deploy.quantisation.measuring import Measured, judged, noises, outputs
from leanconv.deploy.quantisation.observing import Seen, observe, opened, portions
from leanconv.deploy.quantisation.options import Int8
from leanconv.deploy.quantisation.records import LayerRow
from leanconv.deploy.quantisation.rules import quant, within
from leanconv.deploy.quantisation.samples import Images, Samples
from leanconv.deploy.quantisation.weights import WEIGHTED, corrected
from leanconv.errors import Error
from leanconv.results import Score
from leanconv.runtime.engine import Engine
from leanconv.runtime.plan import Plan, Quant

__all__ = ["Made", "calibrated", "quantise"]

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Say = Callable[[str], None]
Opening = Callable[[Plan, Tensors], Engine]

FEW = 16
"""Images for signal to noise, layer by layer."""

SOME = 32
"""Images of the calibration, a quarter of it at most, that no range comes from: choices are made on them."""


GAIN = 0.5
"""dB by which equalising must lower the noise of the output: less is chance."""


@dataclass(frozen=True)
class Calibrated:
    """A float plan that is ready to become bytes.

    Attributes:
        plan, tensors: of the same function, equalised.
        biases: output of a step or part -> its corrected bias, in bytes.
        quants: the bytes of each value.
        links: how many pairs of layers were equalised.
    """

    plan: Plan
    tensors: Tensors
    biases: Mapping[int, Array]
    quants: dict[int, Quant]
    links: int


@dataclass(frozen=True)
class Made:
    """A plan of bytes.

    Attributes:
        lowered: the plan, and what became of each step.
        plan, tensors: the float plan that it was made of.
        links: how many pairs of layers were equalised.
        before: right answers in float; None without labels.
        reference: outputs in float on the images that were measured.
        after: what the plan of bytes gave.
        layers: step by step.
        seconds: that it took.
    """

    lowered: Lowered
    plan: Plan
    tensors: Tensors
    links: int
    before: Score | None
    reference: Array
    after: Measured
    layers: tuple[LayerRow, ...]
    seconds: float


def calibrated(plan: Plan, tensors: Tensors, images: Images, options: Int8, say: Say | None = None) -> list[Calibrated]:
    """Ranges of all values: as they are, and where that is wanted and finds something to do, equalised in two ways too.

    Args:
        plan: of floats.
        tensors: by name.
        images: of the calibration.
        options: rule, equalisation, correction.
        say: called with a few words, again and again.

    Raises:
        Error: numbers that are not finite.
    """
    plan, own = pointed(plan, tensors)
    seen = _observed(plan, own, images, "calibrating", say)
    found = [_ranged(plan, own, seen, options, 0)]
    for headroom in HEADROOMS if options.equalise else ():
        even, count = equalised(plan, own, seen, headroom)
        if count:
            again = _observed(plan, even, images, f"calibrating with channels equalised to 1/{headroom:g}", say)
            found.append(_ranged(plan, even, again, options, count))
    return found


def _ranged(plan: Plan, tensors: Tensors, seen: Mapping[int, Seen], options: Int8, count: int) -> Calibrated:
    quants = {number: quant(*within(options.rule, one.counted, options.percentile)) for number, one in seen.items()}
    quants[plan.input] = _input(plan, seen[plan.input])
    biases: dict[int, Array] = {}
    if options.correct:
        for step in opened(plan).steps:
            if step.op in WEIGHTED:
                weight, bias = (tensors[step.tensors[role]] for role in ("weight", "bias"))
                read = step.inputs[0]
                mean, scale = seen[read].channels.mean, quants[read].scale
                biases[step.output] = corrected(step, weight, bias, mean, scale)
    return Calibrated(plan, tensors, biases, quants, count)


def quantise(
    plan: Plan, tensors: Tensors, samples: Samples, options: Int8, say: Say | None = None, opening: Opening = Engine
) -> Made:
    """A plan of bytes that loses no more than the user allows.

    All that can be bytes is made bytes, equalised where that lowers the noise on images held back from the calibration.
    Where that loses more than ``options.max_drop`` points, layers are ranked by
    the noise that each alone brings to the output, and put back into float in that order until the bound holds.

    Args:
        plan: of floats, as translation gives it.
        tensors: by name.
        samples: to calibrate and to measure on.
        options: how.
        say: called with a few words before each stage.
        opening: makes of a plan of bytes and its tensors the engine that is measured.

    Raises:
        Error: the bound cannot be held with anything left in bytes; nothing can be bytes; numbers that are not finite.
    """
    start = time.perf_counter()
    told = say or (lambda words: None)
    ranged, held = samples.calibration.parted(SOME)
    ready = _quieter(calibrated(plan, tensors, ranged, options, told), held)
    labels = samples.measured.labels
    classes = _classes(plan)
    with Engine(ready.plan, ready.tensors) as engine:
        reference = outputs(engine, samples.measured, _counting(told, "measuring float"))
    before = judged(reference, reference, labels, classes).score

    def made(kept: Sequence[int]) -> Lowered:
        return _lowered(ready, kept)

    def measured(found: Lowered, words: str) -> Measured:
        with opening(found.plan, found.tensors) as engine:
            return judged(outputs(engine, samples.measured, _counting(told, words)), reference, labels, classes)

    lowered = made(())
    if not lowered.left:
        raise Error("int8: a network must have steps that bytes know, got none")
    after = measured(lowered, "measuring int8")
    alone: dict[int, float] = {}
    if after.lost > options.max_drop:
        alone = _alone(ready, made, held, told)
        order = list(alone)
        results: dict[int, tuple[Lowered, Measured]] = {}

        def holds(kept: Sequence[int]) -> bool:
            found, words = made(kept), f"measuring int8 with {len(kept)} of {len(order)} layers in float"
            results[len(kept)] = found, measured(found, words)
            return results[len(kept)][1].lost <= options.max_drop

        try:
            lowered, after = results[fewest(order, holds)]
        except Error:
            best = min([after.lost, *(one.lost for _, one in results.values())])
            raise Error(
                f"int8: at most {options.max_drop:g} points may be lost (--max-drop), got {best:.2f} at best "
                "with any layer in bytes; the file was not kept"
            ) from None
    told("comparing layers")
    ratios = noises(ready.plan, ready.tensors, lowered, held.first(FEW))
    layers = _rows(ready.plan, lowered, ratios, alone)
    seconds = time.perf_counter() - start
    return Made(lowered, ready.plan, ready.tensors, ready.links, before, reference, after, layers, seconds)


def _lowered(ready: Calibrated, kept: Sequence[int] = ()) -> Lowered:
    return lower(ready.plan, ready.tensors, ready.quants, kept, ready.biases)


def _quieter(tried: list[Calibrated], images: Images) -> Calibrated:
    """The equalised one whose outputs have least noise on images that no range comes from, where that is less."""
    if len(tried) == 1:
        return tried[0]

    def ratio(ready: Calibrated) -> float:
        made = _lowered(ready)
        with Engine(ready.plan, ready.tensors) as engine, Engine(made.plan, made.tensors) as bytes_:
            return judged(outputs(bytes_, images), outputs(engine, images)).ratio

    plain, *even = [(ratio(one), one) for one in tried]
    best = max(even, key=lambda pair: pair[0])
    return best[1] if best[0] > plain[0] + GAIN else plain[1]


def _classes(plan: Plan) -> bool:
    """Whether the output can be classes: a vector."""
    height, width, channels = plan.values[plan.output].shape
    return height == width == 1 < channels


def _observed(plan: Plan, tensors: Tensors, images: Images, words: str, say: Say | None) -> dict[int, Seen]:
    batches = (images.batch(place) for place in portions(plan, len(images)))
    count = _counting(say, words) if say else None
    return observe(plan, tensors, batches, None if count is None else lambda done: count(done, len(images)))


def _input(plan: Plan, seen: Seen) -> Quant:
    """The range that pixels can have, or else the one that inputs had."""
    picture = plan.picture
    if picture is None:
        return quant(seen.counted.low, seen.counted.high)
    ends = [(v - m) / s for v in (0.0, 1.0) for m, s in zip(picture.mean, picture.std, strict=True)]
    return quant(min(ends), max(ends))


def _alone(ready: Calibrated, made: Callable[[Sequence[int]], Lowered], images: Images, say: Say) -> dict[int, float]:
    """Units, the dearest first, with the noise of the output in dB when each alone is in bytes."""
    with Engine(ready.plan, ready.tensors) as engine:
        wanted = outputs(engine, images)
    every = units(ready.plan)
    ratios: dict[int, float] = {}

    def cost(unit: int) -> float:
        say(f"ranking layers, {len(ratios) + 1} of {len(every)}")
        found = made([other for other in every if other != unit])
        with Engine(found.plan, found.tensors) as engine:
            ratios[unit] = judged(outputs(engine, images), wanted).ratio
        return -ratios[unit]

    order = ranked(every, cost)
    return {unit: ratios[unit] for unit in order}


def _rows(
    plan: Plan, lowered: Lowered, ratios: Mapping[int, float], alone: Mapping[int, float]
) -> tuple[LayerRow, ...]:
    rows = []
    for i, step in enumerate(plan.steps):
        kept = lowered.kept.get(i, "")
        rows.append(LayerRow(step.layer, step.op, kept, ratios.get(step.output), alone.get(i)))
        rows += [LayerRow(part.layer, f"- {part.op}", "", ratios.get(part.output)) for part in step.parts[:-1]]
    return tuple(rows)


def _counting(say: Say, words: str) -> Callable[[int, int], None]:
    return lambda done, total: say(f"{words}: {done:,} of {total:,} images")
