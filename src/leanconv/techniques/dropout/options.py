"""The options of dropout in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from leanconv.contract import Init
from leanconv.errors import Error
from leanconv.techniques.dropout.layers import Count, Mask

__all__ = ["Options"]

Where = Literal["auto", "head", "hidden", "all"]

_CHOICES = {
    "mask": ("sample", "batch"),
    "count": ("bernoulli", "exact"),
    "strict": (False, True),
    "where": ("auto", "head", "hidden", "all"),
    "init": ("keep", "fresh"),
}


@dataclass(frozen=True)
class Options:
    """Where dropout goes and how it draws.

    Attributes:
        p: probability to DROP a unit, 0 <= p < 1.
        mask: ``sample``: one mask per sample; ``batch``: one for the whole batch (row S2 of the source).
        count: ``bernoulli``: units stop independently; ``exact``: exactly round(p n) of n.
        strict: the parameters of stopped units are kept through the step (row S4); needs ``mask="batch"``.
        where: ``head``: before the last layer with weights. ``hidden``: after the activations of all other layers,
            whole channels of maps at a time (:func:`apply` says where exactly). ``all``: both. ``auto`` is ``head``,
            because noise before a batch norm makes its training and evaluation statistics differ.
        init: dropout has no weights; both values do the same.
    """

    p: float = 0.2
    mask: Mask = "sample"
    count: Count = "bernoulli"
    strict: bool = False
    where: Where = "auto"
    init: Init = "keep"

    def __post_init__(self) -> None:
        number = isinstance(self.p, (int, float)) and not isinstance(self.p, bool)
        if not number or not 0 <= self.p < 1:
            raise Error(f"dropout: p must satisfy 0 <= p < 1, got p={self.p!r}")
        for name, values in _CHOICES.items():
            _one_of(name, getattr(self, name), values)
        if self.strict and self.mask != "batch":
            raise Error(f"dropout: strict needs mask='batch', got strict=True with mask={self.mask!r}")


def _one_of(name: str, value: Any, values: tuple[Any, ...]) -> None:
    if not any(value is v or (value == v and type(value) is type(v)) for v in values):
        listed = ", ".join(str(v) for v in values)
        raise Error(f"dropout: {name} must be one of {listed}, got {name}={value!r}")
