"""``leanconv bench FILE.lean``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.benchmarking import Measurement, Report

_EPILOG = """\
examples:
  leanconv bench flowers.lean
  leanconv bench flowers.lean --batch 1 16 --threads 1 2
  leanconv bench flowers.lean --against onnxruntime openvino --onnx flowers.onnx
  leanconv bench flowers.lean --against torch --run runs/flowers --json

Every contender is a process of its own, and all take turns in the same rounds, so that whatever else the machine does
falls on all of them. Times are medians over the rounds with 95 % intervals, for the whole batch; "x ours" is a
contender's time by that of the file, round by round. The peak is what a burst of multiply-adds in registers reaches in
the same rounds; for steps in int8, a burst of bytes. openvino runs in float32, torch channels_last, eager and compiled.
A contender whose package is missing is named and left out. Without torch among the contenders nothing here imports it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("file", metavar="FILE.lean", help="an exported network")
    parser.add_argument(
        "--against", nargs="+", default=[], metavar="NAME", help="onnxruntime, openvino, torch (default: none)"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], metavar="N", help="images at once (default: 1)")
    parser.add_argument(
        "--threads", nargs="+", type=int, metavar="N", help="threads of every contender (default: all cores at hand)"
    )
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each contender (default: 15)")
    parser.add_argument("--onnx", metavar="FILE", help="the same network as ONNX (default: beside FILE.lean)")
    parser.add_argument("--run", metavar="RUN", help="the run that it was made of, for torch")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print."""
    if not arguments.file.lower().endswith(".lean"):
        raise Error(f"bench: FILE must be a .lean file (leanconv export RUN --output FILE), got {arguments.file!r}")

    from leanconv.benchmarking import measure
    from leanconv.cli import shown
    from leanconv.runtime.threads import usable_cores

    terminal = sys.stderr.isatty()
    words = [word for given in arguments.against for word in given.split(",") if word]
    report = measure(
        arguments.file,
        words,
        batch=arguments.batch,
        threads=arguments.threads or [min(usable_cores(), 64)],
        rounds=arguments.rounds,
        onnx=arguments.onnx,
        run=arguments.run,
        progress=(lambda told: print(f"\r{told} ...\033[K", end="", file=sys.stderr, flush=True)) if terminal else None,
    )
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(shown.as_json(report.to_dict()) if arguments.json else _told(report))
    return 0


def _told(report: Report) -> str:
    shape, ways = " x ".join(map(str, report.shape)), " ".join(filter(None, (report.isa, report.path)))
    parts = [f"{report.file}: {shape}, {report.macs:,} MACs an image, {report.executor} {ways}".rstrip()]
    parts += [f"{name} is left out: {package} is not installed" for name, package in report.missing.items()]
    for one in report.measurements:
        parts += ["", _head(one), _contenders(one), "", _layers(one)]
    return "\n".join(parts)


def _head(one: Measurement) -> str:
    peak = "no peak" if one.peak is None else f"peak {one.peak / 1e9:.0f} G MACs a second"
    peak += f", {one.int8_peak / 1e9:.0f} G of bytes" if one.int8_peak else ""
    busy = f"; other processes took {one.others:.1f} cores" if one.others > 0.1 else ""
    return f"batch {one.batch}, {one.threads} thread{'s' if one.threads > 1 else ''}, {one.rounds} rounds, {peak}{busy}"


def _contenders(one: Measurement) -> str:
    from leanconv.cli import shown

    rows = []
    for name, row in one.contenders.items():
        interval = f"{row.low:.3g} to {row.high:.3g}"
        ratio = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        told = f"{name} {row.version}".rstrip()
        rate = f"{row.images_per_second:,.0f}"
        rows.append([told, f"{row.median:.3g}", interval, rate, _percent(row.of_peak), ratio, f"{row.difference:.0e}"])
    return shown.table(["", "ms", "95 %", "images/s", "% of peak", "x ours", "difference"], rows)


def _layers(one: Measurement) -> str:
    from leanconv.cli import shown

    rows = [
        [
            row.layer or "-",
            row.op,
            " x ".join(map(str, row.shape)),
            f"{row.macs:,}",
            "-" if row.microseconds is None else f"{row.microseconds:.1f}",
            _percent(row.of_peak),
            _percent(row.share),
        ]
        for row in one.layers
    ]
    return shown.table(["layer", "op", "output", "MACs", "us", "% of peak", "% of time"], rows, 3)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
