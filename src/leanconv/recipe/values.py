"""What single values of a recipe may be, and the sentences that say so."""

from __future__ import annotations

import copy
import difflib
import math
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from leanconv.errors import Error

__all__ = ["known", "near", "need", "plain", "typed"]


def plain(subject: str, value: Any) -> None:
    """Only what JSON and YAML both hold may stand in a recipe."""
    if isinstance(value, dict):
        for key, inner in value.items():
            need(isinstance(key, str), f"{subject}: keys must be text", key)
            plain(f"{subject}.{key}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            plain(subject, inner)
    else:
        finite = not isinstance(value, float) or math.isfinite(value)
        need(value is None or isinstance(value, str | int | float), f"{subject} must be plain values", value)
        need(finite, f"{subject} must be finite", value)


def typed(subject: str, hint: Any, value: Any) -> Any:
    """The value, an int made a float where a float is asked for; an Error where it does not fit the annotation."""
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in accepted:
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            shown = ", ".join(map(str, choices))
            if value not in choices:
                raise Error(f"{subject} must be one of {shown}, got {value!r}{near(str(value), choices)}")
            return value
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            need(math.isfinite(value), f"{subject} must be finite", value)
            return float(value)
        bare = typing.get_origin(kind) or kind
        if isinstance(value, bare) and (bare is bool or not isinstance(value, bool)):
            return copy.deepcopy(value)
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    told = " or ".join(words.get(kind, "a mapping") for kind in accepted)
    raise Error(f"{subject} must be {told}, got {value!r}")


def known(subject: str, given: Iterable[Any], among: list[str]) -> None:
    """Every key is among those that exist, or an Error that lists them, the nearest by name."""
    for key in given:
        if key not in among:
            listed = ", ".join(among) or "(none)"
            raise Error(f"{subject}: keys must be among {listed}, got {key!r}{near(str(key), among)}")


def near(word: str, among: Iterable[str]) -> str:
    """`` (did you mean a or b?)``, or nothing where nothing is near."""
    close = difflib.get_close_matches(word, list(among), n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def need(holds: bool, rule: str, got: Any) -> None:
    """Raise ``rule, got ...`` unless it holds."""
    if not holds:
        raise Error(f"{rule}, got {got if isinstance(got, str) and '=' in got else repr(got)}")
