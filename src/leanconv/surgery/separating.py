"""Dense convolutions as separable ones at chosen ranks, fitted to what they put out, one after the other."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv.contract import Context, Edit, Refusal
from leanconv.errors import Error
from leanconv.graph import Graph, evaluating
from leanconv.surgery.plan import Step
from leanconv.techniques import batchnorm, separable
from leanconv.techniques.separable import Fitted, PatchMoments

__all__ = ["METHODS", "fitted_alone", "inputs", "order", "propose"]

METHODS = ("outputs", "weights")
"""Fit what a layer puts out on the calibration images, or its weights (truncated SVD)."""


def propose(step: Step, ctx: Context, calibrated: bool) -> list[Edit | Refusal]:
    """The edits of a step ``separate``.

    In order of execution each layer is fitted to what it put out in the network as it was, given what it sees in the
    network converted so far, so that later layers make up for what earlier ones lost. Where a batch norm follows and
    the convolution has no bias, the batch norm's mean takes up what a bias would.

    Args:
        step: its options: ``ranks``, path -> depth multiplier, and ``method``, one of :data:`METHODS`.
        ctx: with graph and batches.
        calibrated: the batches are real images; else the weights alone decide.

    Raises:
        Error: a path that is no convolution that can become separable.
    """
    assert ctx.graph is not None
    ranks = {str(path): int(rank) for path, rank in step.options["ranks"].items()}
    found, refusals = separable.candidates(ctx.model)
    reasons = {refusal.path: refusal.why for refusal in refusals}
    for path in ranks:
        if path not in found:
            why = reasons.get(path, "it is no convolution with a kernel above one")
            raise Error(f"separate: ranks must be of layers that can become separable, got {path!r}: {why}")
    aware = calibrated and step.options.get("method", METHODS[0]) == "outputs"
    fits = _fitted(ctx, ranks, found) if aware else _decomposed(ctx, ranks)
    return [_edit(ctx, path, found[path], fitted, aware) for path, fitted in fits]


def order(graph: Graph, paths: Sequence[str]) -> list[str]:
    """Paths in the order in which their layers first run; those that never run are left out."""
    first = {path: calls[0].index for path in paths if (calls := graph.calls(path))}
    return sorted(first, key=lambda path: first[path])


class _Enough(Exception):
    """All calls of the layer were seen."""


@torch.no_grad()
def inputs(model: nn.Module, path: str, batch: Tensor, calls: int) -> list[Tensor]:
    """What a layer sees in eval mode, call by call; what runs after its last call is spared.

    Args:
        model: the network.
        path: of the layer.
        batch: input of the network.
        calls: of the layer in one pass.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].detach())
        if len(seen) == calls:
            raise _Enough

    handle = model.get_submodule(path).register_forward_pre_hook(look)
    try:
        with evaluating(model), suppress(_Enough):
            model(batch)
    finally:
        handle.remove()
    return seen


def fitted_alone(ctx: Context, path: str) -> PatchMoments:
    """The moments of a layer in the network as it is."""
    assert ctx.graph is not None
    return _moments(ctx, path, None)


def _moments(ctx: Context, path: str, work: nn.Module | None) -> PatchMoments:
    """Of what the layer sees in ``work``, paired with what it saw in the network; of the latter alone without."""
    assert ctx.graph is not None
    batches, calls = list(ctx.batches or ()), len(ctx.graph.calls(path))
    moments = PatchMoments(ctx.model.get_submodule(path), calls=len(batches) * calls, seed=ctx.seed)
    for batch in batches:
        before = inputs(ctx.model, path, batch, calls)
        now = before if work is None else inputs(work, path, batch, calls)
        for x, reference in zip(now, before, strict=True):
            moments.add(x, None if work is None else reference)
    return moments


def _fitted(ctx: Context, ranks: dict[str, int], found: dict[str, list[str]]) -> Iterator[tuple[str, Fitted]]:
    """Each layer's weights, fitted in the network in which all layers before it are converted."""
    assert ctx.graph is not None
    work: nn.Module = copy.deepcopy(ctx.model)
    changed = False
    for path in order(ctx.graph, list(ranks)):
        conv = ctx.model.get_submodule(path)
        moments = _moments(ctx, path, work if changed else None)
        adds = conv.bias is not None or _norm_after(ctx.graph, path) is not None
        fitted = separable.separate_outputs(conv, ranks[path], moments, bias="add" if adds else "keep")
        layer = separable.fitted_separable(conv, fitted)
        for alias in found[path]:
            parent, _, leaf = alias.rpartition(".")
            setattr(work.get_submodule(parent), leaf, layer)
        changed = True
        yield path, fitted


def _decomposed(ctx: Context, ranks: dict[str, int]) -> Iterator[tuple[str, Fitted]]:
    assert ctx.graph is not None
    for path in order(ctx.graph, list(ranks)):
        yield path, separable.separate_weights(ctx.model.get_submodule(path), ranks[path])


def _edit(ctx: Context, path: str, paths: list[str], fitted: Fitted, aware: bool) -> Edit:
    assert ctx.graph is not None
    conv: Any = ctx.model.get_submodule(path)
    norm = _norm_after(ctx.graph, path)
    keys: dict[str, str] = {}
    put: dict[str, nn.Module] = {}
    if conv.bias is None and norm is not None:
        shifted: Any = copy.deepcopy(ctx.model.get_submodule(norm))
        if fitted.bias is not None:
            shifted.running_mean.sub_(fitted.bias.to(shifted.running_mean))
        aliases = ctx.graph.aliased(norm) or (norm,)
        put = dict.fromkeys(aliases, shifted)
        names = [name for name, _ in shifted.named_parameters()]
        keys = {f"{alias}.{name}": f"{alias}.{name}" for alias in aliases for name in names}
        fitted = Fitted(fitted.depthwise, fitted.pointwise, None, fitted.error)
    elif conv.bias is not None:
        keys = {f"{alias}.conv_pw.bias": f"{alias}.bias" for alias in paths}
    layer = separable.fitted_separable(conv, fitted)
    rank = layer.depth_multiplier
    share = layer.conv_dw.weight.numel() + layer.conv_pw.weight.numel()
    kind = "x".join(map(str, conv.kernel_size))
    lost = "output" if aware else "weight"
    why = (
        f"{kind} convolution {conv.in_channels} -> {conv.out_channels} becomes separable (multiplier {rank}): "
        f"{share / conv.weight.numel():.1%} of its weights, relative {lost} error {fitted.error:.2g}"
    )
    exact = rank >= min(math.prod(conv.kernel_size), conv.out_channels // conv.groups)
    return Edit({**dict.fromkeys(paths, layer), **put}, why, "exact" if exact else "approximate", keys)


def _norm_after(graph: Graph, path: str) -> str | None:
    """The batch norm that alone reads what the layer puts out, where it can take up a mean; else None."""
    calls = graph.calls(path)
    if len(calls) != 1:
        return None
    step = graph.only_consumer(calls[0])
    norm = step.module if step is not None else None
    if step is None or not isinstance(norm, (*batchnorm.LAYERS, TorchBatchNorm)) or norm.running_mean is None:
        return None
    alone = len(graph.calls(step.path)) == 1 and not graph.hooked(step.path)
    return step.path if alone else None
