"""What goes wrong with L2: one function per rule, each with what, why, example, fix and references."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from leanconv.contract import Context, Finding, Price
from leanconv.techniques.l2.decoupled import Decoupled, decoupled_groups
from leanconv.techniques.l2.forms import decays
from leanconv.techniques.l2.groups import named_roles

__all__ = ["RULES", "check", "coupled_under_adam", "decay_on_bias_or_norm", "decay_twice", "decay_without_effect"]

STEPS_WITHOUT_EFFECT = 10_000_000
Group = Mapping[str, Any]


def check(ctx: Context) -> Iterator[Finding]:
    """Every rule on the context; rules that lack what they need say nothing."""
    for rule in RULES:
        yield from rule(ctx)


def decay_on_bias_or_norm(ctx: Context) -> Iterator[Finding]:
    """L2001: biases, gamma or beta are decayed.

    What:
        A group with ``weight_decay`` holds biases or norm parameters. Needs the optimizer.
    Why:
        Equation 2-13 gives the bias no penalty. A bias does not make the function steeper, and a decayed gamma pulls
        the layer's scale to 0 against the very purpose of batch normalisation. ``SGD(model.parameters(),
        weight_decay=...)`` does this silently.
    Example:
        ``torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)``
    Fix:
        ``torch.optim.SGD(leanconv.param_groups(model, strength=5e-4), lr=0.1)``
    References:
        pytorch#1402; He et al., Bag of Tricks, arXiv 1812.01187, section 3.1; row S15 of the source.
    """
    names = _names(ctx)
    roles = named_roles(ctx.model, ctx.roles) if names else {}
    for i, group in _decaying(ctx):
        wrong = [names[p] for p in group["params"] if p in names and roles[names[p]] in ("bias", "norm")]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            message = (
                f"weight_decay={group['weight_decay']:g} acts on {wrong[0]}{more}: biases and norm parameters take none"
            )
            yield Finding("L2001", f"optimizer.param_groups[{i}]", "warning", message, prices=_half_life(group))


def coupled_under_adam(ctx: Context) -> Iterator[Finding]:
    """L2002: decay that is part of the gradient, under an optimizer that rescales gradients.

    What:
        A coupled ``weight_decay``, or a penalty in the loss, under Adam and its kin. Needs the optimizer.
    Why:
        They divide the gradient by its running size, and the decay with it: weights with large gradients are hardly
        decayed, weights with small ones strongly. The strength no longer means what it says.
    Example:
        ``torch.optim.Adam(groups, lr=1e-3, weight_decay=1e-2)``
    Fix:
        ``where: decoupled`` in the recipe, or ``torch.optim.AdamW``.
    References:
        pytorch#38767; Loshchilov and Hutter, arXiv 1711.05101.
    """
    if ctx.optimizer is None or not isinstance(ctx.optimizer, _rescaling()):
        return
    kind = type(ctx.optimizer).__name__
    fix = "decoupled decay (where='decoupled') keeps its strength"
    if not decoupled_groups(ctx.optimizer):
        for i, group in _decaying(ctx):
            message = f"{kind} rescales the coupled weight_decay={group['weight_decay']:g} with the gradient; {fix}"
            yield Finding("L2002", f"optimizer.param_groups[{i}]", "warning", message)
    if _recipe(ctx).get("where") == "loss":
        yield Finding(
            "L2002", "techniques.l2", "warning", f"{kind} rescales the penalty in the loss with the gradient; {fix}"
        )


def decay_twice(ctx: Context) -> Iterator[Finding]:
    """L2003: one weight is decayed in two ways at once.

    What:
        The optimizer's ``weight_decay`` beside the penalty in the loss or beside a decoupled hook. Needs the
        optimizer, and the recipe of the run for the penalty.
    Why:
        The two add up: the weights shrink by more than either number says, and a study of one of them measures both.
    Example:
        a recipe with ``l2: {where: loss}`` and an optimizer with ``weight_decay=5e-4``
    Fix:
        keep one: ``weight_decay=0`` in the optimizer, or no ``l2`` in the recipe.
    References:
        row S14 of the source: one penalty, one coefficient.
    """
    hooks = [h for h in _hooks(ctx) if isinstance(h, Decoupled)]
    hooked = {p for hook in hooks for p, value in hook.decay.items() if value}
    names, recipe = _names(ctx), _recipe(ctx)
    in_loss = recipe.get("where") == "loss" and recipe.get("strength", 1.0) > 0
    roles = named_roles(ctx.model, ctx.roles) if names and in_loss else {}
    depthwise = recipe.get("depthwise", True)
    penalised = {p for p, name in names.items() if in_loss and decays(roles[name], depthwise)}
    for i, group in _decaying(ctx):
        for how, which in (("a decoupled hook", hooked), ("the penalty in the loss", penalised)):
            twice = [names.get(p, "a parameter") for p in group["params"] if p in which]
            if twice:
                message = f"{twice[0]} is decayed by weight_decay={group['weight_decay']:g} and by {how}"
                yield Finding("L2003", f"optimizer.param_groups[{i}]", "error", message, prices=_half_life(group))


def decay_without_effect(ctx: Context) -> Iterator[Finding]:
    """L2004: so weak a decay that no training would show it.

    What:
        At the present learning rate the weights would need more than ten million steps to halve. Needs the optimizer.
    Why:
        Mostly λ was meant for another form: 5e-4 is usual as ``lambda/2``; as ``lambda/2n`` it is divided by the
            number of
        images once more.
    Example:
        ``leanconv.param_groups(model, strength=5e-4, form="lambda/2n", n=50_000)``
    Fix:
        multiply λ by n, or say ``form="lambda/2"``.
    References:
        row S14 of the source: the forms and their equivalent weight_decay.
    """
    for i, group in _decaying(ctx):
        prices = _half_life(group)
        if prices and prices[0].value > STEPS_WITHOUT_EFFECT:
            message = (
                f"weight_decay={group['weight_decay']:g} halves a weight in {prices[0].value:.0e} steps: no effect"
            )
            yield Finding("L2004", f"optimizer.param_groups[{i}]", "note", message, prices=prices)


RULES = (decay_on_bias_or_norm, coupled_under_adam, decay_twice, decay_without_effect)


def _decaying(ctx: Context) -> Iterator[tuple[int, Group]]:
    for i, group in enumerate(ctx.optimizer.param_groups if ctx.optimizer is not None else ()):
        if group.get("weight_decay"):
            yield i, group


def _names(ctx: Context) -> dict[Tensor, str]:
    return {p: name for name, p in ctx.model.named_parameters()} if any(_decaying(ctx)) else {}


def _hooks(ctx: Context) -> list[object]:
    return list(getattr(ctx.optimizer, "_optimizer_step_pre_hooks", {}).values())


def _recipe(ctx: Context) -> Mapping[str, Any]:
    """The options of l2 in the run's recipe; where it names none of them, ``where`` is the default of a recipe."""
    given = ((ctx.run or {}).get("recipe") or {}).get("techniques") or {}
    return {"where": "loss", **(given["l2"] or {})} if "l2" in given else {}


def _rescaling() -> tuple[type, ...]:
    o = torch.optim
    return (o.Adam, o.NAdam, o.RAdam, o.Adamax, o.Adagrad, o.Adadelta, o.RMSprop)


def _half_life(group: Group) -> tuple[Price, ...]:
    """Steps in which decay alone halves a weight at the present learning rate: ln 2 / (lr * weight_decay)."""
    rate = float(group["lr"]) * group["weight_decay"]
    if rate <= 0:
        return ()
    steps = log(2) / rate
    return (Price("half-life of a weight under decay alone", steps, steps, steps, "steps", "predicted"),)
