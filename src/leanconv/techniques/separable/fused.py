"""Separable blocks run as one operation: depthwise, norm, activation, pointwise, norm, activation.

:class:`Block` finds the layers of a block in a row of modules; :func:`run` runs such blocks through
:func:`leanconv.kernels.separable.separable_chain`. A norm is whatever :class:`leanconv.kernels.norm.Normalises`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from leanconv.kernels.norm import Norm, Normalises
from leanconv.kernels.ops import eager
from leanconv.kernels.separable import BlockInputs, runs_fused, separable_chain
from leanconv.techniques.separable.layers import DepthwiseConv2d, PointwiseConv2d

__all__ = ["Block", "Plan", "Ready", "is_depthwise", "normalises", "ready", "run", "watched"]

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
}
FORWARDS = (nn.Conv2d.forward, DepthwiseConv2d.forward, PointwiseConv2d.forward)


class Ready(NamedTuple):
    """What both norms of a block would do now, and the shapes of their inputs."""

    between: Norm
    after: Norm
    shape: tuple[int, ...]
    out_shape: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """The layers of a block; each activation is that of a module after the norm, None: the norm has its own or none."""

    depthwise: Any
    between: Normalises
    first: str | None
    pointwise: Any
    after: Normalises
    second: str | None
    layers: tuple[nn.Module, ...]

    @classmethod
    def of(cls, layers: Sequence[nn.Module]) -> Self | None:
        """The block that these layers make, in order; None: they make none. Identities do not count."""
        rest = [layer for layer in layers if not isinstance(layer, nn.Identity)]
        try:
            depthwise, between = rest.pop(0), rest.pop(0)
            first = ACTIVATIONS.get(type(rest[0]))
            if first is not None:
                rest.pop(0)
            pointwise, after = rest.pop(0), rest.pop(0)
        except IndexError:
            return None
        second = ACTIVATIONS.get(type(rest[0])) if len(rest) == 1 else None
        if (rest and second is None) or not is_depthwise(depthwise) or not is_pointwise(pointwise):
            return None
        fits = (
            normalises(between)
            and normalises(after)
            and between.num_features == depthwise.out_channels == pointwise.in_channels
            and after.num_features == pointwise.out_channels
        )
        return cls(depthwise, between, first, pointwise, after, second, tuple(layers)) if fits else None  # type: ignore[arg-type]


class Plan(NamedTuple):
    """What the norms of a chain would do now: the one before it, if there is one, and those of each block."""

    lead: Norm | None
    blocks: list[Ready]


def ready(blocks: Sequence[Block], x: Tensor, lead: Normalises | None = None) -> Plan | None:
    """What :func:`run` needs; None where layers must run one by one: hooks, modes, dtypes, other activations.

    Args:
        blocks: each takes what the one before gives.
        x: the input.
        lead: a norm of x before the first block.

    Raises:
        Error: as the norms.
    """
    if not eager(x) or torch_module._global_forward_hooks or x.dim() != 4:
        return None
    first = None
    if lead is not None:
        if watched(lead) or x.shape[1] != lead.num_features or not x.numel():  # type: ignore[arg-type]
            return None
        first = lead.prepared(tuple(x.shape))
        if first is None:
            return None
    shape, found = tuple(x.shape), []
    for block in blocks:
        one = _ready(block, x, shape)
        if one is None:
            return None
        found.append(one)
        shape = one.out_shape
    return Plan(first, found)


def _ready(block: Block, x: Tensor, shape: tuple[int, ...]) -> Ready | None:
    depthwise, pointwise = block.depthwise, block.pointwise
    if any(map(watched, block.layers)) or not runs_fused(x, depthwise.weight, pointwise.weight, shape):
        return None
    height, width = (
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in zip(
            shape[2:], depthwise.padding, depthwise.dilation, depthwise.kernel_size, depthwise.stride, strict=True
        )
    )
    if height < 1 or width < 1:
        return None
    inner, outer = ((shape[0], conv.out_channels, height, width) for conv in (depthwise, pointwise))
    between = _with(block.between.prepared(inner), block.first)
    after = _with(block.after.prepared(outer), block.second)
    return None if between is None or after is None else Ready(between, after, inner, outer)


def run(blocks: Sequence[Block], x: Tensor, plan: Plan, lean: bool = False, lead: Normalises | None = None) -> Tensor:
    """The last block's output; moments are told to the norms.

    Args:
        blocks: of :func:`ready`.
        x: likewise.
        plan: what it gave.
        lean: as of :func:`leanconv.kernels.separable.separable_chain`.
        lead: of :func:`ready`.
    """
    inputs = [
        BlockInputs(
            b.depthwise.weight,
            b.pointwise.weight,
            r.between,
            r.after,
            b.depthwise.stride,
            b.depthwise.padding,
            b.depthwise.dilation,
        )
        for b, r in zip(blocks, plan.blocks, strict=True)
    ]
    y, moments = separable_chain(x, inputs, lean, plan.lead)
    used = iter(moments)
    if lead is not None:
        lead.observe(tuple(x.shape), *next(used))
    for block, one in zip(blocks, plan.blocks, strict=True):
        block.between.observe(one.shape, *next(used))
        block.after.observe(one.out_shape, *next(used))
    return y


def _with(norm: Norm | None, act: str | None) -> Norm | None:
    if norm is None or act is None:
        return norm
    return norm._replace(act=act) if norm.act == "none" else None


def normalises(layer: nn.Module) -> bool:
    """Whether it is a norm that a block can take in: what it prepares is what its forward does, in subclasses too."""
    kinds = type(layer).__mro__
    owners = [next((kind for kind in kinds if name in vars(kind)), None) for name in ("forward", "prepared")]
    return isinstance(layer, Normalises) and owners[0] is owners[1] and "forward" not in vars(layer)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether it is a depthwise convolution of images a block can take in: no bias, as many zeros on both sides."""
    return (
        isinstance(layer, nn.modules.conv._ConvNd)
        and len(layer.kernel_size) == 2
        and not layer.transposed
        and layer.groups == layer.in_channels == layer.out_channels
        and layer.bias is None
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and _own_forward(layer)
    )


def is_pointwise(layer: nn.Module) -> bool:
    """Whether it is a dense 1x1 convolution of images that a block can take in."""
    return (
        isinstance(layer, nn.modules.conv._ConvNd)
        and not layer.transposed
        and (layer.kernel_size, layer.stride) == ((1, 1), (1, 1))
        and layer.groups == 1
        and layer.bias is None
        and layer.padding in ((0, 0), "valid", "same")
        and _own_forward(layer)
    )


def _own_forward(layer: nn.Module) -> bool:
    return type(layer).forward in FORWARDS and "forward" not in vars(layer)


def watched(layer: nn.Module) -> bool:
    """Whether somebody waits for what goes into the layer or comes out of it."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
