"""Depthwise separable convolution: each channel on its own, then a weighted sum over channels per output."""

from leanconv.techniques.separable.aware import error_curve, output_error, separate_outputs
from leanconv.techniques.separable.blocks import SeparableConv1d, SeparableConv2d, SeparableConv3d
from leanconv.techniques.separable.budget import Option, choose
from leanconv.techniques.separable.checks import check
from leanconv.techniques.separable.convert import (
    Fitted,
    decompose,
    dense_fresh,
    fitted_separable,
    separate_weights,
    weight_curve,
    weight_error,
)
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
from leanconv.techniques.separable.fusing import fuse
from leanconv.techniques.separable.layers import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
)
from leanconv.techniques.separable.lean import ChannelMoments, FeatureMoments, leading
from leanconv.techniques.separable.options import Options
from leanconv.techniques.separable.patches import PatchMoments
from leanconv.techniques.separable.reference import separable_reference
from leanconv.techniques.separable.surgery import apply, attach, candidates, fold, remove, roles

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
    "ChannelMoments",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "FeatureMoments",
    "Fitted",
    "Growth",
    "Option",
    "Options",
    "PatchMoments",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "Rung",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "apply",
    "attach",
    "candidates",
    "check",
    "choose",
    "cost",
    "decompose",
    "dense_fresh",
    "error_curve",
    "fitted_separable",
    "fold",
    "fuse",
    "growth",
    "ladder",
    "leading",
    "output_error",
    "ratio",
    "remove",
    "roles",
    "separable_macs",
    "separable_parameters",
    "separable_reference",
    "separate_outputs",
    "separate_weights",
    "standard_macs",
    "standard_parameters",
    "weight_curve",
    "weight_error",
]
