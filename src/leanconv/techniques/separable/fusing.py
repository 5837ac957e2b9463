"""Separable blocks put under any network as one operation, chains of them too, and every layer kept where it is.

The layers keep class, parameters and place; their forwards change: the first asks whether the chain runs as one now,
the others pass the input on, and the last does the work of all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import Graph, Step
from leanconv.techniques.separable.fused import Block, Plan, is_depthwise, normalises, ready, run, watched

__all__ = ["fuse"]


@dataclass
class Run:
    """Blocks whose layers stand apart in a network, perhaps after a norm; ``plan``: they are running as one now."""

    blocks: list[Block]
    lean: bool = False
    lead: Any = None
    plan: Plan | None = None


@dataclass
class Member:
    """The forward of one layer of a :class:`Run`.

    The first tells whether the blocks run as one now; then the others pass the input on, and the last runs them. Else
    each computes what its layer does.
    """

    layer: nn.Module
    run: Run
    first: bool
    last: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output; where the blocks run as one, x until the last member, there the last block's output."""
        if self.first:
            self.run.plan = ready(self.run.blocks, x, self.run.lead)
        plan = self.run.plan
        if plan is None:
            return type(self.layer).forward(self.layer, x)  # type: ignore[no-any-return]
        if not self.last:
            return x
        self.run.plan = None
        return run(self.run.blocks, x, plan, self.run.lean, self.run.lead)


def fuse(ctx: Context, lean: bool = False) -> list[Edit | Refusal]:
    """Every depthwise convolution with the norm, pointwise convolution and norm that alone follow it, as one operation.

    Blocks that follow each other become one operation together, and a norm before them joins: what lies between is
    never written. Exact, no entry of the state_dict changes, and every layer keeps its class and place. Activations
    must stand inside the norms
    (``convert`` with ``to="fused"`` puts them there), and layers must be called once. A
    :class:`~leanconv.nn.SeparableConv2d` runs its own layers as one without being asked; here it joins its neighbours.

    Args:
        ctx: with a graph.
        lean: keep less for the backward pass and compute the depthwise outputs again.
    """
    if ctx.graph is None:
        return [Refusal("", "it needs an example to follow the network with")]
    proposals: list[Edit | Refusal] = []
    chain: list[tuple[list[Step], Block]] = []
    for step in ctx.graph.steps:
        if step.module is None or not is_depthwise(step.module):
            continue
        steps = list(_chain(ctx.graph, step))
        if len(steps) < 4 or (block := _block(steps)) is None:
            continue
        why = _unfit(ctx.graph, steps)
        if why:
            proposals.append(Refusal(step.path, why))
            continue
        if chain and not _follows(ctx.graph, chain[-1][0][-1], step):
            proposals.append(_edit(ctx.graph, chain, lean))
            chain = []
        chain.append((steps, block))
    return proposals + ([_edit(ctx.graph, chain, lean)] if chain else [])


def _follows(graph: Graph, last: Step, step: Step) -> bool:
    """Whether ``step`` alone reads what ``last`` gives, identities left out."""
    reader = graph.only_consumer(last)
    while reader is not None and isinstance(reader.module, nn.Identity):
        reader = graph.only_consumer(reader)
    return reader is not None and reader.index == step.index


def _chain(graph: Graph, step: Step | None) -> Iterator[Step]:
    """The step and the three after it that alone read it, identities left out."""
    found = 0
    while step is not None and step.module is not None and found < 4:
        if not isinstance(step.module, nn.Identity):
            yield step
            found += 1
        step = graph.only_consumer(step) if found < 4 else None


def _lead(graph: Graph, step: Step) -> Step | None:
    """The norm that gives this step its input, if nobody else reads it."""
    found = graph.producer(step.inputs[0])
    while found is not None and isinstance(found.module, nn.Identity):
        found = graph.producer(found.inputs[0])
    if found is None or found.module is None or not normalises(found.module) or not _follows(graph, found, step):
        return None
    norm: Any = found.module
    told = norm.prepared((2, norm.num_features, 2, 2)) is not None
    return found if told and not _unfit(graph, [found]) else None


def _copied(layer: nn.Module) -> nn.Module:
    """The layer with its very parameters, whose forward can be another."""
    new = copy.copy(layer)
    for name in ("_parameters", "_buffers", "_modules"):
        new.__dict__[name] = dict(layer.__dict__[name])
    return new


def _block(steps: list[Step]) -> Block | None:
    return Block.of([_copied(step.module) for step in steps if step.module is not None])


def _unfit(graph: Graph, steps: list[Step]) -> str:
    for step in steps:
        assert step.module is not None
        if len(graph.calls(step.path)) > 1:
            return f"{step.path} is called {len(graph.calls(step.path))} times"
        if watched(step.module) or graph.hooked(step.path):
            return f"{step.path} has hooks or parametrizations"
        if "forward" in vars(step.module):
            return f"{step.path} has a forward of its own"
    return ""


def _edit(graph: Graph, chain: list[tuple[list[Step], Block]], lean: bool) -> Edit:
    run = Run([block for _, block in chain], lean)
    places = [place for steps, block in chain for place in zip(steps, block.layers, strict=True)]
    lead = _lead(graph, places[0][0])
    if lead is not None and lead.module is not None:
        run.lead = _copied(lead.module)
        places.insert(0, (lead, run.lead))
    put: dict[str, nn.Module] = {}
    for i, (step, layer) in enumerate(places):
        layer.forward = Member(layer, run, i == 0, i == len(places) - 1)
        put |= dict.fromkeys(graph.aliased(step.path), layer)
    names = [f"{path}.{name}" for path, layer in put.items() for name in layer.state_dict()]
    count = "a separable block" if len(chain) == 1 else f"{len(chain)} separable blocks"
    told = f"{places[0][0].path} to {places[-1][0].path}: {count} in one operation"
    return Edit(put, told, "exact", dict(zip(names, names, strict=True)))
