"""Channels of one size: factors that leave a network's function and move what bytes cannot hold.

Where layer A alone feeds layer B, through nothing but ReLU and pooling, channel c of A may be divided by f_c > 0 and
B's weights of that channel multiplied by it. A's weights do not mind, for they have a scale per output channel. What B
reads has one scale for all channels, and small channels drown in it; B's weights have one per output channel, in which
the weights of small inputs drown. A depthwise B has one per channel, so all channels are made equally large for it; for
others f is chosen by an estimate of the noise of both roundings (cross-layer equalisation after Nagel et al. 2019, who
balance weights; with the activations' ranges of SmoothQuant, Xiao et al. 2022).

relu6 clips at 6 whatever the factor. A channel that comes near 6 on the calibration's images keeps its factor 1; others
are scaled so that they stay below, with a margin. Their function is the same up to 6 / margin of what was seen, which
is further than their bytes reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.deploy.quantisation.observing import Channels, Seen, opened
from leanconv.deploy.quantisation.weights import WEIGHTED, rows, spread
from leanconv.runtime.plan import BOUNDED, Plan, Step

__all__ = ["Link", "equalised", "links"]

MARGIN = 1.1
"""A channel before relu6 comes to 6 / MARGIN at most."""

HEADROOMS = (1.5, 1.0)
"""A channel may become 1 / headroom of the largest: other images than the calibration's go beyond what was seen."""

LARGEST = 2.0**10
"""No factor is further from 1: a channel that hardly spoke on the calibration's images is not blown up for it."""

WORTH = 0.95
"""Factors are applied where the noise is estimated at less than this share of what it was."""

Array = NDArray[Any]
Tensors = Mapping[str, Array]
_PASSES = ("max_pool", "avg_pool", "mean", "activation")


@dataclass(frozen=True)
class Link:
    """Two layers, of which the first alone feeds the second.

    Attributes:
        first, second: conv, depthwise or linear; parts of blocks too.
        clips: the value that relu6 makes between them; None: there is none.
    """

    first: Step
    second: Step
    clips: int | None


def links(plan: Plan) -> list[Link]:
    """All pairs of layers in which channels may be scaled, in the order of the network."""
    steps = opened(plan).steps
    readers: dict[int, list[Step]] = {}
    uses: dict[str, int] = {}
    for step in steps:
        for number in step.inputs:
            readers.setdefault(number, []).append(step)
        for name in step.tensors.values():
            uses[name] = uses.get(name, 0) + 1

    def own(step: Step) -> bool:
        return step.op in WEIGHTED and all(uses[name] == 1 for name in step.tensors.values())

    found = []
    for first in steps:
        if not own(first) or len(first.inputs) > 1:
            continue
        at, clips = first, None
        while at.act in BOUNDED:
            if at.act == "relu6":
                if clips is not None:
                    break
                clips = at.output
            following = readers.get(at.output, [])
            if len(following) != 1 or at.output == plan.output:
                break
            after = following[0]
            if own(after):
                if after.inputs.count(at.output) == 1 and after.inputs[0] == at.output:
                    found.append(Link(first, after, clips))
                break
            if after.op not in _PASSES:
                break
            at = after
    return found


def equalised(
    plan: Plan, tensors: Tensors, seen: Mapping[int, Seen], headroom: float = HEADROOMS[0]
) -> tuple[dict[str, Array], int]:
    """Tensors of the same function whose values can be bytes at less loss.

    Args:
        plan: of floats.
        tensors: by name; not changed.
        seen: of every value, with these tensors.
        headroom: how much smaller than the largest channel the others stay, at least 1.

    Returns:
        All tensors, and how many links were given factors.
    """
    made = dict(tensors)
    count = 0
    for link in links(plan):
        read = seen[link.second.inputs[0]].channels
        read = replace(read, largest=np.minimum(read.largest * headroom, read.largest.max()))
        factors = _factors(link, made, read, None if link.clips is None else seen[link.clips].channels)
        if factors is None:
            continue
        count += 1
        first, second = link.first.tensors, link.second.tensors
        weight = made[first["weight"]]
        shape = (-1,) if link.first.op == "depthwise" else (-1, *(1,) * (weight.ndim - 1))
        made[first["weight"]] = (weight / factors.reshape(shape)).astype(np.float32)
        made[first["bias"]] = (made[first["bias"]] / factors).astype(np.float32)
        weight = made[second["weight"]]
        made[second["weight"]] = (weight * spread(link.second, factors, weight)).astype(np.float32)
    return made, count


def _factors(link: Link, tensors: Tensors, read: Channels, clipped: Channels | None) -> Array | None:
    """f, float64 (C,); None: 1 is as good."""
    most = float(read.largest.max())
    if not most > 0:
        return None
    weight = tensors[link.second.tensors["weight"]].astype(np.float64)
    even = read.largest / most
    even[even == 0] = 1.0
    tried = [even]
    if link.second.op != "depthwise":
        tried += [even**power for power in (0.25, 0.5, 0.75)]
        column = _columns(link.second, weight, len(even))
        tried += [even**power / column ** (1 - power) for power in (0.25, 0.5, 0.75)]
    one = _noise(link.second, weight, read, np.ones(len(even)))
    bounded = [_bounded(f, clipped) for f in tried]
    noises = [_noise(link.second, weight, read, f) for f in bounded]
    best = int(np.argmin(noises))
    return bounded[best] if noises[best] < WORTH * one else None


def _bounded(factors: Array, clipped: Channels | None) -> Array:
    f = np.clip(factors, 1 / LARGEST, LARGEST)
    if clipped is None:
        return f
    least = clipped.largest * MARGIN / 6
    return np.where(least >= 1, 1.0, np.maximum(f, least))


def _columns(step: Step, weight: Array, channels: int) -> Array:
    """The largest weight that reads each input channel, relative to the largest of its output's, (C,); 1 for none."""
    most = np.abs(rows(step.op, weight)).max(1)
    relative = np.abs(weight) / np.where(most > 0, most, 1).reshape(-1, *(1,) * (weight.ndim - 1))
    if step.op == "linear":
        found = relative.reshape(len(weight), -1, channels).max((0, 1))
    else:
        group = weight.shape[0] // step.groups
        found = relative.reshape(step.groups, group, -1, weight.shape[-1]).max((1, 2)).reshape(-1)
    return np.where(found > 0, found, 1.0)


def _noise(step: Step, weight: Array, read: Channels, factors: Array) -> float:
    """An estimate of the noise of a layer's output, relative to its outputs and summed over them.

    Rounding the input adds s_x^2 / 12 to each number of it, rounding the weights s_c^2 / 12 to each of them.
    """
    f = spread(step, factors, weight)
    w = rows(step.op, np.abs(weight * f))
    square = rows(step.op, np.broadcast_to(spread(step, read.square / factors**2, weight), weight.shape))
    x = (read.largest / factors).max() / 255
    by_input = x**2 * (w**2).sum(1)
    by_weights = (w.max(1) / 127) ** 2 * square.sum(1)
    signal = (w**2 * square).sum(1)
    heard = signal > 0
    return float(((by_input + by_weights)[heard] / signal[heard]).sum())
