"""``leanconv runs [FOLDER]``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.results import Listed, Run

_EPILOG = """\
examples:
  leanconv runs
  leanconv runs --sort val
  leanconv runs runs/study --json

Columns: accuracies in percent, of the network that was kept; parameters and multiply-adds (MACs) of one image; seconds
per epoch, training alone. Of a run that is not done the last epoch's val is shown.
"""
_SORTS = ("time", "name", "val", "test", "params", "macs")


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs", help="where to look (default: runs)")
    parser.add_argument(
        "--sort", metavar="BY", default="time", help=f"{', '.join(_SORTS)} (default: time, newest first)"
    )
    parser.add_argument("--json", action="store_true", help="print every record as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Look, print. Exit code 1: a record cannot be read."""
    from leanconv.cli import shown
    from leanconv.results import runs_below

    if arguments.sort not in _SORTS:
        raise Error(f"runs: --sort must be one of {', '.join(_SORTS)}, got {arguments.sort!r}")
    if not Path(arguments.folder).is_dir():
        if arguments.folder == "runs":
            print("[]" if arguments.json else "no runs here yet: `leanconv train DATA` makes one")
            return 0
        raise Error(f"runs: FOLDER must be a folder that exists, got {arguments.folder!r}")
    found = sorted(runs_below(arguments.folder), key=lambda one: _key(one, arguments.sort))
    if arguments.json:
        print(shown.as_json([_plain(one) for one in found]))
    elif not found:
        print(f"no runs in {arguments.folder} yet: `leanconv train DATA` makes one")
    else:
        head = ["run", "status", "model", "epochs", "val", "test", "gap", "params", "MACs", "s/epoch", "changed"]
        print(shown.table(head, [_row(one) for one in found], left=3))
    return 1 if any(one.run is None for one in found) else 0


def _key(one: Listed, sort: str) -> tuple[bool, float, str]:
    """What cannot be told comes last."""
    value = _value(one, sort)
    return value is None, value or 0.0, str(one.folder)


def _value(one: Listed, sort: str) -> float | None:
    if sort in ("time", "name"):
        return -one.changed if sort == "time" else 0.0
    if one.run is None:
        return None
    if sort in ("val", "test"):
        score = one.run.val if sort == "val" else one.run.test
        return -score.accuracy if score else None
    return one.run.params if sort == "params" else one.run.macs


def _plain(one: Listed) -> dict[str, Any]:
    when = datetime.fromtimestamp(one.changed).isoformat(timespec="seconds")
    told = asdict(one.run) if one.run else {"status": "damaged", "reason": one.reason}
    return {"folder": str(one.folder), "changed": when, **told}


def _row(one: Listed) -> list[str]:
    when = datetime.fromtimestamp(one.changed).strftime("%Y-%m-%d %H:%M")
    if one.run is None:
        return [str(one.folder), "damaged", *["-"] * 8, when]
    run, (epochs, val) = one.run, _progress(one)
    planned = run.recipe.get("training", {}).get("epochs", "?")
    gap = run.gap
    return [
        str(one.folder),
        run.status,
        str(run.recipe.get("model", {}).get("name", "-")),
        f"{epochs}/{planned}",
        val,
        f"{100 * run.test.accuracy:.1f}" if run.test else "-",
        f"{100 * gap.value:+.1f}" if gap else "-",
        _short(run.params),
        _short(run.macs),
        f"{run.seconds_per_epoch:.1f}" if run.seconds_per_epoch is not None else "-",
        when,
    ]


def _progress(one: Listed) -> tuple[int, str]:
    """Epochs that are done, and val: of the kept network, or of the last epoch while it is not done."""
    from leanconv.results import read_metrics

    run: Run | None = one.run
    if run is not None and run.val:
        return run.epochs, f"{100 * run.val.accuracy:.1f}"
    try:
        rows = read_metrics(one.folder)
    except Error:
        rows = []
    return len(rows), f"{100 * rows[-1].val.accuracy:.1f}" if rows else "-"


def _short(count: int | None) -> str:
    """``75.2 k``, ``1.19 M``."""
    if count is None:
        return "-"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
