"""``leanconv train DATA``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from leanconv.errors import Error

_FIELDS = ("model", "epochs", "batch", "imgsz", "lr", "seed", "balance", "label_noise")
_EPILOG = """\
examples:
  leanconv train path/to/images --epochs 10 --name flowers
  leanconv train path/to/images --model mobilenet_v1 --imgsz 128 --set model.options.width=0.5
  leanconv train path/to/images --recipe source --set techniques.dropout.p=0.3 --set techniques.l2=false
  leanconv train path/to/images --weights other.safetensors --freeze backbone --recipe finetune
  leanconv train path/to/images --resume            # goes on where Ctrl-C, SIGTERM or a crash ended it
  leanconv train demo --recipe demo
  torchrun --nproc-per-node 2 -m leanconv train path/to/images

DATA is a folder of images, root/{train,val,test}/<class>/* or flat root/<class>/*, or `demo`: those of the package,
or parquet files, an .npz file, or hf:owner/name.
Without a val folder a share of the training images selects the best epoch; test images choose nothing.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.epilog = _EPILOG
    parser.add_argument("data", metavar="DATA", nargs="?", help="a folder of images, or `demo`")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="the whole settings (default: default)")
    parser.add_argument("--model", metavar="NAME", help="a network of leanconv.models, or package.module:attribute")
    parser.add_argument("--epochs", metavar="N", help="passes over the training images")
    parser.add_argument("--batch", metavar="N", help="images per optimizer step")
    parser.add_argument("--imgsz", metavar="PX", help="side of the images in pixels")
    parser.add_argument("--lr", metavar="RATE", help="learning rate at its height")
    parser.add_argument("--seed", metavar="N", help="of weights, order, augmentation and masks")
    parser.add_argument("--weights", metavar="FILE|package:attribute", help="trained weights to start from")
    parser.add_argument("--freeze", metavar="PART", help="what does not learn: none, stem or backbone")
    parser.add_argument("--balance", metavar="HOW", help="of unequal classes: none, weights or sampler")
    parser.add_argument("--label-noise", metavar="SHARE", help="of the training labels, for studies")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other value of the recipe")
    parser.add_argument("--name", metavar="NAME", help="the run goes to runs/NAME (default: exp, exp2, ...)")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of that name")
    parser.add_argument(
        "--resume", nargs="?", const=True, metavar="RUN", help="go on with a run (default: the newest on this data)"
    )
    parser.add_argument("--strict-data", action="store_true", help="an unreadable image is an error")
    parser.add_argument("--no-cache", action="store_true", help="keep no file of decoded images")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard files too, into RUN/tensorboard")
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end")
    parser.add_argument("--no-tune-allocator", action="store_true", help="leave the memory allocator as it is")
    parser.add_argument("--json", action="store_true", help="print the final figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train, save, print."""
    if not arguments.data and not arguments.resume:
        raise Error(
            "train: DATA must be a folder of images or `demo`, got nothing (`leanconv train --help` tells more)"
        )
    flags = {name: getattr(arguments, name) for name in _FIELDS}
    flags |= {"model.weights": arguments.weights, "model.freeze": arguments.freeze}
    flags |= dict(_setting(text) for text in arguments.set)

    from leanconv import training
    from leanconv.cli import shown
    from leanconv.training.run import chosen, going_on

    resume = going_on(arguments.resume, arguments.data, arguments.name)
    settings = chosen(arguments.recipe, flags, resume)
    allocator = None if arguments.no_tune_allocator else shown.tune()
    job = training.Job(
        arguments.name,
        arguments.overwrite,
        resume,
        cache=not arguments.no_cache,
        strict_data=arguments.strict_data,
        tensorboard=arguments.tensorboard,
    )
    try:
        done = training.run.run(arguments.data, settings, job)
    except training.Stopped as stopped:
        print(f"leanconv: {stopped}", file=sys.stderr)
        return stopped.code
    if training.world.rank() == 0:
        if not arguments.no_report:
            _report(done.folder)
        print(shown.as_json(asdict(done.record)) if arguments.json else shown.run(done, allocator))
    return 0


def _report(folder: Path) -> None:
    """The page of the run; a training that went well does not fail for it."""
    from leanconv.cli.report import write
    from leanconv.training.folder import REPORT

    try:
        write([folder], folder / REPORT)
        print(f"report: {folder / REPORT}", file=sys.stderr)
    except Error as error:
        print(f"leanconv: no report was written: {error}", file=sys.stderr)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise Error(f"--set must be KEY=VALUE such as training.momentum=0.8, got {text!r}")
    return key.strip(), value
