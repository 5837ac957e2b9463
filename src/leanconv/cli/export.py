"""``leanconv export RUN``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv export runs/flowers --output flowers.lean
  leanconv export runs/flowers --output flowers.onnx --format onnx
  leanconv export runs/flowers-lean --output flowers.lean --overwrite --json
  leanconv export runs/flowers --output flowers-int8.lean --int8                     # calibrated on the run's images
  leanconv export runs/flowers --output flowers-int8.lean --int8 --data path/to/images --max-drop 0.5 --layers

lean: one file for leanconv.runtime, which needs numpy and no torch; batch norms are folded, dropout is gone, what can
run as one step is one. onnx: for other programs (pip install 'leanconv[onnx]'). The file is read back and compared with
torch on noise and on images of the run, and kept only if it answers as the network does. Networks of your own:
leanconv.export(network, "network.lean", example=x) in Python.

--int8: maps and weights are bytes. Ranges come from some images, accuracy is measured on others, in float and in int8,
and layers stay in float until the loss is at most --max-drop points. A folder of loose images, without labels, will do;
then answers that stay are counted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--format", default="lean", metavar="lean|onnx", help="what to write (default: lean)")
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    told = parser.add_argument_group("int8")
    told.add_argument("--int8", action="store_true", help="maps and weights in bytes")
    told.add_argument("--data", metavar="DIR", help="images to calibrate and to measure on (default: the run's)")
    told.add_argument("--max-drop", type=float, metavar="P", help="points of accuracy that may be lost (default: 1)")
    told.add_argument("--rule", metavar="NAME", help="ranges by mse, percentile or minmax (default: mse)")
    told.add_argument(
        "--percentile", type=float, metavar="P", help="of that rule, which it chooses too (default: 99.99)"
    )
    told.add_argument("--calibrate", type=int, metavar="N", help="images that the ranges come from (default: 256)")
    told.add_argument("--no-equalise", action="store_true", help="leave the channels of layers in a row as they are")
    told.add_argument("--layers", action="store_true", help="print signal to noise, layer by layer")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Translate, write, verify, print."""
    if arguments.format not in ("lean", "onnx"):
        raise Error(f"export: --format must be lean or onnx, got {arguments.format!r}")

    how = {name: getattr(arguments, name) for name in ("max_drop", "rule", "percentile", "calibrate")}
    how = {name: value for name, value in how.items() if value is not None}
    how |= {"equalise": False} if arguments.no_equalise else {}
    if "percentile" in how and how.setdefault("rule", "percentile") != "percentile":
        raise Error(f"export: --percentile is for --rule percentile, got --rule {how['rule']}")
    if not arguments.int8 and (how or arguments.data is not None or arguments.layers):
        word = "--data" if arguments.data is not None else "--" + next(iter(how), "layers").replace("_", "-")
        raise Error(f"export: {word} is for --int8, got it without")

    from leanconv.cli import shown
    from leanconv.deploy import Int8, export

    try:
        done = export(
            arguments.run, arguments.output, arguments.format, int8=Int8(**how) if arguments.int8 else False,
            data=arguments.data, overwrite=arguments.overwrite, progress=_saying(),
        )  # fmt: skip
    finally:
        _clear()
    print(shown.as_json(done.to_dict()) if arguments.json else done.table(arguments.layers))
    return 0


def _saying() -> Callable[[str], None] | None:
    if not sys.stderr.isatty():
        return None
    return lambda words: print(f"\r{words} ...\033[K", end="", file=sys.stderr, flush=True)


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
