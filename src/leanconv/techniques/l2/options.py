"""The options of L2 in a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.errors import Error
from leanconv.techniques.l2.forms import FORMS, WHERES, Form, Where, is_strength

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """How the weights of a run are decayed.

    Attributes:
        strength: λ >= 0.
        form: ``lambda/2n``, ``lambda/2`` or ``lambda``: where the 2 and the n stand in the penalty.
        where: ``loss`` adds the penalty to the loss, as the source does; ``optimizer`` sets the coupled
            ``weight_decay`` of the parameter groups, the same steps under SGD; ``decoupled`` shrinks the weights
            apart from the gradient.
        depthwise: False leaves the filters of depthwise convolutions out.
    """

    strength: float = 5e-4
    form: Form = "lambda/2"
    where: Where = "loss"
    depthwise: bool = True

    def __post_init__(self) -> None:
        if not is_strength(self.strength):
            raise Error(f"l2: strength must be a finite number >= 0, got strength={self.strength!r}")
        if self.form not in FORMS:
            raise Error(f"l2: form must be one of {', '.join(FORMS)}, got form={self.form!r}")
        if self.where not in WHERES:
            raise Error(f"l2: where must be one of {', '.join(WHERES)}, got where={self.where!r}")
        if not isinstance(self.depthwise, bool):
            raise Error(f"l2: depthwise must be True or False, got depthwise={self.depthwise!r}")
