"""Dropout that skips work: stopped units leave the computation of the step (row S3 of the source)."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from leanconv.errors import Error
from leanconv.graph import Graph, Step, record
from leanconv.techniques.dropout import compact
from leanconv.techniques.dropout.groups import Group, Place, find
from leanconv.techniques.dropout.layers import DropBlock2d, Dropout, StochasticDepth
from leanconv.techniques.dropout.masking import Masking

__all__ = ["Skip", "skip"]


def skip(model: nn.Module, example: Tensor | tuple[Tensor, ...], *, always: bool = False) -> Skip:
    """Compute only what a batch mask leaves, in training forwards and their backwards.

    The mask is drawn when the producer starts instead of at the dropout; with no other draw between the two it is the
    same mask for the same key. The producer then computes its kept rows; layers on the way work on fewer channels
    (depthwise filters, gamma, beta and running statistics of kept channels, written back); consumers use the kept
    columns of their weights. What is left is gathered before the product, and gradients are spread out again after it.

    Results are those of the masked computation (outputs, gradients, running statistics), where masked means, as under
    :func:`~leanconv.nn.strict`, that a stopped unit reaches no consumer and moves no running statistics. Where a group
    does not skip, it is masked in this way.

    Skipping pays from 32 rows per product (samples; for convolutions, samples x output positions), a rule of shapes
    alone. Where the producer has fewer, the group is masked; where a consumer has, it gets zeros for stopped units.

    Second derivatives through a Linear that skips are an error of torch's. Not for ``torch.compile``: the shapes
    change with every mask.

    Args:
        model: a network with dropout layers; those that cannot skip are left as they are and told by ``explain()``.
        example: an input (N, C, ...) or a tuple of them, for one recorded execution.
        always: skip whatever the shapes.

    Returns:
        A handle with ``explain()`` and ``close()``; also a context manager that closes.

    Raises:
        Error: the network does not run on the example, or skips already; in a forward, random numbers were drawn
            between a producer and its dropout though none were in the recorded execution.

    Source: row S3 of the source: stopped neurons propagate nothing.
    """
    for path, module in model.named_modules():
        if isinstance(module.__dict__.get("forward"), _Forward):
            raise Error(f"skip: a network can skip once at a time, got {path or 'the network'} that skips already")
    graph = record(model, example)
    groups, refusals = find(graph)
    told = {refusal.path: f"left as it is: {refusal.why}" for refusal in refusals}
    reasons = {group: _reason(graph, group) for group in groups}
    for group, reason in reasons.items():
        to = ", ".join(place.path for place in group.consumers)
        text = f"left masked: {reason}" if reason else f"skips from {group.producer.path} to {to}"
        told.update({place.path: text for place in group.dropouts})
    return Skip(graph, groups, [g for g, reason in reasons.items() if not reason], told, always)


class Skip:
    """The handle of :func:`skip`.

    Attributes:
        groups: the groups that skip.
    """

    def __init__(
        self, graph: Graph, masked: list[Group], groups: list[Group], told: dict[str, str], always: bool
    ) -> None:
        self.groups = tuple(groups)
        self._told = told
        self._masking = Masking(masked)
        self._replaced: list[tuple[nn.Module, Any]] = []
        roles: dict[nn.Module, _Roles] = {}
        for group in groups:
            _Plan(graph, group, always).enlist(roles)
        for module, role in roles.items():
            self._replaced.append((module, module.__dict__.get("forward")))
            module.forward = _Forward(module, role)

    def explain(self) -> dict[str, str]:
        """Path of each dropout layer -> whether its group skips, from which layer to which, or why not."""
        return dict(self._told)

    def close(self) -> None:
        """Put every layer back to its own forward."""
        self._masking.close()
        for module, before in self._replaced:
            del module.forward
            if before is not None:
                module.forward = before
        self._replaced.clear()

    def __enter__(self) -> Skip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- which groups ----------------------------------------------------------------------------------------------------


def _reason(graph: Graph, group: Group) -> str | None:
    """Why a group cannot skip."""
    if group.fixed is not None:
        return f"the number of entries must not be written into a reshape, got {group.fixed}"
    parts = [place for place in group.dropouts if place.after != 1]
    if parts:
        return f"dropout must stop whole units of {group.producer.path}, got {parts[0].path} on parts of them"
    for step in graph.steps[group.producer.index + 1 : group.dropouts[-1].index]:
        if _draws(step) and step.path not in {place.path for place in group.dropouts}:
            where = step.path or "the network"
            return f"no other random numbers may be drawn before the dropout, got {where} ({step.kind})"
    for place in (group.producer, *group.between, *group.dropouts, *group.consumers):
        own = place.module.__dict__.get("forward")
        if own is not None and getattr(own, "__func__", None) is not type(place.module).forward:
            return f"layers must have the forward of their class, got {place.path} with one of its own"
    return None


def _draws(step: Step) -> bool:
    if step.module is not None:
        known = isinstance(step.module, (Dropout, DropBlock2d, StochasticDepth, _DropoutNd, nn.RReLU))
        return known or any(_random(op) for op in step.ops)
    return _random(step.kind)


def _random(name: str) -> bool:
    return any(word in name for word in ("drop", "rand", "bernoulli", "normal_", "uniform", "multinomial", "rrelu"))


# --- what a layer does -----------------------------------------------------------------------------------------------


class _Roles:
    """What one layer is in the groups that skip; it can consume in one and produce in another."""

    def __init__(self) -> None:
        self.rows: _Plan | None = None
        self.columns: tuple[_Plan, Place] | None = None
        self.between: tuple[_Plan, Place] | None = None
        self.dropout: _Plan | None = None


class _Plan:
    """One group through one forward: the masks drawn for it, and which units are left."""

    def __init__(self, graph: Graph, group: Group, always: bool) -> None:
        self.group, self.always = group, always
        self.positions = {p.path: _positions(graph, p) for p in (group.producer, *group.consumers)}
        self.ranks = {p.path: len(graph.shape(graph.steps[p.index].inputs[0])) for p in group.dropouts}
        self.masks: dict[nn.Module, tuple[Tensor, float | Tensor]] = {}
        self.kept: Tensor | None = None  # indices of the units that are left; None: all of them are computed
        self.state: Tensor | None = None

    def enlist(self, roles: dict[nn.Module, _Roles]) -> None:
        def role(place: Place) -> _Roles:
            return roles.setdefault(place.module, _Roles())

        role(self.group.producer).rows = self
        for place in self.group.between:
            role(place).between = self, place
        for place in self.group.dropouts:
            role(place).dropout = self
        for place in self.group.consumers:
            role(place).columns = self, place

    def start(self, x: Tensor) -> None:
        """Draw the masks of the group, in the order in which its layers would."""
        self.masks, self.kept, self.state = {}, None, None
        if not self.pays(x, self.group.producer):
            return
        keep: Tensor | None = None
        for place in self.group.dropouts:
            layer = place.module
            if isinstance(layer, Dropout) and layer.training and layer.p > 0:
                shape = (x.shape[0], self.group.units, *[1] * (self.ranks[place.path] - 2))
                mask = layer._draw(shape, x.device)
                self.masks[layer] = mask, layer._scale(shape, mask)
                keep = mask.reshape(-1) if keep is None else keep & mask.reshape(-1)
        if keep is not None:
            kept = keep.nonzero().view(-1)
            self.kept = kept if kept.numel() else None  # two dropouts can stop everything between them
            self.state = torch.get_rng_state()

    def pays(self, x: Tensor, product: Place) -> bool:
        """Whether this product, of this batch, is worth skipping."""
        return self.always or compact.pays(x.shape[0] * self.positions[product.path])

    def drop(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The dropout itself, with the mask that was drawn at the producer."""
        if self.state is not None and not torch.equal(self.state, torch.get_rng_state()):
            raise Error(
                f"skip: no random numbers may be drawn between {self.group.producer.path} and {self.group.path}, "
                "got a draw that the recorded execution had not"
            )
        mask, scale = self.masks.pop(layer)
        layer._last = mask
        return x * scale if self.kept is not None else x * mask * scale

    def index(self, repeat: int) -> Tensor | None:
        """Kept entries at ``repeat`` entries per unit."""
        if self.kept is None or repeat == 1:
            return self.kept
        return (self.kept[:, None] * repeat + torch.arange(repeat, device=self.kept.device)).view(-1)


class _Forward:
    """Stands for the forward of one layer. A copy of the layer (an EMA model, a pickle) gets its class's own again."""

    def __init__(self, module: nn.Module, role: _Roles) -> None:
        self.module, self.role = module, role

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        copy = memo[id(self.module)]
        return types.MethodType(type(copy).forward, copy)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        module, role = self.module, self.role
        if role.dropout is not None and module in role.dropout.masks:
            return role.dropout.drop(module, x)
        if role.between is not None:
            plan, place = role.between
            index = plan.index(place.after)
            if index is not None:
                with _fewer(module, index):
                    return type(module).forward(module, x, *args, **kwargs)
        if role.rows is not None or role.columns is not None:
            return self._product(x, *args, **kwargs)
        return type(module).forward(module, x, *args, **kwargs)

    def _product(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        module, role = self.module, self.role
        if role.rows is not None:
            role.rows.start(x)
        rows = role.rows.kept if role.rows is not None else None
        columns = None
        if role.columns is not None:
            plan, place = role.columns
            columns = plan.index(place.before)
            if columns is not None and not plan.pays(x, place):
                x, columns = compact.place(x, columns, 1, plan.group.units * place.before), None
        if rows is None and columns is None:
            return type(module).forward(module, x, *args, **kwargs)
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        assert weight is not None
        if isinstance(module, nn.Linear):
            return compact.linear(x, weight, bias, rows, columns)
        fewer = {"weight": compact.gather(weight, rows, columns)}
        if bias is not None and rows is not None:
            fewer["bias"] = compact.gather(bias, rows, None)
        sizes = {"out_channels": fewer["weight"].shape[0], "in_channels": fewer["weight"].shape[1]}
        with _swapped(module._parameters, fewer), _swapped(module.__dict__, sizes):
            return type(module).forward(module, x, *args, **kwargs)


def _positions(graph: Graph, place: Place) -> int:
    """Output positions of a product per sample: 1 for a Linear."""
    count = 1
    for size in graph.shape(graph.steps[place.index].outputs[0])[2:]:
        count *= size
    return count


@contextmanager
def _swapped(held: dict[str, Any], other: dict[str, Any]) -> Iterator[None]:
    """As torch.func.functional_call does: other tensors under the names of a layer's own, for one call."""
    before = {key: held[key] for key in other}
    held.update(other)
    try:
        yield
    finally:
        held.update(before)


@contextmanager
def _fewer(module: nn.Module, index: Tensor) -> Iterator[None]:
    """A channel-wise layer with the parameters, statistics and sizes of some of its channels."""
    own, size = module.__dict__, len(index)
    sizes: dict[str, Any] = {k: size for k in ("num_features", "num_parameters", "out_channels") if k in own}
    if "groups" in own:
        sizes |= dict.fromkeys(("groups", "in_channels"), size * own["groups"] // own["out_channels"])
    parameters = {k: p.index_select(0, index) for k, p in module._parameters.items() if p is not None and p.numel() > 1}
    running = {k: b for k, b in module._buffers.items() if b is not None and k in ("running_mean", "running_var")}
    buffers = {k: b.index_select(0, index) for k, b in running.items()}
    with _swapped(module._parameters, parameters), _swapped(module._buffers, buffers), _swapped(own, sizes):
        yield
    for key, buffer in running.items():
        buffer.data.index_copy_(0, index, buffers[key])
