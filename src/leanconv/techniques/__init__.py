"""The techniques. A folder here is one, and nothing else is; third parties add theirs as an entry point
``leanconv.techniques`` (name -> module). No list is kept by hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, cast

from leanconv.errors import Error

if TYPE_CHECKING:
    from torch import nn

    from leanconv.contract import Technique

__all__ = ["all", "get", "roles"]


def all() -> tuple[Technique, ...]:
    """Every technique, sorted by ORDER, then NAME. Computed on each call: subfolders plus entry points.

    Raises:
        Error: two techniques bear one name.
    """
    found = [import_module(f"{__name__}.{m.name}") for m in iter_modules(__path__) if m.ispkg]
    found += [entry.load() for entry in _installed(tuple(sys.path))]
    techniques = sorted((cast("Technique", t) for t in found), key=lambda t: (t.ORDER, t.NAME))
    names = [t.NAME for t in techniques]
    for name in names:
        if names.count(name) > 1:
            raise Error(f"techniques: a name belongs to one technique, got {names.count(name)} named {name!r}")
    return tuple(techniques)


@cache
def _installed(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Read once for each ``sys.path``: a reading goes through all installed distributions and takes 30 ms."""
    return tuple(entry_points(group="leanconv.techniques"))


def get(name: str) -> Technique:
    """The technique of that name.

    Raises:
        Error: no technique has it; the message lists those that exist.
    """
    known = {t.NAME: t for t in all()}
    if name not in known:
        raise Error(f"techniques: a name must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def roles(model: nn.Module) -> dict[str, str]:
    """The role of every parameter: what its technique calls it, else ``bias`` for one named so, else ``weight``.

    Returns:
        Parameter name, as in ``model.named_parameters()`` -> ``weight | bias | norm | depthwise`` or one of its own.

    Raises:
        Error: two techniques give one parameter different roles, or one names a parameter that does not exist.
    """
    joined = {n: "bias" if n.rpartition(".")[2] in ("bias", "b") else "weight" for n, _ in model.named_parameters()}
    by: dict[str, str] = {}
    for technique in all():
        for name, role in _known(technique, model, joined).items():
            if by.get(name, technique.NAME) != technique.NAME and joined[name] != role:
                got = f"{joined[name]!r} from {by[name]} and {role!r} from {technique.NAME}"
                raise Error(f"{name}: a parameter has one role, got {got}")
            joined[name], by[name] = role, technique.NAME
    return joined


def _known(technique: Technique, model: nn.Module, names: Mapping[str, str]) -> Mapping[str, str]:
    given = technique.roles(model)
    for name in given:
        if name not in names:
            raise Error(f"{technique.NAME}.roles: names must be parameters of the model, got {name!r}")
    return given
