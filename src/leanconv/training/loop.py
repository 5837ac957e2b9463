"""The training loop, from top to bottom: read it as one story.

Only ``val`` chooses (which epoch is kept, when to stop early); ``test`` is measured once, at the end. Accuracies are
always of the network in eval mode on images as they are, without augmentation, so that train and val can be compared
(row S1). After each epoch's last step the place is written down; whatever comes after it (measuring, choosing) gives
the same again when it is repeated, so a training that is killed at any moment goes on to the same result.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leanconv import data
from leanconv.contract import Attachment
from leanconv.data import Batch, DataSet, Split
from leanconv.errors import Error
from leanconv.kernels.keys import keyed
from leanconv.measure import classify
from leanconv.recipe import Recipe, Training
from leanconv.results import Epoch, Outcome, append_metrics, write_bytes
from leanconv.training import checkpoint, optim, state
from leanconv.training.build import Built, attach
from leanconv.training.checkpoint import Header
from leanconv.training.ema import Average
from leanconv.training.folder import METRICS, WEIGHTS
from leanconv.training.progress import Watch
from leanconv.training.state import Place
from leanconv.training.stopping import Stopper
from leanconv.training.tensorboard import Board
from leanconv.training.watching import Watching, first_nonfinite, steadiness
from leanconv.training.world import World

__all__ = ["Diverged", "Output", "Trained", "fit", "some", "steps_per_epoch"]

# Training images that are measured after each epoch, at the end, and that settle statistics: evenly spaced ones.
WATCHED, FINAL, SETTLING = 1_000, 10_000, 2_048
SAVE_SECONDS = 120.0  # within an epoch, the place is written down this often


class Diverged(Error):
    """The loss or the weights are no longer finite: of a study a result, of a training an error."""


@dataclass(frozen=True)
class Trained:
    """What training leaves behind.

    Attributes:
        model: with the weights of the epoch that is kept, statistics settled, in eval mode.
        outcomes: ``train``, ``val`` and, where there is one, ``test`` -> how that network does on it.
        epochs: that were trained; fewer than the recipe's where ``patience`` ended it.
        best_epoch: the one that is kept, from 1: the best on ``val``, or the last.
        seconds: of training per epoch, without the measuring.
        notes: one sentence for each technique that had no effect.
        digest: SHA-256 of the saved weights.
    """

    model: nn.Module
    outcomes: dict[str, Outcome]
    epochs: int
    best_epoch: int
    seconds: tuple[float, ...]
    notes: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Output:
    """Where a training writes, and who watches and may stop it.

    Attributes:
        folder: of the run, ready to be written; with a ``state.safetensors`` in it, the training goes on from there.
        header: goes into the checkpoint.
        watch: is told of every step and epoch.
        stopper: is asked after every step.
        tensorboard: write TensorBoard files too.
    """

    folder: Path
    header: Header
    watch: Watch
    stopper: Stopper
    tensorboard: bool = False


def fit(built: Built, recipe: Recipe, images: DataSet, world: World, output: Output) -> Trained:
    """Train a network; leave the best weights and one line per epoch in the folder.

    Args:
        built: the network; it is trained in place.
        recipe: its ``training`` and ``data`` sections and its techniques decide.
        images: train, val and perhaps test.
        world: the processes that train together.
        output: where to write.

    Raises:
        Error: the loss is no longer finite, a technique cannot do its part in training, or a file cannot be written;
            the last place that was written down stays.
        Stopped: a signal asked for it; the place is written down.
    """
    training = _Training(built, recipe, images, world, output)
    training.resume()
    with training.board():
        while not training.over():
            training.rest_of_epoch()
            training.save()
            with output.stopper.at_once():
                training.measure()
    with output.stopper.at_once():
        return training.finish()


class _Training:
    """What the steps share. ``place`` tells where it stands, ``kept`` holds the weights to keep."""

    def __init__(self, built: Built, recipe: Recipe, images: DataSet, world: World, output: Output) -> None:
        self.model, self.recipe, self.images, self.world, self.output = built.model, recipe, images, world, output
        settings = recipe.training
        optimizer = optim.make(built.model, built.roles, settings, built.started.loaded if built.started else ())
        self.attachments, self.notes = attach(built, recipe, optimizer, len(images.train))
        self.net, self.optimizer = world.fabric.setup(self.model, optimizer)
        self.average = Average(self.model, settings.ema)
        self.place = Place(recipe.digest, images.fingerprint)
        self.kept: dict[str, Tensor] = {}
        self.last_kept = settings.keep == "last"
        self.parts = world.size * settings.accumulate
        self.sizes = data.batch_sizes(len(images.train), settings.batch, 2 * self.parts)
        self.weights = data.class_weights(images) if recipe.data.balance == "weights" else None
        self.watched = some(images, WATCHED)
        self.watching = Watching(self.model, built.example)
        self.saved = perf_counter()
        self.told: Callable[[Epoch], None] = output.watch.epoch

    @contextmanager
    def board(self) -> Iterator[None]:
        """While it lasts, TensorBoard files are written as well, where they are wanted."""
        if not (self.output.tensorboard and self.world.first):
            yield
            return
        board = Board(self.output.folder)
        shown = self.told

        def both(row: Epoch) -> None:
            board.epoch(row)
            shown(row)

        self.told = both
        try:
            yield
        finally:
            board.close()

    def over(self) -> bool:
        """Whether the last epoch is measured, or ``patience`` epochs have brought nothing better on val."""
        settings, done = self.recipe.training, self.place.epoch - 1
        tired = settings.patience is not None and done - self.place.best_epoch >= settings.patience
        return self.world.same(done >= settings.epochs or (done > 0 and tired))

    def rest_of_epoch(self) -> None:
        """What is left of the pass over the training images."""
        settings, place, world = self.recipe.training, self.place, self.world
        self.net.train()
        mine = range(world.rank * settings.accumulate, (world.rank + 1) * settings.accumulate)
        steps = data.steps(
            self.images,
            settings.batch,
            epoch=place.epoch - 1,
            seed=settings.seed,
            policy=self.recipe.data.augment,
            balance=self.recipe.data.balance,
            start=place.step,
            parts=self.parts,
            mine=mine,
        )
        self.output.watch.at((place.epoch - 1) * len(self.sizes) + place.step)
        started, before = perf_counter(), place.seconds
        for batches in steps:
            if place.step == len(self.sizes) - 1:
                self.watched_step(batches)
            else:
                self.step(batches)
            place.seconds = before + perf_counter() - started
            self.output.watch.step()
            asked = any(world.total(float(self.output.stopper.asked())))
            if asked or (world.size == 1 and perf_counter() - self.saved > SAVE_SECONDS):
                self.save()
            if asked:
                raise self.output.stopper.stopped()

    def step(self, batches: list[Batch]) -> None:
        """Forward, backward, update. The masks are functions of (seed, step, position in the step's batch).

        Several micro-batches, here and in other processes, make one batch: each counts by its share of the images, and
        the penalty once.
        """
        settings, place = self.recipe.training, self.place
        size = self.sizes[place.step]
        place.lr = settings.lr * optim.factor(settings, place.done, len(self.sizes))
        optim.set_rate(self.optimizer, place.lr)
        c0, penalty = 0.0, 0.0
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            with keyed(settings.seed, place.done, batch.offset), self._unsynchronised(not last):
                loss = self.loss(batch) * (len(batch.labels) * self.world.size / size)
                c0 += loss.item() / self.world.size
                added = _penalty(self.attachments) if last else None
                penalty = 0.0 if added is None else added.item()
                if not math.isfinite(loss.item() + penalty):
                    raise self._broken(loss.item() + penalty, batch)
                self.world.fabric.backward(loss if added is None else loss + added)
        if settings.clip is not None:
            self.world.fabric.clip_gradients(self.net, self.optimizer, max_norm=settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.step()
        place.done += 1
        place.step += 1
        place.loss += c0 * size
        place.losses.append(c0)
        place.penalty += penalty * size

    def watched_step(self, batches: list[Batch]) -> None:
        """The epoch's last step, with a look into the layers."""
        with self.watching:
            self.step(batches)
        self.place.observed = {"layers": self.watching.layers}

    def loss(self, batch: Batch) -> Tensor:
        """C0: mean cross entropy in nats; with ``balance: weights`` each image counts by its class."""
        smoothing = self.recipe.training.label_smoothing
        if self.weights is None:
            return cross_entropy(self.net(batch.images), batch.labels, label_smoothing=smoothing)
        each = cross_entropy(
            self.net(batch.images), batch.labels, self.weights, label_smoothing=smoothing, reduction="sum"
        )
        return each / len(batch.labels)

    def measure(self) -> None:
        """Train and val after the epoch; what is better on val is kept, with ``keep: last`` whatever comes.

        Then the next epoch is the place.
        """
        place, size, folder = self.place, self.recipe.training.eval_batch, self.output.folder
        n = len(self.images.train)
        loss, _ = self.world.total(place.loss, 0.0)
        if self.world.first:
            with self.average.in_place():
                seen = classify(self.model, self.watched, "train", size).score
                outcome = classify(self.model, self.images, "val", size)
                unseen = outcome.score
                quality = [unseen.accuracy, -(unseen.loss or 0.0)]
                better = quality >= place.best
                if better:
                    place.best, place.best_epoch = quality, place.epoch
                if better or self.last_kept:
                    self.kept = copy.deepcopy(self.model.state_dict())
                    checkpoint.save(folder / WEIGHTS, self.kept, self.output.header)
            extra = {"balanced_accuracy": outcome.balanced_accuracy, "macro_f1": outcome.macro_f1}
            extra |= {**steadiness(place.losses), **place.observed}
            mean, penalty = loss / n, place.penalty / n
            row = Epoch(place.epoch, place.done, place.lr, mean, penalty, seen, unseen, place.seconds, extra)
            append_metrics(folder, row)
            self.told(row)
        self.place = replace(
            place,
            epoch=place.epoch + 1,
            step=0,
            loss=0.0,
            penalty=0.0,
            seconds=0.0,
            observed={},
            losses=[],
            epochs_seconds=[*place.epochs_seconds, place.seconds],
        )

    def finish(self) -> Trained:
        """The weights that are kept, with their statistics settled, measured on everything, test included."""
        size, images, place = self.recipe.training.eval_batch, self.images, self.place
        if not self.world.first:
            self.kept = self.model.state_dict()
        self.model.load_state_dict(self.kept)
        settling = [x for x, *_ in data.batches(some(images, SETTLING), "train", size)]
        for attachment in self.attachments:
            attachment.settle(settling)
            attachment.close()
        digest = ""
        if self.world.first:
            digest = checkpoint.save(self.output.folder / WEIGHTS, self.model.state_dict(), self.output.header)
        sets = {"train": some(images, FINAL), "val": images} | ({"test": images} if images.test is not None else {})
        outcomes = {split: classify(self.model, held, split, size) for split, held in sets.items()}
        epochs, seconds = place.epoch - 1, tuple(place.epochs_seconds)
        kept = epochs if self.last_kept else place.best_epoch
        return Trained(self.model.eval(), outcomes, epochs, kept, seconds, tuple(self.notes), digest)

    def save(self) -> None:
        """Write the place down, with everything that the next step depends on."""
        self.saved = perf_counter()
        weights = self.model.state_dict()
        odd = [n for n, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
        if odd:
            raise Diverged(f"training: weights must stay finite (a smaller lr may help), got others in {odd[0]}")
        if not self.world.first:
            return
        average, self.place.averaged = self.average.state()
        optimizer = state.optimizer_state(self.model, self.optimizer)
        groups = {"model": weights, "optimizer": optimizer, "average": average, "kept": self.kept}
        state.save(self.output.folder, self.place, groups)

    def resume(self) -> None:
        """Go on from the place that was written down, where there is one."""
        found = state.load(self.output.folder)
        if found is None:
            return
        place, groups = found
        if (place.recipe, place.fingerprint) != (self.place.recipe, self.place.fingerprint):
            what = "recipe" if place.recipe != self.place.recipe else "data"
            raise Error(f"resume: the {what} must be that of the run in {self.output.folder}, got another")
        self.place = place
        self.model.load_state_dict(groups["model"])
        state.restore_optimizer(self.model, self.optimizer, groups["optimizer"])
        self.average.load(groups["average"], place.averaged)
        self.kept = groups["kept"]
        if self.world.first:
            _cut(self.output.folder / METRICS, place.epoch - 1)

    def _unsynchronised(self, more: bool) -> AbstractContextManager[None]:
        fabric = self.world.fabric
        return fabric.no_backward_sync(self.net, enabled=more) if self.world.size > 1 else nullcontext()

    def _broken(self, value: float, batch: Batch) -> Diverged:
        """What to say of a loss that is no longer finite: where the first such number is."""
        where = first_nonfinite(self.model, batch.images, batch.labels, cross_entropy)
        got = f"{value} in epoch {self.place.epoch}, step {self.place.step + 1}: {where}"
        return Diverged(f"training: the loss must stay finite (a smaller lr may help), got {got}")


def _cut(path: Path, rows: int) -> None:
    """Leave only the first rows of ``metrics.jsonl``: what came after the place will be measured again."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    if len(lines) > rows:
        write_bytes(path, b"".join(line + b"\n" for line in lines[:rows]))


def steps_per_epoch(images: int, settings: Training, processes: int = 1) -> int:
    """Optimizer steps in one pass over so many images."""
    return len(data.batch_sizes(images, settings.batch, 2 * settings.accumulate * processes))


def some(images: DataSet, count: int) -> DataSet:
    """The set with at most ``count`` of its training images, evenly spaced, the same ones each time."""
    train = images.train
    if len(train) <= count:
        return images
    index = torch.linspace(0, len(train) - 1, count).round().long()
    return replace(images, train=Split(train.images[index], train.labels[index]))


def _penalty(attachments: list[Attachment]) -> Tensor | None:
    """The sum of all penalties, or None. What strict dropout stopped in this step enters none of them."""
    stopped: Mapping[str, Tensor] = {}
    for attachment in attachments:
        stopped = {**stopped, **attachment.stopped()}
    penalties = [p for p in (attachment.penalty(stopped) for attachment in attachments) if p is not None]
    return torch.stack([p.reshape(()) for p in penalties]).sum() if penalties else None
