"""Images that are only looked at: read as they are asked for, never all in memory, nothing cached."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leanconv.data.images import Picture, Progress, Refused, squares
from leanconv.data.loading import found, load
from leanconv.errors import Error
from leanconv.runtime.images import image_files

__all__ = ["Pictures", "labelled", "unlabelled"]

_CHUNK = 64
_CHOICE = ("test", "val", "all", "train")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of a source, with labels where it has them.

    Attributes:
        names: of each image.
        labels: int64 (N,), indices into the classes that were asked for; None where there are none.
        source: where they come from, in words.
        split: ``train``, ``val`` or ``test``; ``all`` where the source has no splits.
        notes: what was passed over, a sentence each.
        pictures: the images at ascending places.
    """

    names: Sequence[str]
    labels: Tensor | None
    source: str
    split: str
    notes: tuple[str, ...]
    pictures: Callable[[Sequence[int]], Iterator[Picture]]

    def __len__(self) -> int:
        return len(self.names)

    def read(
        self, imgsz: int, in_chans: int, progress: Progress | None = None
    ) -> Iterator[tuple[list[int], Tensor, dict[int, Refused]]]:
        """Go through them, 64 at a time.

        Args:
            imgsz: side in pixels.
            in_chans: 1 grey, 3 colour.
            progress: called with (images done, images in all).

        Returns:
            Places of those that could be read, their pixels uint8 (n, in_chans, imgsz, imgsz), and why the others of
            the same chunk could not.
        """
        places = range(len(self))
        read = enumerate(squares(self.pictures(places), len(self), imgsz, in_chans, progress))
        while chunk := list(itertools.islice(read, _CHUNK)):
            good = [(i, pixels) for i, pixels in chunk if not isinstance(pixels, Refused)]
            bad = {i: refused for i, refused in chunk if isinstance(refused, Refused)}
            shape = (len(good), in_chans, imgsz, imgsz)
            pixels = np.stack([p for _, p in good]) if good else np.zeros(shape, np.uint8)
            yield [i for i, _ in good], torch.from_numpy(pixels), bad


def labelled(data: str | Path, classes: tuple[str, ...], split: str | None = None) -> Pictures:
    """Images to test a network on.

    Args:
        data: a source as for :func:`leanconv.data.load`; of a folder or table, one split alone is enough too.
        classes: that the network knows; those of the source are matched by name, and may be fewer.
        split: ``train``, ``val`` or ``test``, or ``all`` of a source without splits; None: ``test`` where there is one,
            else ``val``, else everything.

    Raises:
        Error: as :func:`leanconv.data.load`; a class that the network does not know; no such split.
    """
    if str(data) == "demo" and not isinstance(data, Path):
        return _demo(classes, split)
    source = found(data, classes)
    chosen = _split(split, set(source.splits), str(data))
    places = [i for i, (s, label) in enumerate(zip(source.splits, source.labels, strict=True)) if s == chosen]

    def pictures(wanted: Sequence[int]) -> Iterator[Picture]:
        return source.pictures([places[i] for i in wanted])

    names = [source.names[i] for i in places]
    return Pictures(names, torch.from_numpy(source.labels[places]), source.source, chosen, source.notes, pictures)


def unlabelled(paths: Sequence[str | Path]) -> Pictures:
    """Image files, and all images below folders.

    Args:
        paths: files and folders.

    Raises:
        Error: none was given, one does not exist, or a folder holds no image.
    """
    files = image_files(paths)
    names = [str(file) for file in files]
    return Pictures(names, None, "files", "all", (), lambda places: (files[i] for i in places))


def _demo(classes: tuple[str, ...], split: str | None) -> Pictures:
    whole = load("demo")
    chosen = _split(split, set(whole.splits), "demo")
    part = whole.splits[chosen]
    unknown = [name for name in whole.classes if name not in classes]
    if unknown:
        told = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise Error(f"data: every class must be of {told}, got {', '.join(map(repr, unknown[:5]))}")
    place = torch.tensor([classes.index(name) for name in whole.classes])
    names = [f"demo {chosen} {i}" for i in range(len(part))]
    return Pictures(
        names, place[part.labels], whole.source, chosen, (), lambda places: (part.images[i, 0].numpy() for i in places)
    )


def _split(asked: str | None, there: set[str], data: str) -> str:
    if asked is None:
        return next(name for name in _CHOICE if name in there)
    if asked not in there:
        raise Error(f"split: must be one of {', '.join(s for s in _CHOICE if s in there)} of {data}, got {asked!r}")
    return asked
