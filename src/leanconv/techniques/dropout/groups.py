"""What stops when a unit stops: the group of layers that a batch mask reaches.

A mask that the whole batch shares takes units (outputs of a Linear, channels of a convolution) out of the step. Their
group runs from the producer's rows, through layers that keep channels apart (depthwise convolution, batch norm,
activations, pooling, further dropout, Flatten), to the columns of every consumer. One unit has ``repeat`` entries along
dimension 1 of a tensor: 1 at the producer, times the multiplier after a depthwise convolution, times H*W after Flatten;
they lie next to each other, unit ``c`` has the entries ``c*repeat ... (c+1)*repeat - 1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from leanconv.contract import Refusal
from leanconv.graph import Graph, Step
from leanconv.techniques.dropout import layers
from leanconv.techniques.dropout.channelwise import keeps_channels

__all__ = ["Entries", "Group", "Place", "find"]


@dataclass(frozen=True)
class Place:
    """A layer of a group.

    Attributes:
        path, module: where it stands and what it is.
        index: its position in the order of execution.
        before, after: entries per unit along dimension 1 of its input and of its output.
    """

    path: str
    module: nn.Module
    index: int
    before: int
    after: int


@dataclass(frozen=True)
class Entries:
    """The entries of one parameter or buffer that belong to the units of a group.

    Attributes:
        name: its name in the model, such as ``features.0.weight``.
        owner: the module that holds it, under ``key``.
        dim: the dimension that runs over units: 0 for rows, 1 for a consumer's columns.
        repeat: entries per unit along it.
        buffer: whether it is a running statistic.
    """

    name: str
    owner: nn.Module
    key: str
    dim: int
    repeat: int
    buffer: bool = False


@dataclass(frozen=True, eq=False)
class Group:
    """Units that stop together: ``units`` outputs of ``producer``, and all that carries them to ``consumers``.

    Attributes:
        dropouts: the batch-masked dropout layers on the way, in order of execution; a unit stops if one stops it.
        between: the layers with parameters or statistics on the way: depthwise convolutions, batch norms, PReLU.
        fixed: path and name of a functional operation that has the number of entries written into its arguments
            (``x.view(-1, 512)``), so that fewer units cannot pass; None where there is none.
    """

    units: int
    producer: Place
    dropouts: tuple[Place, ...]
    between: tuple[Place, ...]
    consumers: tuple[Place, ...]
    fixed: str | None

    @property
    def path(self) -> str:
        """Path of the first dropout layer: the name of the group."""
        return self.dropouts[0].path

    def entries(self) -> Iterator[Entries]:
        """Every parameter and running statistic that the group reaches."""
        for place in (self.producer, *self.between):
            yield from _entries(place, ("weight", "bias"), 0, place.after)
            yield from _entries(place, ("running_mean", "running_var"), 0, place.after)
        for place in self.consumers:
            yield from _entries(place, ("weight",), 1, place.before)


def find(graph: Graph) -> tuple[list[Group], list[Refusal]]:
    """The groups of all dropout layers of a network, and the layers that have none, with the reason.

    Args:
        graph: one recorded execution (:func:`leanconv.graph.record`).

    Returns:
        Groups in the order of their producers; one refusal per dropout layer without a group. Layers with p = 0 that
        draw nothing by batch are passed over.
    """
    groups: dict[int, Group] = {}
    refusals: list[Refusal] = []
    for step in graph.steps:
        if not _drops(step) or _idle(step):
            continue
        try:
            _check_layer(graph, step)
            producer = _producer(graph, step)
            if producer.index not in groups:
                groups[producer.index] = _Spread(graph, producer).group()
        except _Unfit as unfit:
            refusals.append(Refusal(step.path, str(unfit)))
    return [groups[i] for i in sorted(groups)], refusals


class _Unfit(Exception):
    """Why a dropout layer has no group."""


def _entries(place: Place, keys: tuple[str, ...], dim: int, repeat: int) -> Iterator[Entries]:
    buffer = keys[0].startswith("running")
    held = place.module._buffers if buffer else place.module._parameters
    for key in keys:
        tensor = held.get(key)
        one_for_all = isinstance(place.module, nn.PReLU) and tensor is not None and tensor.numel() == 1
        if tensor is not None and not one_for_all:
            yield Entries(f"{place.path}.{key}".lstrip("."), place.module, key, dim, repeat, buffer)


# --- kinds of steps -------------------------------------------------------------------------------------------------

# Operations that leave the entries of a weight apart: products, padding, layout. Questions such as x.shape too.
_PLAIN_NAMES = """
linear conv1d conv2d conv3d pad contiguous view reshape flatten stack unbind movedim permute getitem
dim size shape ndim dtype device stride is_contiguous requires_grad numel is_floating_point
"""
_PLAIN = frozenset(_PLAIN_NAMES.split())


def _drops(step: Step) -> bool:
    return isinstance(step.module, (layers.Dropout, _DropoutNd)) or step.kind.startswith(
        ("DropBlock", "StochasticDepth")
    )


def _idle(step: Step) -> bool:
    return getattr(step.module, "p", None) == 0 and getattr(step.module, "mask", "sample") != "batch"


def _dense(step: Step) -> bool:
    """A Linear or a convolution that mixes all channels and does nothing else to its weight."""
    module = step.module
    if isinstance(module, _ConvTransposeNd) or not isinstance(module, (nn.Linear, _ConvNd)):
        return False
    return getattr(module, "groups", 1) == 1 and _plain(step)


def _depthwise(step: Step) -> bool:
    module = step.module
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or not _plain(step):
        return False
    return module.groups == module.in_channels > 1


def _plain(step: Step) -> bool:
    """Whether the weight goes into the product as it is (weight standardisation and the like mix its entries)."""
    weight = step.module._parameters.get("weight") if step.module is not None else None
    return isinstance(weight, nn.Parameter) and all(op.strip("_") in _PLAIN for op in step.ops)


def _norm(module: nn.Module | None) -> bool:
    named = any(base.__name__.startswith("BatchNorm") for base in type(module).__mro__)
    return isinstance(module, _BatchNorm) or (named and hasattr(module, "num_features"))


def _what(step: Step) -> str:
    return f"{step.path or 'the network'} ({step.kind})"


def _check_layer(graph: Graph, step: Step) -> None:
    mask = getattr(step.module, "mask", None)
    if not isinstance(step.module, layers.Dropout):
        raise _Unfit(f"only Dropout and Dropout1d, 2d, 3d with mask='batch' stop whole units, got {step.kind}")
    if mask != "batch":
        raise _Unfit(f"mask must be 'batch', got mask={mask!r}")
    shape = graph.shape(step.inputs[0])
    channels = isinstance(step.module, (layers.Dropout1d, layers.Dropout2d, layers.Dropout3d))
    if len(shape) < 2 or (prod(shape[2:]) != 1 and not channels):
        raise _Unfit(f"Dropout must stand on (N, F), maps take Dropout1d, 2d or 3d, got an input of shape {shape}")
    if channels and len(shape) < 3:
        raise _Unfit(f"{step.kind} must stand on (N, C, ...), got an input of shape {shape}")


# --- backwards to the producer --------------------------------------------------------------------------------------


def _producer(graph: Graph, dropout: Step) -> Step:
    found: dict[int, Step] = {}
    values, seen = list(dropout.inputs), set(dropout.inputs)
    while values:
        step = graph.producer(values.pop())
        if step is None:
            raise _Unfit("a Linear or a convolution must produce the units, got the network's input")
        if _dense(step):
            found[step.index] = step
        elif _depthwise(step) or _norm(step.module) or _drops(step) or keeps_channels(graph, step):
            values += [v for v in step.inputs if v not in seen]
            seen.update(step.inputs)
        else:
            raise _Unfit(f"only layers that keep channels apart may stand between, got {_what(step)}")
    if len(found) != 1:
        raise _Unfit(
            f"one layer must produce the units, got a sum or concat of {' and '.join(map(_what, found.values()))}"
        )
    return next(iter(found.values()))


# --- forwards to the consumers --------------------------------------------------------------------------------------


class _Spread:
    """Follows the output of a producer through everything that reads it."""

    def __init__(self, graph: Graph, producer: Step) -> None:
        self.graph, self.start = graph, producer
        shape = graph.shape(producer.outputs[0])
        if len(shape) < 2 or (isinstance(producer.module, nn.Linear) and len(shape) != 2):
            raise _Unfit(f"the producer must give (N, F) or (N, C, ...), got {_what(producer)} with {shape}")
        self.batch, self.units = shape[0], shape[1]
        self.passed: dict[int, frozenset[str]] = {producer.outputs[0]: frozenset()}
        self.dropouts: list[Place] = []
        self.between: list[Place] = []
        self.consumers: list[tuple[Place, frozenset[str]]] = []
        self.fixed: str | None = None

    def group(self) -> Group:
        self._once(self.start)
        for step in self.graph.steps[self.start.index + 1 :]:
            if any(v in self.passed for v in step.inputs):
                self._visit(step)
        if any(self.graph.is_output(v) for v in self.passed):
            raise _Unfit(f"stopped units must not reach the network's output, got those of {_what(self.start)}")
        return self._finish()

    def _finish(self) -> Group:
        all_of_them = {place.path for place in self.dropouts}
        for place, passed in self.consumers:
            if passed != all_of_them:
                raise _Unfit(f"every reader of {_what(self.start)} must come after the dropout, got {place.path}")
        consumers = tuple(place for place, _ in self.consumers)
        start = Place(self.start.path, self._module(self.start), self.start.index, 1, 1)
        return Group(self.units, start, tuple(self.dropouts), tuple(self.between), consumers, self.fixed)

    def _visit(self, step: Step) -> None:
        inside = [v for v in step.inputs if v in self.passed]
        if _dense(step):
            self._once(step)
            if isinstance(step.module, nn.Linear) and len(self.graph.shape(inside[0])) != 2:
                raise _Unfit(f"a Linear must read (N, F), got {_what(step)} on {self.graph.shape(inside[0])}")
            self.consumers.append((self._place(step), self.passed[inside[0]]))
            return
        if len(inside) != len(step.inputs):
            raise _Unfit(f"units must not mix with values from elsewhere (skip connection, concat), got {_what(step)}")
        passed = frozenset.intersection(*(self.passed[v] for v in inside))
        self.passed.update(dict.fromkeys(step.outputs, passed | self._between(step)))

    def _between(self, step: Step) -> frozenset[str]:
        """Take in a layer on the way; its path if it is a dropout."""
        if _drops(step) and not _idle(step):
            _check_layer(self.graph, step)
            self._once(step)
            self.dropouts.append(self._place(step))
            return frozenset({step.path})
        if _depthwise(step) or _norm(step.module) or isinstance(step.module, nn.PReLU):
            self._once(step)
            self.between.append(self._place(step))
        elif not (_drops(step) or keeps_channels(self.graph, step)):
            raise _Unfit(f"only layers that keep channels apart may stand between, got {_what(step)}")
        elif step.kind in ("view", "reshape") and not _free(step):
            self.fixed = self.fixed or _what(step)
        return frozenset()

    def _place(self, step: Step) -> Place:
        before, after = self._repeat(step, step.inputs[0]), 1
        if not _dense(step):
            after = self._repeat(step, step.outputs[0])
        return Place(step.path, self._module(step), step.index, before, after)

    def _repeat(self, step: Step, value: int) -> int:
        shape = self.graph.shape(value)
        if len(shape) < 2 or shape[0] != self.batch or shape[1] % self.units:
            raise _Unfit(f"units must stay on dimension 1 of (N, C, ...), got {_what(step)} with {shape}")
        return shape[1] // self.units

    def _module(self, step: Step) -> nn.Module:
        if step.module is None:
            raise _Unfit(f"weights must belong to a layer, got {_what(step)}")
        return step.module

    def _once(self, step: Step) -> None:
        """A layer whose entries stop must be called once, and nothing else may read its parameters."""
        if len(self.graph.calls(step.path)) != 1 or len(self.graph.aliased(step.path)) > 1:
            raise _Unfit(f"every layer of the group must be called once and stand at one path, got {_what(step)}")
        for name in step.params:
            if len(self.graph.users(name)) != 1 or len(self.graph.tied(name)) > 1:
                raise _Unfit(f"parameters must not be shared, got {name}, which {_what(step)} shares")


def _free(step: Step) -> bool:
    """Whether a view or reshape leaves the number of entries open: ``x.view(n, -1)``."""
    sizes = [a for k, a in step.arguments.items() if k.isdigit() or k == "shape"]
    flat = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return len(flat) == 2 and flat[1] == -1
