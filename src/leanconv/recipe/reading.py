"""Recipes as YAML: those of the package by name, the user's own by file."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from leanconv.errors import Error
from leanconv.recipe.schema import Recipe
from leanconv.recipe.values import near

__all__ = ["dump", "load", "names", "parse", "read_yaml"]


def names() -> tuple[str, ...]:
    """The recipes that come with the package, sorted."""
    return tuple(sorted(f.name[:-5] for f in _packaged().iterdir() if f.name.endswith(".yaml")))


def load(name_or_file: str | Path) -> Recipe:
    """Read a recipe: one of :func:`names`, or a YAML file.

    Raises:
        Error: no such recipe or file, YAML that does not parse (with file and line), or any value that
            :meth:`Recipe.from_dict` or a technique rejects; the message begins with the name of the file.
    """
    source = str(name_or_file)
    packaged = source in names()
    return parse(_packaged().joinpath(f"{source}.yaml").read_text("utf-8") if packaged else _read(source), source)


def parse(text: str, source: str = "recipe") -> Recipe:
    """A recipe from YAML text; ``source`` begins every message.

    Raises:
        Error: as :func:`load`.
    """
    values = read_yaml(text, source)
    try:
        recipe = Recipe.from_dict({} if values is None else values)
        recipe.technique_options()
    except Error as error:
        raise Error(f"{source}: {error}") from None
    return recipe


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that :func:`load` reads back to an equal one."""
    return yaml.dump(recipe.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _packaged() -> Any:
    return files("leanconv").joinpath("recipes")


def _read(source: str) -> str:
    path = Path(source)
    if not path.is_file():
        known = ", ".join(names())
        raise Error(f"recipe: must be one of {known} or a YAML file, got {source!r}{near(source, names())}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{source}: must be a readable text file in UTF-8, got {type(error).__name__}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans (``1e-3`` is a number, ``no`` and ``off`` are text); a key stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML would read as something else."""


_RULES = {
    "int": (r"[-+]?(?:0|[1-9]\d*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "merge": (r"<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_rule, _first) in _RULES.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_rule})\Z"), list(_first))


def read_yaml(text: str, source: str) -> Any:
    """Plain values from YAML; ``source`` and the line begin the Error where it does not parse."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise Error(f"{where}: must be YAML, got: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise Error(f"{source}: must be YAML, got: {str(error).splitlines()[0] or type(error).__name__}") from None
