"""Separable blocks put under any network as one operation each, and every layer kept where it is.

The layers keep class, parameters and place; their forwards change: the first asks whether the block runs as one now,
the others pass the input on, and the last does the work of all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from leanconv.contract import Context, Edit, Refusal
from leanconv.graph import Graph, Step
from leanconv.techniques.separable.blocks import _Separable
from leanconv.techniques.separable.fused import Block, Ready, is_depthwise, watched

__all__ = ["fuse"]


@dataclass
class Run:
    """A block whose layers stand apart in a network; ``ready``: it is running as one now."""

    block: Block
    lean: bool = False
    ready: Ready | None = None


@dataclass
class Member:
    """The forward of one layer of a :class:`Run`.

    The first tells whether the block runs as one now; then the others pass the input on, and the last runs it. Else
    each computes what its layer does.
    """

    layer: nn.Module
    place: int
    run: Run

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output; where the block runs as one, x until the last member, there the block's output."""
        run = self.run
        if self.place == 0:
            run.ready = run.block.ready(x)
        ready = run.ready
        if ready is None:
            return type(self.layer).forward(self.layer, x)  # type: ignore[no-any-return]
        if self.place < 3:
            return x
        run.ready = None
        return run.block.run(x, ready, run.lean)


def fuse(ctx: Context, lean: bool = False) -> list[Edit | Refusal]:
    """Every depthwise convolution with the norm, pointwise convolution and norm that alone follow it, as one operation.

    Exact, no entry of the state_dict changes, and every layer keeps its class and place. Activations must stand inside
    the norms (``convert`` with ``to="fused"`` puts them there), and layers must be called once. A
    :class:`~leanconv.nn.SeparableConv2d` runs its own layers as one without being asked.

    Args:
        ctx: with a graph.
        lean: keep less for the backward pass and compute the depthwise output again.
    """
    if ctx.graph is None:
        return [Refusal("", "it needs an example to follow the network with")]
    proposals: list[Edit | Refusal] = []
    for step in ctx.graph.steps:
        if step.module is None or not is_depthwise(step.module) or _runs_itself(ctx.model, step.path):
            continue
        steps = list(_chain(ctx.graph, step))
        if len(steps) < 4 or (block := _block(steps)) is None:
            continue
        why = _unfit(ctx.graph, steps)
        proposals.append(Refusal(step.path, why) if why else _edit(ctx.graph, steps, block, lean))
    return proposals


def _runs_itself(model: nn.Module, path: str) -> bool:
    layer = model.get_submodule(path.rpartition(".")[0])
    return isinstance(layer, _Separable) and Block.of(list(layer.children())) is not None


def _chain(graph: Graph, step: Step | None) -> Iterator[Step]:
    """The step and the three after it that alone read it, identities left out."""
    found = 0
    while step is not None and step.module is not None and found < 4:
        if not isinstance(step.module, nn.Identity):
            yield step
            found += 1
        step = graph.only_consumer(step) if found < 4 else None


def _block(steps: list[Step]) -> Block | None:
    copies = []
    for step in steps:
        assert step.module is not None
        new = copy.copy(step.module)
        for name in ("_parameters", "_buffers", "_modules"):
            new.__dict__[name] = dict(step.module.__dict__[name])
        copies.append(new)
    return Block.of(copies)


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


def _edit(graph: Graph, steps: list[Step], block: Block, lean: bool) -> Edit:
    run = Run(block, lean)
    put: dict[str, nn.Module] = {}
    for place, (step, layer) in enumerate(zip(steps, block.layers, strict=True)):
        layer.forward = Member(layer, place, run)
        put |= dict.fromkeys(graph.aliased(step.path), layer)
    names = [f"{path}.{name}" for path, layer in put.items() for name in layer.state_dict()]
    told = f"{steps[0].path} to {steps[-1].path}: a separable block in one operation"
    return Edit(put, told, "exact", dict(zip(names, names, strict=True)))
