"""The page of the tour, in two languages, from the numbers that :mod:`leanconv.tour` computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from leanconv.report.page import COLOURS, document, escape, figure, table
from leanconv.report.tour_text import LANGUAGES, say

__all__ = ["render"]

BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS
_WORDS = ("title", "wins", "loses", "bad")


def render(made: Mapping[str, Any], language: str = "en") -> str:
    """The page.

    Args:
        made: of :func:`leanconv.tour.make`.
        language: that is shown first: ``en`` or ``zh``.

    Returns:
        HTML with both languages in it.
    """
    sections = [
        _dropout(made["figure_2_10"]),
        _ensemble(made["ensemble"]),
        _table(made["table_2_1"]),
        _depth(made["with_depth"]),
        _equations(made["equations"]),
        _shrinking(made["shrinking"]),
        _maps(made["maps"]),
        _calculator(),
        _ladder(made["ladder"]),
    ]
    words = {lang: {key: _raw(key, lang) for key in _WORDS} for lang in LANGUAGES}
    buttons = "".join(
        f'<button data-speak="{lang}" aria-pressed="{str(lang == language).lower()}">{name}</button>'
        for lang, name in zip(LANGUAGES, ("English", "中文"), strict=True)
    )
    body = (
        f'<style>{_file("tour.css")}</style><div id="tour" data-lang="{language}"><div class="top">{buttons}</div>'
        f'<h1>{_t("title")}</h1><p class="lead">{_t("lead")}</p>{_contents()}{"".join(sections)}'
        f"<footer>{_t('foot')}</footer>"
        f'<script type="application/json" id="texts">{_json(words)}</script>'
        f'<script type="application/json" id="batches">{_json(made["figure_2_10"]["batches"])}</script></div>'
    )
    # Elements are there when the script at the end of the body runs; figures are drawn a moment later.
    return document(
        say("title", language), body, lang=language, scripts=[_file("tour.js")], description=say("lead", language)
    )


def _file(name: str) -> str:
    return files("leanconv.report").joinpath(name).read_text(encoding="utf-8")


def _raw(key: str, language: str) -> str:
    """A sentence with its places for values as they are."""
    from leanconv.report.tour_text import TEXT

    return TEXT[key][LANGUAGES.index(language)]


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False).replace("</", "<\\/")


def _t(key: str, **values: object) -> str:
    """A sentence in both languages, of which one is shown."""
    return "".join(f'<span lang="{lang}">{escape(say(key, lang, **values))}</span>' for lang in LANGUAGES)


def _both(make: Callable[[str], str]) -> str:
    """Something that is made once for each language."""
    return "".join(f'<div lang="{lang}">{make(lang)}</div>' for lang in LANGUAGES)


def _section(key: str, *inner: str) -> str:
    return f'<section id="{key}"><h2>{_t(key)}</h2>{"".join(inner)}</section>'


def _contents() -> str:
    keys = ("dropout", "batchnorm", "l2", "separable", "calculator", "ladder")
    links = [f'<a href="#{key}">{_t(key)}</a>' for key in keys]
    return f"<nav>{' '.join(links)}</nav>"


def _network(sizes: Sequence[int], name: str) -> str:
    """Columns of neurons with all their connections, drawn from left to right."""
    width, height = 460, 300
    xs = [40 + i * (width - 80) / (len(sizes) - 1) for i in range(len(sizes))]

    def y(column: int, row: int) -> float:
        return height / 2 + (row - (sizes[column] - 1) / 2) * 34

    lines = [
        f'<line data-edge="{c}-{a}-{b}" x1="{xs[c]:.0f}" y1="{y(c, a):.1f}" x2="{xs[c + 1]:.0f}" '
        f'y2="{y(c + 1, b):.1f}"/>'
        for c in range(len(sizes) - 1)
        for a in range(sizes[c])
        for b in range(sizes[c + 1])
    ]
    units = [
        f'<circle data-unit="{c}-{r}" cx="{xs[c]:.0f}" cy="{y(c, r):.1f}" r="11"/>'
        for c in range(len(sizes))
        for r in range(sizes[c])
    ]
    return (
        f'<svg id="{name}" viewBox="0 0 {width} {height}" role="img" aria-label="{"-".join(map(str, sizes))}">'
        f"{''.join(lines)}{''.join(units)}</svg>"
    )


def _dropout(made: Mapping[str, Any]) -> str:
    said = ", ".join(f"{100 * p:.1f} %" for p in made["in_use"])
    return _section(
        "dropout",
        f"<p>{_t('dropout_told')}</p>",
        '<div class="pair net">',
        f"<div><h3>{_t('ordinary')}</h3>{_network(made['sizes'], 'ordinary')}<p>{_t('says_all')}: {said}</p></div>",
        f"<div><h3>{_t('stopped')}</h3>{_network(made['sizes'], 'masked')}"
        f'<p><button data-next>{_t("next")}</button></p><p aria-live="polite">{_t("batch")} <span data-batch>1</span>: '
        f"<span data-working></span> {_t('working')}. {_t('says')}: <span data-output></span></p></div>",
        "</div>",
    )


def _ensemble(made: Mapping[str, Any]) -> str:
    def draw(lang: str) -> str:
        bins = len(made["histogram"])
        top = max(made["histogram"])
        centres = [(i + 0.5) / bins for i in range(bins)]

        def mark(value: float, key: str, colour: str, dash: str) -> dict[str, Any]:
            return {
                "x": [value, value],
                "y": [0, 100 * top],
                "type": "scatter",
                "mode": "lines",
                "name": f"{say(key, lang)} {value:.3f}",
                "line": {"color": colour, "dash": dash, "width": 2.5},
            }

        bars = {
            "type": "bar",
            "x": centres,
            "y": [100 * share for share in made["histogram"]],
            "marker": {"color": SKY},
            "showlegend": False,
            "hovertemplate": "%{x:.2f}: %{y:.1f} %<extra></extra>",
        }
        marks = [
            mark(made["arithmetic"], "arithmetic", RED, "dot"),
            mark(made["geometric"], "geometric", BLACK, "solid"),
        ]
        layout = {
            "title": say("ensemble_figure", lang),
            "bargap": 0.05,
            "xaxis": {"title": say("probability", lang), "range": [0, 1]},
            "yaxis": {"title": f"{say('share', lang)}, %"},
        }
        alt = f"{say('arithmetic', lang)} {made['arithmetic']:.3f}, {say('geometric', lang)} {made['geometric']:.3f}"
        return figure(f"ensemble-{lang}", [bars, *marks], layout, alt)

    values = {key: made[key] for key in ("count", "units", "difference")}
    return f"<h3>{_t('ensemble', **values)}</h3><p>{_t('ensemble_told', **values)}</p>{_both(draw)}"


def _table(made: Mapping[str, Any]) -> str:
    def number(value: float) -> str:
        return f"{value:.4g}" if abs(value) >= 1e-12 else "0"

    def draw(lang: str) -> str:
        def rows(key: str, values: Sequence[Sequence[float]]) -> list[list[str]]:
            return [[say(key, lang, n=n), *map(number, row)] for n, row in enumerate(values, 1)]

        def row(key: str, values: Sequence[float]) -> list[str]:
            return [say(key, lang), *map(number, values)]

        cells = [
            *rows("sample", made["x"]),
            row("step1", made["gamma"]),
            row("step1b", made["beta"]),
            row("step2a", made["mu"]),
            row("step2b", made["variance"]),
            *rows("step3a", made["x_hat"]),
            *rows("step3b", made["y"]),
        ]
        head = [say("step", lang), *(say("feature", lang, n=n) for n in (1, 2, 3))]
        return table(head, cells)

    return _section(
        "batchnorm",
        f"<p>{_t('batchnorm_told')}</p>",
        f'<div class="pair"><div>{_both(draw)}</div><div><h3>{_t("code")}</h3>'
        f"<pre>{escape(_dedented(made['code']))}</pre><p>{_t('restored', restored=made['restored'])}</p></div></div>",
    )


def _dedented(code: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in code.strip("\n").splitlines())


def _depth(made: Mapping[str, Any]) -> str:
    layers = len(made["plain"])
    shown = (0, layers // 2, layers - 1)
    shades = ("#9ecae1", "#4292c6", "#08306b")

    def panel(name: str, key: str, lang: str) -> str:
        traces: list[dict[str, Any]] = [
            {
                "x": made["centres"],
                "y": made[name][i]["histogram"],
                "type": "scatter",
                "mode": "lines",
                "name": say("layer", lang, n=i + 1),
                "line": {"color": shade, "shape": "hvh"},
            }
            for i, shade in zip(shown, shades, strict=True)
        ]
        traces.append(
            {
                "x": made["centres"],
                "y": [2.718281828459045 ** (-x * x / 2) / 2.5066282746310002 for x in made["centres"]],
                "type": "scatter",
                "mode": "lines",
                "name": "N(0, 1)",
                "line": {"color": BLACK, "dash": "dash"},
            }
        )
        layout = {
            "title": say(key, lang),
            "xaxis": {"title": say("enters", lang), "range": [-4, 4]},
            "yaxis": {"title": say("density", lang), "range": [0, 1.3]},
        }
        alt = ", ".join(f"{say('layer', lang, n=i + 1)}: {made[name][i]['std']:.2f}" for i in shown)
        return figure(f"{name}-{lang}", traces, layout, f"{say(key, lang)}: {say('deviation', lang)} {alt}")

    def by_depth(lang: str) -> str:
        traces = [
            {
                "x": list(range(1, layers + 1)),
                "y": [row["std"] for row in made[name]],
                "type": "scatter",
                "mode": "lines+markers",
                "name": say(key, lang),
                "line": {"color": colour},
            }
            for name, key, colour in (("plain", "without_bn", RED), ("normalised", "with_bn", BLUE))
        ]
        layout = {
            "title": say("depth_figure", lang),
            "xaxis": {"title": say("layers", lang), "dtick": 1},
            "yaxis": {"title": say("deviation", lang), "rangemode": "tozero"},
            "height": 300,
        }
        last = made["plain"][-1]["std"], made["normalised"][-1]["std"]
        return figure(f"deviation-{lang}", traces, layout, f"{say('depth_figure', lang)}: {last[0]:.2f}, {last[1]:.2f}")

    def draw(lang: str) -> str:
        both = panel("plain", "without_bn", lang) + panel("normalised", "with_bn", lang)
        return f'<div class="pair">{both}</div>{by_depth(lang)}'

    return f"<h3>{_t('depth')}</h3><p>{_t('depth_told')}</p>{_both(draw)}"


def _equations(made: Mapping[str, Any]) -> str:
    def draw(lang: str) -> str:
        keys = ("form", "strength", "c0", "penalty", "c", "decay", "weight_gap", "bias_gap")
        rows = [
            [
                one["form"],
                f"{one['strength']:g}",
                f"{one['c0']:.6f}",
                f"{one['penalty']:.6f}",
                f"{one['c']:.6f}",
                f"{one['weight_decay']:g}",
                f"{one['weight_gap']:.0e}",
                f"{one['bias_gap']:.0e}" if one["bias_gap"] else "0",
            ]
            for one in made["forms"]
        ]
        return table([say(key, lang) for key in keys], rows)

    return _section("l2", f"<p>{_t('l2_told', n=made['n'])}</p>", _both(draw), f"<p>{_t('gradient_told')}</p>")


def _shrinking(made: Mapping[str, Any]) -> str:
    def draw(lang: str) -> str:
        traces = []
        for name, dash in (("without", "dot"), ("with", "solid")):
            for (parameter, values), colour in zip(made[name].items(), (BLUE, RED, GREEN), strict=False):
                traces.append(
                    {
                        "x": made["steps"],
                        "y": values,
                        "type": "scatter",
                        "mode": "lines",
                        "name": f"{parameter}, {say(name, lang)}",
                        "line": {"color": colour, "dash": dash},
                    }
                )
        layout = {
            "title": say("shrinking_figure", lang),
            "xaxis": {"title": say("steps", lang)},
            "yaxis": {"title": say("norm", lang)},
        }
        alt = "; ".join(
            f"{say(name, lang)}: " + ", ".join(f"{values[0]:.2f} > {values[-1]:.2f}" for values in made[name].values())
            for name in ("without", "with")
        )
        return figure(f"shrinking-{lang}", traces, layout, alt)

    return f"<h3>{_t('shrinking')}</h3><p>{_t('shrinking_told', strength=made['strength'])}</p>{_both(draw)}"


def _maps(made: Mapping[str, Any]) -> str:
    def cell(source: str, caption: str) -> str:
        return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'

    rows = "".join(
        cell(one["input"], _t("channel", n=one["number"]))
        + cell(one["kernel"], _t("kernel"))
        + cell(one["filtered"], _t("filtered"))
        + f"<div>× {_t('weight', w=one['weight'])}</div>"
        for one in made["channels"]
    )
    whose = _t("whose_run", whose=made["whose"]) if made["whose"] else _t("whose_small")
    counts = made["params"]
    return _section(
        "separable",
        f"<p>{_t('separable_told', cin=made['cin'], cout=made['cout'], channel=made['channel'])} {whose}</p>",
        f'<div class="sum">{cell(made["image"], _t("image"))}</div><div class="maps">{rows}</div>',
        f'<div class="sum">{cell(made["output"], _t("sum", cin=made["cin"]))}'
        f"<p>{_t('sum_told', difference=made['difference'])}<br>"
        f"{_t('both_counts', standard=counts['standard'], separable=counts['separable'])}</p></div>",
    )


def _calculator() -> str:
    fields = "".join(
        f'<label for="{name}">{_t(name)}<input id="{name}" type="number" min="1" max="4096" value="{value}"></label>'
        for name, value in (("cin", 64), ("cout", 128), ("side", 3))
    )
    return _section(
        "calculator",
        f"<p>{_t('calculator_told')}</p>",
        f'<div class="calculator">{fields}</div><p class="counts" aria-live="polite">{_t("standard")}: '
        f'<b id="standard">-</b> · {_t("separable_short")}: <b id="separable-count">-</b>'
        '<br><span id="told"></span></p>',
    )


def _ladder(made: Mapping[str, Any]) -> str:
    names = {"connected": "connected", "unshared": "unshared", "standard": "standard", "separable": "separable_short"}

    def rungs(lang: str) -> str:
        rows = [[say(names[r["name"]], lang), f"{r['params']:,}", f"{r['macs']:,}"] for r in made["rows"]]
        return table(["", say("params", lang), say("macs", lang)], rows)

    def growth(lang: str) -> str:
        x = [one["channels"] for one in made["growth"]]
        traces = [
            {
                "x": x,
                "y": [one[name] for one in made["growth"]],
                "type": "scatter",
                "mode": "lines+markers",
                "name": say(names[name], lang),
                "line": {"color": colour},
            }
            for name, colour in (("standard", RED), ("separable", BLUE))
        ]
        layout = {
            "title": say("growth_figure", lang),
            "xaxis": {"title": say("channels", lang), "type": "log", "tickvals": x},
            "yaxis": {"title": say("params", lang), "type": "log", "exponentformat": "SI", "dtick": 1},
        }
        last = made["growth"][-1]
        alt = f"{last['channels']}: {last['standard']:,} / {last['separable']:,}"
        return figure(f"growth-{lang}", traces, layout, alt)

    def losing(lang: str) -> str:
        head = ["Cin", "Cout", say("side", lang), say("standard", lang), say("separable_short", lang)]
        rows = [
            [one["cin"], one["cout"], one["side"], f"{one['standard']:,}", f"{one['separable']:,}"]
            for one in made["losing"]
        ]
        return table(head, rows)

    return _section(
        "ladder",
        f"<p>{_t('ladder_told')}</p>",
        _both(rungs),
        _both(growth),
        f"<h3>{_t('losing')}</h3><p>{_t('losing_told')}</p>",
        _both(losing),
    )
