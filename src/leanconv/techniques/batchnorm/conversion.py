"""One kind of norm into another: frozen, torch's, ours, synchronised, group; and the norm before its activation.

Each takes a context and proposes edits as the verbs do. Parameters and buffers go over as they are, the very tensors,
so that ties, gradients' flags and every entry of the state_dict stay; training flags too. Key maps are pure renames.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv.contract import Claim, Context, Edit, Refusal
from leanconv.errors import Error
from leanconv.graph import Graph, Step
from leanconv.techniques.batchnorm.fit import FORWARDS, hooked
from leanconv.techniques.batchnorm.layers import (
    ACTIVATIONS,
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    freeze,
    frozen,
)
from leanconv.techniques.batchnorm.places import back, is_activation, is_norm
from leanconv.techniques.batchnorm.surgery import NO_GRAPH, left_behind

__all__ = ["from_torch", "fuse", "reorder", "to_frozen", "to_group", "to_synchronised", "to_torch"]

PAIRS: tuple[tuple[type[BatchNorm], type[TorchBatchNorm]], ...] = (
    (BatchNorm1d, nn.BatchNorm1d),
    (BatchNorm2d, nn.BatchNorm2d),
    (BatchNorm3d, nn.BatchNorm3d),
)
Convert = Callable[[nn.Module], nn.Module | str | None]


def to_frozen(ctx: Context) -> list[Edit | Refusal]:
    """Batch norms that normalise with their running statistics in training too, as :func:`freeze` does.

    Gamma and beta stop as well. Exact: eval is as it was. Refused without running statistics, and for tied gamma or
    beta, which learn on elsewhere. To undo: :func:`leanconv.nn.unfreeze`.
    """
    names: dict[int, int] = {}
    for _, parameter in ctx.model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    aliases = {norm: len(paths) for norm, paths in _found(ctx.model)}

    def convert(norm: nn.Module) -> nn.Module | str | None:
        if frozen(norm):
            return None
        if norm.running_mean is None:
            return "it has no running statistics to stand on"
        if any(names[id(p)] > aliases[norm] for p in norm.parameters(recurse=False)):
            return "gamma or beta is shared with a layer that goes on learning"
        new = copy.deepcopy(norm)
        freeze(new)
        return new

    return _converted(ctx, convert, "exact", "frozen")


def to_torch(ctx: Context) -> list[Edit | Refusal]:
    """Our batch norms as torch.nn's, with the activation that stood inside as a module after it.

    Exact. ``on_single="running"`` has no counterpart: torch raises on one value per channel. A frozen layer stays
    frozen, through a hook.
    """

    def convert(norm: nn.Module) -> nn.Module | str | None:
        kind = next((theirs for ours, theirs in PAIRS if isinstance(norm, ours)), None)
        return None if kind is None else _torchs(norm, kind)

    return _converted(ctx, convert, "exact", "as torch's")


def from_torch(ctx: Context) -> list[Edit | Refusal]:
    """torch.nn's BatchNorm1d, 2d and 3d as ours. Exact; a frozen one (:func:`freeze`) stays frozen."""

    def convert(norm: nn.Module) -> nn.Module | str | None:
        kind = next((ours for ours, theirs in PAIRS if isinstance(norm, theirs)), None)
        if isinstance(norm, BatchNorm):
            return None
        if kind is None:
            return f"{type(norm).__name__} has no counterpart here"
        if (norm.weight is None) != (norm.bias is None):
            return "it has only one of gamma and beta"
        if norm.track_running_stats != (norm.running_mean is not None):
            return "its track_running_stats was changed after it was made"
        try:
            new = kind(**_arguments(norm), track_running_stats=bool(norm.track_running_stats))
        except Error as error:
            return str(error)
        _take(new, norm)
        new.frozen = frozen(norm)
        return new

    return _converted(ctx, convert, "exact", "as leanconv's")


def to_synchronised(ctx: Context) -> list[Edit | Refusal]:
    """Batch norms as nn.SyncBatchNorm, whose batch statistics are those of all processes together in training.

    Exact in eval; in training in one process too. Our layer's activation stands after it as a module.
    torch's ``convert_sync_batchnorm`` passes our layers by.
    """

    def convert(norm: nn.Module) -> nn.Module | str | None:
        return None if isinstance(norm, nn.SyncBatchNorm) else _torchs(norm, nn.SyncBatchNorm)

    return _converted(ctx, convert, "exact", "synchronised over processes")


def to_group(ctx: Context, groups: int = 32) -> list[Edit | Refusal]:
    """Batch norms as nn.GroupNorm, which needs no batch; gamma and beta are kept, the function changes.

    Args:
        ctx: with a graph, groups that would hold a single value are refused too.
        groups: at most so many; the largest divisor of the channels that is not above it is taken, and told.

    Raises:
        Error: groups is no integer >= 1.

    Source:
        Wu & He 2018, arXiv 1803.08494.
    """
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise Error(f"to_group: groups must be an integer >= 1, got groups={groups!r}")
    sizes = _sizes(ctx.graph)

    def convert(norm: nn.Module) -> nn.Module | str | None:
        channels = int(norm.num_features)  # type: ignore[arg-type]
        count = _divisor(channels, groups)
        if channels // count * sizes.get(norm, 2) < 2:
            return f"each of {count} groups of {channels} channels would hold one value, which has no variance"
        new = nn.GroupNorm(count, channels, float(norm.eps), affine=False)  # type: ignore[arg-type]
        new.affine = norm.weight is not None
        _take(new, norm, buffers=False)
        return _with_activation(new, norm)

    def told(new: nn.Module) -> str:
        norm = new[0] if isinstance(new, nn.Sequential) else new
        return f"as a group norm of {norm.num_groups} groups for {norm.num_channels} channels"

    return _converted(ctx, convert, "changes", told)


def reorder(ctx: Context) -> list[Edit | Refusal]:
    """Activation, batch norm -> batch norm, activation (row S10), where rule BN001 fires and the pair stands alone.

    Both must be modules that are called once, the second alone reading the first. The function changes, and so do the
    inputs of the batch norm: settle its statistics anew (:func:`precise_statistics`) or train on.
    """
    if ctx.graph is None:
        return [Refusal("", NO_GRAPH)]
    proposals: list[Edit | Refusal] = []
    taken: set[str] = set()
    for step in (s for s in ctx.graph.steps if is_norm(s.module) and len(s.inputs) == 1):
        first, _ = back(ctx.graph, step)
        inside = first is not None and getattr(first.module, "activation", None) is not None
        if first is None or not (is_activation(first) or inside):
            continue
        why = "the activation stands inside another batch norm" if inside else _unfit_pair(ctx.graph, first, step)
        if not why and taken & {first.path, step.path}:
            why = "another edit of this call moves the same layer"
        taken |= set() if why else {first.path, step.path}
        proposals.append(Refusal(step.path, why) if why else _swapped(ctx.graph, first, step))
    return proposals


def fuse(ctx: Context) -> list[Edit | Refusal]:
    """Our batch norm takes in the ReLU, ReLU6, hard-swish or SiLU that alone reads it: one operation, x alone is kept.

    Exact, no entry of the state_dict changes; an identity stands where the activation stood. Both must be modules that
    are called once.
    """
    if ctx.graph is None:
        return [Refusal("", NO_GRAPH)]
    kinds: dict[object, str] = {type(make()): name for name, (_, make) in ACTIVATIONS.items()}
    proposals: list[Edit | Refusal] = []
    for step in ctx.graph.steps:
        norm, act = step.module, ctx.graph.only_consumer(step)
        if not isinstance(norm, BatchNorm) or norm.activation is not None or act is None or act.module is None:
            continue
        if type(act.module) not in kinds:
            continue
        why = _unfit_pair(ctx.graph, step, act)
        if why:
            proposals.append(Refusal(step.path, why))
            continue
        new = copy.copy(norm)
        for name in ("_parameters", "_buffers", "_modules"):
            new.__dict__[name] = dict(norm.__dict__[name])
        new.activation = kinds[type(act.module)]
        put: dict[str, nn.Module] = dict.fromkeys(ctx.graph.aliased(step.path), new)
        names = [f"{path}.{name}" for path in put for name in norm.state_dict()]
        rest = nn.Identity().train(act.module.training)
        put |= dict.fromkeys(ctx.graph.aliased(act.path), rest)
        told = f"{step.path} takes in {act.path}: batch norm and {act.kind} in one operation"
        proposals.append(Edit(put, told, "exact", dict(zip(names, names, strict=True))))
    return proposals


def _unfit_pair(graph: Graph, act: Step, norm: Step) -> str:
    """Why these two cannot change places; empty where they can."""
    if act.module is None:
        return f"the activation before it is the function {act.kind}, which no edit of modules moves"
    if graph.producer(norm.inputs[0]) != act:
        return f"something stands between {act.path} and it"
    only = graph.only_consumer(act)
    if only is None or only.index != norm.index:
        return f"the output of {act.path} is used elsewhere too, or returned"
    for step in (act, norm):
        if len(graph.calls(step.path)) > 1:
            return f"{step.path} is called {len(graph.calls(step.path))} times"
        if step.module is None or hooked(step.module):
            return f"{step.path} has hooks or parametrizations"
    return ""


def _swapped(graph: Graph, act: Step, norm: Step) -> Edit:
    assert act.module is not None
    assert norm.module is not None
    places = ((norm, act), (act, norm))
    put: dict[str, nn.Module] = {}
    keys: dict[str, str] = {}
    for moved, place in places:
        assert moved.module is not None
        for path in graph.aliased(place.path):
            put[path] = moved.module
            keys |= {f"{path}.{name}": f"{moved.path}.{name}" for name in moved.module.state_dict()}
    return Edit(put, f"{norm.path} changes places with {act.path}: batch norm before {act.kind}", "changes", keys)


# --- what the conversions share --------------------------------------------------------------------------------------


def _found(model: nn.Module) -> Iterator[tuple[nn.Module, list[str]]]:
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if is_norm(module):
            found.setdefault(module, []).append(path)
    yield from found.items()


def _converted(
    ctx: Context, convert: Convert, claim: Claim, told: str | Callable[[nn.Module], str]
) -> list[Edit | Refusal]:
    """An edit for each batch norm that ``convert`` gives a module for, a refusal where it gives a reason."""
    proposals: list[Edit | Refusal] = []
    for norm, paths in _found(ctx.model):
        own = type(norm).forward not in FORWARDS or "forward" in vars(norm)
        new = convert(norm)
        if new is None:
            continue
        if hooked(norm) or own:
            new = f"{type(norm).__name__} has a forward of its own" if own else "it has hooks or parametrizations"
        if isinstance(new, str):
            proposals.append(Refusal(paths[0], new))
            continue
        why = f"{paths[0]} {told if isinstance(told, str) else told(new)}"
        proposals.append(Edit(dict.fromkeys(paths, new), why, claim, _renames(new, paths)))
    return proposals


def _renames(new: nn.Module, paths: list[str]) -> dict[str, str]:
    """A norm that is now the first of two is found one level deeper."""
    inner = "0." if isinstance(new, nn.Sequential) else ""
    names = [name.removeprefix(inner) for name in new.state_dict()]
    dots = [f"{path}." if path else "" for path in paths]
    return {f"{path}{inner}{name}": f"{path}{name}" for path in dots for name in names}


def _arguments(norm: nn.Module) -> dict[str, Any]:
    """Those that all kinds have, and the device to start on."""
    like = next((t for t in (norm.weight, norm.running_mean) if isinstance(t, Tensor)), None)
    names = ("num_features", "eps", "momentum")
    found: dict[str, Any] = {name: getattr(norm, name) for name in names} | {"affine": norm.weight is not None}
    return found | ({} if like is None else {"device": like.device, "dtype": like.dtype})


def _take(new: nn.Module, norm: nn.Module, buffers: bool = True) -> None:
    """The very parameters and buffers of ``norm``, and its mode."""
    new._parameters.update(norm._parameters)
    if buffers:
        new._buffers.update(norm._buffers)
    new.training = norm.training


def _torchs(norm: nn.Module, kind: type[TorchBatchNorm]) -> nn.Module:
    new = kind(**_arguments(norm), track_running_stats=bool(norm.track_running_stats))
    _take(new, norm)
    if frozen(norm):
        freeze(new, affine=False)  # gamma and beta keep their flags
    return _with_activation(new, norm)


def _with_activation(new: nn.Module, norm: nn.Module) -> nn.Module:
    if getattr(norm, "activation", None) is None:
        return new
    both = nn.Sequential(new, left_behind(norm))
    both.training = norm.training
    return both


def _divisor(channels: int, limit: int) -> int:
    return next(g for g in range(min(limit, channels), 0, -1) if channels % g == 0)


def _sizes(graph: Graph | None) -> dict[nn.Module, int]:
    """How many values per channel and image each batch norm saw; the least where it was called several times."""
    sizes: dict[nn.Module, int] = {}
    for step in graph.steps if graph is not None else ():
        if step.module is not None and is_norm(step.module):
            size = prod(graph.shape(step.inputs[0])[2:]) if graph is not None else 1
            sizes[step.module] = min(size, sizes.get(step.module, size))
    return sizes
