"""The folder of a run: ``runs/<name>``, and what lies in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv import results, surgery
from leanconv.errors import Error
from leanconv.training import checkpoint
from leanconv.training.build import build
from leanconv.training.checkpoint import Header
from leanconv.training.state import PREVIOUS, STATE
from leanconv.training.tensorboard import EVENTS

__all__ = ["FILES", "RUNS", "Run", "choose", "claim", "is_run", "open_run", "resumed"]

RUNS = Path("runs")
RECIPE, WEIGHTS, METRICS, RECORD, GATE = "recipe.yaml", "model.safetensors", "metrics.jsonl", "run.json", "data.json"
REPORT = "report.html"
FILES = (RECIPE, WEIGHTS, METRICS, RECORD, GATE, REPORT, STATE, PREVIOUS)


@dataclass(frozen=True)
class Run:
    """A finished run, as it lies on disk. Everything is read when it is asked for.

    Attributes:
        folder: holds ``recipe.yaml``, ``model.safetensors`` (the epoch that was best on ``val``), ``metrics.jsonl``
            (one line per epoch) and ``run.json`` (final figures).
    """

    folder: Path

    @cached_property
    def record(self) -> results.Run:
        """``run.json``: final figures, recipe, environment, data, notes."""
        return results.read_run(self.folder)

    @cached_property
    def metrics(self) -> list[results.Epoch]:
        """One row per epoch, from ``metrics.jsonl``."""
        return results.read_metrics(self.folder)

    @cached_property
    def header(self) -> Header:
        """Classes, input shape, mean and deviation, recipe: what the network needs to read an image."""
        return self._loaded[1]

    @cached_property
    def model(self) -> nn.Module:
        """The trained network in eval mode, built again from the recipe, with the saved weights.

        Raises:
            Error: the weights are missing, damaged, or do not fit what the recipe builds.
        """
        state, header = self._loaded
        built = build(header.built_from(), header.shape, len(header.classes), header.samples)
        model = built.model
        if header.surgery is not None:
            model = surgery.replay(model, surgery.Plan.from_dict(header.surgery), built.example)
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise Error(f"{self.folder}: the weights must fit the network of the recipe, got: {reason}") from None
        return model.eval()

    @cached_property
    def _loaded(self) -> tuple[dict[str, Any], Header]:
        return checkpoint.load(self.folder / WEIGHTS)


def open_run(folder: str | Path) -> Run:
    """The run in a folder.

    Raises:
        Error: there is no such folder, it is no run, or the run was never finished.
    """
    path = Path(folder)
    if not path.is_dir():
        raise Error(f"run: must be the folder of a run, such as {RUNS}/exp, got {str(folder)!r}")
    if not (path / WEIGHTS).is_file():
        raise Error(f"run: the folder must hold {WEIGHTS}, got {str(folder)!r} without it")
    return Run(path)


def is_run(path: Path) -> bool:
    """Whether a folder is one of a run, finished or not."""
    return path.is_dir() and any((path / file).is_file() for file in (WEIGHTS, RECORD, RECIPE))


def choose(name: str | None, overwrite: bool = False) -> Path:
    """The folder for a new run. Nothing is created.

    Args:
        name: ``flowers`` or ``group/flowers``; None: the first free one of ``exp``, ``exp2``, ``exp3``, ...
        overwrite: whether the folder may hold an earlier run.

    Raises:
        Error: the name leaves ``runs``, or it exists and ``overwrite`` is False, or what exists is no run.
    """
    if name is None:
        return next(RUNS / free for free in _names() if not (RUNS / free).exists())
    path = Path(name)
    if not name.strip() or path.is_absolute() or ".." in path.parts or "\\" in name or path == Path("."):
        raise Error(f"name: must be a plain name such as 'flowers', got {name!r}")
    folder = RUNS / path
    if folder.exists() and not folder.is_dir():
        raise Error(f"name: {folder} must be a folder, got a file of that name")
    if folder.exists() and not overwrite:
        raise Error(f"name: must be a new one unless --overwrite is given, got {name!r}, which exists as {folder}")
    if folder.exists() and any(folder.iterdir()) and not any((folder / file).is_file() for file in FILES):
        raise Error(f"name: only the folder of a run can be overwritten, got {folder}, which holds other things")
    return folder


def resumed(name: str | None, path: str | None) -> Path:
    """The folder of the run that goes on.

    Args:
        name: of the run, or its folder; None: the newest one on this data.
        path: of the data, as its record has it; None: any.

    Raises:
        Error: there is no such run.
    """
    if name is not None:
        for folder in (RUNS / name, Path(name)):
            if (folder / RECIPE).is_file():
                return folder
        raise Error(f"resume: must be the name or the folder of a run, got {name!r}")
    for one in results.runs_below(RUNS):
        if one.run is not None and (path is None or one.run.data.get("path") == path):
            return one.folder
    told = f"on {path}" if path else "at all"
    raise Error(f"resume: there must be an earlier run in {RUNS}, got none {told}")


def claim(folder: Path) -> None:
    """Create the folder, or take the files of an earlier run out of it; other files in it stay.

    Raises:
        Error: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (folder / file).unlink(missing_ok=True)
        for path in folder.glob(EVENTS):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise Error(f"{folder}: must be a folder that can be written, got {error.strerror}") from None


def _names() -> Iterator[str]:
    yield "exp"
    number = 2
    while True:
        yield f"exp{number}"
        number += 1
