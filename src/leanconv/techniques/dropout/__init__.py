"""Dropout: random units stop in each training step (rows S2 to S5): layers, surgery, checks and costs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from leanconv.kernels.keys import keyed
from leanconv.techniques.dropout.attachment import attach
from leanconv.techniques.dropout.checks import check
from leanconv.techniques.dropout.cost import cost
from leanconv.techniques.dropout.ensemble import (
    Ensemble,
    MonteCarlo,
    enumerate_ensemble,
    geometric_mean,
    monte_carlo,
    weight_scaling,
)
from leanconv.techniques.dropout.layers import (
    DropBlock2d,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    StochasticDepth,
    dropout_reference,
)
from leanconv.techniques.dropout.options import Options
from leanconv.techniques.dropout.skip import skip
from leanconv.techniques.dropout.strict import strict
from leanconv.techniques.dropout.surgery import apply, fold, remove

__all__ = [
    "LAYERS",
    "NAME",
    "ORDER",
    "PAPER",
    "DropBlock2d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "Ensemble",
    "MonteCarlo",
    "Options",
    "StochasticDepth",
    "apply",
    "attach",
    "check",
    "cost",
    "dropout_reference",
    "enumerate_ensemble",
    "fold",
    "geometric_mean",
    "keyed",
    "monte_carlo",
    "remove",
    "roles",
    "skip",
    "strict",
    "weight_scaling",
]

NAME = "dropout"
ORDER = 300
PAPER = "https://jmlr.org/papers/v15/srivastava14a.html"
LAYERS: tuple[type[nn.Module], ...] = (Dropout, Dropout1d, Dropout2d, Dropout3d, DropBlock2d, StochasticDepth)


def roles(model: nn.Module) -> Mapping[str, str]:
    """No parameter is dropout's own: its layers have none."""
    return {}
