"""What L2 does while a network trains: a penalty in the loss, a coupled weight_decay, or decoupled decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from leanconv.contract import Attachment, Context
from leanconv.errors import Error
from leanconv.techniques.l2.decoupled import decouple, decoupled_groups
from leanconv.techniques.l2.forms import decays, weight_decay
from leanconv.techniques.l2.groups import named_roles
from leanconv.techniques.l2.options import Options
from leanconv.techniques.l2.penalty import penalty

__all__ = ["attach"]


def attach(ctx: Context, options: Options) -> Attachment:
    """Start decaying the weights of ``ctx.model`` as the options say.

    Args:
        ctx: ``model``; ``roles`` (found where empty); ``samples``, the n of ``lambda/2n``; and, unless the penalty
            is in the loss, ``optimizer``, whose groups hold one kind of parameter each (as :func:`param_groups`
            makes them).
        options: see :class:`Options`.

    Returns:
        ``penalty(stopped)`` is the penalty of ``where="loss"`` and None else; ``close()`` gives the optimizer back
        as it was.

    Raises:
        Error: ``lambda/2n`` without ``samples``; no optimizer where one is needed; an optimizer that does not couple
            (AdamW under ``where="optimizer"``); weights that are decayed already; a group of both kinds.

    Source: rows S14, S15 and S16.
    """
    if options.form == "lambda/2n" and ctx.samples is None:
        raise Error(
            "l2: form 'lambda/2n' divides by n, the number of training images, and needs it known, got samples=None"
        )
    decay = weight_decay(options.strength, options.form, ctx.samples)
    roles = named_roles(ctx.model, ctx.roles)
    if options.where == "loss":
        _not_yet(ctx, roles, options)
        return InLoss(ctx.model, roles, options, ctx.samples)
    if ctx.optimizer is None:
        raise Error(f"l2: where={options.where!r} needs an optimizer, got None")
    decayed: set[Tensor] = {ctx.model.get_parameter(n) for n, role in roles.items() if decays(role, options.depthwise)}
    if options.where == "optimizer":
        if "weight_decay" not in ctx.optimizer.defaults or decoupled_groups(ctx.optimizer):
            kind = type(ctx.optimizer).__name__
            raise Error(f"l2: where='optimizer' needs an optimizer that adds weight_decay to the gradient, got {kind}")
        return InGroups(ctx.optimizer, decayed, decay)
    if decoupled_groups(ctx.optimizer):
        return InGroups(ctx.optimizer, decayed, decay)
    _not_yet(ctx, roles, options)
    return InHook(ctx.optimizer, decayed, decay)


class InLoss(Attachment):
    """The penalty of equation 2-11, a part of the loss."""

    def __init__(self, model: nn.Module, roles: Mapping[str, str], options: Options, n: int | None) -> None:
        self.model, self.roles, self.options, self.n = model, roles, options, n
        first = {p: name for name, p in model.named_parameters()}
        self.aliases = {name: first[p] for name, p in model.named_parameters(remove_duplicate=False)}

    def penalty(self, stopped: Mapping[str, Tensor]) -> Tensor:
        """The scalar penalty; entries that are stopped in this step are in neither its value nor its gradient."""
        o = self.options
        named = {self.aliases.get(name, name): mask for name, mask in stopped.items()}
        return penalty(self.model, o.strength, o.form, self.n, roles=self.roles, depthwise=o.depthwise, stopped=named)


class InGroups(Attachment):
    """The optimizer's own ``weight_decay``, coupled or not as the optimizer has it."""

    def __init__(self, optimizer: Optimizer, decayed: set[Tensor], decay: float) -> None:
        groups = [g for g in optimizer.param_groups if any(p in decayed for p in g["params"])]
        for group in groups:
            mixed = [p for p in group["params"] if p not in decayed]
            if mixed:
                raise Error(
                    "l2: a parameter group must hold only weights or none (see leanconv.param_groups), "
                    f"got {len(mixed)} of {len(group['params'])} that are not decayed"
                )
        self.before: list[tuple[dict[str, Any], float]] = [(g, g.get("weight_decay", 0.0)) for g in groups]
        for group in groups:
            group["weight_decay"] = decay

    def close(self) -> None:
        """The groups have the ``weight_decay`` from before."""
        for group, value in self.before:
            group["weight_decay"] = value


class InHook(Attachment):
    """Decoupled decay for an optimizer that has none: a step pre-hook."""

    def __init__(self, optimizer: Optimizer, decayed: set[Tensor], decay: float) -> None:
        own = {p for g in optimizer.param_groups for p in g["params"]}
        self.handle = decouple(optimizer, dict.fromkeys(decayed & own, decay))

    def close(self) -> None:
        """The optimizer decays nothing any more."""
        self.handle.remove()


def _not_yet(ctx: Context, roles: Mapping[str, str], options: Options) -> None:
    decayed = {ctx.model.get_parameter(n): n for n, role in roles.items() if decays(role, options.depthwise)}
    for group in ctx.optimizer.param_groups if ctx.optimizer is not None else ():
        for p in group["params"] if group.get("weight_decay") else ():
            if p in decayed:
                raise Error(
                    f"l2: where={options.where!r} needs the optimizer's own weight_decay at 0, "
                    f"got {group['weight_decay']!r} for {decayed[p]!r}"
                )
