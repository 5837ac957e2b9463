"""The frame of every page: one HTML file with its style, script and figures inside, and no request to anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

from leanconv.errors import Error

__all__ = ["COLOURS", "document", "escape", "figure", "script", "table"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by people who see few: blue, vermilion, green, purple, orange, sky, black."""

_FONT = {"family": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', "size": 13, "color": "#1b1f24"}
_AXIS = {"gridcolor": "#e6eaee", "zerolinecolor": "#c8d0d8", "linecolor": "#8c959f", "automargin": True}
_LAYOUT: dict[str, Any] = {
    "font": _FONT,
    "colorway": list(COLOURS),
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 56, "r": 16, "t": 40, "b": 48},
    "height": 340,
    "legend": {"orientation": "h", "y": -0.2, "yref": "paper", "x": 0, "yanchor": "top"},
    "hovermode": "closest",
    "xaxis": _AXIS,
    "yaxis": _AXIS,
}


def escape(text: object) -> str:
    """Text as it stands in HTML, quotes too."""
    return html.escape(str(text), quote=True)


def document(
    title: str,
    body: str,
    *,
    lang: str = "en",
    scripts: Sequence[str] = (),
    first: Sequence[str] = (),
    plotly: bool = True,
    description: str = "",
) -> str:
    """A whole page.

    Args:
        title: of the window.
        body: HTML of the main part.
        lang: of the page's language.
        scripts: JavaScript of the page's own, run after its elements are there.
        first: JavaScript that needs no figure and runs before they are drawn.
        plotly: put the drawing library in; a page without figures needs none.
        description: one sentence for those who list pages.

    Returns:
        HTML that opens from the disk and asks for nothing else.

    Raises:
        Error: plotly is not installed.
    """
    code = [*first, *([_plotly(), script("page.js")] if plotly else []), *scripts]
    told = f'<meta name="description" content="{escape(description)}">\n' if description else ""
    # An empty icon, so that no browser asks for one.
    return (
        f'<!doctype html>\n<html lang="{escape(lang)}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n{told}'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{script('page.css')}</style>\n</head>\n<body>\n"
        f"<main>\n{body}\n</main>\n{''.join(f'<script>{_inline(part)}</script>' for part in code)}\n</body>\n</html>\n"
    )


def figure(name: str, data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], alt: str, caption: str = "") -> str:
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
    for axis, values in whole.items():
        if axis.startswith(("xaxis", "yaxis")) and isinstance(values.get("title"), str):
            values["title"] = {"text": values["title"], "font": {"size": 12}, "standoff": 8}
    packed = json.dumps({"data": list(data), "layout": whole}, allow_nan=False, separators=(",", ":"))
    packed = packed.replace("</", "<\\/")
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure data-plot="{escape(name)}"><div class="plot" id="{escape(name)}" role="img" '
        f'aria-label="{escape(alt)}" style="height:{int(whole["height"])}px"></div>'
        f'<script type="application/json">{packed}</script>{under}</figure>'
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
    head_row = row(head, "th")
    return f'<div class="scroll" tabindex="0"><table>{told}<thead>{head_row}</thead><tbody>{body}</tbody></table></div>'


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for key, value in more.items():
        old = made.get(key, _AXIS if key.startswith(("xaxis", "yaxis")) else None)
        made[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return made


def _inline(code: str) -> str:
    return code.replace("</script", "<\\/script")


def script(name: str) -> str:
    """The text of a file that lies beside this one."""
    return files("leanconv.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        code: str = import_module("plotly.offline").get_plotlyjs()
    except ImportError:
        raise Error("report: figures need plotly (pip install 'leanconv[report]'), got none") from None
    return code
