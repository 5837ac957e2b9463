"""From the name of data to a :class:`DataSet`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from leanconv.data.dataset import DataSet, Split
from leanconv.data.folder import Listing, scan
from leanconv.data.images import Header, Progress, decode, headers
from leanconv.data.splitting import stratified
from leanconv.errors import Error

__all__ = ["load"]

_OWN_SIZE = 96
_SIZE = 64
_SHOWN = 5


def load(
    data: str | Path,
    *,
    imgsz: int | None = None,
    in_chans: int | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> DataSet:
    """Read a set of images.

    Args:
        data: ``demo`` (5,000 + 1,000 images of Fashion-MNIST, in the package; ``./demo`` is a folder of that name), or
            a folder: ``train/<class>/*`` with ``val`` (``valid``, ``validation``) and ``test`` where they exist, or
            flat ``<class>/*``.
        imgsz: side in pixels; None: the images' own where all are equal, square and at most 96, else 64.
        in_chans: 1 grey, 3 colour; None: 1 where every image is grey, else 3.
        val: share of the training images that selects, where there is no ``val`` folder.
        test: share of a flat folder's images that is held out; 0: none. With a ``train`` folder it is not used.
        seed: of both shares, which are stratified.
        progress: called with (files done, files in all).

    Returns:
        The set; unreadable files are named in ``notes`` and ``skipped``.

    Raises:
        Error: no such folder, an empty one, fewer than two classes, no readable image, a class too small to be split,
            a class that training does not know, or a value out of range.
    """
    _ranges(imgsz, in_chans, val, test)
    if str(data) == "demo" and not isinstance(data, Path):
        return _demo(imgsz, in_chans, val, seed)
    root = Path(data).expanduser()
    if not str(data).strip():
        raise Error("data: must be the name demo or a folder, got an empty name")
    listing = scan(root)
    classes = tuple(sorted(listing.splits.get("train", listing.splits.get("all", {}))))
    _same_classes(listing, classes)
    return _read(root, listing, classes, (imgsz, in_chans), (val, test, seed), progress)


def _read(
    root: Path,
    listing: Listing,
    classes: tuple[str, ...],
    form: tuple[int | None, int | None],
    shares: tuple[float, float, int],
    progress: Progress | None,
) -> DataSet:
    entries = [(s, classes.index(c), p) for s, group in listing.splits.items() for c in sorted(group) for p in group[c]]
    paths = [path for _, _, path in entries]
    found = headers(paths)
    side, channels = _form([h for h in found if h], *form)
    known = [i for i, header in enumerate(found) if header]
    pixels, good = decode([paths[i] for i in known], side, channels, progress)
    read = [i for i, fine in zip(known, good, strict=True) if fine]
    skipped = tuple(_relative(paths[i], root) for i in sorted(set(range(len(paths))).difference(read)))
    _need_readable(root, paths, skipped)
    images, labels = torch.from_numpy(pixels[good]), np.array([entries[i][1] for i in read], np.int64)
    names = [_relative(paths[i], root) for i in read]
    where = np.array([entries[i][0] for i in read])
    chosen = _choose(where, labels, classes, *shares)
    splits = {name: _take(images, labels, names, index) for name, index in chosen.items() if len(index)}
    notes = (*listing.notes, *_skipped_note(skipped, len(paths)), *_choice_notes(listing, shares, splits, classes))
    return DataSet.build(splits, classes, f"folder {root}", notes, skipped)


def _choose(
    where: NDArray[np.str_], labels: NDArray[np.int64], classes: Sequence[str], val: float, test: float, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Split -> indices: as the folders say, and by share where they do not."""
    given = {name: np.flatnonzero(where == name) for name in ("train", "val", "test")}
    if (where == "all").any():
        shares = {"test": test, "val": (1 - test) * val} if test else {"val": val}
        return stratified(labels, shares, classes, seed)
    shares = {} if len(given["val"]) else {"val": val}
    parts = stratified(labels[given["train"]], shares, classes, seed)
    return {**given, **{name: given["train"][index] for name, index in parts.items()}}


def _take(images: torch.Tensor, labels: NDArray[np.int64], names: list[str], index: NDArray[np.int64]) -> Split:
    chosen = torch.from_numpy(index)
    return Split(images[chosen], torch.from_numpy(labels[index]), tuple(names[i] for i in index))


def _form(found: list[Header], imgsz: int | None, in_chans: int | None) -> tuple[int, int]:
    sizes = {(h.width, h.height) for h in found}
    own = next(iter(sizes)) if len(sizes) == 1 else (0, 1)
    side = own[0] if own[0] == own[1] and own[0] <= _OWN_SIZE else _SIZE
    channels = 1 if found and all(h.grey for h in found) else 3
    return imgsz or side, in_chans or channels


def _demo(imgsz: int | None, in_chans: int | None, val: float, seed: int) -> DataSet:
    if imgsz not in (None, 28):
        raise Error(f"data: the images of demo are 28 pixels wide, got imgsz={imgsz}")
    if in_chans not in (None, 1):
        raise Error(f"data: the images of demo are grey (in_chans=1), got in_chans={in_chans}")
    with as_file(files("leanconv.data").joinpath("fashion", "fashion.npz")) as path, np.load(path) as packed:
        images, labels = torch.from_numpy(packed["images"])[:, None], packed["labels"].astype(np.int64)
        classes, n = tuple(str(name) for name in packed["classes"]), int(packed["train"])
    parts = stratified(labels[:n], {"val": val}, classes, seed)
    chosen = {**parts, "test": np.arange(n, len(labels))}
    splits = {name: Split(images[torch.from_numpy(i)], torch.from_numpy(labels[i])) for name, i in chosen.items()}
    source = "demo: 5,000 + 1,000 images of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT)"
    return DataSet.build(splits, classes, source, (f"val is {val:.0%} of the 5,000, stratified, seed {seed}",))


def _ranges(imgsz: int | None, in_chans: int | None, val: float, test: float) -> None:
    if imgsz is not None and imgsz < 1:
        raise Error(f"data: imgsz must be at least 1, got imgsz={imgsz}")
    if in_chans not in (None, 1, 3):
        raise Error(f"data: in_chans must be 1 or 3, got in_chans={in_chans}")
    if not 0 < val < 1:
        raise Error(f"data: val must satisfy 0 < val < 1, got val={val}")
    if not 0 <= test < 1:
        raise Error(f"data: test must satisfy 0 <= test < 1, got test={test}")


def _same_classes(listing: Listing, classes: tuple[str, ...]) -> None:
    for split in ("val", "test"):
        unknown = sorted(set(listing.splits.get(split, {})) - set(classes))
        if unknown:
            got = ", ".join(map(repr, unknown[:_SHOWN]))
            raise Error(f"data: every class of {split} must be a class of train, got {got}")


def _need_readable(root: Path, paths: Sequence[Path], skipped: tuple[str, ...]) -> None:
    if len(skipped) < len(paths):
        return
    empty = sum(path.is_file() and path.stat().st_size == 0 for path in paths)
    got = f"{len(paths)} files of zero bytes" if empty == len(paths) else f"{len(paths)} that are not"
    raise Error(f"data: images of {root} must be readable, got {got} (the first is {skipped[0]})")


def _skipped_note(skipped: tuple[str, ...], total: int) -> tuple[str, ...]:
    if not skipped:
        return ()
    shown = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
    return (f"{len(skipped)} of {total} images could not be read and were skipped: {shown}",)


def _choice_notes(
    listing: Listing, shares: tuple[float, float, int], splits: Mapping[str, Split], classes: Sequence[str]
) -> tuple[str, ...]:
    val, test, seed = shares
    notes = []
    if "all" in listing.splits and test:
        notes.append(f"test is {test:.0%} of the images, stratified, seed {seed}")
    if "val" not in listing.splits:
        notes.append(f"val is {val:.0%} of the training images, stratified, seed {seed}")
    for name in ("val", "test"):
        if name in splits:
            missing = [c for i, c in enumerate(classes) if not (splits[name].labels == i).any()]
            if missing:
                notes.append(f"{name} has no image of {', '.join(missing)}")
    return tuple(notes)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
