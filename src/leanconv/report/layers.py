"""Sections of a report that look into the network, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from leanconv.report.page import COLOURS, escape, figure, table
from leanconv.report.parts import section
from leanconv.report.views import Stopping, View
from leanconv.results import Epoch

__all__ = ["costs", "gradients", "ledger", "outputs", "stopped", "weights"]

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
_SHADES = ("#9ecae1", "#4292c6", "#08519c", "#d94801")
_PANELS = 12


def outputs(view: View, prefix: str) -> str:
    """What enters each activation, over the training, beside N(0, 1) (S25), and how its moments move (S11)."""
    told = _told_epochs(view.epochs)
    rows = {row.epoch: [one for one in _layers(row) if one.get("pre")] for row in told}
    if not told or not any(rows.values()):
        return ""
    paths = [one["path"] for one in rows[told[-1].epoch]]
    shown = _spread(paths, _PANELS)
    across = 3 if len(shown) > 4 else max(1, min(2, len(shown)))
    down = math.ceil(len(shown) / across)
    traces, layout, notes = _histograms(rows, shown, across, down)
    moves = _moves(view.epochs, paths)
    last = {one["path"]: one["pre"] for one in rows[told[-1].epoch]}
    skewed = [abs(pre["skew"]) for pre in last.values() if pre.get("skew") is not None]
    shape = (
        f" Two moments are what batch norm fixes, not the shape: the largest skew is {max(skewed):.1f}."
        if skewed
        else ""
    )
    layout |= {"annotations": notes, "height": 140 + 190 * down, "title": "What enters each activation"}
    layout["margin"] = {"l": 24, "r": 16, "t": 76, "b": 48}
    return section(
        "Inside: what the layers pass on",
        "The values that enter each layer's activation, in the last step of some epochs; the dashed line is the normal "
        f"distribution N(0, 1) for comparison.{shape}",
        figure(
            f"{prefix}outputs",
            traces,
            layout,
            f"Distributions of what enters the activations of {len(shown)} layers, beside N(0, 1).",
            "" if len(shown) == len(paths) else f"{len(shown)} of {len(paths)} layers, evenly spaced in depth.",
        ),
        '<div class="pair">' if moves else "",
        *(
            figure(
                f"{prefix}{name}",
                found,
                {"title": title, "xaxis": _epochs(view), "yaxis": {"title": unit}, "height": 360},
                f"{title} by epoch, a line for each layer.",
                "From the first layer (light) to the last (dark).",
            )
            for name, title, unit, found in moves
        ),
        "</div>" if moves else "",
    )


def gradients(view: View, prefix: str) -> str:
    """The gradient's norm by depth (S12)."""
    told = _told_epochs(view.epochs)
    traces = []
    for shade, row in zip(_SHADES[len(_SHADES) - len(told) :], told, strict=True):
        found = [(one["path"], one["grad_norm"]) for one in _layers(row) if one.get("grad_norm")]
        if found:
            names, values = zip(*found, strict=True)
            traces.append(
                {
                    "x": list(range(1, len(names) + 1)),
                    "y": [v if math.isfinite(v) else None for v in values],
                    "customdata": list(names),
                    "name": f"epoch {row.epoch}",
                    "mode": "lines+markers",
                    "type": "scatter",
                    "line": {"color": shade},
                    "hovertemplate": "%{customdata}: %{y:.3g}<extra></extra>",
                }
            )
    if not traces:
        return ""
    return section(
        "Inside: gradients by depth",
        "How large the gradient of each layer's parameters is, from the first layer to the last. A line that falls to "
        "the left by many powers of ten is a gradient that vanishes.",
        figure(
            f"{prefix}gradients",
            traces,
            {
                "title": "Norm of the gradient",
                "xaxis": {"title": "layer with parameters, by depth"},
                "yaxis": {"type": "log", "title": "norm", "dtick": "D2", "tickformat": "~g"},
            },
            "Norm of the gradient by depth, a line for each of some epochs.",
        ),
    )


def weights(view: View, prefix: str) -> str:
    """Weight norms over the training (S16)."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in view.epochs:
        for one in _layers(row):
            norm = one.get("weight_norm")
            if norm is not None and math.isfinite(norm) and "Norm" not in one.get("kind", ""):
                found.setdefault(one["path"], []).append((row.epoch, norm))
    if not found:
        return ""
    decayed = "l2" in view.run.recipe.get("techniques", {})
    told = "The Euclidean norm of each layer's weights after each epoch"
    told += (
        "; L2 keeps pulling them towards zero while the loss pulls where it needs them." if decayed else ", without L2."
    )
    return section(
        "Inside: weights",
        told,
        figure(
            f"{prefix}weights",
            _fan(found),
            {"title": "Norm of the weights", "xaxis": _epochs(view), "yaxis": {"title": "norm"}, "height": 380},
            "Norm of the weights by epoch, a line for each layer.",
            "From the first layer (light) to the last (dark).",
        ),
    )


def costs(view: View, prefix: str) -> str:
    """What each layer costs, beside the dense twin."""
    twin = view.twin
    if twin is None:
        return ""
    layers = [layer for layer in twin.layers if layer.macs or layer.dense_macs]
    names = [f"{layer.path} {layer.kind}" for layer in layers]
    height = 150 + 26 * len(layers)

    def bars(name: str, values: list[int], colour: str, pattern: str = "") -> dict[str, Any]:
        marker: dict[str, Any] = {"color": colour}
        if pattern:
            marker["pattern"] = {"shape": pattern}
        return {
            "type": "bar",
            "orientation": "h",
            "y": names,
            "x": values,
            "name": name,
            "marker": marker,
            "hovertemplate": "%{y}: %{x:,}<extra>" + name + "</extra>",
        }

    def layout(title: str) -> dict[str, Any]:
        return {
            "title": title,
            "height": height,
            "barmode": "group",
            "yaxis": {"autorange": "reversed", "type": "category"},
            "xaxis": {"title": "", "exponentformat": "SI"},
        }

    macs = [
        bars("dense twin", [x.dense_macs for x in layers], "#c8d0d8", "/"),
        bars("this network", [x.macs for x in layers], BLUE),
    ]
    params = [
        bars("dense twin", [x.dense_params for x in layers], "#c8d0d8", "/"),
        bars("this network", [x.params for x in layers], BLUE),
    ]
    own, dense = twin.milliseconds
    return section(
        "What each layer costs",
        f"Beside the same network with every separable convolution dense. One image takes {own:.3f} ms, the twin "
        f"{dense:.3f} ms: arithmetic saved is not time saved until the kernels follow.",
        '<div class="pair">',
        figure(
            f"{prefix}macs",
            macs,
            layout("Multiply-adds an image"),
            "Multiply-adds of each layer beside the dense twin.",
        ),
        figure(f"{prefix}params", params, layout("Parameters"), "Parameters of each layer beside the dense twin."),
        "</div>",
    )


def stopped(view: View, prefix: str) -> str:
    """The network's dropout layers with all units, and with those that a step leaves (S6)."""
    made = [_units(one, f"{prefix}stopped-{i}") for i, one in enumerate(view.stopping) if one.kept]
    if not made:
        return ""
    return section(
        "With and without the stopped units",
        "Each dot is a unit (or channel) behind a dropout layer: filled ones work, hollow ones are stopped. In use all "
        "of them work; every training step is another, smaller network.",
        *made,
    )


def ledger(view: View) -> str:
    """Every parameter with its role and its decay."""
    if not view.ledger:
        return ""
    roles: dict[str, list[int]] = {}
    for row in view.ledger:
        total = roles.setdefault(row["role"], [0, 0])
        total[0] += row["count"]
        total[1] += row["count"] if row["weight_decay"] else 0
    decayed, whole = sum(v[1] for v in roles.values()), sum(v[0] for v in roles.values())
    short = [[role, f"{n:,}", f"{d:,}"] for role, (n, d) in roles.items()]
    every = [
        [
            row["name"],
            "x".join(map(str, row["shape"])),
            row["role"],
            row["where"],
            f"{row['weight_decay']:.3g}" if row["weight_decay"] else "-",
        ]
        for row in view.ledger
    ]
    whole_table = table(["parameter", "shape", "role", "decayed in", "weight decay"], every)
    return section(
        "L2: what is decayed",
        f"{decayed:,} of {whole:,} numbers are decayed; biases and the parameters of norms never are.",
        table(["role", "numbers", "decayed"], short),
        f"<details><summary>Every parameter</summary>{whole_table}</details>",
    )


def _epochs(view: View) -> dict[str, Any]:
    return {"title": "epoch", "dtick": max(1, math.ceil(len(view.epochs) / 10))}


def _layers(row: Epoch) -> list[dict[str, Any]]:
    found = row.extra.get("layers")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _told_epochs(epochs: Sequence[Epoch]) -> list[Epoch]:
    """First, a third, two thirds and last of those that have layers."""
    known = [row for row in epochs if _layers(row)]
    return _spread(known, 4)


def _spread(values: Sequence[Any], most: int) -> list[Any]:
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _histograms(
    rows: dict[int, list[dict[str, Any]]], shown: list[str], across: int, down: int
) -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]:
    """Small panels, one a layer, in the reading direction."""
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"grid": {"rows": down, "columns": across, "pattern": "independent", "ygap": 0.32}}
    notes = []
    epochs = sorted(rows)
    for panel, path in enumerate(shown):
        end = "" if panel == 0 else str(panel + 1)
        low, high = -4.0, 4.0
        for shade, epoch in zip(_SHADES[len(_SHADES) - len(epochs) :], epochs, strict=True):
            pre = next((one["pre"] for one in rows[epoch] if one["path"] == path), None)
            if pre is None or not pre.get("histogram"):
                continue
            counts, mean, std = pre["histogram"], pre["mean"], pre["std"]
            width = 8 * std / len(counts)
            total = sum(counts) or 1
            low, high = min(low, mean - 4 * std), max(high, mean + 4 * std)
            traces.append(
                {
                    "x": [mean - 4 * std + (i + 0.5) * width for i in range(len(counts))],
                    "y": [n / total / width for n in counts],
                    "name": f"epoch {epoch}",
                    "legendgroup": f"epoch {epoch}",
                    "showlegend": panel == 0,
                    "type": "scatter",
                    "mode": "lines",
                    "line": {"color": shade, "shape": "hvh", "width": 1.6},
                    "xaxis": f"x{end}",
                    "yaxis": f"y{end}",
                    "hovertemplate": f"{path}, epoch {epoch}<br>mean {mean:.2f}, deviation {std:.2f}<extra></extra>",
                }
            )
        grid = [i / 10 for i in range(-40, 41)]
        traces.append(
            {
                "x": grid,
                "y": [math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in grid],
                "name": "N(0, 1)",
                "legendgroup": "normal",
                "showlegend": panel == 0,
                "type": "scatter",
                "mode": "lines",
                "line": {"color": BLACK, "dash": "dash", "width": 1.2},
                "hoverinfo": "skip",
                "xaxis": f"x{end}",
                "yaxis": f"y{end}",
            }
        )
        reach = min(12.0, max(abs(low), abs(high)))
        layout[f"xaxis{end}"] = {"range": [-reach, reach], "nticks": 5}
        layout[f"yaxis{end}"] = {"showticklabels": False, "showgrid": False, "rangemode": "tozero"}
        notes.append(
            {
                "text": escape(path),
                "showarrow": False,
                "xref": f"x{end} domain",
                "yref": f"y{end} domain",
                "x": 0,
                "y": 1.02,
                "xanchor": "left",
                "yanchor": "bottom",
                "font": {"size": 11},
            }
        )
    layout["legend"] = {"orientation": "h", "y": -0.08 if down > 1 else -0.2, "x": 0, "yanchor": "top"}
    return traces, layout, notes


def _moves(epochs: Sequence[Epoch], paths: list[str]) -> list[tuple[str, str, str, list[dict[str, Any]]]]:
    """Mean and deviation of what enters each activation, by epoch."""
    made = []
    for key, title, unit in (("mean", "Mean of what enters", "mean"), ("std", "Deviation of what enters", "deviation")):
        found: dict[str, list[tuple[int, float]]] = {}
        for row in epochs:
            for one in _layers(row):
                value = (one.get("pre") or {}).get(key)
                if one["path"] in paths and isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(one["path"], []).append((row.epoch, value))
        if found and len(epochs) > 1:
            made.append((key, title, unit, _fan(found)))
    return made


def _fan(found: dict[str, list[tuple[int, float]]]) -> list[dict[str, Any]]:
    """A line for each layer, darker with depth."""
    made = []
    for i, (path, points) in enumerate(found.items()):
        made.append(
            {
                "x": [epoch for epoch, _ in points],
                "y": [value for _, value in points],
                "name": path,
                "showlegend": False,
                "type": "scatter",
                "mode": "lines" if len(points) > 1 else "markers",
                "line": {"color": _shade(i / max(1, len(found) - 1)), "width": 1.8},
                "hovertemplate": f"{escape(path)}, epoch %{{x}}: %{{y:.3g}}<extra></extra>",
            }
        )
    return made


def _shade(depth: float) -> str:
    """From light to dark blue."""
    light, dark = (158, 202, 225), (8, 48, 107)
    return "rgb(" + ",".join(str(round(a + depth * (b - a))) for a, b in zip(light, dark, strict=True)) + ")"


def _units(one: Stopping, name: str) -> str:
    """Rows of dots: in use, and in each of some steps."""
    count, steps = len(one.kept[0]), len(one.kept)
    size, left = 13, 92
    width, height = left + size * count + 6, (size + 9) * (steps + 1) + 6
    dots = []
    for row in range(steps + 1):
        y = 10 + row * (size + 9)
        label = "in use" if row == 0 else f"step {row}"
        dots.append(f'<text x="0" y="{y + 4}" font-size="12" fill="#57606a">{label}</text>')
        for i in range(count):
            works = row == 0 or one.kept[row - 1][i]
            fill = BLUE if works else "#ffffff"
            edge = BLUE if works else "#8c959f"
            dots.append(f'<circle cx="{left + i * size}" cy="{y}" r="4.4" fill="{fill}" stroke="{edge}"/>')
    part = "" if count == one.units else f", the first {count} of {one.units:,} units"
    shared = "one mask for the whole batch" if one.mask == "batch" else "a mask for each image, of which one is shown"
    rest = " ".join(f"{sum(step)} of {count} work in step {i}." for i, step in enumerate(one.kept, 1))
    return (
        f'<h3>{escape(one.path or "the network")}</h3><p class="note">p = {one.p:g}, {shared}{part}</p>'
        f'<div class="scroll" tabindex="0"><svg id="{escape(name)}" role="img" aria-label="{escape(rest)}" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(dots)}</svg></div>'
    )
