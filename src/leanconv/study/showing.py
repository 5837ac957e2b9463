"""A study as its page shows it: plain values, and the answer in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from leanconv.report.study_page import StudyView
from leanconv.results import environment
from leanconv.study.analysis import METRICS, Analysis
from leanconv.study.claims import claims
from leanconv.study.run import Study
from leanconv.study.stats import Effect
from leanconv.study.store import Row

__all__ = ["answer", "view"]

_CURVES = 7
_SHOWN = ("train", "test", "gap", "loss", "calibration_error", "roughness", "spikes", "weight_norm", "memorised")


def view(study: Study, found: Analysis, recommended: tuple[str, str, str, str]) -> StudyView:
    """Everything that the page needs.

    Args:
        study: whose rows are read.
        found: what they come to.
        recommended: arm, why, file and text of the recipe.
    """
    rows = study.store.rows()
    runs = [row for row in rows if row.kind == "run"]
    about = study.store.about
    machine = environment()
    arm, why, file, text = recommended
    seconds = math.fsum(row.seconds for row in rows)
    told = [
        ("data", str(about["data"]) if about["data"] == "demo" else str(about["data"]).rpartition("/")[2]),
        ("fingerprint of the images", str(about["fingerprint"])[:16]),
        ("design", f"{study.design.kind}: {len(study.design.arms)} arms, and {len(study.design.sides)} beside them"),
        ("factors", "; ".join(f"{f.name}: {', '.join(f.levels)}" for f in study.design.factors)),
        (
            "trainings",
            f"{len(runs)}, {found.seeds} seeds; all work together {seconds / 60:.1f} minutes of workers' time",
        ),
        ("machine", f"{machine['cpu']}, {machine['usable_cores']} cores"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine["versions"].items())),
    ]
    return StudyView(
        name=study.name,
        about=told,
        answer=answer(found, study),
        claims=[asdict(claim) for claim in claims(found, study.design, rows)],
        arms=found.arms,
        effects={key: [asdict(effect) for effect in effects] for key, effects in found.effects.items()},
        bootstrapped={key: [asdict(effect) for effect in effects] for key, effects in found.bootstrapped.items()},
        metrics={metric.key: (metric.told, metric.scale) for metric in METRICS},
        runs=[_thin(row) for row in runs],
        curves=_curves(runs, [arm.name for arm in study.design.arms]),
        recommended={"arm": arm, "why": why, "recipe": file, "text": text},
        notes=[
            *found.notes,
            "Intervals are each at 95 %; verdicts and filled dots are corrected for how many there are (Holm).",
            "Test images choose nothing: learning rates, epochs and the recommended arm are chosen on val.",
            *_needed(found),
        ],
        repeat=f"leanconv study DATA --arms {about['arms']} --seeds {found.seeds} --recipe FILE "
        f"(the recipe lies in {study.folder}/study.db, `about`)",
    )


def answer(found: Analysis, study: Study) -> list[str]:
    """What it means for the user, the most important first."""
    told = []
    test = {e.name: e for e in found.effects.get("test", ())}
    gap = {e.name: e for e in found.effects.get("gap", ())}
    plain, every = found.arms.get("plain"), found.arms.get("all")
    if plain and every and plain.get("macs") and "test" in plain and "test" in every:
        told.append(
            f"All together: {100 * (every['test'] - plain['test']):+.1f} points of test accuracy "
            f"({100 * plain['test']:.1f} to {100 * every['test']:.1f} %) for "
            f"{100 * (1 - every['macs'] / plain['macs']):.0f} % fewer multiply-adds and "
            f"{100 * (1 - every['params'] / plain['params']):.0f} % fewer parameters."
        )
    for name, effect in test.items():
        if " x " in name:
            continue
        sentence = f"{name}: {_points(effect)} test accuracy"
        if name in gap:
            sentence += f", {_points(gap[name])} gap"
        rate = next((e for e in found.rate_effects if e.name == name), None)
        if rate is not None and math.isfinite(rate.value) and abs(rate.value) >= 0.5:
            sentence += f", {2**rate.value:.1f} times the usable learning rate"
        told.append(sentence + ".")
    crossed = [e for name, e in test.items() if " x " in name and e.holm < 0.05]
    for effect in crossed:
        a, _, b = effect.name.partition(" x ")
        word = "more" if effect.value > 0 else "less"
        told.append(f"{a} brings {word} where {b} is there too: {_points(effect)} beyond their sum.")
    return told


def _points(effect: Effect) -> str:
    value, low, high = (100 * x for x in (effect.value, effect.low, effect.high))
    told = f"{value:+.1f} points"
    if not math.isfinite(low):
        return told + " (one seed, no interval)"
    sure = "" if effect.holm < 0.05 else ", undecided"
    return f"{told} ({low:+.1f} to {high:+.1f}{sure})"


def _needed(found: Analysis) -> list[str]:
    if not found.needed:
        return []
    told = ", ".join(f"{n} {c if c is not None else 'over 10,000'}" for n, c in found.needed.items())
    return [f"Seeds that would show an effect of 0.5 points with 80 % probability: {told}."]


def _thin(row: Row) -> dict[str, Any]:
    values = row.values or {}
    found: dict[str, Any] = {"arm": row.arm, "seed": row.seed, "status": row.status, "seconds": round(row.seconds, 1)}
    for key in _SHOWN:
        value = values.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            found[key] = float(f"{value:.5g}") if isinstance(value, float) else value
    return found


def _curves(runs: Sequence[Row], arms: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Of the plain network, those with one thing switched, and all: as many as colours can tell apart."""
    order = [arms[0], *(a for a in arms[1:-1] if "+" not in a), arms[-1]]
    shown = list(dict.fromkeys(order))
    if len(shown) > _CURVES:
        shown = [*shown[: _CURVES - 1], shown[-1]]
    found = {}
    for arm in shown:
        curves = [c for row in runs if row.arm == arm and (c := (row.values or {}).get("curve"))]
        length = min((len(c["val"]) for c in curves), default=0)
        if length:
            columns = [[100 * c["val"][i] for c in curves] for i in range(length)]
            found[arm] = {
                "step": list(curves[0]["step"][:length]),
                "mean": list(map(statistics.fmean, columns)),
                "low": list(map(min, columns)),
                "high": list(map(max, columns)),
            }
    return found
