"""A rewritten network learns from the one that it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv import data
from leanconv.data import DataSet
from leanconv.errors import Error
from leanconv.graph import evaluating

__all__ = ["Distil", "distil"]


@dataclass(frozen=True)
class Distil:
    """How a network learns from another.

    Attributes:
        epochs: passes over the training images.
        lr: learning rate at its height; falls to 0 by a cosine.
        batch: images per step, at most as many as there are.
        temperature: T of ``T^2 KL(softmax(teacher / T) || softmax(student / T))``.
        momentum: of SGD with Nesterov's form.
        augment: policy, as in a recipe.
        clip: largest norm of all gradients together.
        seed: of order and augmentation.
    """

    epochs: int = 2
    lr: float = 0.05
    batch: int = 64
    temperature: float = 4.0
    momentum: float = 0.9
    augment: str = "auto"
    clip: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "seed"):
            least = 0 if name == "seed" else 1
            if getattr(self, name) < least:
                raise Error(f"distil: {name} must be at least {least}, got {name}={getattr(self, name)}")
        for name in ("lr", "temperature", "clip"):
            if not getattr(self, name) > 0:
                raise Error(f"distil: {name} must be above 0, got {name}={getattr(self, name)}")


def distil(
    student: nn.Module,
    teacher: nn.Module,
    images: DataSet,
    how: Distil | None = None,
    told: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train a network to give what another gives; labels are not used.

    Args:
        student: changed in place; its training flags are put back.
        teacher: runs in eval mode and is left alone.
        images: normalised as both were trained.
        how: to learn.
        told: called with (steps done, steps in all, loss).

    Returns:
        The mean loss of each epoch.

    Raises:
        Error: a loss that is no longer finite.

    Source: Hinton, Vinyals and Dean 2015, arXiv 1503.02531.
    """
    how = how or Distil()
    batch_size = min(how.batch, len(images.train))
    per_epoch = len(images.train) // batch_size
    optimizer = torch.optim.SGD(student.parameters(), lr=how.lr, momentum=how.momentum, nesterov=how.momentum > 0)
    flags = [(module, module.training) for module in student.modules()]
    total, done, means = how.epochs * per_epoch, 0, []
    student.train()
    try:
        for epoch in range(how.epochs):
            losses = []
            for batch in data.steps(images, batch_size, epoch=epoch, seed=how.seed, policy=how.augment):
                for part in batch:
                    for group in optimizer.param_groups:
                        group["lr"] = how.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done / total)))
                    losses.append(_step(student, teacher, part.images, optimizer, how))
                    done += 1
                    if told is not None:
                        told(min(done, total), total, losses[-1])
            means.append(math.fsum(losses) / len(losses))
    finally:
        for module, flag in flags:
            module.training = flag
    return means


def _step(student: nn.Module, teacher: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer, how: Distil) -> float:
    with evaluating(teacher):
        wanted = (teacher(x) / how.temperature).log_softmax(1)
    given = (student(x) / how.temperature).log_softmax(1)
    loss = F.kl_div(given, wanted, reduction="batchmean", log_target=True) * how.temperature**2
    value = loss.item()
    if not math.isfinite(value):
        raise Error(f"distil: the loss must stay finite, got {value} at lr={how.lr}")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(student.parameters(), how.clip)
    optimizer.step()
    return value
