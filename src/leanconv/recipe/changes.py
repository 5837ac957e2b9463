"""Recipes made from recipes: single values changed, or some of the techniques left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from leanconv.recipe.reading import read_yaml
from leanconv.recipe.schema import Data, Recipe, Training
from leanconv.recipe.values import known, need

__all__ = ["differences", "only", "override"]


def override(recipe: Recipe, **flags: Any) -> Recipe:
    """A recipe with single values changed.

    Args:
        recipe: left as it is.
        flags: dotted keys (``**{"training.lr": 0.1, "model.options.width": 0.5, "techniques.dropout.p": 0.3}``) or the
            bare name of a field of ``training`` or ``data`` (``epochs=3``), or ``model="mobilenet_v1"``, which drops
            the options of the recipe's own network. Text is read as YAML where the field is no text (``"0.1"``). None
            means: not given. ``techniques.NAME`` takes False
            (without it), True (with its defaults, if it is not there), or a mapping of options.

    Raises:
        Error: an unknown key (with near matches), or a value of the wrong type or out of range.
    """
    values = recipe.to_dict()
    name = flags.get("model", flags.get("model.name"))
    if name not in (None, recipe.model.name):
        values["model"]["options"] = {}  # those of another network
    for key, value in flags.items():
        if value is not None:
            _set(values, _dotted(key), value)
    added = [name for name in values["techniques"] if name not in recipe.techniques]
    changed = Recipe.from_dict({**values, "techniques": _placed(values["techniques"], added)})
    changed.technique_options()
    return changed


def differences(own: Recipe, other: Recipe) -> list[str]:
    """Where two recipes differ, as ``training.lr=0.1 instead of 0.05``, of the other against the own one."""
    left, right = _flat(own.to_dict()), _flat(other.to_dict())
    keys = [*left, *(key for key in right if key not in left)]
    told = [f"{k}={right.get(k)} instead of {left.get(k)}" for k in keys if left.get(k) != right.get(k)]
    if not told and own.digest != other.digest:
        told = [f"techniques in the order {', '.join(other.techniques)}"]
    return told


def only(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe with just these of its techniques, in its own order: an arm of a study.

    Raises:
        Error: the recipe has no such technique.
    """
    keep = list(names)
    known("techniques", dict.fromkeys(keep), list(recipe.techniques))
    return dataclasses.replace(recipe, techniques={n: o for n, o in recipe.techniques.items() if n in keep})


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
    return flat


def _set(values: dict[str, Any], key: list[str], value: Any) -> None:
    *path, last = key
    place = values
    for part in path:
        inner = place.setdefault(part, {})
        need(isinstance(inner, dict), f"{'.'.join(key)}: {part} must have fields", inner)
        place = inner
    if path == ["techniques"]:
        _set_technique(place, last, value)
    elif isinstance(value, str) and not (path == ["model"] and last == "name"):
        place[last] = read_yaml(value, ".".join(key)) if value.strip() else value
    else:
        place[last] = value


def _set_technique(given: dict[str, Any], name: str, value: Any) -> None:
    value = read_yaml(value, f"techniques.{name}") if isinstance(value, str) else value
    if value is False:
        given.pop(name, None)
    elif value is True:
        given.setdefault(name, {})
    else:
        given[name] = value


def _placed(given: dict[str, Any], added: list[str]) -> dict[str, Any]:
    """New ones stand before the first technique that acts later than they do (ORDER)."""
    from leanconv import techniques

    order = [name for name in given if name not in added]
    for name in added:
        place = techniques.get(name).ORDER
        later = [i for i, other in enumerate(order) if place < techniques.get(other).ORDER]
        order.insert(later[0] if later else len(order), name)
    return {name: given[name] for name in order}


def _dotted(key: str) -> list[str]:
    parts = key.split(".")
    if len(parts) > 1:
        return parts
    if key == "model":
        return ["model", "name"]
    sections: dict[str, type] = {"training": Training, "data": Data}
    found = {f.name: section for section, kind in sections.items() for f in dataclasses.fields(kind)}
    known("recipe", {key: None}, list(found))
    return [found[key], key]
