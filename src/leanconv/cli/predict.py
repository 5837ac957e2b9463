"""``leanconv predict RUN...|FILE.lean IMAGE|FOLDER...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.errors import Error

if TYPE_CHECKING:
    from leanconv.runtime.prediction import Prediction

    Progress = Callable[[int, int], None] | None

_EPILOG = """\
examples:
  leanconv predict runs/flowers photo.jpg
  leanconv predict runs/flowers holidays/ --csv > holidays.csv
  leanconv predict runs/flowers *.jpg --top 5
  leanconv predict runs/a runs/b runs/c photo.jpg        the average of three runs
  leanconv predict flowers.lean photo.jpg                an exported network, without torch
  leanconv predict runs/flowers photo.jpg --samples 50   Monte-Carlo dropout: mean and spread of 50 random sub-networks

Folders of runs are runs; other folders stand for every image in them. Exit code 1: an image of a folder could not be
read; it is named on stderr, and the others are predicted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "paths",
        metavar="RUN|IMAGE|FOLDER",
        nargs="*",
        help="folders of runs, or one .lean file, then image files or folders of them",
    )
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to print per image (default: 3)")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="N", help="Monte-Carlo dropout with N samples (default: 0, off)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every class of every image as JSON")
    form.add_argument("--csv", action="store_true", help="print image, class, probability and spread as CSV")


def run(arguments: argparse.Namespace) -> int:
    """Predict, print."""
    if arguments.top < 1:
        raise Error(f"predict: --top must be at least 1, got {arguments.top}")

    from leanconv.cli import shown

    lean = _is_lean(arguments.paths[:1])
    runs, images = _after_lean(arguments) if lean else _sorted(arguments.paths)
    bad: list[str] = []

    def unreadable(image: str, reason: str) -> None:
        if image in images:
            raise Error(f"image: must be readable, got {reason} from {image!r}")
        bad.append(image)
        print(f"leanconv: {image} could not be read and is left out: {reason}", file=sys.stderr)

    predictor = _by_lean if lean else _by_runs
    predictions = predictor(runs, images, arguments.samples, unreadable, shown.counting("images", len(runs)))
    if arguments.json:
        print(shown.as_json([p.to_dict() for p in predictions]))
    elif arguments.csv:
        print(shown.as_csv(["image", "class", "probability", "spread"], _rows(predictions, arguments.top)), end="")
    else:
        print("\n".join(p.line(arguments.top) for p in predictions))
    return 1 if bad else 0


def _by_runs(
    runs: list[str], images: list[str], samples: int, unreadable: Callable[[str, str], None], progress: Progress
) -> list[Prediction]:
    from leanconv.prediction import predict

    return predict(runs, images, samples, unreadable=unreadable, progress=progress)


def _by_lean(
    files: list[str], images: list[str], samples: int, unreadable: Callable[[str, str], None], progress: Progress
) -> list[Prediction]:
    """Nothing here imports torch."""
    from leanconv.runtime.engine import load
    from leanconv.runtime.images import image_files

    paths = [str(path) for path in image_files(images)]
    with load(files[0], verify=True) as engine:
        return engine.classify(paths, unreadable=unreadable, progress=progress)


def _rows(predictions: list[Prediction], top: int) -> list[list[str]]:
    return [
        [p.image, name, f"{probability:.6f}", f"{spread:.6f}"]
        for p in predictions
        for name, probability, spread in list(zip(p.classes, p.probabilities, p.spread, strict=True))[:top]
    ]


def _is_lean(paths: list[str]) -> bool:
    return any(path.lower().endswith(".lean") and not Path(path).is_dir() for path in paths)


def _after_lean(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """The file and the images."""
    file, *images = arguments.paths
    if arguments.samples:
        raise Error(f"predict: --samples must be 0 with {file}, which has no dropout, got {arguments.samples}")
    if not images:
        raise Error(f"predict: at least one image must be given after the file, got only {file}")
    if _is_lean(images):
        raise Error(f"predict: one .lean file must be given, got {', '.join(arguments.paths)}")
    return [file], images


def _sorted(paths: list[str]) -> tuple[list[str], list[str]]:
    """Runs and images. What does not exist is taken as an image, unless no run was named before it."""
    from leanconv.training.folder import is_run

    runs = [p for p in paths if is_run(Path(p))]
    images = [p for p in paths if p not in runs]
    if not runs:
        got = repr(paths[0]) if paths else "nothing"
        raise Error(f"predict: RUN must be the folder of a run such as runs/exp, or a .lean file, got {got}")
    if not images:
        raise Error(f"predict: at least one image must be given after the run, got only {', '.join(paths)}")
    return runs, images
