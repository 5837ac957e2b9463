"""``leanconv train DATA``."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from leanconv.errors import Error

_EPILOG = """\
examples:
  leanconv train path/to/images --epochs 10 --name flowers
  leanconv train path/to/images --model mobilenet_v1 --imgsz 128 --set model.options.width=0.5
  leanconv train path/to/images --recipe source --set techniques.dropout.p=0.3 --set techniques.l2=false
  leanconv train demo --recipe demo

DATA is a folder of images, root/{train,val,test}/<class>/* or flat root/<class>/*, or `demo`: those of the package.
Without a val folder a share of the training images selects the best epoch; test images choose nothing.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("data", metavar="DATA", nargs="?", help="a folder of images, or `demo`")
    parser.add_argument(
        "--recipe", default="default", metavar="NAME|FILE", help="the whole settings (default: default)"
    )
    parser.add_argument("--model", metavar="NAME", help="a network of leanconv.models, or package.module:attribute")
    parser.add_argument("--epochs", metavar="N", help="passes over the training images")
    parser.add_argument("--batch", metavar="N", help="images per optimizer step")
    parser.add_argument("--imgsz", metavar="PX", help="side of the images in pixels")
    parser.add_argument("--lr", metavar="RATE", help="learning rate at its height")
    parser.add_argument("--seed", metavar="N", help="of weights, order, augmentation and masks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other value of the recipe")
    parser.add_argument("--name", metavar="NAME", help="the run goes to runs/NAME (default: exp, exp2, ...)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of that name")
    parser.add_argument("--no-tune-allocator", action="store_true", help="leave the memory allocator as it is")
    parser.add_argument("--json", action="store_true", help="print the final figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train, save, print."""
    if not arguments.data:
        raise Error(
            "train: DATA must be a folder of images or `demo`, got nothing (`leanconv train --help` tells more)"
        )
    flags = {name: getattr(arguments, name) for name in ("model", "epochs", "batch", "imgsz", "lr", "seed")}
    flags |= dict(_setting(text) for text in arguments.set)

    from leanconv import recipe, training
    from leanconv.cli import shown

    settings = recipe.override(recipe.load(arguments.recipe), **flags)
    allocator = None if arguments.no_tune_allocator else shown.tune()
    done = training.run.run(arguments.data, settings, arguments.name, arguments.overwrite)
    print(shown.as_json(asdict(done.record)) if arguments.json else shown.run(done, allocator))
    return 0


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Error(f"--set must be KEY=VALUE such as training.momentum=0.8, got {text!r}")
    return key.strip(), value
