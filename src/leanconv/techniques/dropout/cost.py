"""What a dropout layer costs in one forward pass."""

from __future__ import annotations

from math import prod

from torch import nn

from leanconv.contract import Cost, Shape

__all__ = ["cost"]


def cost(layer: nn.Module, shape: Shape) -> Cost:
    """Nothing but traffic: params = 0, MACs = 0, bytes = 2 * elements * 4 (input and output, float32).

    Args:
        layer: any of the technique's layers.
        shape: of the input, (N, ...).
    """
    return Cost(bytes=2 * prod(shape) * 4)
