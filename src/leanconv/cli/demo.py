"""``leanconv demo``, which is ``make demo``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.allocator import Tuned
    from leanconv.demo import Arm

_EPILOG = """\
examples:
  leanconv demo                   six networks, one seed, a few minutes
  leanconv demo --seeds 5         five seeds: means with intervals
  leanconv demo --epochs 2        quick and rough

The images ship with the package (5,000 + 1,000 of Fashion-MNIST, 28 x 28). Runs go to runs/demo/<arm>, overwritten.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings per network (default: 1)")
    parser.add_argument("--epochs", metavar="N", help="passes over the training images (default: the recipe's)")
    parser.add_argument("--recipe", default="demo", metavar="NAME|FILE", help="whose techniques are compared")
    parser.add_argument("--jobs", type=int, metavar="N", help="trainings at once (default: as the cores allow)")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train, print."""
    if arguments.seeds < 1:
        raise Error(f"demo: --seeds must be at least 1, got {arguments.seeds}")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise Error(f"demo: --jobs must be at least 1, got {arguments.jobs}")

    from leanconv import demo, recipe
    from leanconv.cli import shown

    whole = recipe.override(recipe.load(arguments.recipe), epochs=arguments.epochs)
    tuned = shown.tune()
    seeds = range(whole.training.seed, whole.training.seed + arguments.seeds)
    arms = demo.run(whole, seeds, jobs=arguments.jobs)
    if arguments.json:
        print(shown.as_json([arm.to_dict() for arm in arms]))
    else:
        print(text(arms, tuned))
    return 0


def text(arms: Sequence[Arm], tuned: Tuned) -> str:
    """The table, and what its numbers are."""
    from leanconv.cli import shown
    from leanconv.demo import BATCH

    head = ("", "train %", "test % (95 % interval)", "gap", "parameters", "MACs", "s/epoch", "ms/image")
    rows = []
    for arm in arms:
        first, test = arm.runs[0], arm.test
        rows.append(
            (
                arm.title,
                f"{100 * arm.train.value:.1f}",
                f"{100 * test.value:.1f} ({100 * test.low:.1f} to {100 * test.high:.1f})",
                f"{100 * arm.gap.value:+.1f}",
                f"{first.params:,}",
                f"{first.macs:,}",
                f"{arm.seconds_per_epoch:.2f}",
                f"{arm.ms_per_image:.3f}",
            )
        )
    first = arms[0].runs[0]
    images = {name: sum(counts.values()) for name, counts in first.data["counts"].items()}
    seeds = len(arms[0].runs)
    told = (
        "One seed: the intervals (Wilson's, over the test images) do not tell how another seed would do."
        if seeds == 1
        else f"{seeds} seeds: means, with Student's 95 % interval over the seeds."
    )
    notes = [
        f"{images['train']:,} images to train, {images['val']:,} to select, {images['test']:,} to test; "
        f"{first.epochs} epochs.",
        told,
        "Accuracies in eval mode on unaugmented images; gap = train - test, in points; test images choose nothing.",
        f"MACs for one image; ms/image in batches of {BATCH}, {first.environment['threads']} thread(s), in turns.",
    ]
    peak = max(run.extra["memory"]["peak"] for arm in arms for run in arm.runs)
    notes.append(f"Allocator {'tuned' if tuned.tuned else tuned.reason}: at most {peak / 1e6:,.0f} MB a training.")
    return shown.table(head, rows) + "\n\n" + "\n".join(notes)
