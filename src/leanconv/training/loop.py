"""The training loop, from top to bottom: read it as one story.

Only ``val`` chooses (which epoch is kept); ``test`` is measured once, at the end. Accuracies are always of the network
in eval mode on images as they are, without augmentation, so that train and val can be compared (row S1).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leanconv import data
from leanconv.contract import Attachment
from leanconv.data import DataSet, Split
from leanconv.errors import Error
from leanconv.kernels.keys import keyed
from leanconv.measure import score
from leanconv.recipe import Recipe
from leanconv.results import Epoch, Score, append_metrics
from leanconv.training import checkpoint, optim
from leanconv.training.build import Built, attach
from leanconv.training.checkpoint import Header
from leanconv.training.folder import WEIGHTS
from leanconv.training.progress import Watch

__all__ = ["Trained", "fit", "some", "steps_per_epoch"]

# Training images that are measured after each epoch, at the end, and that settle statistics: evenly spaced ones.
WATCHED, FINAL, SETTLING = 1_000, 10_000, 2_048


@dataclass(frozen=True)
class Trained:
    """What training leaves behind.

    Attributes:
        model: with the weights of the best epoch, statistics settled, in eval mode.
        train, val, test: scores of that network; ``test`` is None where there is no test set.
        best_epoch: from 1.
        seconds: of training per epoch, without the measuring.
        notes: one sentence for each technique that had no effect.
        digest: SHA-256 of the saved weights.
    """

    model: nn.Module
    train: Score
    val: Score
    test: Score | None
    best_epoch: int
    seconds: tuple[float, ...]
    notes: tuple[str, ...]
    digest: str


def fit(built: Built, recipe: Recipe, images: DataSet, folder: Path, header: Header, watch: Watch) -> Trained:
    """Train a network; leave the best weights and one line per epoch in the folder.

    Args:
        built: the network; it is trained in place.
        recipe: its ``training`` and ``data`` sections and its techniques decide.
        images: train, val and perhaps test.
        folder: of the run, ready to be written.
        header: goes into the checkpoint.
        watch: is told of every step and epoch.

    Raises:
        Error: the loss is no longer finite, or a technique cannot do its part in training.
    """
    model, settings = built.model, recipe.training
    fabric = _fabric(settings.precision)
    optimizer = optim.make(model, built.roles, settings)
    attachments, notes = attach(built, recipe, optimizer, len(images.train))
    net, stepper = fabric.setup(model, optimizer)
    training = _Training(fabric, net, stepper, attachments, recipe, images, watch)
    watched = some(images, WATCHED)

    best, best_epoch, seconds = (-1.0, 0.0), 0, []
    kept: dict[str, Tensor] = {}
    for epoch in range(1, settings.epochs + 1):
        started = perf_counter()
        loss, penalty = training.epoch(epoch)
        seconds.append(perf_counter() - started)
        seen = score(model, watched, "train", settings.eval_batch)
        unseen = score(model, images, "val", settings.eval_batch)
        row = Epoch(epoch, training.done, training.lr, loss, penalty, seen, unseen, seconds[-1])
        append_metrics(folder, row)
        watch.epoch(row)
        quality = (unseen.accuracy, -(unseen.loss or 0.0))
        if quality >= best:
            best, best_epoch = quality, epoch
            kept = copy.deepcopy(model.state_dict())
            checkpoint.save(folder / WEIGHTS, kept, header)

    model.load_state_dict(kept)
    settling = [x for x, _, _ in data.batches(some(images, SETTLING), "train", settings.eval_batch)]
    for attachment in attachments:
        attachment.settle(settling)
        attachment.close()
    digest = checkpoint.save(folder / WEIGHTS, model.state_dict(), header)
    train = score(model, some(images, FINAL), "train", settings.eval_batch)
    val = score(model, images, "val", settings.eval_batch)
    test = score(model, images, "test", settings.eval_batch) if images.test is not None else None
    return Trained(model.eval(), train, val, test, best_epoch, tuple(seconds), tuple(notes), digest)


@dataclass
class _Training:
    """What the steps share; ``done`` and ``lr`` are of the last one."""

    fabric: Any
    net: Any
    optimizer: Any
    attachments: list[Attachment]
    recipe: Recipe
    images: DataSet
    watch: Watch
    done: int = 0
    lr: float = 0.0

    def epoch(self, number: int) -> tuple[float, float]:
        """One pass over the training images, from 1; the mean C0 and the mean penalty, in nats per image."""
        settings, n = self.recipe.training, len(self.images.train)
        per_epoch = steps_per_epoch(n, settings.batch)
        policy = self.recipe.data.augment
        total, total_penalty = 0.0, 0.0
        self.net.train()
        for x, y, _ in data.batches(
            self.images, "train", settings.batch, epoch=number - 1, seed=settings.seed, policy=policy
        ):
            self.lr = settings.lr * optim.factor(settings, self.done, per_epoch)
            c0, penalty = self.step(x, y)
            if not math.isfinite(c0 + penalty):
                got = f"{c0 + penalty} in epoch {number}"
                raise Error(f"training: the loss must stay finite (a smaller lr may help), got {got}")
            total += c0 * len(y)
            total_penalty += penalty * len(y)
            self.watch.step()
        return total / n, total_penalty / n

    def step(self, x: Tensor, y: Tensor) -> tuple[float, float]:
        """Forward, backward, update. The masks are functions of (seed, step, position in the batch)."""
        settings = self.recipe.training
        optim.set_rate(self.optimizer, self.lr)
        with keyed(settings.seed, self.done):
            c0 = cross_entropy(self.net(x), y, label_smoothing=settings.label_smoothing)
            penalty = _penalty(self.attachments)
            self.fabric.backward(c0 if penalty is None else c0 + penalty)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        return c0.item(), 0.0 if penalty is None else penalty.item()


def steps_per_epoch(images: int, batch: int) -> int:
    """Optimizer steps in one pass over so many images."""
    return len(data.batch_sizes(images, batch))


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


def _fabric(precision: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fabric's remarks on the machine are not the user's business
        from lightning_fabric import Fabric

        return Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
