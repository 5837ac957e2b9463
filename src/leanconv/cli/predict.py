"""``leanconv predict RUN... IMAGE...``."""

from __future__ import annotations

import argparse
from pathlib import Path

from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv predict runs/flowers photo.jpg
  leanconv predict runs/flowers *.jpg --top 5
  leanconv predict runs/a runs/b runs/c photo.jpg        the average of three runs
  leanconv predict runs/flowers photo.jpg --passes 50    Monte-Carlo dropout: mean and spread of 50 random sub-networks

Folders are runs, files are images.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("paths", metavar="RUN|IMAGE", nargs="*", help="folders of runs, then image files")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to print per image (default: 3)")
    parser.add_argument(
        "--passes", type=int, default=0, metavar="N", help="Monte-Carlo dropout with N passes (default: 0, off)"
    )
    parser.add_argument("--json", action="store_true", help="print every class of every image as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Predict, print."""
    runs, images = _sorted(arguments.paths)
    if arguments.top < 1:
        raise Error(f"predict: --top must be at least 1, got {arguments.top}")

    from leanconv.cli import shown
    from leanconv.prediction import predict

    predictions = predict(runs, images, passes=arguments.passes)
    if arguments.json:
        print(shown.as_json([p.to_dict() for p in predictions]))
    else:
        print("\n".join(p.line(arguments.top) for p in predictions))
    return 0


def _sorted(paths: list[str]) -> tuple[list[str], list[str]]:
    """Runs and images. What does not exist is taken as an image, unless no run was named before it."""
    runs = [p for p in paths if Path(p).is_dir()]
    images = [p for p in paths if p not in runs]
    if not runs:
        got = repr(paths[0]) if paths else "nothing"
        raise Error(f"predict: RUN must be the folder of a run such as runs/exp, got {got}")
    if not images:
        raise Error(f"predict: at least one image must be given after the run, got only {', '.join(paths)}")
    return runs, images
