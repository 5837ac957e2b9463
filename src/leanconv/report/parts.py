"""Sections of a report: how training went, how the network answers, what it learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from leanconv.report.page import COLOURS, escape, figure, table
from leanconv.report.views import View
from leanconv.results import wilson

__all__ = ["calibration", "classes", "curves", "gate", "origin", "photos", "section", "together"]

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
_NUMBERS = 14  # classes up to which the cells of a confusion matrix bear numbers
_SHOWN = 10


def section(title: str, told: str, *inner: str) -> str:
    """A heading, what is to be seen in one plain sentence, and the rest; nothing where there is nothing."""
    body = "".join(inner)
    return f"<section><h2>{escape(title)}</h2><p>{escape(told)}</p>{body}</section>" if body else ""


def curves(view: View, prefix: str) -> str:
    """Loss and accuracy by epoch, the gap, and the epoch that was kept."""
    rows = view.epochs
    if not rows:
        return ""
    x = [row.epoch for row in rows]
    kept = view.run.best
    mark = {
        "shapes": [
            {
                "type": "line",
                "x0": kept,
                "x1": kept,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "#8c959f", "dash": "dot"},
            }
        ]
        if kept
        else []
    }
    penalty = any(row.penalty for row in rows)
    loss = [
        _line(x, [row.loss for row in rows], "training, C0 in training mode", BLUE, "dash"),
        _line(x, [row.train.loss for row in rows], "training, eval mode", BLUE),
        _line(x, [row.val.loss for row in rows], "validation", RED),
    ]
    if penalty:
        loss.append(_line(x, [row.penalty for row in rows], "penalty", PURPLE, "dot"))
    train = [100 * row.train.accuracy for row in rows]
    val = [100 * row.val.accuracy for row in rows]
    accuracy = [
        _line(x, train, "training", BLUE),
        _line(x, val, "validation", RED),
        _line(x, [a - b for a, b in zip(train, val, strict=True)], "gap, points", GREEN, "dot"),
    ]
    if view.run.test is not None and kept:
        accuracy.append(
            {
                "x": [kept],
                "y": [100 * view.run.test.accuracy],
                "name": "test, once",
                "mode": "markers",
                "type": "scatter",
                "marker": {"color": BLACK, "symbol": "diamond", "size": 9},
            }
        )
    axis = {"title": "epoch", "dtick": max(1, math.ceil(len(x) / 10))}
    told = "Training and validation accuracy over the epochs, both measured in eval mode on images as they are"
    told += f"; epoch {kept} was kept, because validation was best there." if kept else "."
    return section(
        "How training went",
        told,
        '<div class="pair">',
        figure(
            f"{prefix}accuracy",
            accuracy,
            {"title": "Accuracy, %", "xaxis": axis, "yaxis": {"title": "%"}, **mark},
            f"Accuracy by epoch: training ends at {train[-1]:.1f} %, validation at {val[-1]:.1f} %.",
        ),
        figure(
            f"{prefix}loss",
            loss,
            {"title": "Loss, nats an image", "xaxis": axis, "yaxis": {"title": "nats"}, **mark},
            f"Loss by epoch: C0 ends at {rows[-1].loss:.3f}, validation at {_told(rows[-1].val.loss)}.",
        ),
        "</div>",
    )


def together(views: Sequence[View]) -> str:
    """Validation accuracy of several runs in one figure."""
    traces = []
    for number, view in enumerate(views):
        values = [100 * row.val.accuracy for row in view.epochs]
        if values:
            colour = COLOURS[number % len(COLOURS)]
            dash = ("solid", "dash", "dot", "dashdot")[number // len(COLOURS) % 4]
            traces.append(_line([row.epoch for row in view.epochs], values, view.run.name, colour, dash))
    if not traces:
        return ""
    most = max(len(view.epochs) for view in views)
    epoch = {"title": "epoch", "dtick": max(1, math.ceil(most / 10))}
    layout = {"title": "Validation accuracy, %", "xaxis": epoch, "yaxis": {"title": "%"}, "height": 400}
    return figure("together", traces, layout, "Validation accuracy by epoch, a line for each run.")


def classes(view: View, prefix: str) -> str:
    """Which classes are found, and what they are taken for."""
    found = view.quality.get(view.held)
    if not found:
        return ""
    names = list(found["recall"])
    confusion = [[found["confusion"].get(truth, {}).get(answer, 0) for answer in names] for truth in names]
    totals = [sum(row) for row in confusion]
    share = [[100 * n / total if total else 0 for n in row] for row, total in zip(confusion, totals, strict=True)]
    side = max(360, min(900, 130 + 26 * len(names)))
    heat = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": share,
        "customdata": confusion,
        "colorscale": [[0, "#ffffff"], [0.15, "#cfe3f1"], [0.5, "#56B4E9"], [1, "#00497a"]],
        "zmin": 0,
        "zmax": 100,
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
        "hovertemplate": "%{y} called %{x}: %{customdata} images, %{z:.1f} %<extra></extra>",
    }
    if len(names) <= _NUMBERS:
        heat |= {"text": confusion, "texttemplate": "%{text}", "textfont": {"size": 11}}
    order = sorted((i for i in range(len(names)) if totals[i]), key=lambda i: confusion[i][i] / totals[i])
    bounds = [wilson(confusion[i][i], totals[i]) for i in order]
    recall = [100 * confusion[i][i] / totals[i] for i in order]
    bars = {
        "type": "scatter",
        "mode": "markers",
        "y": [names[i] for i in order],
        "x": recall,
        "marker": {"color": BLUE, "size": 9},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [100 * high - r for (_, high), r in zip(bounds, recall, strict=True)],
            "arrayminus": [r - 100 * low for (low, _), r in zip(bounds, recall, strict=True)],
            "color": "#8c959f",
        },
        "customdata": [[confusion[i][i], totals[i]] for i in order],
        "hovertemplate": "%{y}: %{customdata[0]} of %{customdata[1]} found, %{x:.1f} %<extra></extra>",
    }
    worst = f"{names[order[0]]} is found least often ({recall[0]:.1f} %)" if order else "no class has images"
    return section(
        "Class by class",
        f"What the {view.held} images of each class were called, and the share of each class that was found: {worst}.",
        '<div class="pair">',
        figure(
            f"{prefix}confusion",
            [heat],
            {
                "title": "Confusion, images",
                "height": side,
                "xaxis": {"type": "category", "tickangle": -40, "title": "answer"},
                "yaxis": {"type": "category", "autorange": "reversed", "title": "truth"},
            },
            f"Confusion matrix of {len(names)} classes; {worst}.",
        ),
        figure(
            f"{prefix}recall",
            [bars],
            {
                "title": "Recall of each class, % (95 % interval)",
                "height": side,
                "xaxis": {"range": [0, 101], "title": "%"},
                "yaxis": {"type": "category"},
            },
            f"Recall of each class with its interval; {worst}.",
        ),
        "</div>",
    )


def calibration(view: View, prefix: str) -> str:
    """Whether the network is as often right as it thinks."""
    found = view.quality.get(view.held)
    if not view.calibration or not found:
        return ""
    counts, right, sure = zip(*view.calibration, strict=True)
    most = max(counts)
    traces = [
        {
            "x": [0, 100],
            "y": [0, 100],
            "mode": "lines",
            "type": "scatter",
            "name": "as sure as right",
            "line": {"color": "#8c959f", "dash": "dash"},
            "hoverinfo": "skip",
        },
        {
            "x": [100 * s for s in sure],
            "y": [100 * r for r in right],
            "mode": "lines+markers",
            "type": "scatter",
            "name": "this network",
            "line": {"color": BLUE},
            "marker": {"size": [6 + 18 * math.sqrt(n / most) for n in counts], "color": BLUE, "opacity": 0.7},
            "customdata": list(counts),
            "hovertemplate": "sure %{x:.1f} %, right %{y:.1f} %, %{customdata} images<extra></extra>",
        },
    ]
    error = 100 * found["calibration_error"]
    over = sum(n * (s - r) for n, r, s in view.calibration) > 0
    word = "surer than it is right" if over else "less sure than it could be"
    return section(
        "Calibration",
        f"How often it is right when it is so sure: on average the two are {error:.1f} points apart, and it is {word}.",
        figure(
            f"{prefix}calibration",
            traces,
            {
                "title": "Right against sure, %",
                "xaxis": {"title": "mean probability of its answer, %", "range": [0, 103]},
                "yaxis": {"title": "right, %", "range": [0, 103]},
                "height": 380,
            },
            f"Calibration curve; expected calibration error {error:.1f} points.",
            "Larger dots stand for more images.",
        ),
    )


def photos(view: View) -> str:
    """The surest mistakes."""
    if not view.photos:
        return ""
    made = "".join(
        f'<figure><img src="{escape(p.source)}" alt="{escape(p.truth)}, called {escape(p.answer)}"'
        f"{' class=small' if p.small else ''}><figcaption><b>{escape(p.truth)}</b><br>called "
        f"{escape(p.answer)}, {100 * p.probability:.0f} %<br>"
        f'<span title="{escape(p.name)}">{escape(p.name[-28:])}</span></figcaption></figure>'
        for p in view.photos
    )
    told = (
        f"The {len(view.photos)} {view.held} images, of {view.mistakes:,} that were called something else, of which it "
        "was surest. Some may bear a wrong label, or show two things."
    )
    return section("Most wrong", told, f'<div class="photos">{made}</div>')


def gate(view: View) -> str:
    """What was wrong with the images before training."""
    if view.gate is None:
        return ""
    findings = view.gate.get("findings", [])
    made = []
    for one in findings:
        shown = ", ".join(map(str, one.get("shown", [])[:_SHOWN]))
        more = f'<br><span class="note">{escape(shown)}</span>' if shown else ""
        made.append(
            f'<div class="finding {escape(one["severity"])}"><b>{escape(one["code"])} {escape(one["severity"])}:</b> '
            f"{escape(one['message'])}{more}</div>"
        )
    counts: dict[str, dict[str, int]] = view.gate.get("counts", {})
    names = sorted({name for table_ in counts.values() for name in table_})
    rows = [[name, *(f"{counts[split].get(name, 0):,}" for split in counts)] for name in names]
    listing = table(["class", *counts], rows, "Images of each class") if rows else ""
    folded = f"<details><summary>Images of each class</summary>{listing}</details>" if listing else ""
    worst = next((s for s in ("error", "warning") if any(one["severity"] == s for one in findings)), None)
    told = {
        "error": "Something is wrong with these images, and the figures above may deceive.",
        "warning": "What was found in the images before training; look at the warnings.",
        None: "The images were looked at before training, and nothing stood out.",
    }[worst]
    return section("The images", told, "".join(made), folded)


def origin(view: View) -> str:
    """Everything that is needed to make this run again."""
    run = view.run
    data = run.data
    rows: list[list[Any]] = [
        ["run", view.folder],
        ["status", run.status],
        ["data", data.get("source", "-")],
        ["images", ", ".join(f"{split} {n:,}" for split, n in _totals(data.get("counts", {})).items()) or "-"],
        ["data fingerprint", data.get("fingerprint", "-")],
        ["recipe digest", run.digest],
        ["weights (SHA-256)", run.extra.get("weights_sha256") or "-"],
    ]
    rows += [[name, _plain(value)] for name, value in run.environment.items()]
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return section(
        "To make it again",
        "The recipe with every option, the data's fingerprint, and where it ran.",
        table(["", ""], rows, text=(1,)),
        f"<details><summary>Recipe</summary><pre>{escape(view.recipe.strip())}</pre></details>" if view.recipe else "",
        f"<h3>Notes</h3><ul>{notes}</ul>" if notes else "",
    )


def _totals(counts: dict[str, Any]) -> dict[str, int]:
    return {split: sum(n.values()) if isinstance(n, dict) else int(n) for split, n in counts.items()}


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _line(x: Sequence[float], y: Sequence[float | None], name: str, colour: str, dash: str = "solid") -> dict[str, Any]:
    values = [v if v is not None and math.isfinite(v) else None for v in y]
    mode = "lines+markers" if len(x) < 3 else "lines"
    return {
        "x": list(x),
        "y": values,
        "name": name,
        "mode": mode,
        "type": "scatter",
        "line": {"color": colour, "dash": dash, "width": 2},
    }


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
