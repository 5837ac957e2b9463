"""Batch norms into the convolution or Linear before or after them: equal in eval, or refused with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.contract import Claim, Context, Edit, Refusal
from leanconv.graph import Graph, Step
from leanconv.techniques.batchnorm.affine import Affine, affine, denormals, fused
from leanconv.techniques.batchnorm.fit import (
    after,
    agrees,
    before,
    border,
    functional,
    plain,
    unfit_norm,
    unfit_producer,
)
from leanconv.techniques.batchnorm.places import is_norm
from leanconv.techniques.batchnorm.surgery import NO_GRAPH, left_behind

__all__ = ["fold"]

HALVES = (torch.float16, torch.bfloat16)


@dataclass
class _Merger:
    """A layer with the batch norms that go into it: the one after it (folded back), the one before it (forward)."""

    layer: Step
    back: Step | None = None
    forward: Step | None = None
    times: int = 1

    def affines(self) -> tuple[Affine | None, Affine | None]:
        """What stands before the layer and after it."""
        first = affine(self.forward.module).repeated(self.times) if self.forward and self.forward.module else None
        return first, affine(self.back.module) if self.back and self.back.module else None

    def norms(self) -> Iterator[tuple[str, Step]]:
        """The batch norms, each with how it goes."""
        yield from ((how, s) for how, s in (("back", self.back), ("forward", self.forward)) if s is not None)


def fold(ctx: Context) -> list[Edit | Refusal]:
    """Batch norms, ours and torch's, into the layer that feeds them, or else into the one that alone reads them.

    With a = gamma / sqrt(var + eps): back W' = a W, b' = a (b - mean) + beta; forward W' = W a over input channels,
    b' = b + W.(beta - a mean). Grouped, depthwise and transposed convolutions of any dimension and Linear; computed in
    float64 and cast back. Back, an activation inside the batch norm stays in its place as a module. Forward is equal
    only where each output sees every tap, or the shift beta - a mean is 0: no zero padding. Identity, dropout (nothing
    in eval) and, forward, Flatten may stand between. Nothing that would change an eval output is proposed: such places
    come back as refusals (pytorch#197539 folds a convolution that is called twice).

    An edit claims to be exact. In half precision it claims so only if the new weights are numbers of that precision;
    else they are rounded once more, to 8 or 11 bits, and it is approximate.
    """
    paths = [p for p, m in ctx.model.named_modules() if is_norm(m)]
    if ctx.graph is None:
        return [Refusal(path, NO_GRAPH) for path in paths]
    mergers: dict[str, _Merger] = {}
    refusals: list[Edit | Refusal] = []
    for path in paths:
        why = _place(ctx.graph, path, ctx.model.get_submodule(path), mergers)
        refusals += [Refusal(path, why)] if why else []
    proposals = [p for merger in mergers.values() for p in _carry_out(ctx.graph, merger)]
    return [*proposals, *refusals, *(Refusal(path, why) for path, why in functional(ctx.graph))]


def _place(graph: Graph, path: str, norm: nn.Module, mergers: dict[str, _Merger]) -> str:
    """Note which layer takes a batch norm; or say why none does."""
    why = unfit_norm(graph, path, norm)
    if why:
        return why
    step = graph.calls(path)[0]
    producer, reader = before(graph, step)
    back = unfit_producer(graph, producer, reader, norm)
    if not back and producer is not None:
        mergers.setdefault(producer.path, _Merger(producer)).back = step
        return ""
    layer, times, why = after(graph, step)
    if layer is not None and layer.module is not None:
        why = border(layer.module, affine(norm).shift)
    if layer is None or why:
        return f"{back}; forward: {why}"
    merger = mergers.setdefault(layer.path, _Merger(layer))
    merger.forward, merger.times = step, times
    return ""


def _carry_out(graph: Graph, merger: _Merger) -> list[Edit | Refusal]:
    """The edit of a layer and its batch norms; or refusals, if its folded weights are no numbers or do not do it."""
    layer, path = merger.layer.module, merger.layer.path
    assert layer is not None
    first, last = merger.affines()
    new, lossless = fused(layer, first, last)
    weight: Tensor = new.weight  # type: ignore[assignment]
    why = ""
    if not all(torch.isfinite(p).all() for p in new.parameters(recurse=False)):
        why = f"the folded weights of {path} are not finite in {_name(weight.dtype)}"
    elif not plain(layer) and not agrees(layer, graph.shape(merger.layer.inputs[0]), first, last):
        why = f"{path} ({merger.layer.kind}) does more than its convolution or product"
    if why:
        return [Refusal(step.path, why) for _, step in merger.norms()]
    put: dict[str, nn.Module] = dict.fromkeys(graph.aliased(path), new)
    told = []
    for how, step in merger.norms():
        assert step.module is not None
        put |= dict.fromkeys(graph.aliased(step.path), left_behind(step.module))
        told.append(f"{step.path} folded {'into' if how == 'back' else 'forward into'} {path}{_small(step.module)}")
    claim: Claim = "exact"
    if weight.dtype in HALVES and not lossless:
        claim = "approximate"
        told.append(f"its weights rounded to {_name(weight.dtype)} once more")
    return [Edit(put, "; ".join(told), claim)]


def _small(norm: nn.Module) -> str:
    """A note on denormal variances, which published weights have: channels that never answered."""
    count = denormals(norm)
    if not count:
        return ""
    return f" ({count} of {norm.num_features} running variances {'is' if count == 1 else 'are'} denormal)"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
