"""Puts the kernels under any network, and takes them away again."""

from __future__ import annotations

import torch
from torch import nn

from leanconv.surgery.carrying import Example, Setting, carry_out
from leanconv.surgery.certificate import Certificate
from leanconv.surgery.plan import Plan, Step

__all__ = ["accelerate"]


def accelerate(
    model: nn.Module,
    *,
    example: Example | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    latency: bool = False,
    check: bool = True,
) -> tuple[nn.Module, Certificate]:
    """Have a network train and run on leanconv's own kernels; results stay within rounding.

    Batch norms become leanconv's, each takes in the activation that alone reads it (one operation, which keeps nothing
    but its input for the backward pass), and weights lie channels_last, as the kernels read maps. Names and values of
    the state_dict stay, so checkpoints load both ways. Which implementation runs for which shape is told by
    ``leanconv.kernels.choice.explain``; ``LEANCONV_NATIVE=0`` turns native code off.

    Example:
        >>> fast, certificate = leanconv.accelerate(network, example=x)  # doctest: +SKIP
        >>> slow, _ = certificate.undo(fast)  # doctest: +SKIP

    Args:
        model: any network; it is left as it is.
        example: as of :func:`leanconv.apply`.
        optimizer: as of :func:`leanconv.apply`.
        latency: time both networks, in eval mode.
        check: compare the outputs of both.

    Returns:
        The changed copy, and what was done to it; ``certificate.undo`` takes the kernels away again.

    Raises:
        Error: as :func:`leanconv.apply`.
    """
    plan = Plan(tuple(Step("convert", "batchnorm", {"to": to}) for to in ("leanconv", "fused")))
    network, certificate = carry_out(model, plan, Setting(example, None, optimizer, latency, check))
    return network.to(memory_format=torch.channels_last), certificate  # type: ignore[call-overload]
