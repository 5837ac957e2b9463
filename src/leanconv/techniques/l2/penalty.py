"""C = C0 + penalty: the loss of equations 2-10 to 2-13, and how its two parts are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.techniques.l2.forms import Form, decays, weight_decay

__all__ = ["Objective", "learned", "norms", "objective", "penalty"]


def penalty(
    parameters: nn.Module | Mapping[str, Tensor] | Iterable[Tensor],
    strength: float,
    form: Form = "lambda/2",
    n: int | None = None,
    *,
    roles: Mapping[str, str] | None = None,
    depthwise: bool = True,
    stopped: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The L2 penalty, quadratic in the weights, to be added to the loss C0.

    The source's equations, lost in its copy and restored from the work whose letters it uses::

        (2-10)  C = C0 + P
        (2-11)  P = λ / (2n) Σ ω²
        (2-12)  ∂C/∂ω = ∂C0/∂ω + (λ/n) ω
        (2-13)  ∂C/∂b = ∂C0/∂b

    The sum runs over every weight of every layer. Biases, gamma and beta are not in it, so their gradient is exactly
    that of C0. Autograd gives each weight ``weight_decay(strength, form, n) * w``.

    Example:
        >>> loss = cross_entropy(model(x), y) + penalty(model, 5.0, "lambda/2n", n=5000)  # doctest: +SKIP

    Args:
        parameters: a network, of which the learned weights enter by role (a tied one once, a frozen one not); or a
            mapping name -> tensor; or plain tensors. Of a mapping without ``roles`` and of plain tensors every one
            enters.
        strength: λ >= 0.
        form: ``lambda/2n`` as above, ``lambda/2`` or ``lambda``; see :func:`weight_decay`.
        n: the number of training images, for ``lambda/2n``.
        roles: parameter name -> role; for a network :func:`leanconv.techniques.roles` where it is not given.
        depthwise: False leaves the filters of depthwise convolutions out, as MobileNet's authors do.
        stopped: name -> bool tensor, broadcastable to the parameter, True where an entry takes no part in this step:
            neither its value nor its gradient is in the penalty.

    Returns:
        A scalar tensor of shape (), in float32 at least. Zero, without a gradient, where nothing is decayed.

    Raises:
        Error: a bad strength, form or n; ``roles`` without the role of a parameter; ``stopped`` names no parameter.

    Source: rows S14 and S15.
    """
    factor = weight_decay(strength, form, n) / 2
    named, roles = _named(parameters, roles)
    _check_names(named, roles, stopped)
    total: Tensor | None = None
    for name, w in named.items():
        if roles is not None and not decays(roles[name], depthwise):
            continue
        squares = _squares(w, None if stopped is None else stopped.get(name))
        total = squares if total is None else total + squares.to(total.device)
    return torch.zeros(()) if total is None else factor * total


def learned(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that require a gradient, each once: name -> parameter."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def norms(model: nn.Module, roles: Mapping[str, str] | None = None) -> dict[str, float]:
    """The Euclidean norm of every weight, which the penalty keeps shrinking: name -> sqrt(Σ w²).

    Args:
        model: the network.
        roles: parameter name -> role; found where not given. Biases and norm parameters are left out.

    Source: row S16.
    """
    roles = _roles(model) if roles is None else roles
    return {name: float(p.detach().double().norm()) for name, p in model.named_parameters() if decays(roles[name])}


@dataclass(frozen=True)
class Objective:
    """The cost of a step and its two parts.

    Attributes:
        c0: the prediction loss, a scalar.
        penalty: what L2 adds, a scalar; 0 without it.
    """

    c0: Tensor
    penalty: Tensor

    @property
    def c(self) -> Tensor:
        """C = C0 + penalty, the scalar to differentiate."""
        return self.c0 + self.penalty

    def record(self) -> dict[str, float]:
        """The three as plain numbers, for a log."""
        return {"c": self.c.item(), "c0": self.c0.item(), "penalty": self.penalty.item()}


def objective(c0: Tensor, penalty: Tensor | None = None) -> Objective:
    """C0 and the penalty side by side, so that a log tells them apart; ``.c`` is their sum.

    Args:
        c0: the prediction loss, of shape ().
        penalty: what is added to it, of shape (), or None.

    Raises:
        Error: one of them is not a scalar.

    Source: row S14, equation 2-10.
    """
    added = torch.zeros((), dtype=c0.dtype, device=c0.device) if penalty is None else penalty
    for what, value in (("c0", c0), ("penalty", added)):
        if value.ndim:
            raise Error(f"objective: {what} must be a scalar, got shape {tuple(value.shape)}")
    return Objective(c0, added)


def _named(
    parameters: nn.Module | Mapping[str, Tensor] | Iterable[Tensor], roles: Mapping[str, str] | None
) -> tuple[Mapping[str, Tensor], Mapping[str, str] | None]:
    if isinstance(parameters, nn.Module):
        return learned(parameters), _roles(parameters) if roles is None else roles
    if isinstance(parameters, Mapping):
        return parameters, roles
    return {str(i): p for i, p in enumerate(parameters)}, roles


def _roles(model: nn.Module) -> Mapping[str, str]:
    from leanconv.techniques import roles  # the parent imports this folder, so not at import time

    return roles(model)


def _check_names(
    named: Mapping[str, Tensor], roles: Mapping[str, str] | None, stopped: Mapping[str, Tensor] | None
) -> None:
    missing = [name for name in named if roles is not None and name not in roles]
    if missing:
        raise Error(f"penalty: roles must name every parameter, got none for {missing[0]!r}")
    strange = [name for name in stopped or () if name not in named and (roles is None or name not in roles)]
    if strange:
        raise Error(f"penalty: stopped must name parameters, got {strange[0]!r}")


def _squares(w: Tensor, stopped: Tensor | None) -> Tensor:
    if stopped is not None:
        w = w.masked_fill(stopped.to(w.device), 0.0)
    if w.dtype in (torch.float16, torch.bfloat16):
        w = w.float()
    return (w * w).sum()
