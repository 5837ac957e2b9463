"""What two networks give, compared; and what one gives on two splits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from leanconv.data import DataSet
from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.measure.quality import score
from leanconv.results import Difference, Score, difference

__all__ = ["Gap", "OutputDifference", "compared", "gap", "output_difference", "outputs"]

Example = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class OutputDifference:
    """How far apart the outputs of two networks are.

    Attributes:
        max, mean: of |a - b| over all elements.
        scale: max|a|; ``max / scale`` is the relative difference.
    """

    max: float
    mean: float
    scale: float

    @property
    def relative(self) -> float:
        """max|a - b| / max|a|; 0 where both are 0 throughout."""
        return self.max / self.scale if self.scale else (0.0 if self.max == 0 else math.inf)


@dataclass(frozen=True)
class Gap:
    """Accuracy on training images minus accuracy on held-out ones, both in eval mode and unaugmented."""

    train: Score
    held_out: Score
    difference: Difference


def output_difference(a: nn.Module, b: nn.Module, probe: Example) -> OutputDifference:
    """Run two networks in eval mode on one input and compare what they give.

    Args:
        a, b: networks whose outputs have the same shapes; several outputs are taken together.
        probe: (N, C, ...), or a tuple of inputs.

    Returns:
        max and mean of |a - b|, computed in float64. nan where an output is nan.

    Raises:
        Error: the outputs differ in number or shape.
    """
    return compared(outputs(a, probe), outputs(b, probe))


def compared(first: Sequence[Tensor], second: Sequence[Tensor]) -> OutputDifference:
    """:func:`output_difference` of outputs that are there already.

    Raises:
        Error: they differ in number or shape.
    """
    shapes = [[tuple(t.shape) for t in one] for one in (first, second)]
    if shapes[0] != shapes[1] or not first:
        raise Error(f"output_difference: outputs must have the same shapes, got {shapes[0]} and {shapes[1]}")
    left, right = (torch.cat([t.double().reshape(-1) for t in one]) for one in (first, second))
    # Equal infinities are equal: inf - inf would say nan.
    apart = torch.where(left == right, torch.zeros_like(left), (left - right).abs())
    if not apart.numel():
        return OutputDifference(0.0, 0.0, 0.0)
    return OutputDifference(float(apart.max()), float(apart.mean()), float(left.abs().max()))


def gap(model: nn.Module, data: DataSet, held_out: str = "val", size: int = 256) -> Gap:
    """How much better a classifier is on its training images than on others: row S1's sign of overfitting.

    Args:
        model: (N, C, H, W) -> (N, classes).
        data: the set.
        held_out: ``val`` or ``test``.
        size: images per pass.

    Returns:
        Both scores and their difference with Newcombe's interval.

    Raises:
        Error: no such split.
    """
    train, other = score(model, data, "train", size), score(model, data, held_out, size)
    return Gap(train, other, difference(train, other))


def outputs(model: nn.Module, probe: Example) -> list[Tensor]:
    """What a network gives in eval mode, its tensors in order.

    Args:
        model: any module.
        probe: (N, C, ...), or a tuple of inputs.
    """
    with evaluating(model):
        given = model(*probe) if isinstance(probe, tuple) else model(probe)
        return [t.detach().clone() for t in tree_leaves(given) if isinstance(t, Tensor)]
