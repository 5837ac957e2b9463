"""Image files to 8-bit squares, with Pillow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from leanconv.errors import Error

__all__ = ["EXTENSIONS", "Header", "Progress", "decode", "headers", "read_image"]

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"]
)
"""Endings of files that count as images, in either case."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""

_GREY = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_DEEP = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_CHUNK = 64


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels are read."""

    width: int
    height: int
    grey: bool


def headers(paths: Sequence[Path]) -> list[Header | None]:
    """Size and kind of each file; None where it is no readable image."""
    with _workers() as pool:
        return list(pool.map(_header, paths, chunksize=_CHUNK))


def decode(
    paths: Sequence[Path], imgsz: int, in_chans: int, progress: Progress | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Read files into squares, in threads.

    The orientation that EXIF tells is applied, transparency is laid over white, 16-bit values are cut to 8 bits; the
    central square of the shorter side is then resized to ``imgsz`` (bilinear, antialiased).

    Args:
        paths: the files.
        imgsz: side in pixels.
        in_chans: 1 grey, 3 colour.
        progress: called now and then.

    Returns:
        uint8 (N, in_chans, imgsz, imgsz) and bool (N,): which could be read; the others are zero.
    """
    pixels = np.zeros((len(paths), in_chans, imgsz, imgsz), np.uint8)
    good = np.zeros(len(paths), np.bool_)

    def one(i: int) -> None:
        # Whatever a decoder raises on a damaged file concerns this file alone; Pillow's plugins raise many kinds.
        try:
            pixels[i], good[i] = _pixels(paths[i], imgsz, in_chans), True
        except Exception:
            good[i] = False

    with _workers() as pool:
        for done, _ in enumerate(pool.map(one, range(len(paths))), 1):
            if progress and (done % _CHUNK == 0 or done == len(paths)):
                progress(done, len(paths))
    return pixels, good


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


def _header(path: Path) -> Header | None:
    try:
        with Image.open(path) as image:
            return Header(image.width, image.height, image.mode in _GREY)
    except Exception:  # as in decode
        return None


def _pixels(path: Path, imgsz: int, in_chans: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
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


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with _strict_pillow(), ThreadPoolExecutor(min(8, cores)) as pool:
        yield pool
