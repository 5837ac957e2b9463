"""``leanconv apply RUN|MODEL TECHNIQUE``."""

from __future__ import annotations

import argparse

from leanconv.cli import rewriting

_EPILOG = """\
examples:
  leanconv apply runs/flowers batchnorm --data path/to/images --output flowers-bn
  leanconv apply runs/flowers dropout --set p=0.2 --set where=hidden --output flowers-drop
  leanconv apply runs/flowers group --output flowers-groups
  leanconv apply runs/flowers batchnorm --dry-run

TECHNIQUE is batchnorm or dropout (kept exact in eval mode; batch norms are calibrated on --data), separable (nearest to
the dense weights; `leanconv separate` looks at the outputs instead), or another norm in place of batch norm: frozen,
synchronised, group, torch, leanconv, reorder.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    rewriting.configure(parser, "to calibrate batch norms on, and to judge the network on")
    parser.add_argument("technique", metavar="TECHNIQUE", help="what is put in")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the technique")


def run(arguments: argparse.Namespace) -> int:
    """Put it in, certify, keep."""
    from leanconv.cli.cost import setting

    options = dict(setting(text) for text in arguments.set)
    subject = rewriting.open_subject(arguments, "apply")

    from leanconv import surgery
    from leanconv.surgery.plan import CONVERSIONS

    timed = not arguments.no_latency
    if arguments.technique in CONVERSIONS:
        return rewriting.finish(
            arguments,
            "apply",
            subject,
            lambda: surgery.convert(
                subject.model, arguments.technique, example=subject.example, latency=timed, **options
            ),
        )
    return rewriting.finish(
        arguments,
        "apply",
        subject,
        lambda: surgery.apply(
            subject.model,
            arguments.technique,
            options,
            example=subject.example,
            batches=subject.batches(arguments.images),
            latency=timed,
        ),
    )
