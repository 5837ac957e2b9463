"""``leanconv fold RUN|MODEL``."""

from __future__ import annotations

import argparse

from leanconv.cli import rewriting

_EPILOG = """\
examples:
  leanconv fold runs/flowers --dry-run
  leanconv fold runs/flowers --output flowers-folded
  leanconv fold runs/flowers --output flowers-folded --data path/to/images   # and its accuracy, before and after
  leanconv fold package.module:attribute --weights net.safetensors --input 3,224,224 --output net-folded

Dropout goes, batch norms go into the layers beside them. Outputs in eval mode stay equal, certified in float64, or the
place is refused with its reason; runs/NAME/certificate.json has all of it. Exit code 1: nothing could be folded.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    rewriting.configure(parser, "to judge the network on")
    parser.add_argument("--merge", action="store_true", help="also multiply separable convolutions out into dense ones")


def run(arguments: argparse.Namespace) -> int:
    """Fold, certify, keep."""
    subject = rewriting.open_subject(arguments, "fold")

    from leanconv import surgery

    return rewriting.finish(
        arguments,
        "fold",
        subject,
        lambda: surgery.fold(
            subject.model, merge=arguments.merge, example=subject.example, latency=not arguments.no_latency
        ),
    )
