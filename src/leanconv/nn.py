"""The layers of all techniques, and what belongs to them, in one place: ``from leanconv import nn``.

Nothing is defined here. Each name comes from the folder of its technique under ``leanconv.techniques``, whose method
card says how to use it.
"""

from leanconv.techniques.batchnorm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    algorithm1,
    exact_statistics,
    freeze,
    precise_statistics,
    unfreeze,
)
from leanconv.techniques.dropout import (
    DropBlock2d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    StochasticDepth,
    dropout_reference,
    enumerate_ensemble,
    geometric_mean,
    keyed,
    monte_carlo,
    skip,
    strict,
    weight_scaling,
)
from leanconv.techniques.l2 import (
    decouple,
    objective,
    penalty,
)
from leanconv.techniques.separable import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
    SeparableConv1d,
    SeparableConv2d,
    SeparableConv3d,
    separable_reference,
)

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "DropBlock2d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
    "SeparableConv1d",
    "SeparableConv2d",
    "SeparableConv3d",
    "StochasticDepth",
    "algorithm1",
    "decouple",
    "dropout_reference",
    "enumerate_ensemble",
    "exact_statistics",
    "freeze",
    "geometric_mean",
    "keyed",
    "monte_carlo",
    "objective",
    "penalty",
    "precise_statistics",
    "separable_reference",
    "skip",
    "strict",
    "unfreeze",
    "weight_scaling",
]
