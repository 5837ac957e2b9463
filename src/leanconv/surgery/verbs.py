"""The verbs: a network goes in, a changed copy and its certificate come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from leanconv import techniques
from leanconv.errors import Error
from leanconv.surgery.carrying import Example, Setting, carry_out
from leanconv.surgery.certificate import Certificate
from leanconv.surgery.plan import CONVERSIONS, Plan, Step

__all__ = ["apply", "convert", "fold", "fold_plan", "remove"]

Network = tuple[nn.Module, Certificate]


def apply(
    model: nn.Module,
    technique: str,
    options: Mapping[str, Any] | None = None,
    *,
    example: Example | None = None,
    batches: Iterable[Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    latency: bool = True,
    check: bool = True,
) -> Network:
    """Put a technique into a trained network, keeping what its weights know.

    Batch norms are calibrated so that outputs in eval mode stay (row S9a), dropout is the identity there, separable
    convolutions are the nearest ones to the dense (:func:`leanconv.separate` does that with care for the outputs).

    Example:
        >>> network, certificate = leanconv.apply(network, "batchnorm", example=x)  # doctest: +SKIP
        >>> print(certificate.table())  # doctest: +SKIP

    Args:
        model: any network; it is left as it is.
        technique: its name, such as ``batchnorm``.
        options: of the technique, such as ``{"p": 0.2}``.
        example: an input (N, C, ...), or a tuple of inputs; None: noise of a shape that the network runs on.
        batches: inputs to calibrate on; None: the example.
        optimizer: of the network; the certificate has the one that goes on with the new network.
        latency: time both networks.
        check: compare the outputs of both.

    Returns:
        The changed copy, and what was done to it.

    Raises:
        Error: no such technique or option; the network does not run on the example, or is wrapped.
    """
    plan = Plan((Step("apply", technique, dict(options or {})),))
    return carry_out(model, plan, _setting(example, batches, optimizer, latency, check))


def remove(
    model: nn.Module,
    technique: str,
    *,
    example: Example | None = None,
    batches: Iterable[Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    latency: bool = True,
    check: bool = True,
) -> Network:
    """Take a technique out of a network; what the network computes may change, as the certificate tells.

    Arguments, results and errors as of :func:`apply`.
    """
    plan = Plan((Step("remove", technique),))
    return carry_out(model, plan, _setting(example, batches, optimizer, latency, check))


def fold(
    model: nn.Module,
    *,
    merge: bool = False,
    example: Example | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    latency: bool = True,
    check: bool = True,
) -> Network:
    """Take out everything that costs time in inference and can go without changing a single output.

    Dropout goes, batch norms go into the convolutions and linear layers beside them: exact in eval mode, certified in
    float64, or refused with the reason.

    Args:
        model: any network; it is left as it is.
        merge: also multiply depthwise and pointwise convolutions with nothing between them out into dense ones.
        example: as of :func:`apply`.
        optimizer: as of :func:`apply`.
        latency: as of :func:`apply`.
        check: as of :func:`apply`.

    Returns:
        The folded copy, and what was done to it.

    Raises:
        Error: as :func:`apply`; an exact edit turned out not to be.
    """
    return carry_out(model, fold_plan(merge), _setting(example, None, optimizer, latency, check))


def fold_plan(merge: bool = False) -> Plan:
    """The steps of :func:`fold`: what each technique folds, the last to act first."""
    names = [t.NAME for t in reversed(techniques.all())]
    # Merging after folding: a batch norm between the halves would be in the way.
    steps = [Step("fold", name) for name in names if name != "separable"]
    return Plan((*steps, *([Step("remove", "separable")] if merge else [])))


def convert(
    model: nn.Module,
    to: str,
    *,
    example: Example | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    latency: bool = False,
    check: bool = True,
    **options: Any,
) -> Network:
    """Exchange the batch norms of a network for others.

    Args:
        model: any network; it is left as it is.
        to: ``frozen`` (normalise with running statistics in training too), ``synchronised`` (statistics of all
            processes), ``torch`` or ``leanconv`` (whose layers), ``group`` (group norm), ``reorder`` (norm before
            activation where it stands after), or ``fused`` (ours, with the activation after it in one operation).
        example: as of :func:`apply`.
        optimizer: as of :func:`apply`.
        latency: as of :func:`apply`.
        check: as of :func:`apply`.
        **options: of the conversion, such as ``groups=32``.

    Returns:
        The changed copy, and what was done to it.

    Raises:
        Error: no such conversion; as :func:`apply`.
    """
    if to not in CONVERSIONS:
        raise Error(f"convert: to must be one of {', '.join(CONVERSIONS)}, got {to!r}")
    plan = Plan((Step("convert", "batchnorm", {"to": to, **options}),))
    return carry_out(model, plan, _setting(example, None, optimizer, latency, check))


def _setting(
    example: Example | None,
    batches: Iterable[Tensor] | None,
    optimizer: torch.optim.Optimizer | None,
    latency: bool,
    check: bool,
) -> Setting:
    held = None if batches is None else [b[0] if isinstance(b, tuple | list) else b for b in batches]
    if held is not None and not held:
        raise Error("surgery: batches must hold at least one batch, got none")
    return Setting(example, held, optimizer, latency, check)
