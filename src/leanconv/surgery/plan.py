"""What was done to a network, in plain values: enough to do it again, and to build what a checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanconv import techniques
from leanconv.contract import Context, Edit, Refusal
from leanconv.errors import Error
from leanconv.techniques import separable
from leanconv.techniques.batchnorm import conversion

__all__ = ["CONVERSIONS", "VERBS", "Plan", "Step", "propose"]

FORMAT_VERSION = 1
VERBS = ("apply", "remove", "fold", "separate", "convert")
CONVERSIONS = ("frozen", "torch", "leanconv", "synchronised", "group", "reorder", "fused")


@dataclass(frozen=True)
class Step:
    """One verb.

    Attributes:
        verb: one of :data:`VERBS`.
        technique: whose verb it is; of ``convert``, ``batchnorm``, or ``separable`` for blocks in one operation.
        options: plain values: those of the technique; of ``separate``, ``ranks`` (path -> depth multiplier); of
            ``convert``, ``to``, one of :data:`CONVERSIONS`.
        places: the paths of each edit, once it was carried out: on replaying, these edits are made and no others,
            whatever the values of the weights would allow then. None: all that the verb proposes.
    """

    verb: str
    technique: str
    options: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[tuple[str, ...], ...] | None = None

    def __post_init__(self) -> None:
        if self.places is not None:
            object.__setattr__(self, "places", tuple(tuple(map(str, one)) for one in self.places))
        if self.verb not in VERBS:
            raise Error(f"surgery: a verb must be one of {', '.join(VERBS)}, got {self.verb!r}")
        techniques.get(self.technique)

    def chosen(self, proposals: Sequence[Edit | Refusal]) -> list[Edit | Refusal]:
        """Of what a verb proposes, what this step is about.

        Raises:
            Error: an edit that was made once is not proposed now.
        """
        if self.places is None:
            return list(proposals)
        proposed = {frozenset(p.put): p for p in proposals if isinstance(p, Edit)}
        for place in self.places:
            if frozenset(place) not in proposed:
                why = next((f": {p.why}" for p in proposals if isinstance(p, Refusal) and p.path in place), "")
                raise Error(f"plan: {self} must be possible at {place[0]!r} as it was before, got no such edit{why}")
        return [proposed[frozenset(place)] for place in self.places]

    def __str__(self) -> str:
        told = ", ".join(f"{key}={value}" for key, value in self.options.items() if not isinstance(value, Mapping))
        return f"{self.verb} {self.technique}" + (f" ({told})" if told else "")


@dataclass(frozen=True)
class Plan:
    """Verbs in the order in which they were carried out."""

    steps: tuple[Step, ...] = ()

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.steps + other.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"format_version": FORMAT_VERSION, "steps": [_plain(dataclasses.asdict(step)) for step in self.steps]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of :meth:`to_dict`.

        Raises:
            Error: a later version, an unknown verb, technique or field.
        """
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise Error(f"plan: format_version must be {FORMAT_VERSION}, got {version!r}")
        try:
            return cls(tuple(Step(**step) for step in values["steps"]))
        except (KeyError, TypeError) as error:
            raise Error(f"plan: steps must have a verb, a technique and options, got: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def propose(step: Step, ctx: Context) -> list[Edit | Refusal]:
    """What a step would do to a network.

    Args:
        step: of a plan; ``separate`` is the business of :mod:`leanconv.surgery.separating`.
        ctx: the network, its graph, what it is calibrated on.

    Raises:
        Error: an option that the technique does not have, or rejects.
    """
    technique = techniques.get(step.technique)
    if step.verb == "apply":
        return technique.apply(ctx, options_of(step))
    if step.verb == "remove":
        return technique.remove(ctx)
    if step.verb == "fold":
        return technique.fold(ctx)
    if step.verb == "convert":
        return _convert(ctx, step.technique, **step.options)
    raise Error(f"surgery: a step must be proposed by its own room, got {step.verb!r}")


def _convert(ctx: Context, technique: str, to: str, **options: Any) -> list[Edit | Refusal]:
    blocks: dict[str, Callable[..., list[Edit | Refusal]]] = {"fused": separable.fuse}
    norms: dict[str, Callable[..., list[Edit | Refusal]]] = {
        "frozen": conversion.to_frozen,
        "torch": conversion.to_torch,
        "leanconv": conversion.from_torch,
        "synchronised": conversion.to_synchronised,
        "group": conversion.to_group,
        "reorder": conversion.reorder,
        "fused": conversion.fuse,
    }
    verbs = blocks if technique == "separable" else norms
    if to not in verbs:
        raise Error(f"convert: to must be one of {', '.join(verbs)} for {technique}, got {to!r}")
    try:
        return verbs[to](ctx, **options)
    except TypeError:
        raise Error(f"convert: options must be those of {to}, got {', '.join(options) or 'none'}") from None


def options_of(step: Step) -> Any:
    """The options of a technique from plain values.

    Raises:
        Error: one that it does not have, or rejects.
    """
    kind = techniques.get(step.technique).Options
    known = [item.name for item in dataclasses.fields(kind)]
    for name in step.options:
        if name not in known:
            raise Error(f"{step.technique}: options must be among {', '.join(known)}, got {name!r}")
    return kind(**step.options)
