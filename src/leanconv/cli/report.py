"""``leanconv report RUN [RUN ...]``."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv report runs/flowers                    writes runs/flowers/report.html
  leanconv report runs/a runs/b runs/c            side by side, into report.html
  leanconv report runs/flowers --out page.html --open

One file that opens from the disk and asks for nothing else. `leanconv train` writes it at its end too.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("runs", metavar="RUN", nargs="*", help="folders of runs, finished or not")
    parser.add_argument("--out", metavar="FILE", help="(default: RUN/report.html; report.html of several)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def run(arguments: argparse.Namespace) -> int:
    """Gather, draw, write."""
    if not arguments.runs:
        raise Error("report: RUN must be the folder of a run such as runs/exp, got nothing")
    runs = [Path(name) for name in dict.fromkeys(arguments.runs)]
    out = Path(arguments.out) if arguments.out else (runs[0] if len(runs) == 1 else Path()) / "report.html"
    write(runs, out)
    print(out)
    if arguments.open:
        webbrowser.open(out.resolve().as_uri())
    return 0


def write(runs: list[Path], out: Path) -> None:
    """Gather and draw one page for these runs.

    Raises:
        Error: one is no run, or the file cannot be written.
    """
    from leanconv.portrait import gather
    from leanconv.report.run_page import render
    from leanconv.results import write_bytes

    views = []
    for number, folder in enumerate(runs, 1):
        if sys.stderr.isatty() and len(runs) > 1:
            print(f"run {number} of {len(runs)}: {folder}", file=sys.stderr)
        views.append(gather(folder))
    if out.is_dir() or not out.parent.is_dir():
        raise Error(f"report: --out must be a file in a folder that exists, got {str(out)!r}")
    write_bytes(out, render(views).encode())
