"""``leanconv remove RUN|MODEL TECHNIQUE``."""

from __future__ import annotations

import argparse

from leanconv.cli import rewriting

_EPILOG = """\
examples:
  leanconv remove runs/flowers dropout --output flowers-plain
  leanconv remove runs/flowers separable --output flowers-dense      # multiplied out, exactly, where that can be
  leanconv remove runs/flowers batchnorm --dry-run

What a network computes may change when a technique goes; the certificate tells by how much. `leanconv fold` takes out
what can go without any change.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    rewriting.configure(parser, "to judge the network on")
    parser.add_argument("technique", metavar="TECHNIQUE", help="dropout, batchnorm or separable")


def run(arguments: argparse.Namespace) -> int:
    """Take it out, certify, keep."""
    subject = rewriting.open_subject(arguments, "remove")

    from leanconv import surgery

    return rewriting.finish(
        arguments,
        "remove",
        subject,
        lambda: surgery.remove(
            subject.model, arguments.technique, example=subject.example, latency=not arguments.no_latency
        ),
    )
