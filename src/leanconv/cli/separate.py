"""``leanconv separate RUN|MODEL``."""

from __future__ import annotations

import argparse
import sys

from leanconv.cli import rewriting
from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv separate runs/flowers --budget macs=0.33 --data path/to/images --output flowers-lean
  leanconv separate runs/flowers --budget latency=0.5 --data path/to/images --epochs 2 --output flowers-fast
  leanconv separate runs/flowers --budget params=200000 --data path/to/images --dry-run
  leanconv separate runs/flowers --ranks features.3=2 --ranks features.6.first.0=3 --output flowers-lean

The budget is of the whole network: macs, params or latency, as a share (at most 1) or an amount (latency=2ms). With
--data each layer is fitted to what it puts out on those images, batch norm's statistics are computed anew, and with
--epochs the network learns from the original; without --data the weights alone decide. A latency is measured here.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    rewriting.configure(parser, "to fit the layers to, to learn from, and to judge the network on")
    parser.add_argument("--budget", metavar="UNIT=AMOUNT", help="of the whole network: macs, params or latency")
    parser.add_argument("--ranks", action="append", default=[], metavar="LAYER=N", help="in place of a budget")
    parser.add_argument("--epochs", type=int, default=0, metavar="N", help="learn from the original (default: 0)")
    parser.add_argument("--lr", type=float, default=None, metavar="RATE", help="of that learning")
    parser.add_argument("--method", default="outputs", metavar="HOW", help="outputs (default), or weights: plain SVD")


def run(arguments: argparse.Namespace) -> int:
    """Separate, certify, keep."""
    ranks = dict(_rank(text) for text in arguments.ranks)
    if arguments.epochs < 0:
        raise Error(f"separate: --epochs must be at least 0, got {arguments.epochs}")
    if arguments.epochs and arguments.data is None:
        raise Error(f"separate: --epochs {arguments.epochs} needs --data to learn from, got none")
    subject = rewriting.open_subject(arguments, "separate")

    from leanconv import surgery

    learning = surgery.Distil() if arguments.lr is None else surgery.Distil(lr=arguments.lr)
    return rewriting.finish(
        arguments,
        "separate",
        subject,
        lambda: surgery.separate(
            subject.model,
            budget=arguments.budget,
            ranks=ranks or None,
            batches=subject.batches(arguments.images),
            images=subject.images,
            epochs=arguments.epochs,
            learning=learning,
            method=arguments.method,
            example=subject.example,
            latency=not arguments.no_latency,
            told=_say if sys.stderr.isatty() else None,
        ),
    )


def _say(sentence: str) -> None:
    print(f"\r{sentence}\033[K", end="", file=sys.stderr, flush=True)


def _rank(text: str) -> tuple[str, int]:
    path, equals, rank = text.rpartition("=")
    if not equals or not path or not rank.isdecimal() or int(rank) < 1:
        raise Error(f"separate: --ranks must be LAYER=N such as features.3=2, got {text!r}")
    return path, int(rank)
