"""What a batch norm costs, in closed form."""

from __future__ import annotations

from math import prod

from torch import nn

from leanconv.contract import Cost, Shape
from leanconv.errors import Error
from leanconv.techniques.batchnorm.layers import BatchNorm

__all__ = ["cost"]


def cost(layer: nn.Module, shape: Shape) -> Cost:
    """params = 2C (0 without affine); macs = 0; bytes = 4 (2 N C L + 2C + 2C): in, out, gamma and beta, statistics.

    Args:
        layer: one of our batch norms.
        shape: of its input, (N, C, ...), L the product of the rest.

    Raises:
        Error: another layer, or a shape that does not fit it.
    """
    if not isinstance(layer, BatchNorm):
        raise Error(f"batchnorm: cost is known for BatchNorm1d, 2d and 3d, got {type(layer).__name__}")
    if len(shape) not in layer.dims or shape[1] != layer.num_features:
        raise Error(f"{type(layer).__name__}: shape must have {layer.num_features} channels, got shape {tuple(shape)}")
    params = 2 * layer.num_features if layer.affine else 0
    statistics = 2 * layer.num_features if layer.running_mean is not None else 0
    return Cost(params=params, macs=0, bytes=4 * (2 * prod(shape) + params + statistics))
