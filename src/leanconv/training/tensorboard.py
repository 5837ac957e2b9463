"""The measurements of each epoch as TensorBoard files, beside ``metrics.jsonl``, which stays the record."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from leanconv.errors import Error
from leanconv.results import Epoch, read_metrics

__all__ = ["EVENTS", "FOLDER", "Board", "need", "scalars"]

FOLDER = "tensorboard"
EVENTS = f"{FOLDER}/events.out.tfevents.*"
_LAYER = ("mean", "std", "skew", "kurtosis", "zeros", "grad_norm", "weight_norm")


def need() -> Any:
    """The package that writes such files.

    Raises:
        Error: it is missing.
    """
    try:
        return import_module("tensorboardX")
    except ImportError:
        raise Error("tensorboard: files need tensorboardX (pip install 'leanconv[tensorboard]'), got none") from None


def scalars(row: Epoch) -> Iterator[tuple[str, float]]:
    """Name -> value of everything in an epoch's record that is a finite number; layers as ``layers/std/PATH``."""
    values = {
        "loss/C0": row.loss,
        "loss/penalty": row.penalty,
        "loss/train": row.train.loss,
        "loss/val": row.val.loss,
        "accuracy/train": row.train.accuracy,
        "accuracy/val": row.val.accuracy,
        "accuracy/gap": row.gap.value,
        "accuracy/val_balanced": row.extra.get("balanced_accuracy"),
        "accuracy/val_macro_f1": row.extra.get("macro_f1"),
        "training/lr": row.lr,
        "training/seconds": row.seconds,
    }
    for layer in row.extra.get("layers") or ():
        values |= {f"layers/{name}/{layer['path']}": layer.get(name) for name in _LAYER}
    for name, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


class Board:
    """Event files in ``RUN/tensorboard``, one step per epoch.

    They are made anew from ``metrics.jsonl`` when a training begins or goes on, so a resumed one has no step twice.

    Args:
        folder: of the run.

    Raises:
        Error: tensorboardX is missing, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        module, place = need(), folder / FOLDER
        try:
            for old in folder.glob(EVENTS):
                old.unlink()
            self._writer = module.SummaryWriter(str(place))
        except OSError as error:
            raise Error(f"{place}: must be a folder that can be written, got {error.strerror}") from None
        for row in read_metrics(folder):
            self.epoch(row)

    def epoch(self, row: Epoch) -> None:
        """Write an epoch."""
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Nothing more will come."""
        self._writer.close()
