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

lean: one file for leanconv.runtime, which needs numpy and no torch; batch norms are folded, dropout is gone, what can
run as one step is one. onnx: for other programs (pip install 'leanconv[onnx]'). The file is read back and compared with
torch on noise and on images of the run, and kept only if it answers as the network does. Networks of your own:
leanconv.export(network, "network.lean", example=x) in Python.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="folder of a run")
    parser.add_argument("--format", default="lean", metavar="lean|onnx", help="what to write (default: lean)")
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write it")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Translate, write, verify, print."""
    if arguments.format not in ("lean", "onnx"):
        raise Error(f"export: --format must be lean or onnx, got {arguments.format!r}")

    from leanconv.cli import shown
    from leanconv.deploy import export

    done = export(arguments.run, arguments.output, arguments.format, overwrite=arguments.overwrite, progress=_saying())
    _clear()
    print(shown.as_json(done.to_dict()) if arguments.json else done.table())
    return 0


def _saying() -> Callable[[str], None] | None:
    if not sys.stderr.isatty():
        return None
    return lambda words: print(f"\r{words} ...\033[K", end="", file=sys.stderr, flush=True)


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
