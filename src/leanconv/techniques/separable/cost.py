"""What the layers of this technique cost in one forward pass."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from leanconv.contract import Cost, Shape
from leanconv.errors import Error
from leanconv.techniques.separable.blocks import _Separable

__all__ = ["cost"]

FLOAT32 = 4


def cost(layer: nn.Module, shape: Shape) -> Cost:
    """The closed form, with S' = N times the positions of an output map, K the kernel's area.

    - depthwise: Cin m K parameters, S' Cin m K MACs;
    - pointwise: Cin Cout / groups parameters, S' Cin Cout / groups MACs;
    - separable: both, and whatever norm and activation stand between and after (parameters and bytes, no MACs);
    - bytes: for each of these layers 4 (input + output + parameters + buffers), float32;
    - a bias adds Cout parameters and no MACs.

    Args:
        layer: one of the technique's LAYERS.
        shape: of its input, (N, Cin, *spatial).

    Raises:
        Error: a layer of another kind, or a shape that does not fit it.
    """
    if isinstance(layer, _ConvNd):
        return _convolution(layer, shape)[0]
    if not isinstance(layer, _Separable):
        raise Error(f"separable.cost: the layer must be one of the technique's, got {type(layer).__name__}")
    total = Cost()
    for part in layer.flat():
        if isinstance(part, _ConvNd):
            one, shape = _convolution(part, shape)
        else:
            one = _elementwise(part, shape)
        total = total + one
    return total


def _convolution(layer: _ConvNd, shape: Shape) -> tuple[Cost, Shape]:
    spatial = len(layer.kernel_size)
    if len(shape) != spatial + 2 or shape[1] != layer.in_channels:
        raise Error(f"separable.cost: the shape must fit {type(layer).__name__}({layer.in_channels}), got {shape}")
    pads = layer._reversed_padding_repeated_twice[::-1]
    sides = tuple(
        (n + pads[2 * i] + pads[2 * i + 1] - layer.dilation[i] * (layer.kernel_size[i] - 1) - 1) // layer.stride[i] + 1
        for i, n in enumerate(shape[2:])
    )
    output = (shape[0], layer.out_channels, *sides)
    params = _elements(list(layer.parameters()))
    macs = prod(output) * (layer.in_channels // layer.groups) * prod(layer.kernel_size)
    return Cost(params, macs, FLOAT32 * (prod(shape) + prod(output) + params)), output


def _elementwise(part: nn.Module, shape: Shape) -> Cost:
    """A norm or an activation: its shape stays."""
    total = Cost()
    for leaf in (m for m in part.modules() if not list(m.children())):
        params = _elements(list(leaf.parameters()))
        buffers = _elements([b for name, b in leaf.named_buffers() if name != "num_batches_tracked"])
        total = total + Cost(params, 0, FLOAT32 * (2 * prod(shape) + params + buffers))
    return total


def _elements(tensors: list[Tensor]) -> int:
    return sum(t.numel() for t in tensors)
