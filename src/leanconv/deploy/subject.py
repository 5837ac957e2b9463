"""What is exported: a network, one input of its shape, and what is known about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.data import normalise
from leanconv.errors import Error
from leanconv.runtime.plan import Picture
from leanconv.surgery.carrying import example_of, runnable
from leanconv.training import Run, images_of, open_run

__all__ = ["Subject", "of_model", "of_run", "opened"]

IMAGES = 4


@dataclass(frozen=True)
class Subject:
    """A network to export.

    Attributes:
        model: float32, on the CPU.
        example: (N, C, ...).
        images: some real inputs, or None.
        classes: names of the outputs, or none.
        picture: how images are read, or None.
        name: what it is called.
        notes: what else there is to say.
    """

    model: nn.Module
    example: Tensor
    images: Tensor | None
    classes: tuple[str, ...]
    picture: Picture | None
    name: str
    notes: tuple[str, ...] = ()


def of_model(
    model: nn.Module, example: Tensor | None, classes: Sequence[str] | None, picture: Picture | None
) -> Subject:
    """A network in memory.

    Raises:
        Error: it is wrapped or compiled, not float32, not on the CPU, or no example was given and none can be guessed.
    """
    runnable(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise Error(f"export: the network must be float32 (model.float()), got {tensor.dtype} of {name}")
        if tensor.device.type != "cpu":
            raise Error(f"export: the network must be on the CPU (model.cpu()), got {name} on {tensor.device}")
    given, notes = example_of(model, example)
    if not isinstance(given, Tensor):
        raise Error(f"export: the network must take one tensor, got an example of {len(given)}")
    if given.dim() < 2 or not len(given) or given.dtype != torch.float32:
        raise Error(f"export: example must be a float32 tensor (N, C, ...), got {given.dtype} {tuple(given.shape)}")
    name = type(model).__name__
    return Subject(model, given, None, tuple(classes or ()), picture, name, tuple(notes))


def of_run(run: Run, example: Tensor | None, classes: Sequence[str] | None, picture: Picture | None) -> Subject:
    """A trained run: its header knows classes, shape, mean and deviation; its images are read where they still are."""
    header = run.header
    channels, side, width = header.shape
    if picture is None and channels in (1, 3) and side == width:
        picture = Picture(side, "L" if channels == 1 else "RGB", tuple(header.mean), tuple(header.std))
    if example is None:
        example = torch.randn(1, *header.shape, generator=torch.Generator().manual_seed(1))
    images, notes = _images(run)
    name = str(header.recipe.get("model", {}).get("name", type(run.model).__name__))
    found = of_model(run.model, example, header.classes if classes is None else classes, picture)
    return Subject(found.model, found.example, images, found.classes, picture, name, (*found.notes, *notes))


def _images(run: Run) -> tuple[Tensor | None, list[str]]:
    """Some images of the run's data, spread over its validation set."""
    try:
        where = str(run.record.data.get("path", ""))
        if where.startswith("hf:"):
            return None, ["compared on noise alone: the images are on a hub"]
        found = images_of(run).val
    except Error as error:
        return None, [f"compared on noise alone: {error}"]
    index = torch.linspace(0, len(found) - 1, min(IMAGES, len(found))).round().long()
    return normalise(found.images[index], run.header.mean, run.header.std).contiguous(), []


def opened(subject: Any) -> Run | nn.Module:
    """A run, from its folder or as it is, or a network.

    Raises:
        Error: neither.
    """
    if isinstance(subject, str | Path):
        return open_run(subject)
    if isinstance(subject, Run | nn.Module):
        return subject
    raise Error(f"export: what is exported must be a network, a run or its folder, got {type(subject).__name__}")
