"""Image files, encoded bytes and arrays to 8-bit squares, with Pillow."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from leanconv.errors import Error

__all__ = ["EXTENSIONS", "Header", "Picture", "Progress", "Refused", "header", "read_image", "squares", "together"]

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"]
)
"""Endings of files that count as images, in either case."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

Picture = Path | bytes | NDArray[np.uint8] | None
"""A file, an encoded image, pixels (H, W) or (H, W, 3), or None where there is nothing."""

_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_CHUNK = 64

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Header:
    """What an image says of itself before its pixels are read: its size as stored, and Pillow's mode."""

    width: int
    height: int
    mode: str

    @property
    def grey(self) -> bool:
        """One channel, with or without transparency."""
        return self.mode in _GREY


@dataclass(frozen=True)
class Refused:
    """Why an image could not be read.

    Attributes:
        kind: ``empty`` (no bytes), ``missing``, ``limit`` (too many pixels), ``unknown`` (no image format),
            ``truncated`` or ``damaged``.
        reason: the same in words.
    """

    kind: str
    reason: str


def header(picture: Picture) -> Header | Refused:
    """Size and mode, the pixels unread. To be called within :func:`together`."""
    # Whatever a decoder raises on a damaged file concerns this file alone; Pillow's plugins raise many kinds.
    try:
        with _opened(picture) as image:
            return Header(image.width, image.height, image.mode)
    except Exception as error:
        return _refused(picture, error)


def squares(
    pictures: Iterable[Picture], total: int, imgsz: int, in_chans: int, progress: Progress | None = None
) -> Iterator[NDArray[np.uint8] | Refused]:
    """Read images into squares, in threads, in order, a bounded number at a time.

    The orientation that EXIF tells is applied, transparency is laid over white, 16-bit values are cut to 8 bits; the
    central square of the shorter side is then resized to ``imgsz`` (bilinear, antialiased).

    Args:
        pictures: the images.
        total: how many there are.
        imgsz: side in pixels.
        in_chans: 1 grey, 3 colour.
        progress: called now and then.

    Returns:
        uint8 (in_chans, imgsz, imgsz) for each, or why not.
    """

    def one(picture: Picture) -> NDArray[np.uint8] | Refused:
        try:
            return _pixels(picture, imgsz, in_chans)
        except Exception as error:  # as in header
            return _refused(picture, error)

    for done, result in enumerate(together(one, pictures), 1):
        yield result
        if progress and (done % _CHUNK == 0 or done == total):
            progress(done, total)


def together(function: Callable[[_T], _R], values: Iterable[_T]) -> Iterator[_R]:
    """``map`` over threads, in order; at most 64 results wait. Absurdly large images count as unreadable in it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    source = iter(values)
    with ThreadPoolExecutor(min(8, cores)) as pool:
        while chunk := list(itertools.islice(source, _CHUNK)):
            with _strict_pillow():
                results = list(pool.map(function, chunk))
            yield from results


def read_image(path: str | Path, imgsz: int, in_chans: int) -> Tensor:
    """One file as the training images were read.

    Args:
        path: the file.
        imgsz: side in pixels.
        in_chans: 1 grey, 3 colour.

    Returns:
        uint8 (in_chans, imgsz, imgsz).

    Raises:
        Error: no such file, or no readable image.
    """
    path = Path(path)
    if not path.is_file():
        raise Error(f"image: must be a file that exists, got {str(path)!r}")
    with _strict_pillow():
        try:
            return torch.from_numpy(np.ascontiguousarray(_pixels(path, imgsz, in_chans)))
        except Exception as error:
            why = "a file of zero bytes" if path.stat().st_size == 0 else type(error).__name__
            raise Error(f"image: must be readable, got {why} from {str(path)!r}") from None


def _opened(picture: Picture) -> Image.Image:
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    if picture is None:
        raise FileNotFoundError("nothing there")
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _pixels(picture: Picture, imgsz: int, in_chans: int) -> NDArray[np.uint8]:
    with _opened(picture) as image:
        # A large JPEG is decoded at a half, a quarter or an eighth of its size.
        image.draft(None, (2 * imgsz, 2 * imgsz))
        upright = _upright(image)
        flat = _flat(upright, "L" if in_chans == 1 else "RGB")
    width, height = flat.size
    side = min(width, height)
    if (width, height) != (imgsz, imgsz):
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        flat = flat.resize((imgsz, imgsz), Image.Resampling.BILINEAR, box=box)
    array = np.asarray(flat)
    return array[None] if in_chans == 1 else array.transpose(2, 0, 1)


def _refused(picture: Picture, error: Exception) -> Refused:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Refused("limit", f"more than {Image.MAX_IMAGE_PIXELS:,} pixels")
    if isinstance(picture, bytes) and not picture:
        return Refused("empty", "zero bytes")
    if isinstance(picture, Path) and picture.is_file() and picture.stat().st_size == 0:
        return Refused("empty", "zero bytes")
    if isinstance(error, FileNotFoundError):
        return Refused("missing", "no such file" if picture is not None else "no image or no label")
    if isinstance(error, UnidentifiedImageError):
        return Refused("unknown", "no known image format")
    said = " ".join(str(error).split())
    if "truncated" in said.lower() or isinstance(error, EOFError):
        return Refused("truncated", "truncated")
    return Refused("damaged", f"{type(error).__name__}: {said[:120]}")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are fine, as they stand
        return image


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """8 bits a channel, opaque."""
    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    return image.convert(mode)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """An image of absurd size counts as unreadable; other remarks of Pillow's on single files are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
