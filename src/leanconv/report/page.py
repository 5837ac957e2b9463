"""The frame of every page: one HTML file with its style, its script and its figures inside, and no request to anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from leanconv.errors import Error

__all__ = ["COLOURS", "document", "escape", "figure", "table"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by people who see few colours: blue, vermilion, green, purple, orange, sky, black."""

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --blue: #0072B2; --back: #ffffff; --panel: #f6f8fa }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 64px }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 8px 0 4px }
h2 { font-size: 1.3rem; margin: 44px 0 6px; padding-top: 12px; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 24px 0 4px }
p { margin: 6px 0 12px; max-width: 76ch }
p.lead { font-size: 1.2rem; line-height: 1.45; max-width: 70ch }
p.note, figcaption, caption { color: var(--soft); font-size: .92rem }
a { color: var(--blue) }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .88rem }
pre { background: var(--panel); padding: 12px; border-radius: 8px; overflow-x: auto; margin: 8px 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0 }
.tile { background: var(--panel); border-radius: 10px; padding: 12px 14px }
.tile b { display: block; font-size: 1.45rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums }
.tile span { display: block; color: var(--soft); font-size: .88rem }
.scroll { overflow-x: auto; margin: 8px 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; min-width: 40% }
caption { text-align: left; padding-bottom: 4px; caption-side: top }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
td.text, th.text { text-align: left; white-space: normal }
figure { margin: 10px 0 4px }
.plot { width: 100% }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 8px 24px }
.pair > * { min-width: 0 }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 12px; margin: 12px 0 }
.photos figure { margin: 0 }
.photos img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px; image-rendering: auto; background: var(--panel) }
.photos img.small { image-rendering: pixelated }
.photos figcaption { font-size: .82rem; line-height: 1.35; overflow-wrap: anywhere }
details { border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; margin: 10px 0 }
summary { cursor: pointer; font-weight: 600 }
button, select, input { font: inherit; color: inherit; background: #fff; border: 1px solid #8c959f; border-radius: 8px; padding: 6px 12px }
button { cursor: pointer }
button:hover { background: var(--panel) }
:focus-visible { outline: 3px solid #E69F00; outline-offset: 2px }
.finding { border-left: 4px solid var(--line); padding: 2px 0 2px 12px; margin: 8px 0 }
.finding.error { border-color: #D55E00 } .finding.warning { border-color: #E69F00 } .finding.note { border-color: #56B4E9 }
.missing { background: #fff8e6; border-radius: 8px; padding: 10px 14px; margin: 12px 0 }
nav { font-size: .92rem; margin: 6px 0 }
nav a { margin-right: 14px; white-space: nowrap }
footer { margin-top: 56px; color: var(--soft); font-size: .88rem; border-top: 1px solid var(--line); padding-top: 12px }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap }
@media (max-width: 560px) { main { padding: 14px 14px 48px } h1 { font-size: 1.5rem } p.lead { font-size: 1.08rem }
  .tile b { font-size: 1.2rem } .tiles { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)) } }
@media print { main { max-width: none; padding: 0 } h2 { break-after: avoid } figure, table, .tile { break-inside: avoid }
  button, nav, select { display: none } details > * { display: block } }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important } }
"""

_FONT = {"family": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', "size": 13, "color": "#1b1f24"}
_AXIS = {"gridcolor": "#e6eaee", "zerolinecolor": "#c8d0d8", "linecolor": "#8c959f", "automargin": True}
_LAYOUT: dict[str, Any] = {
    "font": _FONT,
    "colorway": list(COLOURS),
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 56, "r": 16, "t": 40, "b": 48},
    "height": 340,
    "legend": {"orientation": "h", "y": -0.22, "x": 0, "yanchor": "top"},
    "hovermode": "closest",
    "xaxis": _AXIS,
    "yaxis": _AXIS,
}

_DRAW = """
(function () {
  function draw(place) {
    var made = JSON.parse(place.querySelector('script').textContent);
    var plot = place.querySelector('.plot');
    Plotly.newPlot(plot, made.data, made.layout, {responsive: true, displayModeBar: false});
  }
  document.addEventListener('DOMContentLoaded', function () {
    var places = document.querySelectorAll('figure[data-plot]');
    function shown(place) { return place.offsetParent !== null; }
    places.forEach(function (place) { if (shown(place)) { draw(place); place.dataset.drawn = '1'; } });
    document.addEventListener('toggle', function (event) {
      if (!event.target.open) { return; }
      event.target.querySelectorAll('figure[data-plot]').forEach(function (place) {
        if (!place.dataset.drawn && shown(place)) { draw(place); place.dataset.drawn = '1'; }
      });
    }, true);
    window.drawFigures = function () {
      places.forEach(function (place) {
        if (!place.dataset.drawn && shown(place)) { draw(place); place.dataset.drawn = '1'; }
      });
    };
  });
})();
"""


def escape(text: object) -> str:
    """Text as it stands in HTML, quotes too."""
    return html.escape(str(text), quote=True)


def document(
    title: str, body: str, *, lang: str = "en", scripts: Sequence[str] = (), plotly: bool = True, description: str = ""
) -> str:
    """A whole page.

    Args:
        title: of the window.
        body: HTML of the main part.
        lang: of the page's language.
        scripts: JavaScript of the page's own, run after its elements are there.
        plotly: put the drawing library in; a page without figures needs none.
        description: one sentence for those who list pages.

    Returns:
        HTML that opens from the disk and asks for nothing else.

    Raises:
        Error: plotly is not installed.
    """
    code = [*([_plotly(), _DRAW] if plotly else []), *scripts]
    told = f'<meta name="description" content="{escape(description)}">\n' if description else ""
    # An empty icon, so that no browser asks for one.
    return (
        f'<!doctype html>\n<html lang="{escape(lang)}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{told}'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<main>\n{body}\n</main>\n{''.join(f'<script>{_inline(part)}</script>' for part in code)}\n</body>\n</html>\n"
    )


def figure(
    name: str, data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], alt: str, caption: str = ""
) -> str:
    """A figure that is drawn when it comes into sight.

    Args:
        name: unique in the page.
        data: traces, as plotly's JSON has them.
        layout: as plotly's JSON has it; what is not said is as in all figures.
        alt: what the figure shows, in words, for those who do not see it.
        caption: stands below it.

    Returns:
        HTML.
    """
    whole = _merged(_LAYOUT, layout)
    if isinstance(whole.get("title"), str):
        whole["title"] = {"text": whole["title"], "x": 0, "xanchor": "left", "font": {"size": 15}}
    packed = json.dumps({"data": list(data), "layout": whole}, allow_nan=False, separators=(",", ":"))
    packed = packed.replace("</", "<\\/")
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure data-plot="{escape(name)}"><div class="plot" id="{escape(name)}" role="img" aria-label="{escape(alt)}" '
        f'style="height:{int(whole["height"])}px"></div><script type="application/json">{packed}</script>{under}</figure>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", text: Sequence[int] = ()) -> str:
    """A table that scrolls sideways where it must.

    Args:
        head: of the columns.
        rows: their cells; escaped here.
        caption: what it shows.
        text: columns of prose: to the left, and broken into lines.
    """

    def row(cells: Sequence[object], tag: str) -> str:
        kinds = [' class="text"' if i in text else "" for i in range(len(cells))]
        scope = ' scope="col"' if tag == "th" else ""
        inner = "".join(f"<{tag}{scope}{kind}>{escape(c)}</{tag}>" for c, kind in zip(cells, kinds, strict=True))
        return f"<tr>{inner}</tr>"

    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="scroll" tabindex="0"><table>{told}<thead>{row(head, "th")}</thead><tbody>{body}</tbody></table></div>'
    )


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for key, value in more.items():
        old = made.get(key, _AXIS if key.startswith(("xaxis", "yaxis")) else None)
        made[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return made


def _inline(code: str) -> str:
    return code.replace("</script", "<\\/script")


def _plotly() -> str:
    try:
        code: str = import_module("plotly.offline").get_plotlyjs()
    except ImportError:
        raise Error("report: figures need plotly (pip install 'leanconv[report]'), got none") from None
    return code
