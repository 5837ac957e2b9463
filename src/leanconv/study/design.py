"""Which networks a study trains: the arms of a design, each a recipe.

A factor is something that a study switches: a technique of the recipe (without it, with it), or any key of the recipe
with two or more levels. An arm says at which level each factor stands. The first level of every factor is the dense,
plain network.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv import recipe as recipes
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.recipe.reading import read_yaml
from leanconv.recipe.values import known, near, need

__all__ = ["DESIGNS", "Arm", "Design", "Factor", "design", "side_arms"]

DESIGNS = ("factorial", "add-one", "leave-one-out")
NOISE = 0.2
"""Share of wrong labels in the arms that show how much of them is memorised (S23)."""
WIDTHS = (0.5, 2.0)
"""Widths of the plain network, as multiples of the recipe's, that show what width does to the gap (S24)."""
MOST = 512
"""Arms of one study."""


@dataclass(frozen=True)
class Factor:
    """Something that is switched.

    Attributes:
        name: of a technique, or a key of the recipe such as ``techniques.dropout.p``.
        levels: name -> value; the first is the baseline. A technique is False (without), True (the recipe's options,
            or its defaults) or a mapping of options.
    """

    name: str
    levels: Mapping[str, Any]

    @property
    def short(self) -> str:
        """The name without the part of the recipe that it is in."""
        return self.name.removeprefix("techniques.").removeprefix("training.").removeprefix("model.options.")


@dataclass(frozen=True)
class Arm:
    """One network of the study.

    Attributes:
        name: also of its folder: ``plain``, ``dropout+l2``, ``all``.
        levels: factor -> name of its level.
        recipe: what is trained, but for the seed.
        role: ``design``, or what a side arm is for: ``noise`` or ``width``.
        like: a side arm takes the learning rate of this arm.
    """

    name: str
    levels: Mapping[str, str]
    recipe: Recipe
    role: str = "design"
    like: str | None = None


@dataclass(frozen=True)
class Design:
    """The arms and what they differ in.

    Attributes:
        kind: one of :data:`DESIGNS`, or ``file``.
        factors: in the recipe's order.
        arms: the baseline first.
    """

    kind: str
    factors: tuple[Factor, ...]
    arms: tuple[Arm, ...]
    sides: tuple[Arm, ...] = field(default=())

    @property
    def every(self) -> tuple[Arm, ...]:
        """The design's arms and the side arms."""
        return self.arms + self.sides

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.every if arm.name == name)


def design(whole: Recipe, kind: str = "factorial", sides: bool = True) -> Design:
    """The arms of a study over a recipe.

    With k techniques: ``factorial`` is all 2^k combinations, ``add-one`` the plain network, each technique alone and
    all, ``leave-one-out`` all, all but each one, and the plain network.

    Args:
        whole: the recipe with all its techniques.
        kind: one of :data:`DESIGNS`, or a YAML file::

                format_version: 1
                factors:                      # name: its levels, the first is the baseline
                  batchnorm: [false, true]
                  techniques.dropout.p: [0, 0.2, 0.5]
                arms: factorial               # or add-one, leave-one-out, or a list of {factor: level}

        sides: add the arms with wrong labels and with other widths.

    Raises:
        Error: the recipe has no technique, a file that does not parse, an unknown factor or level, fewer than two arms
            or more than 512.
    """
    if kind in DESIGNS:
        need(bool(whole.techniques), "study: the recipe must have techniques to compare", "none")
        factors = tuple(Factor(name, {"off": False, "on": True}) for name in whole.techniques)
        made = Design(kind, factors, _arms(whole, factors, _points(factors, kind)))
    else:
        made = _from_file(whole, kind)
    if not 2 <= len(made.arms) <= MOST:
        raise Error(f"study: a design must have 2 to {MOST} arms, got {len(made.arms)}")
    return Design(made.kind, made.factors, made.arms, side_arms(whole, made) if sides else ())


def side_arms(whole: Recipe, made: Design) -> tuple[Arm, ...]:
    """Arms beside the design, for what the source says of noise (S23) and of networks too complex (S24).

    Wrong labels: the plain network and each technique alone, with a share of :data:`NOISE` of the training labels
    replaced. Widths: the plain network, narrower and wider. Where the recipe has wrong labels itself, or a network
    without a numeric ``width``, those arms are left out.
    """
    found: list[Arm] = []
    singles = [arm for arm in made.arms if _count(made, arm) <= 1]
    if whole.data.label_noise == 0 and _count(made, made.arms[0]) == 0 and len(singles) > 1:
        for arm in singles:
            noisy = recipes.override(arm.recipe, **{"data.label_noise": NOISE})
            found.append(Arm(f"noise-{arm.name}", arm.levels, noisy, "noise", arm.name))
    width = whole.model.options.get("width")
    varied = any(f.name == "model.options.width" for f in made.factors)
    if isinstance(width, int | float) and not isinstance(width, bool) and not varied:
        plain = made.arms[0]
        for times in WIDTHS:
            wide = max(1, round(width * times)) if isinstance(width, int) else width * times
            other = recipes.override(plain.recipe, **{"model.options.width": wide})
            found.append(Arm(f"width-{times:g}", plain.levels, other, "width", plain.name))
    return tuple(found)


def _count(made: Design, arm: Arm) -> int:
    """How many factors are not at their baseline."""
    return sum(arm.levels[f.name] != next(iter(f.levels)) for f in made.factors)


def _points(factors: Sequence[Factor], kind: str) -> list[dict[str, str]]:
    names = [list(factor.levels) for factor in factors]
    plain = {f.name: levels[0] for f, levels in zip(factors, names, strict=True)}
    top = {f.name: levels[-1] for f, levels in zip(factors, names, strict=True)}
    if kind == "factorial":
        found = [dict(zip(plain, point, strict=True)) for point in itertools.product(*names)]
        found.sort(key=lambda point: sum(point[n] != plain[n] for n in plain))
        return found
    if kind == "add-one":
        steps = [{**plain, f.name: level} for f, levels in zip(factors, names, strict=True) for level in levels[1:]]
        return _distinct([plain, *steps, top])
    return _distinct([plain, *({**top, f.name: plain[f.name]} for f in factors), top])


def _distinct(points: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [point for i, point in enumerate(points) if point not in points[:i]]


def _arms(whole: Recipe, factors: Sequence[Factor], points: Sequence[Mapping[str, str]]) -> tuple[Arm, ...]:
    arms = [Arm(_name(factors, point), dict(point), _recipe(whole, factors, point)) for point in points]
    twice = [arm.name for i, arm in enumerate(arms) if arm.name in [other.name for other in arms[:i]]]
    if twice:
        raise Error(f"study: every arm must be another, got {twice[0]} twice")
    return tuple(arms)


def _name(factors: Sequence[Factor], point: Mapping[str, str]) -> str:
    """``plain``, ``all``, or what stands at which level."""
    switched = [f for f in factors if point[f.name] != next(iter(f.levels))]
    if not switched:
        return "plain"
    if len(switched) == len(factors) > 1 and all(point[f.name] == list(f.levels)[-1] for f in factors):
        return "all"
    words = [f.short if point[f.name] == "on" else f"{f.short}={point[f.name]}" for f in switched]
    return re.sub(r"[^\w.=+-]+", "-", "+".join(words))


def _recipe(whole: Recipe, factors: Sequence[Factor], point: Mapping[str, str]) -> Recipe:
    flags: dict[str, Any] = {}
    for factor in factors:
        value = factor.levels[point[factor.name]]
        flags[factor.name if "." in factor.name else f"techniques.{factor.name}"] = value
    # Whether a technique is there at all is settled before its options are.
    ordered = sorted(flags, key=lambda key: (key.count("."), key))
    made = whole
    for key in ordered:
        technique = key.split(".")[1] if key.startswith("techniques.") else None
        if technique and key.count(".") > 1 and technique not in made.techniques and f"techniques.{technique}" in flags:
            continue  # its option, where it is off
        made = recipes.override(made, **{key: flags[key]})
    return made


def _from_file(whole: Recipe, file: str) -> Design:
    path = Path(file)
    if not path.is_file():
        hint = near(file, DESIGNS)
        raise Error(f"study: --arms must be {', '.join(DESIGNS)} or a YAML file, got {file!r}{hint}")
    try:
        values = read_yaml(path.read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{file}: must be a readable text file in UTF-8, got {type(error).__name__}") from None
    try:
        need(isinstance(values, Mapping), "study must be a mapping", values)
        known("study", values, ["format_version", "factors", "arms"])
        need(values.get("format_version", 1) == 1, "study: format_version must be 1", values.get("format_version"))
        given = values.get("factors")
        need(isinstance(given, Mapping) and bool(given), "study: factors must map names to their levels", given)
        factors = tuple(_factor(whole, str(name), levels) for name, levels in dict(given or {}).items())
        wanted = values.get("arms", "factorial")
        if isinstance(wanted, str):
            need(wanted in DESIGNS, f"study: arms must be {', '.join(DESIGNS)} or a list", wanted)
            points = _points(factors, wanted)
        else:
            need(isinstance(wanted, list), "study: arms must be a list of {factor: level}", wanted)
            points = [_point(factors, row) for row in wanted]
        return Design("file", factors, _arms(whole, factors, points))
    except Error as error:
        raise Error(f"{file}: {error}") from None


def _factor(whole: Recipe, name: str, levels: Any) -> Factor:
    from leanconv import techniques

    if "." not in name:
        known("factors", {name: None}, list(dict.fromkeys([*whole.techniques, *(t.NAME for t in techniques.all())])))
    if isinstance(levels, Mapping):
        named = {str(key): value for key, value in levels.items()}
    else:
        need(isinstance(levels, list), f"factors.{name} must be a list of levels", levels)
        named = {_level(value): value for value in levels}
        need(len(named) == len(levels), f"factors.{name} must have a level once", levels)
    need(len(named) >= 2, f"factors.{name} must have at least two levels", levels)
    return Factor(name, named)


def _level(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_level(inner)}" for key, inner in value.items())
    return str(value)


def _point(factors: Sequence[Factor], row: Any) -> dict[str, str]:
    need(isinstance(row, Mapping), "study: an arm must be {factor: level}", row)
    known("arms", row, [factor.name for factor in factors])
    point = {}
    for factor in factors:
        level = _level(row[factor.name]) if factor.name in row else next(iter(factor.levels))
        need(level in factor.levels, f"arms.{factor.name} must be one of {', '.join(factor.levels)}", level)
        point[factor.name] = level
    return point
