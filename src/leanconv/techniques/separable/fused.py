"""A separable block run as one operation: depthwise, norm, activation, pointwise, norm, activation.

:class:`Block` finds the layers of a block in a row of modules and runs them through
:func:`leanconv.kernels.separable.separable_block`; a norm is whatever :class:`leanconv.kernels.norm.Normalises`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from leanconv.kernels.norm import Norm, Normalises
from leanconv.kernels.ops import eager
from leanconv.kernels.separable import runs_fused, separable_block
from leanconv.techniques.separable.layers import DepthwiseConv2d, PointwiseConv2d

__all__ = ["Block", "Ready", "is_depthwise", "watched"]

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
}
FORWARDS = (nn.Conv2d.forward, DepthwiseConv2d.forward, PointwiseConv2d.forward)


class Ready(NamedTuple):
    """What both norms would do now, and the shapes of their inputs."""

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
            isinstance(between, Normalises)
            and isinstance(after, Normalises)
            and between.num_features == depthwise.out_channels == pointwise.in_channels
            and after.num_features == pointwise.out_channels
        )
        return cls(depthwise, between, first, pointwise, after, second, tuple(layers)) if fits else None  # type: ignore[arg-type]

    def ready(self, x: Tensor) -> Ready | None:
        """What :meth:`run` needs; None where the layers must run one by one: hooks, modes, dtypes, other activations.

        Raises:
            Error: as the norms.
        """
        depthwise, pointwise = self.depthwise, self.pointwise
        if not eager(x) or any(map(watched, self.layers)) or torch_module._global_forward_hooks:
            return None
        if x.dim() != 4 or x.shape[1] != depthwise.in_channels or not runs_fused(x, depthwise.weight, pointwise.weight):
            return None
        height, width = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                x.shape[2:], depthwise.padding, depthwise.dilation, depthwise.kernel_size, depthwise.stride, strict=True
            )
        )
        if height < 1 or width < 1:
            return None
        shapes = [(x.shape[0], conv.out_channels, height, width) for conv in (depthwise, pointwise)]
        between = _with(self.between.prepared(shapes[0]), self.first)
        after = _with(self.after.prepared(shapes[1]), self.second)
        return None if between is None or after is None else Ready(between, after, shapes[0], shapes[1])

    def run(self, x: Tensor, ready: Ready, lean: bool = False) -> Tensor:
        """The block's output; moments are told to both norms.

        Args:
            x: (N, C, H, W).
            ready: of this x.
            lean: as of :func:`leanconv.kernels.separable.separable_block`.
        """
        conv = self.depthwise
        y, first, second = separable_block(
            x, conv.weight, self.pointwise.weight, ready.between, ready.after, conv.stride, conv.padding, conv.dilation,
            lean=lean,
        )  # fmt: skip
        self.between.observe(ready.shape, *first)
        self.after.observe(ready.out_shape, *second)
        return y


def _with(norm: Norm | None, act: str | None) -> Norm | None:
    if norm is None or act is None:
        return norm
    return norm._replace(act=act) if norm.act == "none" else None


def is_depthwise(layer: nn.Module) -> bool:
    """Whether it is a depthwise convolution of images a block can take in: no bias, as many zeros on both sides."""
    return (
        isinstance(layer, nn.modules.conv._ConvNd)
        and len(layer.kernel_size) == 2
        and not layer.transposed
        and layer.groups == layer.in_channels
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
    return type(layer).forward in FORWARDS


def watched(layer: nn.Module) -> bool:
    """Whether somebody waits for what goes into the layer or comes out of it."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
