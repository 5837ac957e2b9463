"""Batch norms into a network (before its activations) and out of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.contract import Claim, Context, Edit, Refusal
from leanconv.graph import Graph, Step, evaluating
from leanconv.techniques.batchnorm.layers import ACTIVATIONS, BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from leanconv.techniques.batchnorm.options import Options
from leanconv.techniques.batchnorm.places import CONVOLUTIONS, activations, back, channel_count, is_norm, own_activation
from leanconv.techniques.batchnorm.statistics import Moments

__all__ = ["Activation", "Normed", "apply", "left_behind", "remove", "without_bias"]

NO_GRAPH = "a recorded execution shows who feeds whom: give an example input"
GATES = frozenset({"sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_"})
BY_DIMS: Mapping[int, type[BatchNorm]] = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}


class Activation(nn.Module):
    """A function as a module: what stays of a batch norm with a function for an activation when it goes."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """function(x)."""
        y: Tensor = self.function(x)
        return y


class Normed(nn.Sequential):
    """A layer and the batch norm after it, at the layer's place: its attributes (``stride``) are found here too.

    Networks that pad by themselves, as TensorFlow does, read them.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layers = self.__dict__.get("_modules")
            if not layers or name.startswith("__"):
                raise
            return getattr(next(iter(layers.values())), name)


def apply(ctx: Context, options: Options) -> list[Edit | Refusal]:
    """A batch norm before each activation that lacks one, after the convolution or Linear that feeds it (row S10).

    The producer at path p becomes ``Sequential(producer, BatchNorm)`` at p; the key map tells the renames. With
    ``init="keep"`` the statistics of the producer's outputs over ctx.batches give gamma = sqrt(s^2 + eps), beta = mu
    and the running statistics, so eval outputs stay (row S9a) and the bias stays too. With ``init="fresh"`` gamma = 1,
    beta = 0 and the bias, which batch normalisation cancels, is dropped.
    """
    if ctx.graph is None:
        return [Refusal("", NO_GRAPH)]
    places: dict[str, Step] = {}
    refusals: dict[str, Refusal] = {}
    for act in activations(ctx.graph):
        producer, why = back(ctx.graph, act)
        if producer is not None and is_norm(producer.module):
            continue
        why = why or _unfit(ctx.graph, producer, act)
        if why or producer is None:
            path = producer.path if producer is not None and isinstance(producer.module, CONVOLUTIONS) else act.path
            refusals.setdefault(path, Refusal(path, f"no batch norm before {act.kind}: {why}"))
        else:
            places[producer.path] = producer
    if options.init == "keep" and places:
        moments = _moments(ctx, places)
        if moments is None:
            return [*refusals.values(), *(Refusal(p, "init='keep' calibrates on batches: give some") for p in places)]
    else:
        moments = {}
    edits = [_edit(ctx.graph, step, options, moments.get(path)) for path, step in places.items()]
    return [*edits, *refusals.values()]


def _unfit(graph: Graph, producer: Step | None, act: Step) -> str:
    """Why no batch norm can stand between these two; empty where it can."""
    if producer is None or not isinstance(producer.module, CONVOLUTIONS):
        kind = "the input" if producer is None else producer.kind
        return f"the step before it is {kind}, not a convolution or Linear"
    if len(producer.inputs) != 1 or len(producer.outputs) != 1 or producer.arguments:
        return f"{producer.path} takes or gives more than one tensor"
    shape = graph.shape(producer.outputs[0])
    calls = len(graph.calls(producer.path))
    if calls > 1:
        return f"{producer.path} is called {calls} times, with one set of statistics for different outputs"
    if len(shape) != _output_dims(producer.module):
        return f"the output of {producer.path} has shape {shape}, whose channels are not in dimension 1"
    gate = act.kind.lower() in GATES or own_activation(act)
    if gate and any(s.kind.startswith("mul") for v in act.outputs for s in graph.consumers(v)):
        return "it is a gate: its output multiplies"
    if producer.path == "":
        return "the network is this one layer"
    for name in producer.params:
        if any(user.module is None for user in graph.users(name)):
            return f"{name} is read by a function too"
    return ""


def _output_dims(module: nn.Module) -> int:
    return 2 if isinstance(module, nn.Linear) else 2 + len(module.kernel_size)  # type: ignore[arg-type]


def _edit(graph: Graph, step: Step, options: Options, moments: Moments | None) -> Edit:
    layer = step.module
    assert layer is not None
    norm = _norm(layer, len(graph.shape(step.outputs[0])), options, moments)
    first = layer if options.init == "keep" else without_bias(layer)
    pair = Normed(first, norm)
    pair.training = layer.training
    paths = graph.aliased(step.path) or (step.path,)
    entries = list(first.state_dict())
    keys = {f"{path}.0.{name}": f"{path}.{name}" for path in paths for name in entries}
    claim: Claim = "exact" if moments else "changes"
    what = "calibrated to keep the outputs" if moments else "fresh"
    return Edit(dict.fromkeys(paths, pair), f"{step.path}: batch norm before the activation, {what}", claim, keys)


def _norm(layer: nn.Module, dims: int, options: Options, moments: Moments | None) -> BatchNorm:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    norm = BY_DIMS[dims](
        channel_count(layer),
        options.eps,
        options.momentum,
        device=weight.device,
        dtype=weight.dtype,
        on_single=options.on_single,
    )
    norm.training = layer.training
    if moments is not None and moments.mean is not None:
        _calibrate(norm, moments.mean, moments.var)
    return norm


@torch.no_grad()
def _calibrate(norm: BatchNorm, mean: Tensor, var: Tensor) -> None:
    """Row S9a: gamma = sqrt(s^2 + eps), beta = mu make the layer the identity."""
    state = norm.state_dict(keep_vars=True)
    state["running_mean"].copy_(mean)
    state["running_var"].copy_(var)
    state["weight"].copy_((state["running_var"].double() + norm.eps).sqrt())
    state["bias"].copy_(state["running_mean"])


def without_bias(layer: nn.Module) -> nn.Module:
    """A shallow copy without bias: it shares the weight, so that ties survive the rewriting."""
    bare = copy.copy(layer)
    bare.__dict__["_parameters"] = dict(layer._parameters) | {"bias": None}
    return bare


def _moments(ctx: Context, places: Mapping[str, Step]) -> dict[str, Moments] | None:
    """Statistics of the producers' outputs over ctx.batches in eval; None without batches."""
    found = {path: Moments() for path in places}
    handles = [
        step.module.register_forward_hook(lambda m, args, y, path=path: found[path].add(y))
        for path, step in places.items()
        if step.module is not None
    ]
    try:
        with evaluating(ctx.model):
            for batch in ctx.batches or ():
                ctx.model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found if all(m.count for m in found.values()) else None


def left_behind(norm: nn.Module) -> nn.Module:
    """What stands where a batch norm stood: its activation as a module, or Identity."""
    kept: nn.Module = nn.Identity()
    if isinstance(norm, BatchNorm) and norm.activation is not None:
        act = norm.activation
        kept = ACTIVATIONS[act][1]() if isinstance(act, str) else Activation(act)
    kept.training = norm.training
    return kept


def remove(ctx: Context) -> list[Edit | Refusal]:
    """Every batch norm, ours and torch's, becomes Identity, or the activation that it held. The function changes."""
    found: dict[nn.Module, list[str]] = {}
    for path, module in ctx.model.named_modules(remove_duplicate=False):
        if is_norm(module):
            found.setdefault(module, []).append(path)
    edits: list[Edit | Refusal] = []
    for norm, paths in found.items():
        new = left_behind(norm)
        edits.append(Edit(dict.fromkeys(paths, new), f"{paths[0]}: batch norm taken out", "changes"))
    return edits
