"""``leanconv tour``."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv tour                       writes tour.html
  leanconv tour --lang zh --open
  leanconv tour --run runs/flowers    kernels and feature maps of your own network, on your own image

One page in English and Chinese, that opens from the disk and asks for nothing else.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--run", metavar="RUN", help="whose layer is shown at work (default: a small network, trained now)"
    )
    parser.add_argument("--lang", metavar="LANG", default="en", help="shown first: en or zh (default: en)")
    parser.add_argument("--out", metavar="FILE", default="tour.html", help="(default: tour.html)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def run(arguments: argparse.Namespace) -> int:
    """Compute, draw, write."""
    if arguments.lang not in ("en", "zh"):
        raise Error(f"tour: --lang must be en or zh, got {arguments.lang!r}")
    out = Path(arguments.out)
    if out.is_dir() or not out.parent.is_dir():
        raise Error(f"tour: --out must be a file in a folder that exists, got {str(out)!r}")

    from leanconv import tour
    from leanconv.report.tour_page import render
    from leanconv.results import write_bytes

    write_bytes(out, render(tour.make(arguments.run), arguments.lang).encode())
    print(out)
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())
    return 0
