"""Optimizer and learning rate. Decay is not decided here: it is the business of the technique ``l2`` alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from leanconv.errors import Error
from leanconv.recipe import Training

__all__ = ["factor", "groups", "make", "set_rate"]


def groups(
    model: nn.Module, roles: Mapping[str, str], lr: float, loaded: Collection[str] = (), share: float = 1.0
) -> list[dict[str, Any]]:
    """One parameter group per role, in the order of first appearance, none decayed.

    Args:
        model: its parameters that take a gradient are put in; tied ones once.
        roles: parameter name -> role.
        lr: of every group.
        loaded: names of parameters that were loaded; they have groups of their own.
        share: of ``lr``, for the loaded ones.

    Returns:
        Groups with ``params``, ``names``, ``role``, ``weight_decay`` 0, ``lr`` and ``scale``, the share of the rate.
    """
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role, scale = roles[name], share if name in loaded else 1.0
            empty = {"params": [], "names": [], "role": role, "weight_decay": 0.0, "lr": lr * scale, "scale": scale}
            group = found.setdefault((role, scale), empty)
            group["params"].append(parameter)
            group["names"].append(name)
    return list(found.values())


def make(model: nn.Module, roles: Mapping[str, str], settings: Training, loaded: Collection[str] = ()) -> Optimizer:
    """SGD (momentum, Nesterov) or AdamW with one group per role; loaded parameters learn at ``loaded_lr`` of the rate.

    Raises:
        Error: every parameter is frozen.
    """
    parameters = groups(model, roles, settings.lr, loaded, settings.loaded_lr)
    if not parameters:
        raise Error("training: some parameters must learn, got a network that is frozen as a whole")
    if settings.optimizer == "adamw":
        return AdamW(parameters, lr=settings.lr, weight_decay=0.0)
    return SGD(
        parameters, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov and settings.momentum > 0
    )


def factor(settings: Training, step: int, per_epoch: int) -> float:
    """What the learning rate of a step is multiplied with: a linear rise over the warm-up, then the schedule.

    ``(step + 1) / w`` for step < w = warmup * per_epoch; after it 1 (``constant``), or
    ``(1 + cos(pi (step - w) / (steps - w))) / 2`` (``cosine``; Loshchilov & Hutter 2017).

    Args:
        settings: ``epochs``, ``warmup`` (in epochs) and ``schedule``.
        step: from 0, over the whole training.
        per_epoch: optimizer steps per epoch.
    """
    steps = settings.epochs * per_epoch
    warm = min(settings.warmup * per_epoch, steps / 2)
    if step < warm:
        return min(1.0, (step + 1) / warm)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """The learning rate for every group, times the group's ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
