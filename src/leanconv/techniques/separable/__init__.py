"""Depthwise separable convolution."""

from leanconv.techniques.separable.blocks import SeparableConv1d, SeparableConv2d, SeparableConv3d
from leanconv.techniques.separable.layers import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)
from leanconv.techniques.separable.reference import separable_reference

__all__ = [
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "separable_reference",
]
