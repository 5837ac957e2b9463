"""The command ``leanconv``: one file per subcommand, and only the chosen one is imported.

Exit codes: 0 done, 1 findings, 2 usage or bad input (one sentence on stderr), 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from leanconv import __version__
from leanconv.errors import Error

__all__ = ["COMMANDS", "main"]

# Subcommand -> the module that has `configure(parser)` and `run(arguments) -> exit code`, and its line of help.
COMMANDS = {
    "train": ("leanconv.cli.train", "train a network on your own images, or on the demo's"),
    "data": ("leanconv.cli.data", "look for what is wrong with a set of images, before training"),
    "eval": ("leanconv.cli.eval", "how often trained runs are right on labelled images, and how they are wrong"),
    "predict": (
        "leanconv.cli.predict",
        "name what is in photos, with one trained run, the average of several, or a .lean file",
    ),
    "report": ("leanconv.cli.report", "show a run, or several side by side, as a page for the browser"),
    "kernels": ("leanconv.cli.kernels", "which operations run in native code here, and why"),
    "runs": ("leanconv.cli.runs", "list the runs that there are"),
    "tour": ("leanconv.cli.tour", "the source's figures, table and equations, computed and drawn as one page"),
    "cost": ("leanconv.cli.cost", "parameters, multiply-adds and bytes of a network, layer by layer"),
    "fold": ("leanconv.cli.fold", "take out of a trained network what inference does not need, exactly"),
    "export": ("leanconv.cli.export", "write a trained network to one file that runs without torch, or to ONNX"),
    "bench": ("leanconv.cli.bench", "how fast a .lean file runs here, layer by layer, and beside other programs"),
    "separate": ("leanconv.cli.separate", "make a trained network separable under a budget, keeping what it knows"),
    "apply": ("leanconv.cli.apply", "put a technique into a trained network"),
    "remove": ("leanconv.cli.remove", "take a technique out of a trained network"),
    "study": ("leanconv.cli.study", "what each technique brings on your images, with intervals over several seeds"),
    "demo": ("leanconv.cli.demo", "train six small networks and show what each technique brings"),
}

_EPILOG = """\
examples:
  leanconv demo
  leanconv data path/to/images
  leanconv train path/to/images --epochs 10 --name flowers
  leanconv eval runs/flowers path/to/new/images
  leanconv predict runs/flowers photo.jpg
  leanconv report runs/flowers --open
  leanconv runs
  leanconv study path/to/images --budget 2h
  leanconv fold runs/flowers --output flowers-folded
  leanconv separate runs/flowers --budget macs=0.33 --output flowers-lean
  leanconv export runs/flowers-lean --output flowers.lean
  leanconv bench flowers.lean --against onnxruntime
  leanconv cost mobilenet_v1 --input 3,224,224

`leanconv COMMAND --help` tells more. Exit codes: 0 done, 1 findings, 2 usage or bad input.
"""


class _Parser(argparse.ArgumentParser):
    """Usage errors are one sentence, like all others."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise Error(f"{message} (`{self.prog} --help` tells more)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``leanconv``; None: those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except Error as error:
        print(f"leanconv: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("leanconv: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `leanconv cost ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"leanconv {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=2)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise Error(f"the command must be one of {', '.join(COMMANDS)}, got {name!r}{hint}")
    module, told = COMMANDS[name]
    command = import_module(module)
    parser = _Parser(
        prog=f"leanconv {name}",
        description=told[0].upper() + told[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.configure(parser)
    try:
        arguments = parser.parse_args(words[1:])
    except SystemExit as done:  # --help
        return int(done.code or 0)
    return int(command.run(arguments))


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {told}" for name, (_, told) in COMMANDS.items())
    about = "Lean convolutional networks: dropout, batch normalisation, L2 and separable convolution."
    return f"usage: leanconv COMMAND ... | --version | --help\n\n{about}\n\ncommands:\n{lines}\n\n{_EPILOG}"
