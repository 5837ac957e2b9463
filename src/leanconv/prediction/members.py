"""The networks that answer together, and how their answers become one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.techniques.dropout import monte_carlo
from leanconv.training import Run, open_run

__all__ = ["Runs", "answers", "members", "several"]

Runs = str | Path | Run | Sequence[str | Path | Run]
"""A run or its folder, or several."""


def several(given: Any) -> list[Any]:
    """One or many, as a list."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def members(what: str, runs: Runs, samples: int) -> list[Run]:
    """The runs, opened.

    Args:
        what: begins the messages.
        runs: one or several.
        samples: 0 or at least 2.

    Raises:
        Error: none, one that is no run, runs of different classes, or ``samples`` out of range.
    """
    opened = [r if isinstance(r, Run) else open_run(r) for r in several(runs)]
    if samples < 0 or samples == 1:
        raise Error(f"{what}: samples must be 0 (off) or at least 2, got samples={samples}")
    if not opened:
        raise Error(f"{what}: at least one run must be given, got none")
    for run in opened[1:]:
        if run.header.classes != opened[0].header.classes:
            raise Error(
                f"{what}: all runs must know the same classes, got {', '.join(opened[0].header.classes)} in "
                f"{opened[0].folder} and {', '.join(run.header.classes)} in {run.folder}"
            )
    return opened


def answers(model: nn.Module, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities, and their variance over Monte-Carlo samples; both float64 (N, classes).

    With T samples the probability is ``1/T sum_t softmax(f_t(x))``, f_t the network with its t-th dropout masks; the
    variance is that of the T values, with T - 1 in the denominator. With ``samples=0`` dropout is off, the variance 0.
    """
    if samples:
        drawn = monte_carlo(model, x, samples)
        return drawn.mean.double().log(), drawn.spread.double().square()
    with evaluating(model):
        logs = torch.log_softmax(model(x).double(), 1)
    return logs, torch.zeros_like(logs)
