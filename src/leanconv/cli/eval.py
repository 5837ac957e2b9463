"""``leanconv eval RUN... [DATA]``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.prediction import Evaluation

_EPILOG = """\
examples:
  leanconv eval runs/flowers                       the test images of its own data; val where there are none
  leanconv eval runs/flowers path/to/new/images    a folder per class; may hold fewer classes than the run knows
  leanconv eval runs/a runs/b runs/c test.parquet  the average of three runs
  leanconv eval runs/flowers --samples 50          Monte-Carlo dropout
  leanconv eval runs/flowers --split train --json

On the data that it was trained on a run keeps its own splits, so that no image it learned from is counted.
"""
_SHOWN = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "paths", metavar="RUN|DATA", nargs="*", help="folders of runs, then images (default: the run's)"
    )
    parser.add_argument("--split", metavar="NAME", help="train, val or test (default: test, else val, else all)")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="N", help="Monte-Carlo dropout with N samples (default: 0, off)"
    )
    parser.add_argument(
        "--mistakes", type=int, default=10, metavar="N", help="how many to list, the surest first (default: 10)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print the confusion matrix as CSV")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print."""
    from leanconv.cli import shown
    from leanconv.training.folder import is_run

    runs = [p for p in arguments.paths if is_run(Path(p))]
    rest = [p for p in arguments.paths if p not in runs]
    if not runs:
        got = repr(arguments.paths[0]) if arguments.paths else "nothing"
        raise Error(f"eval: RUN must be the folder of a run such as runs/exp, got {got}")
    if len(rest) > 1:
        raise Error(f"eval: DATA must be one source of images, got {', '.join(rest)}")
    if arguments.mistakes < 0:
        raise Error(f"eval: --mistakes must be at least 0, got {arguments.mistakes}")

    from leanconv.prediction import evaluate

    found = evaluate(
        runs,
        rest[0] if rest else None,
        split=arguments.split,
        samples=arguments.samples,
        progress=shown.counting("images", len(runs)),
    )
    if arguments.json:
        print(shown.as_json(found.to_dict(arguments.mistakes)))
    elif arguments.csv:
        outcome = found.outcome
        rows = [[name, *map(str, row)] for name, row in zip(outcome.classes, outcome.confusion, strict=True)]
        print(shown.as_csv(["true \\ answer", *outcome.classes], rows), end="")
    else:
        print(page(found, arguments.mistakes))
    return 0


def page(found: Evaluation, mistakes: int) -> str:
    """The evaluation as text."""
    from leanconv.cli import shown

    outcome = found.outcome
    sampled = f", {found.samples} Monte-Carlo samples each" if found.samples else ""
    lines = [
        f"runs               {', '.join(found.runs)}{sampled}",
        f"images             {outcome.score.total:,} of {found.source} ({found.split})",
        f"accuracy           {shown.share(outcome.score)} %",
        f"balanced accuracy  {100 * outcome.balanced_accuracy:.1f} %, the mean recall of the classes",
        f"macro F1           {100 * outcome.macro_f1:.1f} %",
        f"loss               {outcome.negative_log_likelihood:.4f} nats an image",
        f"calibration error  {100 * outcome.calibration_error:.1f} points between how sure it is and how often right",
        "",
        _classes(found),
    ]
    confused = outcome.confused(_SHOWN)
    if confused:
        lines += ["", "commonest mistakes"]
        lines += [f"  {truth} called {answer}: {count:,}" for truth, answer, count in confused]
    if found.mistakes and mistakes:
        lines += ["", f"surest mistakes ({min(mistakes, len(found.mistakes)):,} of {len(found.mistakes):,})"]
        lines += [
            f"  {m.image}: {m.truth} called {m.answer}, {100 * m.probability:.1f} %" for m in found.mistakes[:mistakes]
        ]
    lines += [""] if found.skipped or found.notes else []
    lines += [f"skipped            {name}: {reason}" for name, reason in found.skipped]
    lines += [f"note               {note}" for note in found.notes]
    return "\n".join(lines)


def _classes(found: Evaluation) -> str:
    from leanconv.cli import shown

    o = found.outcome
    rows = [
        [name, f"{images:,}", *("-" if value != value else f"{100 * value:.1f}" for value in values)]
        for name, images, *values in zip(o.classes, o.images, o.recall, o.precision, o.f1, strict=True)
        if images or not all(value != value for value in values)
    ]
    return shown.table(["class", "images", "recall %", "precision %", "F1 %"], rows)
