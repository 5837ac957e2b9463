"""Images of the Hugging Face hub, by their name with the prefix ``hf:`` only."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from leanconv.data.found import Found, Part, Rows, joined, split_of
from leanconv.data.images import Picture
from leanconv.data.tables import named
from leanconv.errors import Error

__all__ = ["PREFIX", "hub"]

PREFIX = "hf:"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def hub(data: str, known: tuple[str, ...] | None = None) -> Found:
    """``hf:owner/name`` as Hugging Face's ``datasets`` gives it, encoded images undecoded.

    Args:
        data: the name.
        known: the classes, where they are known already: then no training images are needed.

    Raises:
        Error: no such form of a name, ``datasets`` is missing, it cannot give the set, or the set has no column of
            images and one of labels.
    """
    name = data.removeprefix(PREFIX)
    if not _NAME.fullmatch(name):
        raise Error(f"data: a set of the hub must be named hf:owner/name, got {data!r}")
    try:
        datasets = import_module("datasets")
    except ImportError:
        raise Error(f"data: {data} needs datasets (pip install 'leanconv[hub]'), got none") from None
    try:
        tables = datasets.load_dataset(name)
    except Exception as error:  # network, names, formats: whatever it raises
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise Error(f"data: {data} must be a set that the hub gives, got {said}") from None
    splits = _splits(data, tables)
    opened = {key: _columns(data, table, datasets) for key, table in splits.items()}
    rows = [_rows(data, key, split, *opened[key]) for key, split in _named_splits(splits).items()]
    first = np.cumsum([0, *(r.part.count for r in rows)])
    images = [opened[r.file] for r in rows]

    def pictures(places: Sequence[int]) -> Iterator[Picture]:
        wanted = np.asarray(places, np.int64)
        for i, (table, image, _) in enumerate(images):
            for j in (wanted[(first[i] <= wanted) & (wanted < first[i + 1])] - first[i]).tolist():
                value = table[j][image] if rows[i].labels[j] is not None else None
                yield value.get("bytes") if isinstance(value, Mapping) else None

    return joined(rows, pictures, f"hub {data}", data, known)


def _splits(data: str, tables: Any) -> dict[str, Any]:
    if not isinstance(tables, Mapping):
        raise Error(f"data: {data} must come with its splits, got {type(tables).__name__}")
    return {str(key): table for key, table in tables.items()}


def _named_splits(splits: Mapping[str, Any]) -> dict[str, str]:
    """Key -> split. One alone is split by shares; those whose name tells none are left out."""
    if len(splits) == 1:
        return dict.fromkeys(splits, "all")
    return {key: split for key in splits if (split := split_of(key))}


def _columns(data: str, table: Any, datasets: Any) -> tuple[Any, str, str]:
    """The table with its images undecoded, and the names of the two columns."""
    features = dict(table.features)
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    labels = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if not images or not labels:
        got = ", ".join(f"{name}: {type(kind).__name__}" for name, kind in features.items())
        raise Error(f"data: {data} must have a column of Image and one of ClassLabel, got {got or 'no column'}")
    return table.cast_column(images[0], datasets.Image(decode=False)), images[0], labels[0]


def _rows(data: str, key: str, split: str, table: Any, image: str, label: str) -> Rows:
    values, names = named(list(table[label]), list(table.features[label].names), f"{data}/{key}")
    stamp = f"{data} {key} {getattr(table, '_fingerprint', '')} {len(values)}"
    return Rows(split, values, names, key, Part(len(values), None, hashlib.sha256(stamp.encode()).hexdigest()))
