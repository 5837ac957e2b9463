"""Where a training stands, on disk: everything that the next step depends on, in one file, the one before kept too.

Order, augmentation and masks are functions of (seed, epoch, step), so position, weights, optimizer and averages are all
there is: no state of a loader, of a random generator or of a thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanconv.errors import Error
from leanconv.training.checkpoint import read_tensors, write_tensors

__all__ = ["PREVIOUS", "STATE", "Place", "clear", "load", "optimizer_state", "restore_optimizer", "save"]

STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"


@dataclass
class Place:
    """Where in the training.

    Attributes:
        recipe: digest of the recipe.
        fingerprint: of the data.
        epoch: the one that runs, from 1.
        step: optimizer steps done in it.
        done: optimizer steps done in all.
        loss, penalty: summed over the images of this epoch so far.
        seconds: of training in this epoch so far.
        epochs_seconds: of the epochs before.
        best: accuracy and negative loss on ``val`` of the best epoch before this one; ``best_epoch`` is its number.
        averaged: steps behind the average of the weights.
        lr: of the last step.
        observed: what was measured in the last step of the epoch.
        losses: C0 of the steps of this epoch so far.
    """

    recipe: str
    fingerprint: str
    epoch: int = 1
    step: int = 0
    done: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    seconds: float = 0.0
    epochs_seconds: list[float] = field(default_factory=list)
    best: list[float] = field(default_factory=lambda: [-1.0, 0.0])
    best_epoch: int = 0
    averaged: int = 0
    lr: float = 0.0
    observed: dict[str, Any] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def save(folder: Path, place: Place, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the state; the last one becomes the previous one. At every moment one whole state is there.

    Args:
        folder: of the run.
        place: where the training stands.
        groups: ``model``, ``optimizer``, ``average``, ``kept`` -> name -> tensor.

    Raises:
        Error: it cannot be written, as on a full disk; both states stay as they were.
    """
    tensors = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    path = folder / STATE
    write_tensors(path, tensors, asdict(place), before=_keep_previous)


def load(folder: Path, previous: bool = False) -> tuple[Place, dict[str, dict[str, Tensor]]] | None:
    """Read the state that :func:`save` wrote; None where there is none.

    Args:
        folder: of the run.
        previous: the one before the last.

    Raises:
        Error: it is damaged (any byte of it), with the offer to go on from the one before where that is whole; or of a
            later version.
    """
    path = folder / (PREVIOUS if previous else STATE)
    if not path.is_file():
        # Killed between the two renames of a save: the previous state is the last one.
        return load(folder, previous=True) if not previous and (folder / PREVIOUS).is_file() else None
    try:
        tensors, about = read_tensors(path, "the state of the training")
    except Error as error:
        raise Error(f"{error}{_offer(folder) if not previous else ''}") from None
    known = {item.name for item in fields(Place)}
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "kept": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    return Place(**{key: value for key, value in about.items() if key in known}), groups


def clear(folder: Path) -> None:
    """Remove the states of a training that is done."""
    for name in (STATE, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Parameter name + field -> tensor, of all that the optimizer remembers; numbers as 0-d float64."""
    names = {id(p): n for n, p in model.named_parameters()}
    found = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                found[f"{names[id(parameter)]}/{key}"] = value
            elif isinstance(value, int | float):
                found[f"{names[id(parameter)]}/{key}#"] = torch.tensor(float(value), dtype=torch.float64)
    return found


def restore_optimizer(model: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer what :func:`optimizer_state` took from another of the same network.

    Raises:
        Error: a parameter is not of this network.
    """
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        path, _, key = name.rpartition("/")
        if path not in parameters:
            raise Error(f"resume: the optimizer's state must be of this network, got one of {path!r}")
        if key.endswith("#"):
            number = float(value)
            optimizer.state[parameters[path]][key[:-1]] = int(number) if number.is_integer() else number
        else:
            fresh = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
            like = parameters[path]
            if value.shape == like.shape:
                fresh = torch.empty_like(like, dtype=value.dtype)
            optimizer.state[parameters[path]][key] = fresh.copy_(value)


def _keep_previous(path: Path) -> None:
    if path.exists():
        os.replace(path, path.with_name(PREVIOUS))


def _offer(folder: Path) -> str:
    with suppress(Error):
        found = load(folder, previous=True)
        if found:
            place = found[0]
            return (
                f"; the one before, epoch {place.epoch} step {place.step}, is whole: remove {folder / STATE} to go on "
                "from it"
            )
    return ""
