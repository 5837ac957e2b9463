"""Image files, encoded bytes and arrays to 8-bit squares, with Pillow; the same code for training and for the runtime.

Pillow is imported when an image is first read.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from leanconv.errors import Error
from leanconv.runtime.threads import usable_cores

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "EXTENSIONS",
    "Header",
    "Picture",
    "Progress",
    "Refused",
    "files_below",
    "header",
    "image_files",
    "is_image",
    "normalise",
    "pixels",
    "square",
    "squares",
    "strict_pillow",
    "together",
]

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
    try:
        with _opened(picture) as image:
            return Header(image.width, image.height, image.mode)
    except Exception as error:  # as in square
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
    for done, result in enumerate(together(lambda picture: square(picture, imgsz, in_chans), pictures), 1):
        yield result
        if progress and (done % _CHUNK == 0 or done == total):
            progress(done, total)


def together(function: Callable[[_T], _R], values: Iterable[_T]) -> Iterator[_R]:
    """``map`` over threads, in order; at most 64 results wait. Absurdly large images count as unreadable in it."""
    from concurrent.futures import ThreadPoolExecutor

    source = iter(values)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        while chunk := list(itertools.islice(source, _CHUNK)):
            with strict_pillow():
                results = list(pool.map(function, chunk))
            yield from results


def square(picture: Picture, imgsz: int, in_chans: int) -> NDArray[np.uint8] | Refused:
    """One image, as :func:`squares` reads them. To be called within :func:`together`, or :func:`strict_pillow`.

    Returns:
        uint8 (in_chans, imgsz, imgsz), a view of (imgsz, imgsz, in_chans); or why not.
    """
    # Whatever a decoder raises on a damaged file concerns this file alone; Pillow's plugins raise many kinds.
    try:
        return pixels(picture, imgsz, in_chans)
    except Exception as error:
        return _refused(picture, error)


def _opened(picture: Picture) -> Image.Image:
    from PIL import Image

    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    if picture is None:
        raise FileNotFoundError("nothing there")
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def pixels(picture: Picture, imgsz: int, in_chans: int) -> NDArray[np.uint8]:
    """:func:`square`, raising whatever a decoder raises."""
    from PIL import Image

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
    from PIL import Image, UnidentifiedImageError

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
    from PIL import ImageOps

    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are fine, as they stand
        return image


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """8 bits a channel, opaque."""
    from PIL import Image

    if image.mode in _DEEP:
        values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert(mode)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    return image.convert(mode)


class _Strict:
    """How many are within :func:`strict_pillow` now: filters of warnings belong to the process, not to a thread."""

    lock = threading.Lock()
    inside = 0
    restore: warnings.catch_warnings[None] = warnings.catch_warnings()


@contextmanager
def strict_pillow() -> Iterator[None]:
    """An image of absurd size counts as unreadable; other remarks of Pillow's on single files are not the user's.

    Any number of threads may be in it; the process's filters come back when the last one leaves.
    """
    try:
        from PIL.Image import DecompressionBombWarning as refused
    except ImportError:
        rule = 'Pillow must be installed to read them (`pip install "leanconv[image]"`)'
        raise Error(f"images: {rule}, got none") from None
    with _Strict.lock:
        if _Strict.inside == 0:
            _Strict.restore = warnings.catch_warnings()
            _Strict.restore.__enter__()
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", refused)
        _Strict.inside += 1
    try:
        yield
    finally:
        with _Strict.lock:
            _Strict.inside -= 1
            if _Strict.inside == 0:
                _Strict.restore.__exit__(None, None, None)


def normalise(images: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """(v / 255 - mean) / std per channel, with the same bits as :func:`leanconv.data.normalise`.

    Args:
        images: uint8 (N, H, W, C).
        mean, std: per channel, on the scale 0..1.

    Returns:
        float32 (N, H, W, C).
    """
    n, height, width, channels = images.shape
    shift = np.asarray(mean, np.float32) * np.float32(255)
    scale = np.float32(1) / (np.asarray(std, np.float32) * np.float32(255))
    # Whole rows at a time: numpy's loops over three channels take ten times as long.
    x = images.astype(np.float32).reshape(n, height, width * channels)
    x -= np.tile(shift, width)
    x *= np.tile(scale, width)
    return x.reshape(images.shape)


def image_files(paths: Iterable[str | Path]) -> list[Path]:
    """Image files, and all images below folders.

    Args:
        paths: files and folders.

    Raises:
        Error: none was given, one does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inner, _ = files_below(path)
            if not inner:
                raise Error(f"images: a folder must hold images, got {str(path)!r} without any")
            files += inner
        elif path.is_file():
            files.append(path)
        else:
            raise Error(f"image: must be a file that exists, got {str(path)!r}")
    if not files:
        raise Error("images: at least one must be given, got none")
    return files


def files_below(folder: Path) -> tuple[tuple[Path, ...], int]:
    """Every image of a folder and the folders in it, sorted, and how many other files there are.

    Hidden names are passed over, endings count in either case, links are followed and loops cut.
    """
    images: list[Path] = []
    other = 0
    seen: set[tuple[int, int]] = set()
    for here, inner, names in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        visible = [name for name in names if not name.startswith(".")]
        images += [Path(here, name) for name in visible if is_image(name)]
        other += sum(not is_image(name) for name in visible)
    return tuple(sorted(images, key=lambda path: path.relative_to(folder).as_posix())), other


def is_image(name: str) -> bool:
    """Whether a file counts as an image by its name."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
