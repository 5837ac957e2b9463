"""Depthwise separable convolution: each channel on its own, then a weighted sum over channels per output."""

from leanconv.techniques.separable.blocks import SeparableConv1d, SeparableConv2d, SeparableConv3d
from leanconv.techniques.separable.checks import check
from leanconv.techniques.separable.convert import decompose, dense_fresh, weight_error
from leanconv.techniques.separable.cost import cost
from leanconv.techniques.separable.formulas import (
    Growth,
    Rung,
    growth,
    ladder,
    ratio,
    separable_macs,
    separable_parameters,
    standard_macs,
    standard_parameters,
)
from leanconv.techniques.separable.layers import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)
from leanconv.techniques.separable.options import Options
from leanconv.techniques.separable.reference import separable_reference
from leanconv.techniques.separable.surgery import apply, attach, fold, remove, roles

NAME = "separable"
ORDER = 100
PAPER = "https://arxiv.org/abs/1704.04861"
LAYERS = (
    SeparableConv1d,
    SeparableConv2d,
    SeparableConv3d,
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)

__all__ = [
    "LAYERS",
    "NAME",
    "ORDER",
    "PAPER",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "Growth",
    "Options",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "Rung",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "apply",
    "attach",
    "check",
    "cost",
    "decompose",
    "dense_fresh",
    "fold",
    "growth",
    "ladder",
    "ratio",
    "remove",
    "roles",
    "separable_macs",
    "separable_parameters",
    "separable_reference",
    "standard_macs",
    "standard_parameters",
    "weight_error",
]
