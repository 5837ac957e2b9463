"""``train``: everything around the loop. Nothing is written before everything that can be wrong has been looked at."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from leanconv.training import state, tensorboard
from leanconv.training.build import Built, build, from_scratch, settled
from leanconv.training.checkpoint import Header
from leanconv.training.folder import GATE, RECIPE, RECORD, Run
from leanconv.training.loop import Output, Trained, fit, steps_per_epoch
from leanconv.training.progress import Watch
from leanconv.training.stopping import Stopped, Stopper
from leanconv.training.world import World

__all__ = ["Job", "images_of", "load", "prepare", "run", "threads", "train"]


@dataclass(frozen=True)
class Job:
    """What of a training is no part of its recipe: it changes nothing in the result.

    Attributes:
        name: of the run; None: ``exp``, ``exp2``, ...
        overwrite: replace the run of that name.
        resume: folder of the run that goes on; None: a new one.
        title: stands before the progress; None: the name.
        cache: decoded images are kept in a file for the next time.
        strict_data: an unreadable image is an error.
        tensorboard: write TensorBoard files too, into ``RUN/tensorboard``.
    """

    name: str | None = None
    overwrite: bool = False
    resume: Path | None = None
    title: str | None = None
    cache: bool = True
    strict_data: bool = False
    tensorboard: bool = False


def train(
    images: str | Path | DataSet | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    resume: bool | str = False,
    **flags: Any,
) -> Run:
    """Train a network on images and keep it in ``runs/<name>``.

    After each epoch the network is measured in eval mode on unaugmented images; the epoch that is best on ``val`` is
    kept. ``test`` is measured once at the end and chooses nothing. Progress goes to stderr. Ctrl-C and SIGTERM write
    the place down and leave; ``resume`` goes on from it to the same result, bit for bit.

    Args:
        images: a folder (``train/val/test`` or flat), another source of :func:`leanconv.data.load`, or a
            :class:`leanconv.data.DataSet`; None with ``resume``: those of the run.
        recipe: a name, a YAML file, or a :class:`leanconv.Recipe`; None: ``default``, or with ``resume`` the run's.
        settings: values of the recipe by key: ``{"techniques.dropout.p": 0.3}``.
        name: of the run; None: ``exp``, ``exp2``, ...
        overwrite: replace the run of that name.
        resume: go on with a run that was interrupted: its name or folder, or True for the newest one on these images.
        **flags: values of the recipe by field: ``model="mobilenet_v1"``, ``epochs=10``, ``batch=64``, ``seed=1``.

    Returns:
        The run: ``run.model`` (in eval mode), ``run.record`` (final figures), ``run.metrics`` (one row per epoch),
        ``run.folder``.

    Raises:
        Error: bad data, a batch larger than the training set, a bad recipe or model, an input that does not fit, a
            name that exists; nothing is written or overwritten then. A loss that is no longer finite. A resume with
            another recipe or other data, or from a damaged file.

    Source: rows S1 and S28.
    """
    job = Job(name, overwrite, going_on(resume, images, name))
    return run(images, chosen(recipe, {**(settings or {}), **flags}, job.resume), job)


def going_on(resume: bool | str | None, images: str | Path | DataSet | None, name: str | None = None) -> Path | None:
    """The folder of the run that ``resume`` means, or None where it means none.

    Raises:
        Error: there is no such run.
    """
    if resume is None or resume is False:
        return None
    if resume is True:
        return folders.resumed(name, None if images is None or isinstance(images, DataSet) else _path(images))
    return folders.resumed(resume, None)


def chosen(recipe: str | Path | Recipe | None, flags: Mapping[str, Any], resume: Path | None = None) -> Recipe:
    """The recipe with the flags in it; where a run goes on, the run's, which the others must agree with.

    Raises:
        Error: a bad recipe or flag, or one that the run does not have.
    """
    if resume is None:
        base = recipe if isinstance(recipe, Recipe) else recipes.load(recipe or "default")
        return recipes.override(base, **flags)
    own = recipes.load(resume / RECIPE)
    base = own if recipe is None else recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    wanted = from_scratch(_as_begun(recipes.override(base, **flags), own)).resolved()
    if wanted.digest != own.digest:
        told = ", ".join(recipes.differences(own, wanted))
        raise Error(f"resume: the recipe must be that of the run in {resume}, got {told}")
    return own


def _as_begun(wanted: Recipe, own: Recipe) -> Recipe:
    """With ``init`` as it was settled when the run began, where the user says nothing of it."""
    inits = {n: {"init": o["init"]} for n, o in own.techniques.items() if "init" in o}
    return replace(wanted, techniques={n: {**inits.get(n, {}), **o} for n, o in wanted.techniques.items()})


def run(images: str | Path | DataSet | None, recipe: Recipe, job: Job | None = None, watch: Watch | None = None) -> Run:
    """:func:`train` with a finished recipe, watched by a bar of the caller's.

    Raises:
        Error: as :func:`train`.
        Stopped: a signal ended it; the place is written down.
    """
    job = job or Job()
    if job.tensorboard:
        tensorboard.need()
    world = World(recipe.training.precision)
    with threads(recipe.training.threads), Stopper().listening() as stopper:
        folder = job.resume or world.same(folders.choose(job.name, job.overwrite) if world.first else Path())
        if job.resume and (folder / RECORD).is_file() and results.read_run(folder).status == "done":
            return Run(folder)
        source = _source(images, job.resume)
        watch = watch or Watch(shown=world.first)
        loaded = source if isinstance(source, DataSet) else load(source, recipe, job, watch.reading)
        if job.resume and (folder / RECORD).is_file():
            before = results.read_run(folder).data.get("fingerprint")
            if before != loaded.fingerprint:
                raise Error(f"resume: the data must be that of the run in {folder}, got other images in {source}")
        recipe = settled(recipe, (loaded.in_chans, loaded.imgsz, loaded.imgsz), len(loaded.classes))
        built, header = prepare(recipe, loaded)
        report = data.gate(loaded)
        begun = _begun(job.name or folder.name, recipe, source, loaded, report)
        if world.first:
            _begin(folder, recipe, begun, job)
            results.write_json(folder / GATE, report.to_dict())
            for told in _told(report):
                watch.tell(told)
        world.wait()
        steps = steps_per_epoch(len(loaded.train), recipe.training, world.size)
        try:
            with watch.training(job.title or begun.name, recipe.training.epochs, steps) as watching:
                trained = fit(built, recipe, loaded, world, Output(folder, header, watching, stopper, job.tensorboard))
            record = _record(begun, recipe, loaded, built, trained)
        except BaseException as error:
            if world.first:
                status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
                results.write_run(folder, replace(begun, status=status, notes=[*begun.notes, str(error)]))
            raise
        if world.first:
            results.write_run(folder, record)
            state.clear(folder)
        world.wait()
    done = Run(folder)
    # What is handed back is this run, also when a later one of the same name has replaced its files.
    vars(done).update(record=record, metrics=results.read_metrics(folder), model=trained.model, header=header)
    return done


def _begin(folder: Path, recipe: Recipe, begun: results.Run, job: Job) -> None:
    """The folder with what is known before the first step; where a run goes on, what it has stays."""
    if job.resume is None or state.load(folder) is None:
        folders.claim(folder)
    results.write_bytes(folder / RECIPE, recipes.dump(recipe).encode())
    results.write_run(folder, begun)


def _source(images: str | Path | DataSet | None, resume: Path | None) -> str | Path | DataSet:
    if images is not None:
        return images
    path = results.read_run(resume).data.get("path") if resume else None
    if path is None:
        raise Error("train: DATA must be given, got none, and no run that tells where its images are")
    return str(path)


def _path(images: str | Path) -> str:
    """As the record has it: a folder or file in full, any other source by its name."""
    path = Path(images).expanduser()
    return str(path.resolve()) if path.exists() and str(images) != "demo" else str(images)


def load(images: str | Path, recipe: Recipe, job: Job | None = None, progress: data.Progress | None = None) -> DataSet:
    """The images as the recipe wants them."""
    d, job = recipe.data, job or Job()
    loaded = data.load(
        images,
        imgsz=d.imgsz,
        in_chans=d.in_chans,
        val=d.val,
        test=d.test,
        seed=d.split_seed,
        label_noise=d.label_noise,
        cache=job.cache,
        strict=job.strict_data,
        progress=progress,
    )
    if d.mean is None or d.std is None:
        return loaded
    for name, values in (("mean", d.mean), ("std", d.std)):
        if len(values) not in (1, loaded.in_chans):
            raise Error(f"data.{name} must have 1 value or one per channel, {loaded.in_chans}, got {len(values)}")
    mean, std = ((v * (loaded.in_chans // len(v))) for v in (d.mean, d.std))
    return replace(loaded, mean=tuple(map(float, mean)), std=tuple(map(float, std)))


def images_of(run: Run, progress: data.Progress | None = None) -> DataSet:
    """The images that a run was trained on, in its splits, read again from where they were.

    Args:
        run: the run.
        progress: called with (images done, images in all).

    Raises:
        Error: the run does not tell where they are, they cannot be read any more, or their classes are others.
    """
    path = run.record.data.get("path")
    if path is None:
        raise Error(f"{run.folder}: the run must tell where its images are, got none (it was given them in memory)")
    images = load(str(path), recipes.load(run.folder / RECIPE), progress=progress)
    if images.classes != run.header.classes:
        raise Error(f"{run.folder}: the images in {path} must be of its classes, got {', '.join(images.classes)}")
    return images


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
    return build(recipe, shape, len(images.classes), n, start=True), header


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes with so many threads; None: with as many as it has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _told(report: data.Report) -> list[str]:
    """Errors and warnings of the gate, a sentence each."""
    return [f"data: {f.severity} {f.code}: {f.message}" for f in report.findings if f.severity != "note"]


def _begun(
    name: str, recipe: Recipe, source: str | Path | DataSet, images: DataSet, report: data.Report
) -> results.Run:
    """The record before the first step."""
    return results.Run(
        name=name,
        status="running",
        recipe=recipe.to_dict(),
        digest=recipe.digest,
        data={
            "source": images.source,
            "path": None if isinstance(source, DataSet) else _path(source),
            "fingerprint": images.fingerprint,
            "classes": list(images.classes),
            "counts": images.counts,
            "mean": list(images.mean),
            "std": list(images.std),
            "imgsz": images.imgsz,
            "in_chans": images.in_chans,
        },
        environment=results.environment() | {"threads": torch.get_num_threads()},
        notes=[*images.notes, *_told(report)],
    )


def _record(begun: results.Run, recipe: Recipe, images: DataSet, built: Built, trained: Trained) -> results.Run:
    """The record at the end."""
    example = built.example[:1].contiguous(memory_format=torch.channels_last)
    cost = accounting.cost(trained.model, example)
    return replace(
        begun,
        status="done",
        epochs=trained.epochs,
        best=trained.best_epoch,
        train=trained.outcomes["train"].score,
        val=trained.outcomes["val"].score,
        test=trained.outcomes["test"].score if "test" in trained.outcomes else None,
        quality={split: outcome.to_dict() for split, outcome in trained.outcomes.items()},
        params=cost.params,
        macs=cost.macs,
        seconds_per_epoch=statistics.median(trained.seconds),
        ms_per_image=measure.latency(trained.model, example).per_image,
        notes=[*begun.notes, *built.notes, *trained.notes],
        extra={
            "decay": _decay(trained.model, recipe, len(images.train)),
            "weights_sha256": trained.digest,
            "started_from": asdict(built.started) if built.started else None,
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
