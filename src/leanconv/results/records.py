"""What is kept of a run, as plain dataclasses."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from leanconv.errors import Error
from leanconv.results.files import append_line, read_json, read_lines, write_json
from leanconv.results.shares import Difference, Score, difference

__all__ = ["Epoch", "Run", "append_metrics", "read_metrics", "read_run", "write_run"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Epoch:
    """One line of ``metrics.jsonl``.

    Attributes:
        epoch: from 1: the number of epochs that are done.
        step: optimizer steps that are done.
        lr: learning rate of the last step.
        loss: C0, mean over the epoch's batches as they were trained on.
        penalty: what techniques added to it, mean; the cost is their sum.
        train: in eval mode, on unaugmented training images.
        val: in eval mode.
        seconds: of training, without evaluation.
        extra: what else was measured, plain values: ``balanced_accuracy`` and ``macro_f1`` on val, ``layers`` (a row
            per layer, as ``leanconv.training.watching`` gives it), and what a technique or a study adds.
    """

    epoch: int
    step: int
    lr: float
    loss: float
    penalty: float
    train: Score
    val: Score
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> Difference:
        """Training minus validation accuracy."""
        return difference(self.train, self.val)


@dataclass(frozen=True)
class Run:
    """``run.json``: what ran, on what, where, and what came out.

    Attributes:
        name: of the run's folder.
        status: ``running``, ``done``, ``stopped`` or ``failed``.
        recipe: as ``Recipe.to_dict`` gives it; ``digest`` is its hash.
        data: source, fingerprint, classes, counts, mean, std, imgsz, in_chans, notes.
        environment: as :func:`leanconv.results.environment` gives it.
        epochs: that are done; ``best`` is the one that was kept, chosen by validation.
        train, val, test: scores of the kept network; test chose nothing.
        params, macs: of the network, macs for one image.
        seconds_per_epoch: median, training alone.
        ms_per_image: of inference, median.
        quality: split -> :meth:`Outcome.to_dict` of the kept network: balanced accuracy, macro F1, recall per class,
            confusion.
        notes: sentences that a reader should see.
        extra: further plain values.
    """

    name: str
    status: str
    recipe: dict[str, Any]
    digest: str
    data: dict[str, Any]
    environment: dict[str, Any]
    epochs: int = 0
    best: int = 0
    train: Score | None = None
    val: Score | None = None
    test: Score | None = None
    params: int | None = None
    macs: int | None = None
    seconds_per_epoch: float | None = None
    ms_per_image: float | None = None
    quality: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> Difference | None:
        """Training minus test accuracy of the kept network; minus validation where there is no test."""
        held = self.test or self.val
        return difference(self.train, held) if self.train and held else None


def write_run(folder: str | Path, run: Run) -> None:
    """Write ``run.json`` into an existing folder, in one step."""
    write_json(Path(folder) / "run.json", dataclasses.asdict(run))


def read_run(folder: str | Path) -> Run:
    """Read ``run.json``. Keys that this version does not know are passed over.

    Raises:
        Error: as :func:`read_json`, or a field is missing or of another type.
    """
    path = Path(folder) / "run.json"
    return _decode(Run, read_json(path), str(path))


def append_metrics(folder: str | Path, epoch: Epoch) -> None:
    """Append one epoch to ``metrics.jsonl``, as :func:`leanconv.results.append_line` does."""
    append_line(Path(folder) / "metrics.jsonl", dataclasses.asdict(epoch))


def read_metrics(folder: str | Path) -> list[Epoch]:
    """The epochs of a run so far; empty where there is no file.

    Raises:
        Error: a line is no such record, with its number.
    """
    path = Path(folder) / "metrics.jsonl"
    return [_decode(Epoch, row, f"{path}, line {i}") for i, row in enumerate(read_lines(path), 1)]


def _decode(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    hints = typing.get_type_hints(kind)
    made = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        if item.name in values:
            made[item.name] = _field(hints[item.name], values[item.name], f"{where}: {item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise Error(f"{where}: {item.name} must be there, got none")
    return kind(**made)


def _field(hint: Any, value: Any, where: str) -> Any:
    for kind in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        bare = typing.get_origin(kind) or kind
        if dataclasses.is_dataclass(bare) and isinstance(value, dict):
            return _decode(typing.cast(type[Any], bare), value, where)
        if bare is float and value in ("nan", "inf", "-inf"):
            return float(value)
        if bare is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, bare) and not (bare is int and isinstance(value, bool)):
            return value
    raise Error(f"{where} must be {getattr(hint, '__name__', hint)}, got {value!r}")
