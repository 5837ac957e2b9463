"""One piece of a study's work, done in whatever process it comes to: a pilot, a training, a search for a rate."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanconv import recipe as recipes
from leanconv import training
from leanconv.data import DataSet
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.results import Score
from leanconv.study import probes
from leanconv.study.store import Row
from leanconv.study.task import Task
from leanconv.techniques import dropout
from leanconv.training import Job, Run
from leanconv.training.folder import RECIPE, RUNS
from leanconv.training.loop import Diverged
from leanconv.training.progress import Watch
from leanconv.training.run import load

__all__ = ["Images", "Sent", "Task", "chosen_rate", "execute", "file_name", "pack"]


class Images:
    """The images of a study, read once per process and way of reading.

    Args:
        source: as of ``leanconv train``, or a set that is there already.
    """

    def __init__(self, source: str | Path | DataSet) -> None:
        self.source = source
        self._read: dict[str, DataSet] = {}

    def of(self, recipe: Recipe) -> DataSet:
        """As a recipe wants them."""
        if isinstance(self.source, DataSet):
            if recipe.data.label_noise:
                raise Error("study: arms with wrong labels need DATA that can be read again, got images in memory")
            return self.source
        key = self.key(recipe)
        if key not in self._read:
            self._read[key] = load(self.source, recipe)
        return self._read[key]

    @staticmethod
    def key(recipe: Recipe) -> str:
        """The same for recipes that want the same images."""
        return repr(recipe.data)

    @staticmethod
    def needed(recipe: Recipe) -> list[Recipe]:
        """Recipes for whose images :func:`execute` asks when it is given one."""
        return [recipe, _clean(recipe)] if recipe.data.label_noise else [recipe]


class Sent(Images):
    """Images that were read elsewhere and came as :func:`pack`'s files.

    Args:
        folder: of the files.
    """

    def of(self, recipe: Recipe) -> DataSet:
        """As :meth:`Images.of`."""
        name = file_name(self.key(recipe))
        if name not in self._read:
            self._read[name] = pickle.loads((Path(str(self.source)) / name).read_bytes())
        return self._read[name]


def file_name(key: str) -> str:
    """Of the file of the images that :meth:`Images.key` names."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] + ".pickle"


def pack(images: Images, every: Sequence[Recipe]) -> dict[str, bytes]:
    """File name -> bytes of all the images that recipes ask for, for :class:`Sent`."""
    wanted = {images.key(one): one for recipe in every for one in images.needed(recipe)}
    return {file_name(key): pickle.dumps(images.of(one), protocol=5) for key, one in wanted.items()}


def execute(task: Task, images: Images) -> Row:
    """Do it.

    Args:
        task: what.
        images: of the study.

    Returns:
        The row for the database; a training that diverges is one too.

    Raises:
        Error: the images or the recipe do not allow it.
        Stopped: a signal asked for it; a training's place is written down.
    """
    recipe = Recipe.from_dict(task.recipe)
    todo = {"pilot": _pilot, "run": _run, "stable": _stable}[task.kind]
    start = time.perf_counter()
    # For what is measured beside the trainings too: several workers, each with threads for all cores, stand in each
    # other's way.
    with training.run.threads(recipe.training.threads):
        status, values = todo(task, recipe, images)
    worker = f"{os.uname().nodename}:{os.getpid()}"
    return Row(*task.key, status, time.perf_counter() - start, worker, values)


def _train(name: str, recipe: Recipe, images: DataSet, resume: bool) -> Run:
    folder = RUNS / name
    going_on = resume and (folder / RECIPE).is_file()
    job = Job(name, overwrite=True, resume=folder if going_on else None, title=name)
    return training.run.run(images, recipe, job, Watch(shown=False))


def _pilot(task: Task, recipe: Recipe, images: Images) -> tuple[str, dict[str, Any]]:
    try:
        done = _train(task.name, recipe, images.of(recipe), resume=False)
    except Diverged as error:
        return "diverged", {"lr": recipe.training.lr, "why": str(error)}
    finally:
        shutil.rmtree(RUNS / task.name, ignore_errors=True)
    last = done.metrics[-1]
    seconds = statistics.median(epoch.seconds for epoch in done.metrics)
    return "done", {
        "lr": recipe.training.lr,
        "val": last.val.accuracy,
        "val_loss": last.val.loss,
        "seconds_per_epoch": seconds,
    }


def _stable(task: Task, recipe: Recipe, images: Images) -> tuple[str, dict[str, Any]]:
    found = probes.largest_stable_rate(recipe, images.of(recipe))
    tried = {str(rate): held for rate, held in found.tried.items()}
    return "done", {"rate": found.rate, "bounded": found.bounded, "tried": tried}


def _run(task: Task, recipe: Recipe, images: Images) -> tuple[str, dict[str, Any]]:
    held = images.of(recipe)
    chance = _chance(held)
    try:
        done = _train(task.name, recipe, held, resume=True)
    except Diverged as error:
        # Such a network answers anything: its accuracy is that of always naming the commonest class.
        return "diverged", {"test": chance, "val": chance, "chance": chance, "diverged": 1, "why": str(error)}
    values = {**_figures(done), "chance": chance, "diverged": 0}
    if recipe.data.label_noise:
        clean = images.of(_clean(recipe))
        values["memorised"] = probes.memorised(done.model, held, clean)
    if dropout.NAME in recipe.techniques:
        split = "test" if held.test is not None else "val"
        values |= {f"dropout_{k}": v for k, v in probes.ensemble(done.model, held, split).to_dict().items()}
    return "done", values


def _clean(recipe: Recipe) -> Recipe:
    return recipes.override(recipe, **{"data.label_noise": 0.0})


def _figures(done: Run) -> dict[str, Any]:
    """Everything of a finished training that the report needs, and no more."""
    record, epochs = done.record, done.metrics
    held = record.test or record.val
    quality = record.quality.get("test" if record.test else "val", {})
    shifted = probes.shifts(epochs)
    third = max(1, len(shifted) // 3)
    return {
        "train": _share(record.train),
        "val": _share(record.val),
        "test": _share(held),
        "gap": _share(record.train) - _share(held),
        "loss": held.loss if held else math.nan,
        "calibration_error": quality.get("calibration_error"),
        "balanced_accuracy": quality.get("balanced_accuracy"),
        "params": record.params,
        "macs": record.macs,
        "epochs": record.epochs,
        "best": record.best,
        "steps": epochs[-1].step,
        "train_seconds": math.fsum(epoch.seconds for epoch in epochs),
        "roughness": _mean([epoch.extra.get("roughness") for epoch in epochs[1:] or epochs]),
        "spikes": sum(int(epoch.extra.get("spikes", 0)) for epoch in epochs),
        "gradients": probes.gradients(epochs),
        "weight_norm": probes.weight_norm(epochs[-1]),
        "shift": _mean(shifted),
        "shift_deeper": _mean(shifted[-third:]) - _mean(shifted[:third]),
        "shifts": shifted,
        "curve": {
            "step": [epoch.step for epoch in epochs],
            "loss": [epoch.loss for epoch in epochs],
            "train": [epoch.train.accuracy for epoch in epochs],
            "val": [epoch.val.accuracy for epoch in epochs],
            "weight_norm": [probes.weight_norm(epoch) for epoch in epochs],
        },
        "layers": [_layer(row) for row in epochs[-1].extra.get("layers", ())],
    }


def _layer(row: Mapping[str, Any]) -> dict[str, Any]:
    pre = row.get("pre") or {}
    kept = {name: row.get(name) for name in ("path", "kind", "weight_norm", "grad_norm")}
    return kept | {name: pre.get(name) for name in ("mean", "std", "skew", "kurtosis")}


def _share(score: Score | None) -> float:
    return score.accuracy if score else math.nan


def _mean(values: Sequence[float | None]) -> float:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else math.nan


def _chance(images: DataSet) -> float:
    held = images.test or images.val
    return float(held.labels.bincount().max()) / len(held)


def chosen_rate(rows: Sequence[Row]) -> float | None:
    """The rate of the pilot that was best on val (by accuracy, then by loss); None: every one diverged."""
    done = [row.values for row in rows if row.status == "done" and row.values]
    if not done:
        return None
    best = max(done, key=lambda values: (values["val"], -values["val_loss"]))
    return float(best["lr"])
