"""The source's claims, each with what this study found: metric, estimate, interval, verdict.

A claim holds where its effect has the claimed sign and p < 0.05 after Holm's correction over all claims that have a p;
it does not hold where the effect has the other sign at that level; else it is undecided. What is counted, not sampled
(parameters, multiply-adds), needs no interval.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.study import stats
from leanconv.study.analysis import Analysis
from leanconv.study.design import NOISE, Design
from leanconv.study.stats import Effect
from leanconv.study.store import Row

__all__ = ["Claim", "claims"]

ALPHA = 0.05


@dataclass(frozen=True)
class Claim:
    """One claim and its verdict.

    Attributes:
        source: row of the source, such as ``S12``.
        told: the claim.
        metric: what was compared, in words, with its unit.
        value, low, high: the estimate and its 95 % interval; nan where there is none.
        holm: p after correction; nan where nothing is sampled.
        verdict: ``holds``, ``does not``, ``undecided``.
    """

    source: str
    told: str
    metric: str
    value: float
    low: float
    high: float
    holm: float
    verdict: str


@dataclass(frozen=True)
class _Draft:
    source: str
    told: str
    metric: str
    effect: Effect
    sign: int
    scale: float = 1.0
    counted: bool = False


def claims(found: Analysis, design: Design, rows: Iterable[Row]) -> list[Claim]:
    """Every claim that this study's arms say something of, in the source's order."""
    runs = [row for row in rows if row.kind == "run"]
    drafts = list(_drafts(found, design, runs))
    corrected = iter(stats.holm([d.effect for d in drafts if not d.counted]))
    made = []
    for draft in drafts:
        e = draft.effect if draft.counted else next(corrected)
        value, low, high = (draft.scale * x for x in (e.value, e.low, e.high))
        verdict = _verdict(draft.sign * e.value, 0.0 if draft.counted else e.holm)
        p = math.nan if draft.counted else e.holm
        made.append(Claim(draft.source, draft.told, draft.metric, value, min(low, high), max(low, high), p, verdict))
    return made


def _verdict(signed: float, p: float) -> str:
    if not p < ALPHA or not math.isfinite(signed) or signed == 0:
        return "undecided"
    return "holds" if signed > 0 else "does not"


def _drafts(found: Analysis, design: Design, runs: Sequence[Row]) -> Iterable[_Draft]:
    points = "points"

    def main(metric: str, name: str) -> Effect | None:
        return next((e for e in found.effects.get(metric, ()) if e.name == name), None)

    def sampled(
        source: str, told: str, metric: str, effect: Effect | None, sign: int, scale: float = 1.0
    ) -> Iterable[_Draft]:
        if effect is not None and math.isfinite(effect.value):
            yield _Draft(source, told, metric, effect, sign, scale)

    gap = f"gap train - test, {points}"
    yield from sampled("S1", "dropout narrows the gap between training and test", gap, main("gap", "dropout"), -1, 100)
    yield from sampled(
        "S5",
        "dropout acts as an ensemble: the average of its sub-networks beats a single one",
        f"accuracy of the average - that of one, {points}",
        _by_seed(runs, lambda v: v["dropout_average"] - v["dropout_single"] if "dropout_single" in v else None),
        1,
        100,
    )
    noise = _between(runs, "noise-plain", "noise-dropout", "memorised")
    yield from sampled(
        "S23",
        "with dropout less noise is learnt",
        f"share of wrong labels memorised, of {NOISE:.0%} wrong ones, {points}",
        noise,
        -1,
        100,
    )
    widths = [arm.name for arm in design.sides if arm.role == "width"]
    if len(widths) > 1:
        wide = _between(runs, widths[0], widths[-1], "gap")
        yield from sampled("S24", "a network too complex overfits: width widens the gap", gap, wide, 1, 100)
    yield from sampled(
        "S11",
        "batch norm keeps hidden inputs steady",
        "shift of what enters the activations, per epoch, standard deviations",
        main("shift", "batchnorm"),
        -1,
    )
    yield from sampled(
        "S25",
        "the more so, the deeper the layer",
        "shift of the deep third - the early third, with - without batch norm",
        main("shift_deeper", "batchnorm"),
        -1,
    )
    rate = next((e for e in found.rate_effects if e.name == "batchnorm"), None)
    yield from sampled("S12", "batch norm allows a larger learning rate", "largest stable rate, doublings", rate, 1)
    yield from sampled(
        "S12",
        "it converges faster",
        f"steps to {100 * found.target:.0f} % on val, doublings",
        main("log_steps", "batchnorm"),
        -1,
    )
    yield from sampled(
        "S12", "training is steadier with it", "roughness of the loss, nats", main("roughness", "batchnorm"), -1
    )
    yield from sampled(
        "S12",
        "it eases vanishing and exploding gradients",
        "first against last layer, abs(log10)",
        main("gradients", "batchnorm"),
        -1,
    )
    yield from sampled("S13", "batch norm also narrows the gap a little", gap, main("gap", "batchnorm"), -1, 100)
    yield from sampled("S16", "L2 shrinks the weights", "norm of the weights, doublings", main("log_weights", "l2"), -1)
    yield from sampled("S1", "L2 narrows the gap", gap, main("gap", "l2"), -1, 100)
    yield from _separable(found, design)
    yield from _whole(found, design, runs)


def _separable(found: Analysis, design: Design) -> Iterable[_Draft]:
    pairs = _pairs(design, "separable")
    if not pairs:
        return
    for key, what in (("params", "parameters"), ("macs", "multiply-adds")):
        ratios = [found.arms[b][key] / found.arms[a][key] - 1 for a, b in pairs if key in found.arms[a]]
        if ratios:
            yield _counted(
                "S19", f"separable convolution cuts {what}", f"{what} saved, %", -statistics.fmean(ratios), 100
            )
    growth = [g for a, b in pairs if (g := _growth(found.arms[a], found.arms[b])) is not None]
    if growth:
        yield _counted(
            "S19",
            "it saves more with more input channels",
            "parameters saved in the layer with the most of them, against that with the fewest, doublings",
            statistics.fmean(growth),
            1,
        )
    times = [
        math.log2(found.arms[b]["ms_1"] / found.arms[a]["ms_1"])
        for a, b in pairs
        if "ms_1" in found.arms[a] and "ms_1" in found.arms[b]
    ]
    if times:
        effect = stats.paired("separable", times)
        yield _Draft("S20", "separable convolution infers faster", "milliseconds an image, doublings", effect, -1)


def _growth(dense: Mapping[str, Any], lean: Mapping[str, Any]) -> float | None:
    """log2 of what is saved in the layer with the most input channels over that in the one with the fewest."""
    pairs = zip(dense.get("convolutions") or (), lean.get("convolutions") or (), strict=False)
    saved = sorted((a["in"], a["params"] - b["params"]) for a, b in pairs if a["params"] > b["params"])
    if len(saved) < 2 or saved[0][0] == saved[-1][0]:
        return None
    return math.log2(saved[-1][1] / saved[0][1])


def _whole(found: Analysis, design: Design, runs: Sequence[Row]) -> Iterable[_Draft]:
    names = [arm.name for arm in design.arms]
    if "plain" not in names or "all" not in names:
        return
    effect = _between(runs, "plain", "all", "test")
    yield _Draft("S28", "all together are more accurate", "test accuracy, points", effect, 1, 100)
    plain, every = found.arms["plain"], found.arms["all"]
    if plain.get("macs"):
        saved = 1 - every["macs"] / plain["macs"]
        yield _counted("S28", "and cheaper", "multiply-adds saved, %", saved, 100)


def _counted(source: str, told: str, metric: str, value: float, scale: float) -> _Draft:
    effect = Effect(told, value, value, value, math.nan, 0, 0.0)
    return _Draft(source, told, metric, effect, 1, scale, counted=True)


def _between(runs: Sequence[Row], low: str, high: str, key: str) -> Effect:
    """One arm minus another, paired by seed."""
    values = {(row.arm, row.seed): (row.values or {}).get(key) for row in runs}
    seeds = sorted({row.seed for row in runs})
    pairs = [(values.get((low, s)), values.get((high, s))) for s in seeds]
    return stats.paired(high, [b - a for a, b in pairs if a is not None and b is not None])


def _by_seed(runs: Sequence[Row], of: Callable[[Mapping[str, Any]], float | None]) -> Effect:
    """A value's mean over the arms, one number per seed."""
    found: dict[int, list[float]] = {}
    for row in runs:
        value = of(row.values or {})
        if value is not None:
            found.setdefault(row.seed, []).append(value)
    return stats.paired("mean", [statistics.fmean(found[seed]) for seed in sorted(found)])


def _pairs(design: Design, factor: str) -> list[tuple[str, str]]:
    """Arms that differ in this factor alone, off and on."""
    return [
        (a.name, b.name)
        for a, b in itertools.permutations(design.arms, 2)
        if factor in a.levels
        and (a.levels[factor], b.levels[factor]) == ("off", "on")
        and all(a.levels[f] == b.levels[f] for f in a.levels if f != factor)
    ]
