"""Questions about a recorded execution that dropout's surgery and checks share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from leanconv.graph import Graph, Step
from leanconv.techniques.dropout.channelwise import keeps_channels
from leanconv.techniques.dropout.layers import DropBlock2d, Dropout, StochasticDepth

__all__ = ["activates", "back", "depthwise", "drops", "readers", "weighted", "with_dropout"]

DROPPING = (Dropout, DropBlock2d, StochasticDepth, _DropoutNd)

_NAMES = """
ReLU ReLU6 RReLU LeakyReLU PReLU ELU CELU SELU GELU SiLU Mish Softplus Softsign Sigmoid Tanh Hardsigmoid Hardswish
Hardtanh LogSigmoid Threshold
"""
_ACTIVATIONS = tuple(getattr(nn, name) for name in _NAMES.split())
_FUNCTION_NAMES = """
relu relu6 rrelu leaky_relu prelu elu celu selu gelu silu mish softplus softsign sigmoid tanh hardsigmoid hardswish
hardtanh clamp clamp_min logsigmoid threshold
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


def drops(step: Step) -> bool:
    """A dropout layer, ours or torch's."""
    return isinstance(step.module, DROPPING)


def weighted(step: Step) -> bool:
    """A Linear or a convolution."""
    return isinstance(step.module, (nn.Linear, _ConvNd))


def activates(step: Step) -> bool:
    """A nonlinearity of one tensor: a module, a function, or a norm layer with one built in."""
    if step.module is None:
        return step.kind.strip("_") in _FUNCTIONS
    return isinstance(step.module, _ACTIVATIONS) or getattr(step.module, "activation", None) is not None


def _passes(graph: Graph, step: Step) -> bool:
    """Dropout, Identity, pooling, Flatten: what may stand between a layer and the values that it reads."""
    if len(step.inputs) != 1 or len(step.outputs) != 1 or activates(step):
        return False
    return drops(step) or isinstance(step.module, nn.Identity) or keeps_channels(graph, step)


def depthwise(step: Step) -> bool:
    """A convolution that filters each channel on its own."""
    return isinstance(step.module, _ConvNd) and step.module.groups == step.module.in_channels > 1


def readers(graph: Graph, value: int, filters: bool = False) -> Iterator[tuple[Step, tuple[Step, ...]]]:
    """The steps that a value reaches through dropout, pooling and Flatten, each with what stands between, in order.

    Args:
        graph: one recorded execution.
        value: where to start.
        filters: pass depthwise convolutions too.
    """
    for step in graph.consumers(value):
        if _passes(graph, step) or (filters and depthwise(step)):
            for last, between in readers(graph, step.outputs[0], filters):
                yield last, (step, *between)
        else:
            yield step, ()


def back(graph: Graph, value: int) -> tuple[int, tuple[Step, ...]]:
    """Upstream through dropout, pooling and Flatten that nothing else reads: the start, and the steps in order."""
    steps: list[Step] = []
    while (step := graph.producer(value)) is not None and _passes(graph, step) and len(graph.consumers(value)) == 1:
        steps.insert(0, step)
        value = step.inputs[0]
    return value, tuple(steps)


def with_dropout(graph: Graph, value: int, layer: nn.Module, existing: Step | None, path: str) -> Graph:
    """The execution as it would be with a dropout layer on a value, or in place of an existing one."""
    steps: list[Step] = []
    shapes = dict(graph._shapes)
    producer = graph.producer(value)
    fresh = max(shapes) + 1
    shapes[fresh] = graph.shape(value)
    drop = Step(0, type(layer).__name__, path, 0, layer, (value,), (fresh,), ())
    if existing is None and producer is None:
        steps.append(drop)
    for step in graph.steps:
        if existing is not None and step.index == existing.index:
            step = replace(step, module=layer, path=path, kind=type(layer).__name__)
        elif existing is None:
            step = replace(step, inputs=tuple(fresh if v == value else v for v in step.inputs))
        steps.append(step)
        if existing is None and step is not drop and producer is not None and step.index == producer.index:
            steps.append(drop)
    numbered = tuple(replace(step, index=i) for i, step in enumerate(steps))
    return Graph(numbered, graph.inputs, graph.outputs, shapes, graph._names)
