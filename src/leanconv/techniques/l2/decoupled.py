"""Decoupled weight decay: the weights shrink apart from the gradient, so no optimizer can rescale it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from leanconv.errors import Error

__all__ = ["Decoupled", "decouple", "decoupled_groups"]


class Decoupled:
    """A step pre-hook: w <- (1 - lr * decay) w, with the group's learning rate of the moment, before the gradient's
    step.

    Attributes:
        decay: the parameters it shrinks and by how much per unit of learning rate.
    """

    def __init__(self, decay: Mapping[Tensor, float]) -> None:
        self.decay = dict(decay)

    @torch.no_grad()
    def __call__(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Shrink; parameters without a gradient rest, as they do in torch's AdamW."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None and p in self.decay:
                    p.mul_(1 - group["lr"] * self.decay[p])


def decouple(optimizer: Optimizer, decay: Mapping[Tensor, float]) -> RemovableHandle:
    """Give any optimizer decoupled weight decay: w <- (1 - lr * decay) w, then its own step from C0's gradient.

    Under SGD without momentum this is the coupled decay to the letter. With momentum or under Adam it is not: there
    the coupled term is averaged and rescaled with the gradient, the decoupled one is not. As in torch's AdamW,
    ``lr`` is the group's current learning rate, so schedules scale the decay too.

    Args:
        optimizer: any of ``torch.optim``. Its own ``weight_decay`` should be 0 for these parameters, else both act.
        decay: parameter -> decay >= 0 per unit of learning rate.

    Returns:
        A handle; ``remove()`` ends the decay.

    Raises:
        Error: a parameter is not the optimizer's, or a decay is negative.

    Source: I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101, algorithms 1 and 2.
    """
    known = {p for group in optimizer.param_groups for p in group["params"]}
    for p, value in decay.items():
        if p not in known:
            raise Error(f"decouple: every parameter must be the optimizer's, got one of shape {tuple(p.shape)}")
        if not value >= 0:
            raise Error(f"decouple: decay must be >= 0, got {value!r}")
    return optimizer.register_step_pre_hook(Decoupled(decay))


def decoupled_groups(optimizer: Optimizer) -> bool:
    """Whether the optimizer's own ``weight_decay`` is decoupled, as AdamW's is, rather than part of the gradient."""
    if any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        return True
    always = (torch.optim.Adafactor, *([torch.optim.Muon] if hasattr(torch.optim, "Muon") else []))
    return isinstance(optimizer, always)
