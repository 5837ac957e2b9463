"""Batch normalisation: table 2-1 of the source (rows S8 to S11, S25), Ioffe & Szegedy 2015."""

from __future__ import annotations

from leanconv.techniques.batchnorm.affine import folded, folded_forward
from leanconv.techniques.batchnorm.checks import check
from leanconv.techniques.batchnorm.conversion import (
    from_torch,
    reorder,
    to_frozen,
    to_group,
    to_synchronised,
    to_torch,
)
from leanconv.techniques.batchnorm.cost import cost
from leanconv.techniques.batchnorm.fold import fold
from leanconv.techniques.batchnorm.layers import BatchNorm1d, BatchNorm2d, BatchNorm3d, freeze, frozen, unfreeze
from leanconv.techniques.batchnorm.options import Options
from leanconv.techniques.batchnorm.reference import algorithm1, algorithm1_steps
from leanconv.techniques.batchnorm.statistics import exact_statistics, precise_statistics
from leanconv.techniques.batchnorm.surgery import apply, remove
from leanconv.techniques.batchnorm.training import attach, roles

__all__ = [
    "LAYERS",
    "NAME",
    "ORDER",
    "PAPER",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Options",
    "algorithm1",
    "algorithm1_steps",
    "apply",
    "attach",
    "check",
    "cost",
    "exact_statistics",
    "fold",
    "folded",
    "folded_forward",
    "freeze",
    "from_torch",
    "frozen",
    "precise_statistics",
    "remove",
    "reorder",
    "roles",
    "to_frozen",
    "to_group",
    "to_synchronised",
    "to_torch",
    "unfreeze",
]

NAME = "batchnorm"
ORDER = 200
PAPER = "https://arxiv.org/abs/1502.03167"
LAYERS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
