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
from leanconv.techniques.separable import ChannelMoments, FeatureMoments, Fitted, PatchMoments
from leanconv.techniques.separable.patches import enough

__all__ = ["METHODS", "Seen", "importance", "inputs", "large", "order", "propose"]

LARGE = 1536
"""Numbers in a patch above which kernels are fitted channel by channel, and the pointwise half to what they put out."""
KEPT = 1 << 29
"""Bytes of layers' inputs that are kept between passes."""
MANY = 4
"""Times the patches that a prediction is made from: what a layer is fitted to in the end."""
ROUNDS = 10
ANY = separable.Options(min_channels=1)
"""Under a budget, or where ranks are given, few channels are no reason to leave a layer dense."""
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
    found, refusals = separable.candidates(ctx.model, ANY)
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


def large(conv: Any) -> bool:
    """Whether a layer's patches are so long that their moments take more memory and time than its weights deserve."""
    return bool(math.prod(conv.kernel_size) * conv.in_channels // conv.groups > LARGE)


def full(conv: Any) -> int:
    """The rank from which on nothing is lost."""
    return int(min(math.prod(conv.kernel_size), conv.out_channels // conv.groups))


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


class Seen:
    """What layers see in the network as it is: kept from one pass where that is little, else looked at when asked for.

    Args:
        ctx: with graph and batches.
        paths: of the layers.
    """

    def __init__(self, ctx: Context, paths: Sequence[str]) -> None:
        assert ctx.graph is not None
        self._ctx = ctx
        self.batches: list[Tensor] = list(ctx.batches or ())
        self._calls = {path: len(ctx.graph.calls(path)) for path in paths}
        shapes = [ctx.graph.shape(call.inputs[0]) for path in paths for call in ctx.graph.calls(path)]
        each = 4 * sum(math.prod(shape[1:]) for shape in shapes)
        self._kept = self._pass() if each * sum(map(len, self.batches)) <= KEPT else None

    def layer(self, path: str) -> Any:
        """In the network as it is."""
        return self._ctx.model.get_submodule(path)

    def of(self, path: str, number: int) -> list[Tensor]:
        """Of a layer, call by call, in the batch of that number."""
        if self._kept is not None:
            return self._kept[path][number]
        return inputs(self._ctx.model, path, self.batches[number], self._calls[path])

    def moments(self, path: str, work: nn.Module | None = None) -> PatchMoments:
        """Of what the layer sees in ``work``, paired with what it saw in the network; of the latter alone without."""
        conv, calls = self._ctx.model.get_submodule(path), self._calls[path] * len(self.batches)
        patches = enough(conv) if work is None else MANY * enough(conv)
        moments = PatchMoments(conv, calls=calls, patches=patches, seed=self._ctx.seed)
        for x, reference in self._pairs(path, work):
            moments.add(x, reference)
        return moments

    def features(self, path: str, rank: int, work: nn.Module | None = None) -> FeatureMoments:
        """Likewise of what the best kernels for each channel alone make of it, for layers with large patches."""
        conv: Any = self._ctx.model.get_submodule(path)
        calls, seed = self._calls[path] * len(self.batches), self._ctx.seed
        pairs = list(self._pairs(path, work))
        channels = ChannelMoments(conv, calls, seed)
        for x, _ in pairs:
            channels.add(x)
        kernels = separable.leading(conv, channels, rank, importance(self._ctx, path))
        moments = FeatureMoments(conv, kernels, channels.level, calls, seed)
        for x, reference in pairs:
            moments.add(x, reference)
        return moments

    def _pairs(self, path: str, work: nn.Module | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What the layer sees in ``work`` and saw in the network; only the latter without."""
        for number, batch in enumerate(self.batches):
            before = self.of(path, number)
            if work is None:
                yield from ((x, None) for x in before)
            else:
                yield from zip(inputs(work, path, batch, self._calls[path]), before, strict=True)

    @torch.no_grad()
    def _pass(self) -> dict[str, list[list[Tensor]]]:
        kept: dict[str, list[list[Tensor]]] = {path: [[] for _ in self.batches] for path in self._calls}
        with evaluating(self._ctx.model):
            for number, batch in enumerate(self.batches):
                # Copies: what runs later may overwrite them.
                handles = [
                    self._ctx.model.get_submodule(path).register_forward_pre_hook(
                        lambda module, args, into=kept[path][number]: into.append(args[0].detach().clone())
                    )
                    for path in self._calls
                ]
                try:
                    self._ctx.model(batch)
                finally:
                    for handle in handles:
                        handle.remove()
        return kept


def _fitted(ctx: Context, ranks: dict[str, int], found: dict[str, list[str]]) -> Iterator[tuple[str, Fitted]]:
    """Each layer's weights, fitted in the network in which all layers before it are converted."""
    assert ctx.graph is not None
    # Layers of its own, tensors of the network: none is written to.
    tensors = [*ctx.model.parameters(), *ctx.model.buffers()]
    work: nn.Module = copy.deepcopy(ctx.model, {id(t): t for t in tensors})
    paths = order(ctx.graph, list(ranks))
    seen, changed = Seen(ctx, paths), False
    for path in paths:
        conv = ctx.model.get_submodule(path)
        adds = conv.bias is not None or _norm_after(ctx.graph, path) is not None
        fitted = _fit(seen, path, ranks[path], work if changed else None, adds, importance(ctx, path))
        layer = separable.fitted_separable(conv, fitted)
        layer.keeps_order = _views(ctx.graph)
        for alias in found[path]:
            parent, _, leaf = alias.rpartition(".")
            setattr(work.get_submodule(parent), leaf, layer)
        changed = True
        yield path, fitted


def _fit(seen: Seen, path: str, rank: int, work: nn.Module | None, adds: bool, weights: Tensor | None) -> Fitted:
    conv = seen.layer(path)
    if large(conv) and rank < full(conv):
        return seen.features(path, rank, work).fitted(rank, bias=adds, importance=weights)[0]
    if large(conv):
        return separable.separate_weights(conv, rank)
    bias: Any = "add" if adds else "keep"
    moments = seen.moments(path, work)
    return separable.separate_outputs(conv, rank, moments, bias=bias, importance=weights, rounds=ROUNDS)


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
    layer.keeps_order = _views(ctx.graph)
    rank = layer.depth_multiplier
    share = layer.conv_dw.weight.numel() + layer.conv_pw.weight.numel()
    kind = "x".join(map(str, conv.kernel_size))
    lost = "output" if aware else "weight"
    why = (
        f"{kind} convolution {conv.in_channels} -> {conv.out_channels} becomes separable (multiplier {rank}): "
        f"{share / conv.weight.numel():.1%} of its weights, relative {lost} error {fitted.error:.2g}"
    )
    exact = rank >= full(conv)
    return Edit({**dict.fromkeys(paths, layer), **put}, why, "exact" if exact else "approximate", keys)


def _views(graph: Graph) -> bool:
    """Whether the network looks at maps through ``view``, which not every order in memory allows."""
    steps = [step for step in graph.steps if step.inputs and (step.kind == "view" or "view" in step.ops)]
    return any(math.prod(graph.shape(step.inputs[0])[2:]) > 1 for step in steps)


def importance(ctx: Context, path: str) -> Tensor | None:
    """How much the errors of a layer's outputs count: as what follows sees them, ``gamma^2 / (var + eps)``.

    None where no batch norm alone reads them.
    """
    assert ctx.graph is not None
    found = _norm_after(ctx.graph, path)
    if found is None:
        return None
    norm: Any = ctx.model.get_submodule(found)
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    weights = gamma.double() ** 2 / (norm.running_var.double() + norm.eps)
    usable = bool(weights.isfinite().all()) and float(weights.sum()) > 0
    return weights if usable else None


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
