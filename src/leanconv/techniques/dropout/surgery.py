"""Dropout put into a network, taken out, folded. All three leave eval outputs as they are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd

from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import Graph, Step
from leanconv.techniques.dropout.flow import DROPPING, activates, back, drops, readers, weighted, with_dropout
from leanconv.techniques.dropout.groups import find
from leanconv.techniques.dropout.layers import Dropout, Dropout1d, Dropout2d, Dropout3d
from leanconv.techniques.dropout.options import Options

__all__ = ["apply", "fold", "remove"]

_BY_RANK: dict[int, type[Dropout]] = {3: Dropout1d, 4: Dropout2d, 5: Dropout3d}
_TRIED = "(dropout)"


@dataclass(frozen=True)
class _Place:
    """A tensor that is to pass a dropout layer, or the dropout layers that it passes already."""

    value: int
    path: str
    existing: tuple[Step, ...] = ()


def apply(ctx: Context, options: Options) -> list[Edit | Refusal]:
    """Put dropout where ``options.where`` says.

    - head: before the last layer with weights, on its features (whole channels if it is a convolution on maps).
    - hidden: after each activation whose output only convolutions without groups and Linears read; pooling, Flatten,
      dropout and depthwise convolutions may stand between. Not before a sum, and never straight before a norm.
    - with ``strict`` at the same places, but moved up before Flatten and pooling, as whole channels, and only where
      strict mode can tell what a unit owns.

    A dropout layer that stands at such a place already is exchanged if it differs from the options. State-dict keys
    stay, unless only a layer with weights can be wrapped; then the edit maps them.

    Args:
        ctx: with a graph.
        options: of the technique.

    Returns:
        Exact edits (dropout is the identity in eval mode), and refusals with their reasons.
    """
    graph = ctx.graph
    if graph is None:
        return [Refusal("", "the places for dropout are known from one execution, so an example input is needed")]
    if options.p == 0:
        return [Refusal("", "with p = 0 nothing ever stops")]
    proposals: list[Edit | Refusal] = []
    used: set[str] = set()
    for place in _places(graph, options):
        proposal = _proposal(graph, place, options)
        if isinstance(proposal, Edit) and used & set(proposal.put):
            proposal = Refusal(place.path, "another edit of this call changes the same layer")
        if proposal is not None:
            used |= set(proposal.put) if isinstance(proposal, Edit) else set()
            proposals.append(proposal)
    return proposals or ([] if _has_dropout(ctx.model) else [Refusal("", "no layer reads what a hidden layer made")])


def remove(ctx: Context) -> list[Edit | Refusal]:
    """Put Identity in place of every dropout layer, ours and torch's: exact in eval mode, and training has no noise."""
    paths: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for path, module in ctx.model.named_modules(remove_duplicate=False):
        if isinstance(module, DROPPING):
            paths[id(module)].append(path)
            modules[id(module)] = module
    return [_removal(modules[key], names) for key, names in paths.items()]


def fold(ctx: Context) -> list[Edit | Refusal]:
    """As :func:`remove`: the identity in eval mode folds into nothing, exactly."""
    return remove(ctx)


def _removal(module: nn.Module, paths: list[str]) -> Edit | Refusal:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return Refusal(paths[0], "hooks on the dropout layer would be lost with it")
    identity = nn.Identity()
    identity.training = module.training
    kind = type(module).__name__
    return Edit(dict.fromkeys(paths, identity), f"{kind} is the identity in eval mode", "exact")


def _has_dropout(model: nn.Module) -> bool:
    return any(isinstance(module, DROPPING) for module in model.modules())


# --- where ----------------------------------------------------------------------------------------------------------


def _places(graph: Graph, options: Options) -> list[_Place]:
    """Places in the order of execution, each value once."""
    head = next((step for step in reversed(graph.steps) if weighted(step)), None)
    if head is None:
        return []
    places: list[_Place] = []
    if options.where in ("hidden", "all"):
        places += [place for step in graph.steps if (place := _hidden(graph, step, head)) is not None]
    if options.where != "hidden":
        places += _head(graph, head, options.strict)
    return places


def _hidden(graph: Graph, step: Step, head: Step) -> _Place | None:
    if not activates(step) or len(step.outputs) != 1 or graph.is_output(step.outputs[0]):
        return None
    reached = list(readers(graph, step.outputs[0], filters=True))
    if not reached or any(not _mixes(reader) or reader.index == head.index for reader, _ in reached):
        return None
    path = step.path if step.module is not None else reached[0][0].path
    found = {s.index: s for _, between in reached for s in between if drops(s)}
    return _Place(step.outputs[0], path, tuple(found.values()))


def _mixes(step: Step) -> bool:
    """A Linear, or a convolution whose outputs read all channels."""
    return weighted(step) and getattr(step.module, "groups", 1) == 1


def _head(graph: Graph, head: Step, strict: bool) -> list[_Place]:
    value, between = back(graph, head.inputs[0])
    if graph.producer(value) is None:
        return []
    existing = tuple(step for step in between if drops(step))
    return [_Place(value if strict else head.inputs[0], head.path, existing)]


# --- what -----------------------------------------------------------------------------------------------------------


def _proposal(graph: Graph, place: _Place, options: Options) -> Edit | Refusal | None:
    """The edit for a place; None where what stands there is as the options want it."""
    if len(place.existing) > 1:
        listed = ", ".join(step.path for step in place.existing)
        return Refusal(place.path, f"several dropout layers stand here already: {listed}")
    old = place.existing[0] if place.existing else None
    value = old.inputs[0] if old is not None else place.value
    layer = _layer(graph, value, options)
    if old is not None and repr(old.module) == repr(layer):
        return None
    if options.strict and (why := _unfit(graph, value, layer, old)) is not None:
        return Refusal(place.path, why)
    return _exchange(graph, old, layer) if old is not None else _insert(graph, place, layer)


def _layer(graph: Graph, value: int, options: Options) -> Dropout:
    """Whole channels of a map, which a convolution reads or which is flattened later; else single elements."""
    shape = graph.shape(value)
    maps = options.strict and prod(shape[2:]) != 1
    for reader, _ in readers(graph, value):
        maps = maps or isinstance(reader.module, _ConvNd) or len(graph.shape(reader.inputs[0])) == 2 < len(shape)
    kind = _BY_RANK.get(len(shape), Dropout) if maps else Dropout
    return kind(options.p, options.mask, options.count)


def _unfit(graph: Graph, value: int, layer: Dropout, old: Step | None) -> str | None:
    """Why strict mode cannot treat a dropout layer there."""
    _, refusals = find(with_dropout(graph, value, layer, old, _TRIED))
    return next((r.why for r in refusals if r.path == _TRIED), None)


def _exchange(graph: Graph, old: Step, layer: Dropout) -> Edit | Refusal:
    if old.module is None or len(graph.calls(old.path)) != 1:
        return Refusal(old.path, "a dropout layer that is called several times serves other places too")
    layer.training = old.module.training
    why = f"{old.kind}(p={getattr(old.module, 'p', None)}) becomes {layer}"
    return Edit(dict.fromkeys(graph.aliased(old.path), layer), why, "exact")


def _insert(graph: Graph, place: _Place, layer: Dropout) -> Edit | Refusal:
    """Wrap the layer that makes the value, or the only one that reads it; one without state if there is a choice."""
    made, readers_ = graph.producer(place.value), graph.consumers(place.value)
    sides = [(made, True)] if made is not None and len(made.outputs) == 1 else []
    sides += [(readers_[0], False)] if len(readers_) == 1 else []
    fit = [(s, after) for s, after in sides if _wrappable(graph, s)]
    if not fit:
        return Refusal(
            place.path, "functions and layers that are called several times stand around it: none can be wrapped"
        )
    fit.sort(key=lambda side: (bool(_state(side[0])), side[1] and bool(_state(side[0]))))
    step, after = fit[0]
    return _wrap(graph, step, layer, after)


def _wrappable(graph: Graph, step: Step) -> bool:
    """A layer that is called once, with one tensor and nothing else: what nn.Sequential passes on."""
    alone = len(step.inputs) == 1 and not step.arguments
    return alone and step.module is not None and bool(step.path) and len(graph.calls(step.path)) == 1


def _state(step: Step) -> list[str]:
    return list(step.module.state_dict()) if step.module is not None else []


def _wrap(graph: Graph, step: Step, layer: Dropout, after: bool) -> Edit:
    module = step.module
    if module is None:
        raise TypeError("only a layer can be wrapped")
    layer.training = module.training
    both = nn.Sequential(module, layer) if after else nn.Sequential(layer, module)
    both.training = module.training
    paths, inner = graph.aliased(step.path), 0 if after else 1
    keys = {f"{path}.{inner}.{key}": f"{path}.{key}" for path in paths for key in _state(step)}
    why = f"{layer} {'after' if after else 'before'} {step.path} ({step.kind})"
    return Edit(dict.fromkeys(paths, both), why, "exact", keys)
