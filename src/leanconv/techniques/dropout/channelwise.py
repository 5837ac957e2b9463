"""Which recorded steps keep channels apart: channel ``c`` of what they make depends on channel ``c`` alone."""

from __future__ import annotations

from math import prod

from torch import nn
from torch.nn.modules import activation, padding, pooling

from leanconv.graph import Graph, Step

__all__ = ["keeps_channels"]

_ELEMENTWISE_NAMES = """
relu relu6 hardtanh leaky_relu prelu elu selu celu gelu silu mish sigmoid tanh hardswish hardsigmoid softplus logsigmoid
softsign tanhshrink softshrink hardshrink threshold rrelu clamp clamp_min clamp_max clip abs neg exp sqrt rsqrt square
pow add iadd radd sub isub rsub mul imul rmul div idiv rdiv truediv itruediv rtruediv true_divide maximum minimum
contiguous clone to float double half bfloat16 type identity view_as
"""
_ACTIVATION_NAMES = """
ReLU RReLU Hardtanh ReLU6 Sigmoid Hardsigmoid Tanh SiLU Mish Hardswish ELU CELU SELU GELU Hardshrink LeakyReLU
LogSigmoid Softplus Softshrink Softsign Tanhshrink Threshold PReLU
"""
_ELEMENTWISE = frozenset(_ELEMENTWISE_NAMES.split())
_ACTIVATIONS = tuple(getattr(activation, name) for name in _ACTIVATION_NAMES.split())
_POOLS = frozenset(
    f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp") for d in (1, 2, 3)
) | {"interpolate", "pad", "boolean_dispatch"}
_RESHAPES = frozenset({"flatten", "view", "reshape", "squeeze", "unsqueeze"})
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin"})
_SPATIAL = (
    pooling._MaxPoolNd,
    pooling._AvgPoolNd,
    pooling._AdaptiveMaxPoolNd,
    pooling._AdaptiveAvgPoolNd,
    pooling._LPPoolNd,
    nn.Upsample,
    padding._ConstantPadNd,
    padding._ReflectionPadNd,
    padding._ReplicationPadNd,
    padding._CircularPadNd,
)


def keeps_channels(graph: Graph, step: Step) -> bool:
    """Whether a step without parameters of its own keeps the entries of dimension 1 apart, and in order.

    Activations, pooling, padding, interpolation, elementwise functions (also of several tensors), means over space,
    Flatten and reshapes that leave the first dimension alone. PReLU counts too.
    """
    if not step.inputs or not step.outputs or len(graph.shape(step.inputs[0])) < 2:
        return False
    name = step.kind.strip("_")
    if isinstance(step.module, (nn.Flatten, nn.Unflatten)) or (step.module is None and name in _RESHAPES):
        return _keeps_order(graph, step)
    if step.module is not None:
        known = isinstance(step.module, (*_ACTIVATIONS, *_SPATIAL, nn.Identity)) or _only_elementwise(step)
        return known and _same_channels(graph, step)
    if step.params:
        return False
    if name in _REDUCTIONS:
        return _over_space(graph, step)
    return (name in _ELEMENTWISE or name in _POOLS) and _same_channels(graph, step)


def _only_elementwise(step: Step) -> bool:
    """A module of the user's own, without parameters, that did nothing but elementwise work."""
    return bool(step.ops) and not step.params and all(op.strip("_") in _ELEMENTWISE for op in step.ops)


def _same_channels(graph: Graph, step: Step) -> bool:
    shape = graph.shape(step.inputs[0])
    return all(graph.shape(v)[:2] == shape[:2] for v in (*step.inputs, *step.outputs))


def _keeps_order(graph: Graph, step: Step) -> bool:
    """Row-major reshapes keep the entries of a channel together as long as their number only grows."""
    before, after = graph.shape(step.inputs[0]), graph.shape(step.outputs[0])
    if len(after) < 2 or after[0] != before[0] or prod(after) != prod(before):
        return False
    return before[1] > 0 and after[1] % before[1] == 0


def _over_space(graph: Graph, step: Step) -> bool:
    dims = step.arguments.get("1", step.arguments.get("dim"))
    listed = dims if isinstance(dims, (tuple, list)) else (dims,)
    rank = len(graph.shape(step.inputs[0]))
    return all(isinstance(d, int) and d % rank >= 2 for d in listed)
