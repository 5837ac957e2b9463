"""From a recipe to a network: the model from its seed, then each technique of the recipe, in order.

The same recipe and the same data shape give the same network, name by name, so a checkpoint is read back by building
again and loading the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from leanconv import models, techniques
from leanconv.contract import Attachment, Context, Refusal
from leanconv.errors import Error
from leanconv.graph import evaluating, record
from leanconv.recipe import Recipe
from leanconv.rewrite import rewrite

__all__ = ["Built", "attach", "build", "from_scratch"]


@dataclass(frozen=True)
class Built:
    """A network with what is known about how it was built.

    Attributes:
        model: the network, in training mode, its weights channels_last.
        example: one batch (2, C, H, W) of fixed noise that it runs on.
        roles: parameter name -> role.
        idle: techniques of the recipe that changed nothing in the network.
        refusals: technique -> the places where it did not act, and why.
        loaded: names of parameters whose values were loaded.
        notes: what was loaded and what was frozen, a sentence each.
    """

    model: nn.Module
    example: Tensor
    roles: dict[str, str]
    idle: tuple[str, ...]
    refusals: dict[str, tuple[Refusal, ...]]
    loaded: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def build(recipe: Recipe, shape: tuple[int, int, int], classes: int, samples: int | None = None) -> Built:
    """The network of a recipe, untrained.

    Args:
        recipe: its ``model``, ``techniques`` and ``training.seed`` decide.
        shape: (C, H, W) of one input.
        classes: number of outputs.
        samples: n, the number of training images, where known.

    Raises:
        Error: no such model or option; an input shape that does not fit; outputs that are not (N, classes); whatever
            a technique refuses altogether.
    """
    seed = recipe.training.seed
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    example = example.contiguous(memory_format=torch.channels_last)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _fresh(recipe, shape, classes)
    _fits(recipe.model.name, model, example, classes)
    idle, refusals = [], {}
    for name, options in from_scratch(recipe).technique_options().items():
        context = Context(model, graph=record(model, example), probe=example, seed=seed, samples=samples)
        done = rewrite(model, techniques.get(name).apply(context, options))
        model, refusals[name] = done.model, done.refusals
        if not done.edits:
            idle.append(name)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    return Built(model, example, techniques.roles(model), tuple(idle), refusals)


def from_scratch(recipe: Recipe) -> Recipe:
    """The recipe with ``init: fresh`` for every technique that has such an option and was not told otherwise.

    Surgery on a trained network keeps what its weights know; where none are loaded there is nothing to keep.
    """
    if recipe.model.weights is not None:
        return recipe
    techniques = {
        name: {"init": "fresh", **given} if hasattr(options, "init") else given
        for (name, given), options in zip(recipe.techniques.items(), recipe.technique_options().values(), strict=True)
    }
    return replace(recipe, techniques=techniques)


def attach(built: Built, recipe: Recipe, optimizer: Optimizer, samples: int) -> tuple[list[Attachment], list[str]]:
    """What each technique of the recipe does while the network trains, and notes on those that do nothing at all.

    Args:
        built: the network.
        recipe: the one that it was built from.
        optimizer: holds the parameters, one group per role.
        samples: n, the number of training images.

    Returns:
        The attachments in the recipe's order; one sentence per technique without any effect.
    """
    graph = record(built.model, built.example)
    context = Context(built.model, graph=graph, optimizer=optimizer, probe=built.example, samples=samples)
    context = replace(context, roles=built.roles, seed=recipe.training.seed)
    attachments, notes = [], []
    for name, options in recipe.technique_options().items():
        attachment = techniques.get(name).attach(context, options)
        if attachment is not None:
            attachments.append(attachment)
        elif name in built.idle:
            notes.append(f"{name} had no effect: {_reason(built.refusals[name])}")
    return attachments, notes


def _reason(refusals: tuple[Refusal, ...]) -> str:
    if not refusals:
        return "the network has no place for it, or has it already."
    more = f" (and {len(refusals) - 1} more places)" if len(refusals) > 1 else ""
    return f"{refusals[0].path or 'the network'}: {refusals[0].why}{more}"


def _fresh(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The model, told of classes and input as far as it has options for that; the recipe's own options win."""
    name, known = recipe.model.name, models.options(recipe.model.name)
    told = {"num_classes": classes, "in_chans": shape[0], "imgsz": shape[1]}
    fitting = {k: v for k, v in told.items() if (k in known if known is not None else k != "imgsz")}
    return models.build(name, **fitting | recipe.model.options)


def _fits(name: str, model: nn.Module, example: Tensor, classes: int) -> None:
    shown = ",".join(map(str, example.shape[1:]))
    try:
        with evaluating(model):
            outputs = model(example)
    except Exception as error:  # whatever a foreign network raises
        reason = str(error).strip().split("\n")[0]
        raise Error(
            f"model {name}: an input of shape {shown} must fit, got {type(error).__name__}: {reason}"
        ) from error
    got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if got != (len(example), classes):
        raise Error(
            f"model {name}: outputs must be (N, {classes}), one per class, got {got} for {tuple(example.shape)}"
        )
