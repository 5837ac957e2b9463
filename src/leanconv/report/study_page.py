"""The page of a study: what holds, what it means for the user, and everything behind it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.report.page import COLOURS, document, escape, figure, script, table

__all__ = ["StudyView", "render"]

_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star")
_MARKS = {"holds": "\u2713", "does not": "\u2717", "undecided": "?"}


@dataclass(frozen=True)
class StudyView:
    """What the page shows, plain values.

    Attributes:
        name: of the study.
        about: rows (what, value) on data, design, seeds and machine.
        answer: the findings for the user, a sentence each.
        claims: as ``Claim``'s fields.
        arms: name -> figures; ``levels``, ``role``, means.
        effects: metric -> list of effects' fields.
        bootstrapped: as ``effects``, with intervals by bootstrap over the seeds; empty where there are too few.
        metrics: key -> (words, scale) of the metrics in ``effects``.
        runs: one mapping per training: arm, seed, status and numbers.
        curves: arm -> step, mean, low, high of val accuracy in percent.
        recommended: arm, why, recipe (its file), text (YAML).
        notes: what limits the findings.
        repeat: the command.
    """

    name: str
    about: Sequence[tuple[str, str]]
    answer: Sequence[str]
    claims: Sequence[Mapping[str, Any]]
    arms: Mapping[str, Mapping[str, Any]]
    effects: Mapping[str, Sequence[Mapping[str, Any]]]
    bootstrapped: Mapping[str, Sequence[Mapping[str, Any]]]
    metrics: Mapping[str, tuple[str, float]]
    runs: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    recommended: Mapping[str, str]
    notes: Sequence[str]
    repeat: str


def render(view: StudyView) -> str:
    """The page, as HTML."""
    parts = [
        f"<h1>{escape(view.name)}: what each technique brought</h1>",
        "".join(f'<p class="lead">{escape(sentence)}</p>' for sentence in view.answer[:1]),
        _list(view.answer[1:]),
        "<h2>What the source claims, and what was found here</h2>",
        _claims(view),
        "<h2>Effects</h2>",
        *(_forest(view, key) for key in ("test", "gap") if view.effects.get(key)),
        _interactions(view),
        "<h2>Learning curves</h2>",
        _curves(view),
        "<h2>Accuracy and cost</h2>",
        *(_pareto(view, key, told) for key, told in (("macs", "multiply-adds an image"), ("ms_1", "ms an image"))),
        _arms(view),
        "<h2>Every training</h2>",
        _runs(view),
        "<h2>The recipe to take</h2>",
        f"<p>{escape(view.recommended['arm'])}: {escape(view.recommended['why'])}. "
        f"<code>leanconv train DATA --recipe {escape(view.recommended['recipe'])}</code></p>",
        f"<details><summary>The recipe</summary><pre>{escape(view.recommended['text'])}</pre></details>",
        "<h2>What limits this, and how to repeat it</h2>",
        _list(view.notes),
        f"<p><code>{escape(view.repeat)}</code></p>",
        table(("what", "value"), list(view.about), text=(0, 1)),
        *(_details(view, key, view.effects[key]) for key in view.effects if key not in ("test", "gap")),
        *(_details(view, key, found, "by bootstrap over the seeds") for key, found in view.bootstrapped.items()),
    ]
    description = view.answer[0] if view.answer else view.name
    return document(f"Study {view.name}", "".join(parts), first=[script("study.js")], description=description)


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else ""


def _interval(low: float, high: float, scale: float = 1.0) -> str:
    return f"{scale * low:+.3g} to {scale * high:+.3g}" if math.isfinite(low) and low != high else "-"


def _p(value: float) -> str:
    return "-" if not math.isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _claims(view: StudyView) -> str:
    rows = [
        (
            c["told"],
            f"{_MARKS[c['verdict']]} {c['verdict']}",
            f"{c['value']:+.3g}",
            _interval(c["low"], c["high"]),
            c["metric"],
            _p(c["holm"]),
            c["source"],
        )
        for c in view.claims
    ]
    head = ("claim", "verdict", "estimate", "95 % interval", "of what", "p (Holm)", "row")
    counts = {v: sum(c["verdict"] == v for c in view.claims) for v in ("holds", "does not", "undecided")}
    told = f"{counts['holds']} hold, {counts['does not']} do not, {counts['undecided']} are undecided."
    caption = "A verdict needs p below 0.05 after Holm's correction over all claims; what is counted needs no interval."
    return f"<p>{escape(told)}</p>" + table(head, rows, caption, text=(0, 1, 4))


def _forest(view: StudyView, key: str) -> str:
    told, scale = view.metrics[key]
    rows = [e for e in view.effects[key] if math.isfinite(e["value"])][::-1]
    known = [math.isfinite(e["low"]) for e in rows]
    x = [scale * e["value"] for e in rows]
    high = [scale * (e["high"] - e["value"]) if k else 0 for e, k in zip(rows, known, strict=True)]
    sure = [math.isfinite(e["holm"]) and e["holm"] < 0.05 for e in rows]
    trace = {
        "type": "scatter", "mode": "markers", "x": x, "y": [e["name"] for e in rows], "showlegend": False,
        "error_x": {"type": "data", "array": high, "thickness": 2, "color": "#57606a"},
        "marker": {"size": 10, "color": [COLOURS[0] if s else "#ffffff" for s in sure],
                   "line": {"width": 2, "color": COLOURS[0]}},
        "text": [f"p after Holm {_p(e['holm'])}" for e in rows],
        "hovertemplate": "%{y}: %{x:.2f}, %{text}<extra></extra>",
    }  # fmt: skip
    layout = {
        "title": f"Effect on {told}",
        "height": 110 + 28 * len(rows),
        "xaxis": {"title": told, "zeroline": True, "zerolinewidth": 2},
        "yaxis": {"type": "category"},
    }
    caption = (
        "Filled: p below 0.05 after Holm's correction. Bars: 95 % intervals. A x B: how much B changes A's effect."
    )
    return figure(f"effects-{key}", [trace], layout, f"Effects on {told} with their intervals", caption)


def _interactions(view: StudyView) -> str:
    arms = [a for a in view.arms.values() if a["role"] == "design" and a.get("test") is not None]
    factors = [f for f in (arms[0]["levels"] if arms else {}) if len({a["levels"][f] for a in arms}) == 2]
    pairs = list(itertools.combinations(factors, 2))
    if not pairs:
        return ""
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"title": "Interactions: test accuracy, %", "annotations": []}
    columns = min(2, len(pairs))  # three are too narrow for a phone
    lines = math.ceil(len(pairs) / columns)
    for i, (a, b) in enumerate(pairs):
        row, column = divmod(i, columns)
        axis = "" if i == 0 else str(i + 1)
        left, bottom = column / columns, 1 - (row + 1) / lines
        layout[f"xaxis{axis}"] = {"domain": [left + 0.02, left + 1 / columns - 0.04], "anchor": f"y{axis}", "title": a}
        layout[f"yaxis{axis}"] = {"domain": [bottom + 0.13 / lines, bottom + 0.82 / lines], "anchor": f"x{axis}"}
        levels_a, levels_b = (list(dict.fromkeys(arm["levels"][f] for arm in arms)) for f in (a, b))
        for j, level in enumerate(levels_b):
            y = []
            for at in levels_a:
                found = [100 * arm["test"] for arm in arms if (arm["levels"][a], arm["levels"][b]) == (at, level)]
                y.append(sum(found) / len(found) if found else None)
            traces.append({
                "type": "scatter", "mode": "lines+markers", "x": levels_a, "y": y,
                "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                "name": f"the other {level}", "legendgroup": level, "showlegend": i == 0,
                "line": {"color": COLOURS[j], "dash": ("solid", "dash")[j]},
                "hovertemplate": f"{a} %{{x}}, {b} {level}: %{{y:.1f}} %<extra></extra>",
            })  # fmt: skip
        layout["annotations"].append({
            "text": f"by {b}", "x": left + 0.5 / columns, "y": bottom + 0.86 / lines, "xref": "paper", "yref": "paper",
            "showarrow": False, "yanchor": "bottom",
        })  # fmt: skip
    layout["height"] = 120 + 230 * lines
    caption = "Parallel lines: the effects add up. Means over all other settings."
    return figure("interactions", traces, layout, "Mean test accuracy for each two factors", caption)


def _curves(view: StudyView) -> str:
    traces: list[dict[str, Any]] = []
    for i, (arm, c) in enumerate(view.curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        band = {"x": [*c["step"], *reversed(c["step"])], "y": [*c["high"], *reversed(c["low"])]}
        if list(c["high"]) != list(c["low"]):
            traces.append({
                **band, "type": "scatter", "fill": "toself", "fillcolor": colour, "opacity": 0.15, "line": {"width": 0},
                "legendgroup": arm, "showlegend": False, "hoverinfo": "skip",
            })  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "lines+markers", "x": list(c["step"]), "y": list(c["mean"]), "name": arm,
            "legendgroup": arm, "line": {"color": colour, "width": 2},
            "marker": {"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 6},
            "hovertemplate": f"{escape(arm)}, step %{{x}}: %{{y:.1f}} %<extra></extra>",
        })  # fmt: skip
    layout = {"title": "Accuracy on val", "xaxis": {"title": "optimizer steps"}, "yaxis": {"title": "%"}, "height": 420}
    return figure(
        "curves", traces, layout, "Accuracy on val over the steps", "Means; bands from the least to the most."
    )


def _pareto(view: StudyView, key: str, told: str) -> str:
    arms = {n: a for n, a in view.arms.items() if a["role"] == "design" and a.get(key) and a.get("test") is not None}
    if len(arms) < 2:
        return ""
    best, front = -math.inf, []
    for name in sorted(arms, key=lambda n: (arms[n][key], -arms[n]["test"])):
        if arms[name]["test"] > best:
            best = arms[name]["test"]
            front.append(name)
    line = {
        "type": "scatter", "mode": "lines", "x": [arms[n][key] for n in front],
        "y": [100 * arms[n]["test"] for n in front], "line": {"color": COLOURS[1], "width": 2, "shape": "hv"},
        "name": "nothing is both better and cheaper", "hoverinfo": "skip",
    }  # fmt: skip
    errors = [100 * (a.get("test_error") or 0) for a in arms.values()]
    dots = {
        "type": "scatter", "mode": "markers", "x": [a[key] for a in arms.values()],
        "y": [100 * a["test"] for a in arms.values()], "text": list(arms), "name": "arms",
        "error_y": {"type": "data", "array": [e if math.isfinite(e) else 0 for e in errors], "color": "#8c959f"},
        "marker": {"size": 9, "color": COLOURS[0]},
        "hovertemplate": "%{text}: %{x:.3s}, %{y:.1f} %<extra></extra>",
    }  # fmt: skip
    layout = {
        "title": f"Test accuracy against {told}",
        "xaxis": {"title": told},
        "yaxis": {"title": "%"},
        "height": 380,
    }
    return figure(f"pareto-{key}", [line, dots], layout, f"Arms by {told} and accuracy", "Bars: one standard error.")


def _arms(view: StudyView) -> str:
    def number(arm: Mapping[str, Any], key: str, form: str, scale: float = 1.0) -> str:
        value = arm.get(key)
        return format(scale * value, form) if isinstance(value, int | float) and math.isfinite(value) else "-"

    rows = [
        (name, arm["seeds"], arm["diverged"], number(arm, "train", ".1f", 100), number(arm, "test", ".1f", 100),
         number(arm, "test_error", ".2f", 100), number(arm, "gap", "+.1f", 100), number(arm, "rate", "g"),
         number(arm, "params", ",.0f"), number(arm, "macs", ",.0f"), number(arm, "ms_1", ".3f"),
         number(arm, "ms_step", ".1f"))
        for name, arm in view.arms.items()
    ]  # fmt: skip
    head = (
        "arm",
        "seeds",
        "diverged",
        "train %",
        "test %",
        "std. error",
        "gap",
        "stable lr",
        "parameters",
        "MACs",
        "ms",
        "ms a step",
    )
    caption = (
        "Means over the seeds; ms: one image at a time; ms a step: forward and backward of one batch. All arms in "
        "turns, nothing else running."
    )
    return table(head, rows, caption)


def _runs(view: StudyView) -> str:
    keys = list(dict.fromkeys(key for run in view.runs for key in run))
    # The names once and not with every training: half the bytes.
    columns = {"keys": keys, "rows": [[run.get(key) for key in keys] for run in view.runs]}
    packed = json.dumps(columns, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return (
        '<p class="tools"><label>Filter <input id="study-filter" type="search" placeholder="dropout"></label> '
        '<button type="button" id="study-csv">CSV</button> <button type="button" id="study-json">JSON</button> '
        '<span id="study-count"></span></p>'
        '<div class="scroll" tabindex="0"><table id="study-runs"><thead></thead><tbody></tbody></table></div>'
        '<p><button type="button" id="study-more">Show more</button></p>'
        f'<script type="application/json" id="study-data">{packed}</script>'
    )


def _details(view: StudyView, key: str, effects: Sequence[Mapping[str, Any]], how: str = "") -> str:
    told, scale = view.metrics[key]
    rows = [
        (e["name"], f"{scale * e['value']:+.3g}", _interval(e["low"], e["high"], scale), _p(e["p"]), _p(e["holm"]))
        for e in effects
    ]
    inner = table(("effect", "estimate", "95 % interval", "p", "p (Holm)"), rows)
    return f"<details><summary>Effects on {escape(told)}{', ' if how else ''}{how}</summary>{inner}</details>"
