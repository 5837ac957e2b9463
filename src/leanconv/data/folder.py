"""Which files of a folder are images of which class, without reading any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leanconv.data.found import SPLITS, Found, Part, must_know
from leanconv.data.images import Picture
from leanconv.errors import Error
from leanconv.runtime.images import files_below, is_image

__all__ = ["Listing", "folder", "scan"]

Classes = Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True)
class Listing:
    """What stands in a folder.

    Attributes:
        splits: ``train``, ``val``, ``test`` -> class -> its files, sorted; of a flat folder ``all`` alone.
        notes: what was passed over.
        empty: ``split/class`` of folders without an image.
    """

    splits: Mapping[str, Classes]
    notes: tuple[str, ...]
    empty: tuple[str, ...] = ()


def folder(root: Path, known: tuple[str, ...] | None = None) -> Found:
    """The images of a folder, as :func:`scan` lists them.

    Args:
        root: the folder.
        known: the classes, where they are known already: then no training images are needed.

    Raises:
        Error: as :func:`scan`, or a class that training does not know.
    """
    listing = scan(root, known is not None)
    classes = known or tuple(sorted(listing.splits.get("train", listing.splits.get("all", {}))))
    for split, group in listing.splits.items():
        must_know(split, group, known, classes)
    entries = [(s, classes.index(c), p) for s, group in listing.splits.items() for c in sorted(group) for p in group[c]]
    paths = [path for _, _, path in entries]

    def pictures(places: Sequence[int]) -> Iterator[Picture]:
        return (paths[place] for place in places)

    return Found(
        [split for split, _, _ in entries],
        np.array([label for _, label, _ in entries], np.int64),
        [path.relative_to(root).as_posix() for path in paths],
        classes,
        [Part(1, path) for path in paths],
        pictures,
        f"folder {root}",
        str(root.resolve()),
        listing.notes,
        listing.empty,
    )


def scan(root: Path, any_form: bool = False) -> Listing:
    """List ``root/{train,val|valid|validation,test}/<class>/**`` or ``root/<class>/**``.

    Hidden names are passed over, endings count in either case, links are followed and loops cut.

    Args:
        root: the folder.
        any_form: one class is enough, and a folder ``train`` is not needed.

    Raises:
        Error: no such folder, or none of the two forms, or no image in it.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing"
        rule = "must be demo, hf:owner/name, a .parquet or .npz file, or a folder that exists"
        raise Error(f"data: {rule}, got {got} at {str(root)!r}")
    folders = _folders(root)
    splits = _split_folders(root, folders, any_form)
    notes: list[str] = []
    empty: list[str] = []
    if splits:
        found = {name: _classes(inner, notes, empty, f"{name}/") for name, inner in splits.items()}
        passed = [f.name for f in folders if f not in splits.values()]
        if passed:
            notes.append(f"folders beside {root.name}/train were passed over: {', '.join(passed)}")
    else:
        found = {"all": _classes(root, notes, empty)}
    _need_images(root, found, folders, any_form)
    return Listing({name: classes for name, classes in found.items() if classes}, tuple(notes), tuple(empty))


def _split_folders(root: Path, folders: list[Path], any_form: bool) -> dict[str, Path]:
    """Split -> its folder; empty for a flat one, where a folder ``train`` holds images itself and is a class."""
    holding = {f.name.lower(): f for f in folders if _folders(f)}
    found = {}
    for split, names in SPLITS.items():
        present = [holding[name] for name in names if name in holding]
        if len(present) > 1:
            got = " and ".join(f.name for f in present)
            raise Error(f"data: {root} must have one folder for {split}, got {got}")
        if present:
            found[split] = present[0]
    if found and "train" not in found and not any_form:
        got = ", ".join(f.name for f in found.values())
        raise Error(f"data: {root} must have a folder train with a folder per class, got only {got}")
    return found


def _need_images(root: Path, found: Mapping[str, Classes], folders: list[Path], any_form: bool) -> None:
    first = found.get("train", found.get("all", {}))
    if any_form:
        first = first or next((classes for classes in found.values() if classes), {})
    if not first:
        loose = sum(is_image(entry.name) for entry in _entries(root))
        got = f"{loose} images outside any class folder" if loose else "no image"
        if not folders and not _entries(root):
            got = "an empty folder"
        raise Error(f"data: {root} must have a folder per class with images in it, got {got}")
    if len(first) == 1 and not any_form:
        (name,) = first
        inner = root / name
        deeper = len(_folders(inner)) if inner.is_dir() else 0
        hint = f" (its {deeper} folders may be the classes: try {inner})" if deeper > 1 else ""
        raise Error(f"data: {root} must have at least two classes with images, got only {name!r}{hint}")


def _classes(folder: Path, notes: list[str], empty: list[str], prefix: str = "") -> dict[str, tuple[Path, ...]]:
    classes: dict[str, tuple[Path, ...]] = {}
    other = 0
    for inner in _folders(folder):
        images, rest = files_below(inner)
        other += rest
        if images:
            classes[inner.name] = images
        else:
            empty.append(prefix + inner.name)
            notes.append(f"{inner.name} has no images and is no class of {folder.name}")
    loose = sum(is_image(entry.name) for entry in _entries(folder) if entry.is_file())
    if loose:
        notes.append(f"{loose} images of {folder.name} stand in no class folder and were passed over")
    if other:
        notes.append(f"{other} files of {folder.name} are no images by their ending and were passed over")
    return classes


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise Error(f"data: {folder} must be readable, got {error.strerror}") from None


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir()]
