"""The three ways to write an L2 penalty, and the one number they share: the weight decay of plain SGD."""

from __future__ import annotations

from math import isfinite
from typing import Literal, get_args

from leanconv.errors import Error

__all__ = ["FORMS", "WHERES", "Form", "Where", "decays", "weight_decay"]

Form = Literal["lambda/2n", "lambda/2", "lambda"]
Where = Literal["loss", "optimizer", "decoupled"]
FORMS: tuple[str, ...] = get_args(Form)
WHERES: tuple[str, ...] = get_args(Where)


def weight_decay(strength: float, form: Form = "lambda/2", n: int | None = None) -> float:
    """The ``weight_decay`` with which plain SGD takes the same steps as under the penalty.

    ==============  ========================  ================
    form            penalty                   weight_decay
    ==============  ========================  ================
    ``lambda/2n``   λ / (2n) Σ w²             λ / n
    ``lambda/2``    λ / 2 Σ w²                λ
    ``lambda``      λ Σ w²                    2 λ
    ==============  ========================  ================

    In every form the penalty is ``weight_decay / 2 * Σ w²``, and its gradient ``weight_decay * w``.

    Args:
        strength: λ >= 0, finite.
        form: where the 2 and the n stand. ``lambda/2n`` is Nielsen's and our reading of equation 2-11; ``lambda`` is
            what Keras' ``L2`` computes.
        n: the number of training images; needed by ``lambda/2n`` alone.

    Returns:
        The weight decay, dimensionless, the same for every weight.

    Raises:
        Error: λ is negative or not finite, the form is unknown, or ``lambda/2n`` comes without a known n.

    Source: row S14; M. Nielsen, Neural Networks and Deep Learning, chapter 3, equations 87 and 88.
    """
    if not is_strength(strength):
        raise Error(f"weight_decay: strength must be a finite number >= 0, got strength={strength!r}")
    if form not in FORMS:
        raise Error(f"weight_decay: form must be one of {', '.join(FORMS)}, got form={form!r}")
    if form == "lambda":
        return 2.0 * strength
    if form == "lambda/2":
        return float(strength)
    if n is None:
        raise Error(
            "weight_decay: form 'lambda/2n' divides by n, the number of training images, and needs it known, got n=None"
        )
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise Error(f"weight_decay: n must be a whole number >= 1, got n={n!r}")
    return strength / n


def is_strength(value: object) -> bool:
    """Whether ``value`` can be a λ: a finite real number >= 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value) and value >= 0


def decays(role: str, depthwise: bool = True) -> bool:
    """Whether parameters of this role are decayed: every weight is, no bias, gamma or beta, nor a role of another's
    making.

    Args:
        role: as :func:`leanconv.techniques.roles` says it.
        depthwise: whether the filters of depthwise convolutions are decayed as every weight is.

    Source: row S15.
    """
    return role == "weight" or (depthwise and role == "depthwise")
