"""L2 regularisation: a penalty quadratic in the weights (rows S14 to S16 of the source), and decoupled decay."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from leanconv.contract import Context, Cost, Edit, Refusal, Shape
from leanconv.errors import Error
from leanconv.techniques.l2.attachment import attach
from leanconv.techniques.l2.checks import check
from leanconv.techniques.l2.decoupled import decouple
from leanconv.techniques.l2.forms import Form, Where, weight_decay
from leanconv.techniques.l2.groups import Ledger, Row, ledger, param_groups
from leanconv.techniques.l2.options import Options
from leanconv.techniques.l2.penalty import Objective, norms, objective, penalty

__all__ = [
    "LAYERS",
    "NAME",
    "ORDER",
    "PAPER",
    "Form",
    "Ledger",
    "Objective",
    "Options",
    "Row",
    "Where",
    "apply",
    "attach",
    "check",
    "cost",
    "decouple",
    "fold",
    "ledger",
    "norms",
    "objective",
    "param_groups",
    "penalty",
    "remove",
    "roles",
    "weight_decay",
]

NAME = "l2"
ORDER = 900
PAPER = "https://arxiv.org/abs/1711.05101"
LAYERS: tuple[type[nn.Module], ...] = ()


def apply(ctx: Context, options: Options) -> list[Edit | Refusal]:
    """No edits: L2 acts in training, through :func:`attach`."""
    return []


def remove(ctx: Context) -> list[Edit | Refusal]:
    """No edits: a network bears no trace of L2 but its weights."""
    return []


def fold(ctx: Context) -> list[Edit | Refusal]:
    """No edits: there is nothing to fold."""
    return []


def cost(layer: nn.Module, shape: Shape) -> Cost:
    """L2 has no layers, so it has no price in a forward pass.

    Raises:
        Error: always, since no layer is one of its ``LAYERS``.
    """
    raise Error(f"l2: cost is known for its own layers and it has none, got {type(layer).__name__}")


def roles(model: nn.Module) -> Mapping[str, str]:
    """No parameter is L2's own: it reads the roles that the others give."""
    return {}
