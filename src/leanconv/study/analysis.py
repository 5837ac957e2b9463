"""What the rows of a study come to: effects with intervals, and the arm to choose."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from leanconv.errors import Error
from leanconv.study import probes, stats
from leanconv.study.design import Design
from leanconv.study.stats import Effect
from leanconv.study.store import Row

__all__ = ["METRICS", "Analysis", "Metric", "Wanted", "analyse", "choose"]


@dataclass(frozen=True)
class Metric:
    """Something that an effect is on.

    Attributes:
        key: of the rows' values.
        told: in words, with its unit.
        scale: a shown number is the value times this.
    """

    key: str
    told: str
    scale: float = 1.0


METRICS = (
    Metric("test", "test accuracy, points", 100),
    Metric("gap", "gap, train - test accuracy, points", 100),
    Metric("loss", "test loss, nats"),
    Metric("calibration_error", "calibration error, points", 100),
    Metric("log_steps", "steps to the target accuracy, log2"),
    Metric("roughness", "roughness of the loss, nats"),
    Metric("shift", "shift of hidden inputs per epoch, standard deviations"),
    Metric("shift_deeper", "shift of the deep third minus the early third"),
    Metric("gradients", "gradients, first against last layer, abs(log10)"),
    Metric("log_weights", "norm of the weights, log2"),
)
_ABOVE_CHANCE = 1.1
_TARGET = 0.9
"""The accuracy that is to be reached: this share of what the plain network reaches on val."""


@dataclass(frozen=True)
class Wanted:
    """What a network must keep to, to be recommended.

    Attributes:
        aim: ``accuracy``: the best; ``latency`` or ``size``: the fastest or smallest that is not clearly worse.
        ms: at most so many milliseconds an image, one at a time.
        params: at most so many parameters.
        macs: at most so many multiply-adds an image.
        accuracy: at least this share right on val.
    """

    aim: str = "accuracy"
    ms: float | None = None
    params: int | None = None
    macs: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Analysis:
    """The figures of a study.

    Attributes:
        seeds: that every arm has at least one row of.
        arms: name -> figures, means over the seeds.
        effects: metric -> main effects and interactions, corrected together.
        target: accuracy on val that ``log_steps`` is about; nan where the plain network learned nothing.
        rates: arm -> largest stable learning rate.
        rate_effects: factor -> effect on its log2, over pairs of arms.
        needed: factor -> seeds that would show 0.5 points of test accuracy with 80 % probability; None: over 10,000.
        notes: what limits all this, a sentence each.
        bootstrapped: metric -> the same effects on accuracy and gap with intervals that assume no normal distribution,
            by bootstrap over the seeds; empty below 10 of them, or where a training is missing.
    """

    seeds: int
    arms: dict[str, dict[str, Any]]
    effects: dict[str, list[Effect]]
    target: float
    rates: dict[str, float | None]
    rate_effects: list[Effect]
    needed: dict[str, int | None]
    notes: list[str]
    bootstrapped: dict[str, list[Effect]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def analyse(design: Design, rows: Iterable[Row], level: float = 0.95) -> Analysis:
    """Effects of each factor on each metric, and all that is needed to read them.

    Args:
        design: of the study.
        rows: of its database.
        level: of the intervals.

    Raises:
        Error: an arm without a single training.
    """
    rows = list(rows)
    names = [arm.name for arm in design.arms]
    runs = [row for row in rows if row.kind == "run"]
    target = _target(runs, names[0])
    seeds = 1 + max((row.seed for row in runs if row.arm in names), default=-1)
    table = {(row.arm, row.seed): _completed(row, target) for row in runs}
    missing = [name for name in names if not any((name, seed) in table for seed in range(seeds))]
    if missing:
        raise Error(f"study: every arm must have a training, got none of {', '.join(missing)}")
    factors = {factor.name: list(factor.levels) for factor in design.factors}
    levels = [arm.levels for arm in design.arms]
    mains = stats.main_effects(factors, levels)
    contrasts = {**mains, **stats.interactions(factors, levels)}
    effects, fitted, bootstrapped = {}, {}, {}
    for metric in METRICS:
        y = np.array([[table.get((n, s), {}).get(metric.key, math.nan) for s in range(seeds)] for n in names])
        if np.isfinite(y).any(axis=1).all():
            fitted[metric.key] = model = stats.fit(y)
            effects[metric.key] = stats.holm([model.effect(n, c, level) for n, c in contrasts.items()])
            if metric.key in ("test", "gap") and seeds >= stats.BOOTSTRAP and np.isfinite(y).all():
                bootstrapped[metric.key] = [stats.bootstrap(n, c @ y, level) for n, c in contrasts.items()]
    rates = {row.arm: (row.values or {}).get("rate") for row in rows if row.kind == "stable"}
    times = {row.arm: row.values or {} for row in rows if row.kind == "times"}
    arms = {}
    for arm in design.every:
        own = [table[arm.name, s] for s in range(seeds) if (arm.name, s) in table]
        arms[arm.name] = {
            "levels": dict(arm.levels), "role": arm.role, "rate": rates.get(arm.name), "seeds": len(own),
            "diverged": sum(v.get("diverged", 0) for v in own), **_means(own),
            **{k: v for k, v in times.get(arm.name, {}).items() if k.startswith("ms_") or k == "convolutions"},
        }  # fmt: skip
    needed = {}
    if "test" in fitted:
        for name, c in mains.items():
            weight = float(c @ c)
            alpha = 0.05 / len(contrasts)
            needed[name] = stats.seeds_needed(0.005, fitted["test"].sigma, len(names), weight, alpha)
    notes = _notes(seeds, runs, names, effects)
    of_rates = _rate_effects(design, rates, level)
    return Analysis(seeds, arms, effects, target, rates, of_rates, needed, notes, bootstrapped)


def choose(found: Analysis, design: Design, wanted: Wanted) -> tuple[str, str]:
    """The arm to recommend, and why.

    Test accuracy chooses nothing: arms are compared on val. The best one that keeps to the limits is taken; with the
    aim ``latency`` or ``size`` the leanest among those whose mean on val is within one standard error of its.

    Raises:
        Error: no arm keeps to the limits.
    """
    names = [arm.name for arm in design.arms]
    if wanted.aim not in ("accuracy", "latency", "size"):
        raise Error(f"study: the aim must be accuracy, latency or size, got {wanted.aim!r}")
    limits = {"ms_1": wanted.ms, "params": wanted.params, "macs": wanted.macs}
    fitting = [
        name
        for name in names
        if all(most is None or found.arms[name].get(key, math.inf) <= most for key, most in limits.items())
        and (wanted.accuracy is None or found.arms[name]["val"] >= wanted.accuracy)
    ]
    if not fitting:
        told = ", ".join(f"{key} <= {most:g}" for key, most in limits.items() if most is not None)
        told += f"{', ' if told else ''}val >= {wanted.accuracy:g}" if wanted.accuracy is not None else ""
        raise Error(f"study: some arm must keep to the limits, got none with {told}")
    best = max(fitting, key=lambda name: found.arms[name]["val"])
    if wanted.aim == "accuracy":
        return best, f"best on val among {len(fitting)} arms"
    error = found.arms[best]["val_error"]
    near = [n for n in fitting if found.arms[n]["val"] >= found.arms[best]["val"] - (error if error == error else 0)]
    key = "ms_1" if wanted.aim == "latency" else "params"
    lean = min(near, key=lambda name: found.arms[name].get(key, math.inf))
    return lean, f"{'fastest' if key == 'ms_1' else 'smallest'} within one standard error of {best}, the best on val"


def _completed(row: Row, target: float) -> dict[str, Any]:
    """A training's values with those that need the others': logarithms, steps to the target."""
    values = dict(row.values or {})
    curve = values.get("curve")
    if curve and target == target:
        reached = probes.to_reach(curve["step"], curve["val"], target)
        # Never reached: at least all its steps, so the true difference is larger than the one that is told.
        values["log_steps"] = math.log2(reached if reached is not None else curve["step"][-1])
        values["reached"] = reached is not None
    if values.get("weight_norm"):
        values["log_weights"] = math.log2(values["weight_norm"])
    return {key: math.nan if value is None else value for key, value in values.items()}


def _target(runs: Sequence[Row], plain: str) -> float:
    ends = [v["curve"]["val"][-1] for row in runs if row.arm == plain and (v := row.values or {}).get("curve")]
    chance = max(((row.values or {}).get("chance", 0.0) for row in runs), default=0.0)
    found = _TARGET * statistics.fmean(ends) if ends else math.nan
    return found if found > _ABOVE_CHANCE * chance else math.nan


def _means(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    keys = dict.fromkeys(
        k for values in own for k, v in values.items() if isinstance(v, int | float) and k != "diverged"
    )
    for key in keys:
        numbers = [float(v[key]) for v in own if key in v and math.isfinite(v[key])]
        if numbers:
            found[key] = statistics.fmean(numbers)
    for key in ("test", "val", "gap"):
        numbers = [float(v[key]) for v in own if key in v and math.isfinite(v[key])]
        found[f"{key}_error"] = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return found


def _rate_effects(design: Design, rates: Mapping[str, float | None], level: float) -> list[Effect]:
    """Of each factor on log2 of the largest stable rate; its pairs of arms are what the interval is over."""
    effects = []
    for factor in design.factors:
        base, *others = factor.levels
        differences = []
        for low in design.arms:
            high = next((a for a in design.arms if a.levels == {**low.levels, factor.name: others[-1]}), None)
            if low.levels[factor.name] == base and high is not None:
                a, b = rates.get(low.name), rates.get(high.name)
                if a and b:
                    differences.append(math.log2(b / a))
        effects.append(stats.paired(factor.name, differences, level))
    return stats.holm(effects)


def _notes(seeds: int, runs: Sequence[Row], names: Sequence[str], effects: Mapping[str, Sequence[Effect]]) -> list[str]:
    notes = []
    if seeds < 2:
        notes.append("One seed: no effect can be told from luck, so none has an interval; `--add-seeds` adds more.")
    elif seeds < 5:
        notes.append(f"{seeds} seeds: small effects will stay undecided; see how many seeds 0.5 points need.")
    diverged = [row for row in runs if row.status == "diverged" and row.arm in names]
    if diverged:
        arms = ", ".join(dict.fromkeys(row.arm for row in diverged))
        notes.append(
            f"{len(diverged)} of {len(runs)} trainings diverged ({arms}); they count as naming the commonest class."
        )
    if any(not effect.known for found in effects.values() for effect in found) and seeds >= 2:
        notes.append("Some effects have no interval: too few runs are left to estimate the noise from.")
    return notes
