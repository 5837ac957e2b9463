"""Puts the kernels under any network, and takes them away again."""

from __future__ import annotations

import torch
from torch import nn

from leanconv.surgery.carrying import Example, Setting, carry_out
from leanconv.surgery.certificate import Certificate
from leanconv.surgery.plan import Plan, Step
from leanconv.techniques.separable import SeparableConv2d

__all__ = ["accelerate"]


def accelerate(
    model: nn.Module,
    *,
    example: Example | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lean: bool = False,
    latency: bool = False,
    check: bool = True,
) -> tuple[nn.Module, Certificate]:
    """Have a network train and run on leanconv's own kernels; results stay within rounding.

    Batch norms become leanconv's, each takes in the activation that alone reads it (one operation, which keeps nothing
    but its input for the backward pass), depthwise, norm, pointwise and norm in a row become one operation
    (:mod:`leanconv.kernels.separable`), and weights lie channels_last, as the kernels read maps. Layers stay where
    they are: names and values of the state_dict stay, so checkpoints load both ways. Which implementation runs for
    which shape is told by ``leanconv.kernels.choice.explain``; ``LEANCONV_NATIVE=0`` turns native code off.

    Example:
        >>> fast, certificate = leanconv.accelerate(network, example=x)  # doctest: +SKIP
        >>> slow, _ = certificate.undo(fast)  # doctest: +SKIP

    Args:
        model: any network; it is left as it is.
        example: as of :func:`leanconv.apply`.
        optimizer: as of :func:`leanconv.apply`.
        lean: keep less for the backward pass: a block computes its depthwise output again.
        latency: time both networks, in eval mode.
        check: compare the outputs of both.

    Returns:
        The changed copy, and what was done to it; ``certificate.undo`` takes the kernels away again.

    Raises:
        Error: as :func:`leanconv.apply`.
    """
    norms = (Step("convert", "batchnorm", {"to": to}) for to in ("leanconv", "fused"))
    plan = Plan((*norms, Step("convert", "separable", {"to": "fused", "lean": lean})))
    network, certificate = carry_out(model, plan, Setting(example, None, optimizer, latency, check))
    for layer in network.modules():
        if isinstance(layer, SeparableConv2d):
            layer.lean = lean
    return network.to(memory_format=torch.channels_last), certificate  # type: ignore[call-overload]
