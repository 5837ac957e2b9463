"""What a source of images holds, before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leanconv.data.images import Picture
from leanconv.errors import Error

__all__ = ["SPLITS", "Found", "Part", "Rows", "joined", "must_know", "split_of"]

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> the names under which it may stand."""


@dataclass(frozen=True)
class Part:
    """A file that holds images.

    Attributes:
        count: how many.
        path: the file; its content is what the cache is keyed by.
        key: what stands for the content where there is no file.
    """

    count: int
    path: Path | None
    key: str = ""


@dataclass(frozen=True)
class Found:
    """Images in the order of their source, all splits one after the other.

    Attributes:
        splits: of each image: ``train``, ``val``, ``test``, or ``all`` where shares decide.
        labels: int64 (N,).
        names: of each image, for messages.
        classes: names; label i means ``classes[i]``.
        parts: the files, in order; their counts add up to N.
        pictures: the images at ascending places, one by one, never all at once in memory.
        source: where they come from, in words.
        root: what the source is remembered by.
        notes: what was passed over, a sentence each.
        empty: folders of classes without an image.
    """

    splits: Sequence[str]
    labels: NDArray[np.int64]
    names: Sequence[str]
    classes: tuple[str, ...]
    parts: Sequence[Part]
    pictures: Callable[[Sequence[int]], Iterator[Picture]]
    source: str
    root: str
    notes: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Rows:
    """The labels of one table of images: class names, or None where a row has no label; ``names`` in their order."""

    split: str
    labels: Sequence[str | None]
    names: Sequence[str]
    file: str
    part: Part


def joined(
    rows: Sequence[Rows],
    pictures: Callable[[Sequence[int]], Iterator[Picture]],
    source: str,
    root: str,
    known: tuple[str, ...] | None = None,
) -> Found:
    """Tables with their splits to one :class:`Found`, classes matched by name.

    The classes are those that the training tables name, in the order of the first of them; or those that are ``known``
    already, and then no training images are needed.

    Raises:
        Error: fewer than two classes, or a class of val or test that training does not know.
    """
    learnt = [r for r in rows if r.split in ("train", "all")]
    if not learnt and known is None:
        raise Error(f"data: {root} must have training images, got only {', '.join(r.split for r in rows) or 'nothing'}")
    used = {label for r in learnt for label in r.labels if label is not None}
    order = dict.fromkeys(name for r in learnt for name in r.names)
    classes = known or tuple(name for name in order if name in used)
    if len(classes) < 2 and known is None:
        raise Error(f"data: {root} must have at least two classes with images, got {', '.join(classes) or 'none'}")
    place = {name: i for i, name in enumerate(classes)}
    for r in rows:
        must_know(r.split, (label for label in r.labels if label is not None), known, classes)
    empty = tuple(f"train/{name}" for name in order if name not in used)
    labels = np.array([place.get(label or "", -1) for r in rows for label in r.labels], np.int64)
    splits = [r.split for r in rows for _ in r.labels]
    names = [f"{r.file}[{i}]" for r in rows for i in range(len(r.labels))]
    return Found(splits, labels, names, classes, [r.part for r in rows], pictures, source, root, (), empty)


def must_know(split: str, labels: Iterable[str], known: tuple[str, ...] | None, classes: tuple[str, ...]) -> None:
    """Every label of a split must be a class.

    Raises:
        Error: one is not.
    """
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        got = ", ".join(map(repr, unknown[:5]))
        told = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        rule = f"every class of {split} must be a class of train" if known is None else f"every class must be of {told}"
        raise Error(f"data: {rule}, got {got}")


def split_of(name: str, names: Mapping[str, tuple[str, ...]] = SPLITS) -> str | None:
    """``train-00000-of-00002`` -> ``train``; None where the name tells no split."""
    head = name.lower().split(".")[0].split("-")[0].split("_")[0]
    return next((split for split, known in names.items() if head in known), None)
