"""The façades: lazy, complete, documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import leanconv
from leanconv import nn as layers
from leanconv import techniques

SOURCE = ast.parse(Path(leanconv.__file__).read_text())


def _type_checking_names() -> dict[str, str]:
    block = next(n for n in SOURCE.body if isinstance(n, ast.If))
    return {a.name: i.module or "" for i in block.body if isinstance(i, ast.ImportFrom) for a in i.names}


def test_the_lazy_table_and_the_type_checking_block_name_the_same() -> None:
    listed = {name: f"leanconv.{room}" if room else "leanconv" for name, room in leanconv._LAZY.items()}
    assert listed == _type_checking_names()


@pytest.mark.parametrize("name", leanconv.__all__)
def test_every_name_exists_and_is_documented(name: str) -> None:
    value = getattr(leanconv, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'dropuot'"):
        _ = leanconv.dropuot  # type: ignore[attr-defined]


@pytest.mark.parametrize("statement", ["import leanconv", "from leanconv.cli import main; main(['--version'])"])
def test_torch_is_not_imported_before_it_is_needed(statement: str) -> None:
    code = f"import sys\ntry:\n    {statement}\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_nn_has_the_layers_of_every_technique() -> None:
    for technique in techniques.all():
        for layer in technique.LAYERS:
            if layer.__module__.startswith("leanconv"):
                assert getattr(layers, layer.__name__) is layer


@pytest.mark.parametrize("name", layers.__all__)
def test_every_name_of_nn_says_what_it_computes_and_where_it_comes_from(name: str) -> None:
    text = inspect.getdoc(getattr(layers, name))
    assert text, f"{name} has no docstring"
    assert len(text.split()) >= 12, f"{name}: its docstring is a stub"
    assert "ource" in text or ":class:" in text, f"{name}: its docstring names no source"
