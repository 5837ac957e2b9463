"""How an int8 file is made."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.deploy.quantisation.rules import RULES
from leanconv.errors import Error

__all__ = ["Int8"]


@dataclass(frozen=True)
class Int8:
    """How a network's maps and weights become bytes.

    Attributes:
        rule: which range of a map its bytes stand for: ``mse`` (the smallest square error), ``percentile``, ``minmax``.
        percentile: of the rule of that name.
        calibrate: images that the ranges come from.
        max_drop: points of accuracy that may be lost; layers stay in float until the bound holds.
        equalise: give the channels between two layers one size first, where that leaves the function.
        correct: make up in the biases for what rounding the weights adds on average.

    Raises:
        Error: a value out of range.
    """

    rule: str = "mse"
    percentile: float = 99.99
    calibrate: int = 256
    max_drop: float = 1.0
    equalise: bool = True
    correct: bool = True

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise Error(f"int8: rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if not 50 < self.percentile <= 100:
            raise Error(f"int8: percentile must be above 50 and at most 100, got {self.percentile}")
        if self.calibrate < 1:
            raise Error(f"int8: calibrate must be at least 1, got {self.calibrate}")
        if not 0 <= self.max_drop <= 100:
            raise Error(f"int8: max_drop must be from 0 to 100 points, got {self.max_drop}")
