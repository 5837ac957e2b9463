"""``train``: everything around the loop. Nothing is written before everything that can be wrong has been looked at."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv import accounting, allocator, data, measure, results
from leanconv import recipe as recipes
from leanconv.data import DataSet
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.techniques import l2
from leanconv.training import folder as folders
from leanconv.training.build import Built, build, from_scratch
from leanconv.training.checkpoint import Header, write_bytes
from leanconv.training.folder import RECIPE, Run
from leanconv.training.loop import Trained, fit, steps_per_epoch
from leanconv.training.progress import Watch

__all__ = ["load", "prepare", "run", "train"]


def train(
    images: str | Path | DataSet,
    *,
    recipe: str | Path | Recipe = "default",
    model: str | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Run:
    """Train a network on images and keep it in ``runs/<name>``.

    After each epoch the network is measured in eval mode on unaugmented images; the epoch that is best on ``val`` is
    kept. ``test`` is measured once at the end and chooses nothing. Progress goes to stderr.

    Args:
        images: a folder (``train/val/test`` or flat), ``demo``, or a :class:`leanconv.data.DataSet`.
        recipe: a name, a YAML file, or a :class:`leanconv.Recipe`.
        model: a network of :mod:`leanconv.models`, or ``package.module:attribute``; None: the recipe's.
        epochs: passes over the training images; None: the recipe's.
        batch: images per optimizer step; None: the recipe's.
        settings: any other values of the recipe: ``{"seed": 1, "imgsz": 96, "techniques.dropout.p": 0.3}``.
        name: of the run; None: ``exp``, ``exp2``, ...
        overwrite: replace the run of that name.

    Returns:
        The run: ``run.model`` (in eval mode), ``run.record`` (final figures), ``run.metrics`` (one row per epoch),
        ``run.folder``.

    Raises:
        Error: bad data, a batch larger than the training set, a bad recipe or model, an input that does not fit, a
            name that exists; nothing is written or overwritten then. A loss that is no longer finite.

    Source: rows S1 and S28.
    """
    chosen = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    flags = {"model": model, "epochs": epochs, "batch": batch, **(settings or {})}
    return run(images, recipes.override(chosen, **flags), name, overwrite)


def run(
    images: str | Path | DataSet,
    recipe: Recipe,
    name: str | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
    title: str | None = None,
) -> Run:
    """:func:`train` with a finished recipe, watched by a bar of the caller's.

    Raises:
        Error: as :func:`train`.
    """
    recipe = from_scratch(recipe).resolved()
    with _threads(recipe.training.threads):
        folder = folders.choose(name, overwrite)
        loaded = images if isinstance(images, DataSet) else load(images, recipe)
        built, header = prepare(recipe, loaded)
        folders.claim(folder)
        write_bytes(folder / RECIPE, recipes.dump(recipe).encode())
        steps = steps_per_epoch(len(loaded.train), recipe.training.batch)
        with (watch or Watch()).training(title or name or folder.name, recipe.training.epochs, steps) as watching:
            trained = fit(built, recipe, loaded, folder, header, watching)
        record = _record(name or folder.name, recipe, loaded, built, trained)
        results.write_run(folder, record)
    done = Run(folder)
    # What is handed back is this run, also when a later one of the same name has replaced its files.
    vars(done).update(record=record, metrics=results.read_metrics(folder), model=trained.model, header=header)
    return done


def load(images: str | Path, recipe: Recipe) -> DataSet:
    """The images as the recipe wants them."""
    d = recipe.data
    return data.load(images, imgsz=d.imgsz, in_chans=d.in_chans, val=d.val, test=d.test, seed=d.split_seed)


def prepare(recipe: Recipe, images: DataSet) -> tuple[Built, Header]:
    """The untrained network, and the header of its checkpoints.

    Raises:
        Error: the batch is larger than the training set, or the network does not fit the images.
    """
    n, batch = len(images.train), recipe.training.batch
    if batch > n:
        raise Error(f"training: batch must be at most the number of training images, {n}, got batch={batch}")
    shape = (images.in_chans, images.imgsz, images.imgsz)
    header = Header(recipe.to_dict(), images.classes, shape, images.mean, images.std, n, images.fingerprint)
    return build(recipe, shape, len(images.classes), n), header


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _record(name: str, recipe: Recipe, images: DataSet, built: Built, trained: Trained) -> results.Run:
    example = built.example[:1].contiguous(memory_format=torch.channels_last)
    cost = accounting.cost(trained.model, example)
    return results.Run(
        name=name,
        status="done",
        recipe=recipe.to_dict(),
        digest=recipe.digest,
        data={
            "source": images.source,
            "fingerprint": images.fingerprint,
            "classes": list(images.classes),
            "counts": images.counts,
            "mean": list(images.mean),
            "std": list(images.std),
            "imgsz": images.imgsz,
            "in_chans": images.in_chans,
        },
        environment=results.environment() | {"threads": torch.get_num_threads()},
        epochs=recipe.training.epochs,
        best=trained.best_epoch,
        train=trained.train,
        val=trained.val,
        test=trained.test,
        params=cost.params,
        macs=cost.macs,
        seconds_per_epoch=statistics.median(trained.seconds),
        ms_per_image=measure.latency(trained.model, example).per_image,
        notes=[*images.notes, *trained.notes],
        extra={
            "decay": _decay(trained.model, recipe, len(images.train)),
            "weights_sha256": trained.digest,
            "memory": asdict(allocator.resident_cost()),
        },
    )


def _decay(model: nn.Module, recipe: Recipe, samples: int) -> str | None:
    """Which numbers are decayed and how strongly, in one line; None where nothing is."""
    options = recipe.technique_options().get(l2.NAME)
    if options is None:
        return None
    strength, form, where = options.strength, options.form, options.where
    ledger = l2.ledger(model, strength=strength, form=form, n=samples, where=where, depthwise=options.depthwise)
    decayed = sum(row.count for row in ledger.rows if row.weight_decay)
    total = sum(row.count for row in ledger.rows)
    return (
        f"L2: {decayed:,} of {total:,} parameters are decayed (lambda = {strength:g} in the form {form}, "
        f"where: {where}), as weight_decay = {l2.weight_decay(strength, form, samples):.3g} does"
    )
