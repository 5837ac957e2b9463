"""Images to calibrate on and to measure on, as the training read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv import data
from leanconv.data import Pictures
from leanconv.errors import Error
from leanconv.runtime.images import Refused, is_image, normalise, squares
from leanconv.runtime.plan import Picture, Plan
from leanconv.training import Run, images_of

__all__ = ["Images", "Samples", "chosen", "of_arrays", "of_folder", "of_run"]

Array = NDArray[Any]
_HELD = 2**30
_LEAST = 2


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs of a network.

    Attributes:
        maps: uint8 pixels or float32 inputs, (N, H, W, C).
        labels: int64 (N,), or None.
        picture: how pixels become inputs; None: they are inputs.
    """

    maps: Array
    labels: NDArray[np.int64] | None
    picture: Picture | None

    def __len__(self) -> int:
        return len(self.maps)

    def batch(self, place: slice) -> NDArray[np.float32]:
        """Inputs float32 (n, H, W, C)."""
        maps = np.ascontiguousarray(self.maps[place])
        return maps if self.picture is None else normalise(maps, self.picture.mean, self.picture.std)

    def first(self, count: int) -> Images:
        """At most so many, evenly spread."""
        place = _spread(len(self), count)
        return Images(self.maps[place], None if self.labels is None else self.labels[place], self.picture)

    def parted(self, count: int) -> tuple[Images, Images]:
        """All but so many, and these, a quarter at most; of fewer than four both are all."""
        if len(self) < 4:
            return self, self
        place = _spread(len(self), min(count, len(self) // 4))
        rest = np.setdiff1d(np.arange(len(self)), place)
        a, b = ((self.maps[i], None if self.labels is None else self.labels[i]) for i in (rest, place))
        return Images(*a, self.picture), Images(*b, self.picture)


@dataclass(frozen=True, eq=False)
class Samples:
    """What an int8 file is made and judged with.

    Attributes:
        calibration: the activations' ranges come from them.
        measured: accuracy is measured on them.
        source: where they come from, in words.
        notes: what a reader should know, a sentence each.
    """

    calibration: Images
    measured: Images
    source: str
    notes: tuple[str, ...] = ()


def chosen(given: Any, run: Run | None, plan: Plan, calibrate: int, progress: data.Progress | None = None) -> Samples:
    """The images that a user gave, or else those of the run.

    Args:
        given: as ``data`` of :func:`leanconv.export`.
        run: what is exported, or None.
        plan: of floats.
        calibrate: so many to calibrate on.
        progress: called with (images read, images in all).

    Raises:
        Error: as of the other functions here; neither images nor a run that tells where its images are.
    """
    if isinstance(given, str | Path):
        return of_folder(given, plan, calibrate, progress)
    if given is not None:
        return of_arrays(given, plan, calibrate)
    where = None if run is None else str(run.record.data.get("path", ""))
    if run is None or where is None or where.startswith("hf:"):
        got = "none" if run is None else "a run whose images are on a hub"
        raise Error(f"int8: images must be given to calibrate on (--data DIR), got {got}")
    return of_run(run, plan, calibrate, progress)


def of_arrays(given: Any, plan: Plan, calibrate: int) -> Samples:
    """Inputs in memory.

    Args:
        given: floats (N, C, H, W) as the network wants them, or these and labels (N,).
        plan: of the network.
        calibrate: so many to calibrate on; the others are measured on. Where there are too few, all are both.

    Raises:
        Error: another shape, or labels that do not fit.
    """
    x, labels = given if isinstance(given, tuple) else (given, None)
    x, labels = (None if one is None else np.asarray(one) for one in (x, labels))
    height, width, channels = plan.values[plan.input].shape
    if x is None or x.dtype.kind != "f" or x.size != len(x) * height * width * channels or len(x) < _LEAST:
        got = "none" if x is None else f"{x.dtype} {x.shape}"
        raise Error(f"int8: data must be at least {_LEAST} inputs (N, {channels}, {height}, {width}), got {got}")
    maps = np.ascontiguousarray(x.reshape(len(x), channels, height, width).transpose(0, 2, 3, 1), np.float32)
    if labels is not None:
        classes = plan.values[plan.output].shape[2]
        if (
            labels.shape != (len(x),)
            or labels.dtype.kind not in "iu"
            or not (labels.min() >= 0 and labels.max() < classes)
        ):
            raise Error(
                f"int8: labels must be {len(x)} whole numbers below {classes}, got {labels.dtype} {labels.shape}"
            )
        labels = labels.astype(np.int64)
    first, rest, notes = _halves(len(x), calibrate)
    cut = [Images(maps[i], None if labels is None else labels[i], None) for i in (first, rest)]
    return Samples(cut[0], cut[1], f"{len(x):,} inputs", notes)


def of_run(run: Run, plan: Plan, calibrate: int, progress: data.Progress | None = None) -> Samples:
    """The images of a run where they still are: those of training to calibrate, test or else val to measure.

    Raises:
        Error: as of :func:`leanconv.training.images_of`.
    """
    whole = images_of(run, progress)
    picture = Picture(run.header.shape[1], "L" if run.header.shape[0] == 1 else "RGB", run.header.mean, run.header.std)

    def images(name: str, count: int) -> Images:
        split = whole.splits[name]
        place = _spread(len(split), count)
        pixels = split.images[place].permute(0, 2, 3, 1).contiguous().numpy()
        labels = split.labels if split.clean is None else split.clean
        return Images(pixels, labels[place].numpy(), picture)

    chosen = "test" if "test" in whole.splits else "val"
    measured = images(chosen, _most(plan))
    return Samples(
        images("train", calibrate), measured, f"{whole.source} ({chosen})", _fewer(len(whole.splits[chosen]), measured)
    )


def of_folder(place: str | Path, plan: Plan, calibrate: int, progress: data.Progress | None = None) -> Samples:
    """Images of a folder, a table or a set that :func:`leanconv.data.load` knows; a folder of loose images will do.

    Where there are splits, those of training calibrate, and test or else val is measured on; else every n-th image
    calibrates and the others are measured on.

    Raises:
        Error: the network is not known to read images; as of :func:`leanconv.data.load`.
    """
    if plan.picture is None:
        raise Error("int8: --data needs a network that is known to read images (picture=...), got one that is not")
    path = Path(place).expanduser()
    if not plan.classes or _loose(path):
        found = data.unlabelled([place])
        first, rest, notes = _halves(len(found), calibrate)
        told = () if _loose(path) else ("the network has no names of classes: labels were not looked at",)
        both = _read(found, np.union1d(first, rest), plan, progress)
        at = {int(one): i for i, one in enumerate(both[1])}
        cut = [
            Images(both[0].maps[[at[int(i)] for i in part if int(i) in at]], None, plan.picture)
            for part in (first, rest)
        ]
        return Samples(cut[0], cut[1], f"{len(found):,} images of {place}", (*notes, *told, *both[2]))
    measured = data.labelled(place, plan.classes)
    other = _other(place, plan.classes, measured.split)
    if other is None:
        first, rest, notes = _halves(len(measured), calibrate)
        rest = rest[_spread(len(rest), _most(plan))]
        a, b = _read(measured, first, plan, progress), _read(measured, rest, plan, progress)
    else:
        rest, notes = _spread(len(measured), _most(plan)), ()
        a, b = _read(other, _spread(len(other), calibrate), plan, progress), _read(measured, rest, plan, progress)
    notes = (*notes, *_fewer(len(measured), b[0]) * (other is not None), *a[2], *b[2])
    return Samples(a[0], b[0], f"{measured.source} ({measured.split})", notes)


def _other(place: str | Path, classes: tuple[str, ...], measured: str) -> Pictures | None:
    """Images of the same source that are not measured on."""
    for split in ("train", "val"):
        if split != measured:
            try:
                return data.labelled(place, classes, split)
            except Error:
                continue
    return None


def _loose(path: Path) -> bool:
    """Whether images stand here without folders of classes."""
    if path.is_file():
        return is_image(path.name)
    inner = list(path.iterdir()) if path.is_dir() else []
    return any(is_image(one.name) for one in inner) and not any(one.is_dir() and one.name[0] != "." for one in inner)


def _read(
    pictures: Pictures, places: NDArray[np.int64], plan: Plan, progress: data.Progress | None
) -> tuple[Images, NDArray[np.int64], tuple[str, ...]]:
    """Those that can be read, their places, and how many cannot."""
    picture = plan.picture
    assert picture is not None
    channels = plan.values[plan.input].shape[2]
    source = pictures.pictures([int(place) for place in places])
    maps = np.zeros((len(places), picture.side, picture.side, channels), np.uint8)
    good: list[int] = []
    for i, one in enumerate(squares(source, len(places), picture.side, channels, progress)):
        if not isinstance(one, Refused):
            maps[len(good)] = one.transpose(1, 2, 0)
            good.append(i)
    if len(good) < _LEAST:
        raise Error(
            f"int8: data must hold at least {_LEAST} images that can be read, got {len(good)} of {pictures.source}"
        )
    kept = places[good]
    labels = None if pictures.labels is None else pictures.labels.numpy()[kept]
    bad = len(places) - len(good)
    told = (f"{bad} of {len(places):,} images could not be read",) if bad else ()
    return Images(maps[: len(good)], labels, picture), kept, told


def _halves(count: int, calibrate: int) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Places to calibrate on and to measure on, apart where there are enough."""
    if count < _LEAST:
        raise Error(f"int8: data must hold at least {_LEAST} images, got {count}")
    if count < 4:
        return np.arange(count), np.arange(count), ("measured on the images of the calibration: there are no others",)
    first = _spread(count, min(calibrate, count // 2))
    return first, np.setdiff1d(np.arange(count), first), ()


def _spread(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _most(plan: Plan) -> int:
    """How many images are measured on, so that their pixels stay within 1 GiB."""
    height, width, channels = plan.values[plan.input].shape
    return max(1000, _HELD // (height * width * channels))


def _fewer(there: int, images: Images) -> tuple[str, ...]:
    return (f"measured on {len(images):,} of {there:,} images, evenly spread",) if len(images) < there else ()
