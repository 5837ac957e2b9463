"""What ``apply``, ``remove``, ``fold`` and ``separate`` share: a network is read, rewritten and kept as a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import Error

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leanconv.data import DataSet
    from leanconv.surgery import Certificate
    from leanconv.training.checkpoint import Header

__all__ = ["Subject", "configure", "configure_model", "finish", "is_run", "open_model", "open_subject"]

BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A network with what is known about it.

    Attributes:
        model: in eval mode.
        example: one input of its shape.
        header: as its checkpoints have it.
        source: folder of the run; empty for a network of no run.
        images: those that were named, or None.
    """

    model: nn.Module
    example: Tensor
    header: Header
    source: str
    images: DataSet | None

    def batches(self, count: int) -> list[Tensor] | None:
        """Up to ``count`` training images, evenly spaced, as the network wants them; None without images."""
        import torch

        from leanconv.data import normalise

        if self.images is None:
            return None
        train = self.images.train
        index = torch.linspace(0, len(train) - 1, min(count, len(train))).round().long()
        parts = [normalise(train.images[part], self.header.mean, self.header.std) for part in torch.split(index, BATCH)]
        return [x.contiguous(memory_format=torch.channels_last) for x in parts]


def configure(parser: argparse.ArgumentParser, data: str) -> None:
    """The words that all of them have.

    Args:
        parser: of the command.
        data: what images are for.
    """
    parser.add_argument("network", metavar="RUN|MODEL", help="folder of a run, or package.module:attribute")
    parser.add_argument("--output", metavar="NAME", help="the new network goes to runs/NAME")
    parser.add_argument("--overwrite", action="store_true", help="replace the run of that name")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, write nothing")
    parser.add_argument("--data", metavar="DATA", help=f"images as of `leanconv train`: {data}")
    parser.add_argument("--images", type=int, default=1024, metavar="N", help="of them to calibrate on (default: 1024)")
    configure_model(parser)
    parser.add_argument("--no-latency", action="store_true", help="do not time the two networks")
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")


def configure_model(parser: argparse.ArgumentParser) -> None:
    """The words that go with a MODEL."""
    parser.add_argument("--weights", metavar="FILE|package:attribute", help="trained weights of a MODEL")
    parser.add_argument("--input", metavar="C,H,W", help="of a MODEL, one image (default: 3,224,224)")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of a MODEL's builder")


def open_subject(arguments: argparse.Namespace, command: str) -> Subject:
    """Read the network and the images.

    Raises:
        Error: neither a run nor a model; no place for the result; words that do not go together.
    """
    if arguments.output is None and not arguments.dry_run:
        raise Error(f"{command}: --output must name the new run (or --dry-run shows what would be done), got none")
    if arguments.images < 1:
        raise Error(f"{command}: --images must be at least 1, got {arguments.images}")
    if arguments.output is not None:
        from leanconv.training import folder

        folder.choose(arguments.output, arguments.overwrite)
    return _of_run(arguments) if is_run(arguments, command) else _of_model(arguments, command)


def is_run(arguments: argparse.Namespace, command: str, words: Sequence[str] = ("weights", "input", "option")) -> bool:
    """Whether the network is a run.

    Raises:
        Error: it is, and one of the words was given that go with a MODEL.
    """
    found = Path(arguments.network).is_dir()
    for word in words:
        if found and getattr(arguments, word):
            raise Error(f"{command}: --{word} goes with a MODEL, got the run {arguments.network}")
    return found


def _of_run(arguments: argparse.Namespace) -> Subject:
    import torch

    from leanconv import training

    run = training.open_run(arguments.network)
    example = torch.randn(1, *run.header.shape, generator=torch.Generator().manual_seed(0))
    example = example.contiguous(memory_format=torch.channels_last)
    images = None if arguments.data is None else _images(arguments.data, run.header)
    return Subject(run.model, example, run.header, str(run.folder), images)


def open_model(arguments: argparse.Namespace, command: str) -> tuple[nn.Module, Tensor, list[Tensor]]:
    """The network that ``package.module:attribute`` and the words of :func:`configure_model` name.

    Returns:
        The network in eval mode, one input, and what it gives for that.

    Raises:
        Error: there is no such network, or the input or the weights do not fit it.
    """
    import torch

    from leanconv import models
    from leanconv.cli.cost import setting, sizes
    from leanconv.measure import outputs
    from leanconv.training import weights

    channels, height, width = sizes("--input", arguments.input or "3,224,224", 3)
    shape = (channels, height, width)
    options = dict(setting(text) for text in arguments.option)
    told = models.fitting(arguments.network, in_chans=shape[0], imgsz=shape[1])
    model = models.build(arguments.network, **{**told, **options}).eval()
    example = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    try:
        found = outputs(model, example)
    except Exception as error:  # whatever a foreign network says
        reason = str(error).strip().split("\n")[0]
        raise Error(
            f"{command}: an input of {arguments.input or '3,224,224'} must fit the network, got {reason}"
        ) from None
    if arguments.weights is not None:
        weights.fit(model, weights.read(arguments.weights), example, arguments.weights)
    return model, example, list(found)


def _of_model(arguments: argparse.Namespace, command: str) -> Subject:
    from leanconv.cli.cost import setting
    from leanconv.recipe import Model, Recipe
    from leanconv.training.checkpoint import Header

    model, example, found = open_model(arguments, command)
    if len(found) != 1 or found[0].dim() != 2:
        raise Error(f"{command}: the network must give (N, classes), got {[tuple(t.shape) for t in found]}")
    options = dict(setting(text) for text in arguments.option)
    channels, height, width = example.shape[1:]
    shape = (channels, height, width)
    recipe = Recipe(Model(arguments.network, options, arguments.weights))
    classes = tuple(str(number) for number in range(found[0].shape[1]))
    header = Header(recipe.to_dict(), classes, shape, (0.0,) * shape[0], (1.0,) * shape[0], 0, "")
    images = None if arguments.data is None else _images(arguments.data, header, named=False)
    return Subject(model, example, header, "", images)


def _images(data: str, header: Header, named: bool = True) -> DataSet:
    from dataclasses import replace

    from leanconv import data as data_
    from leanconv.cli import shown

    progress = shown.counting("images")
    images = data_.load(data, imgsz=header.shape[1], in_chans=header.shape[0], progress=progress)
    if named and images.classes != header.classes:
        raise Error(
            f"--data: classes must be those of the run, {', '.join(header.classes)}, got {', '.join(images.classes)}"
        )
    return replace(images, mean=header.mean, std=header.std)


def finish(
    arguments: argparse.Namespace,
    command: str,
    subject: Subject,
    rewritten: Callable[[], tuple[nn.Module, Certificate]],
) -> int:
    """Rewrite, print, keep; 1 where nothing was changed."""
    from leanconv.cli import shown

    shown.tune()
    model, certificate = rewritten()
    if arguments.json:
        print(shown.as_json(_plain(certificate.to_dict())))
    else:
        print(certificate.table())
    if not certificate.changed:
        return 1
    if arguments.dry_run:
        print("nothing was written (--dry-run)", file=sys.stderr)
        return 0
    from leanconv.training import rewritten as keeping

    judged = subject.images if subject.source else None
    kept = keeping.write(
        model.eval(), certificate, subject.header, name=arguments.output, overwrite=arguments.overwrite,
        source=subject.source, images=judged,
    )  # fmt: skip
    if judged is not None and not arguments.json:
        print(f"{'accuracy':10} {_accuracy(subject, kept.record)}")
    print(f"run: {kept.folder}", file=sys.stderr)
    return 0


def _accuracy(subject: Subject, record: Any) -> str:
    from leanconv import measure
    from leanconv.cli import shown

    split = "test" if subject.images is not None and subject.images.test is not None else "val"
    assert subject.images is not None
    before = measure.score(subject.model, subject.images, split)
    return f"{shown.share(before)} -> {shown.share(getattr(record, split))} % on {split}"


def _plain(value: Any) -> Any:
    from leanconv.study.store import plain

    return plain(value)
