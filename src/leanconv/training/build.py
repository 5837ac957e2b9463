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
from leanconv.training import weights

__all__ = ["Built", "attach", "build", "from_scratch", "settled"]


@dataclass(frozen=True)
class Built:
    """A network with what is known about how it was built.

    Attributes:
        model: the network, in training mode, its weights channels_last.
        example: one batch (2, C, H, W) of fixed noise that it runs on.
        roles: parameter name -> role.
        idle: techniques of the recipe that changed nothing in the network.
        refusals: technique -> the places where it did not act, and why.
        started: what became of the weights that it starts from; None where there are none.
        notes: what was loaded and what was frozen, a sentence each.
    """

    model: nn.Module
    example: Tensor
    roles: dict[str, str]
    idle: tuple[str, ...]
    refusals: dict[str, tuple[Refusal, ...]]
    started: weights.Loaded | None = None
    notes: tuple[str, ...] = ()


def build(
    recipe: Recipe, shape: tuple[int, int, int], classes: int, samples: int | None = None, start: bool = False
) -> Built:
    """The network of a recipe, untrained; with ``start`` also with the weights that it starts from and the frozen part.

    Args:
        recipe: its ``model``, ``techniques`` and ``training.seed`` decide.
        shape: (C, H, W) of one input.
        classes: number of outputs.
        samples: n, the number of training images, where known.
        start: for a training; a checkpoint that is read back has its weights itself.

    Raises:
        Error: no such model or option; an input shape that does not fit; outputs that are not (N, classes); whatever
            a technique refuses altogether.
    """
    seed = recipe.training.seed
    example, model = _example(recipe, shape), _seeded(recipe, shape, classes)
    _fits(recipe.model.name, model, example, classes)
    idle, refusals = [], {}
    source = recipe.model.weights if start else None
    state = weights.read(source) if source is not None else {}
    early = bool(state) and weights.matches(model, state, example)
    loaded = weights.fit(model, state, example, source or "") if early else None
    for name, options in from_scratch(recipe).technique_options().items():
        context = Context(model, graph=record(model, example), probe=example, seed=seed, samples=samples)
        done = rewrite(model, techniques.get(name).apply(context, options))
        model, refusals[name] = done.model, done.refusals
        if not done.edits:
            idle.append(name)
    model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    if state and not early:
        loaded = weights.fit(model, state, example, source or "")
    frozen = weights.freeze(model, recipe.model.freeze, example) if start else ()
    notes = [f"weights: {loaded}"] if loaded else []
    notes += [f"freeze: {len(frozen)} tensors of the {recipe.model.freeze} do not learn"] if frozen else []
    return Built(model, example, techniques.roles(model), tuple(idle), refusals, loaded, tuple(notes))


def from_scratch(recipe: Recipe) -> Recipe:
    """The recipe with ``init: fresh`` for every technique that has such an option and was not told otherwise.

    Surgery on a trained network keeps what its weights know; where none are loaded there is nothing to keep.
    """
    return recipe if recipe.model.weights is not None else _fresh_techniques(recipe)


def settled(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> Recipe:
    """The recipe with every option written out, ``init`` of the techniques as its weights need it.

    Weights that fit the network as it is before the techniques (those of another program) are loaded first, and the
    techniques then keep what they know. Weights that do not (those of a run with techniques) are loaded after them.

    Raises:
        Error: the weights cannot be read.
    """
    if recipe.model.weights is None:
        return from_scratch(recipe).resolved()
    state = weights.read(recipe.model.weights)
    early = weights.matches(_seeded(recipe, shape, classes), state, _example(recipe, shape))
    return (recipe if early else _fresh_techniques(recipe)).resolved()


def _fresh_techniques(recipe: Recipe) -> Recipe:
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
    name = recipe.model.name
    told = models.fitting(name, num_classes=classes, in_chans=shape[0], imgsz=shape[1])
    return models.build(name, **told | recipe.model.options)


def _example(recipe: Recipe, shape: tuple[int, int, int]) -> Tensor:
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(recipe.training.seed))
    return noise.contiguous(memory_format=torch.channels_last)


def _seeded(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        return _fresh(recipe, shape, classes)


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
