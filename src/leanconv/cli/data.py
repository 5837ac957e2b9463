"""``leanconv data DATA``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.data import Finding, Report

_EPILOG = """\
examples:
  leanconv data path/to/images
  leanconv data path/to/images --imgsz 128 --json
  leanconv data images.npz
  leanconv data hf:owner/name                 fetched from the Hugging Face hub; only names with hf: ever are
  leanconv data --clear-cache

DATA is what `leanconv train` takes. Exit codes: 0 clean (notes at most), 1 errors or warnings, 2 bad input.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "data", metavar="DATA", nargs="?", help="a folder, .parquet or .npz file, hf:owner/name, `demo`"
    )
    parser.add_argument("--imgsz", type=int, metavar="PX", help="side of the images in pixels")
    parser.add_argument("--in-chans", type=int, metavar="N", help="1 grey, 3 colour")
    parser.add_argument("--strict-data", action="store_true", help="an unreadable image is an error")
    parser.add_argument("--no-cache", action="store_true", help="decode into memory, write nothing")
    parser.add_argument("--clear-cache", action="store_true", help="remove all cached images first")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Look, print."""
    from leanconv import data
    from leanconv.cli import shown

    if arguments.clear_cache:
        freed = data.clear_cache()
        print(f"cache {data.cache_folder()} cleared: {freed:,} bytes", file=sys.stderr)
        if not arguments.data:
            return 0
    if not arguments.data:
        raise Error("data: DATA must be a folder of images, a file of them or `demo`, got nothing")
    loaded = data.load(
        arguments.data,
        imgsz=arguments.imgsz,
        in_chans=arguments.in_chans,
        cache=not arguments.no_cache,
        strict=arguments.strict_data,
        progress=shown.counting("images"),
    )
    report = data.gate(loaded)
    print(shown.as_json(report.to_dict()) if arguments.json else page(report))
    return 0 if report.clean else 1


def page(report: Report) -> str:
    """The report as text."""
    from leanconv.cli import shown

    head = ["class", *report.counts]
    rows = [[name, *(f"{table[name]:,}" for table in report.counts.values())] for name in report.classes]
    total = ["all", *(f"{sum(table.values()):,}" for table in report.counts.values())]
    colour = "grey" if report.in_chans == 1 else "colour"
    lines = [
        f"data             {report.source}",
        f"images           {report.total:,}, read as {report.imgsz} x {report.imgsz} {colour}",
        f"modes            {_listed(report.modes)}",
        f"sizes            {_listed(report.sizes)}",
        f"mean, deviation  {_values(report.mean)}; {_values(report.std)} (0 to 1, per channel, train)",
        f"fingerprint      {report.fingerprint}",
        "",
        shown.table(head, [*rows, total]),
        "",
        *_compared(report),
        "",
        *[line for finding in report.findings for line in _finding(finding)],
        *[f"note             {note}" for note in report.notes],
        "",
        _verdict(report),
    ]
    return "\n".join(lines)


def _finding(finding: Finding) -> list[str]:
    lines = [f"{finding.code} {finding.severity:<11} {finding.message}"]
    lines += [f"{'':17}- {name}" for name in finding.shown]
    more = finding.count - len(finding.shown)
    return lines + ([f"{'':17}- and {more:,} more"] if finding.shown and more > 0 and len(finding.shown) >= 10 else [])


def _compared(report: Report) -> list[str]:
    shares, energy = report.tests["class_shares"], report.tests["two_sample"]
    far = max((abs(v["d"]) for v in report.tests["channels"].values()), default=0.0)
    return [
        f"train and {report.compared}, compared:",
        f"  class shares     apart by {shares['distance']:.1%}, chi-square {shares['chi2']:.2f} "
        f"({shares['df']} degrees of freedom), p = {shares['p']:.3g}",
        f"  channels         means and deviations apart by at most {far:.2f} deviations between images",
        f"  two-sample test  energy distance {energy['statistic']:.3g}, p = {energy['p']:.3g} "
        f"({energy['permutations']} permutations, {energy['sampled'][0]} + {energy['sampled'][1]} images)",
    ]


def _verdict(report: Report) -> str:
    counts = {kind: sum(f.severity == kind for f in report.findings) for kind in ("error", "warning", "note")}
    told = ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for kind, n in counts.items() if n)
    return f"{'clean' if report.clean else 'look before you train'}: {told or 'nothing found'}"


def _listed(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {n:,}" for name, n in list(counts.items())[:5]]
    return ", ".join(shown) + (", ..." if len(counts) > 5 else "") if shown else "-"


def _values(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
