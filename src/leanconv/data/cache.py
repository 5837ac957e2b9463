"""Decoded squares kept on the disk: one file of pixels per set, mapped into memory, and what was seen while reading.

In the cache folder ``images/<key>-<order>.u8`` holds the squares of a set, row by row in the order of its splits, and
``images/<key>.json`` says which row is which image; ``images/seen-<root>.json`` remembers of each file of a source its
size, modification time, SHA-256 and what its images say of themselves, so that an unchanged file is not read again.
All are written under another name first and then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from leanconv.data.found import Found, Part
from leanconv.data.images import Header, Refused, header, together

__all__ = ["Entry", "Writer", "cache_folder", "clear_cache", "content_key", "decoder", "find", "seen", "writing"]

_VERSION = 1
_OURS = ("*.u8", "*.json", "*.part")
_RACY = 2.0  # seconds: a file this young may change again within the clock's resolution
_STALE = 86_400.0
_ROWS = 256


def cache_folder() -> Path:
    """``$LEANCONV_CACHE``, else ``$XDG_CACHE_HOME/leanconv``, else ``~/.cache/leanconv``; it need not exist."""
    own, xdg = os.environ.get("LEANCONV_CACHE", "").strip(), os.environ.get("XDG_CACHE_HOME", "").strip()
    return Path(own).expanduser() if own else Path(xdg or Path.home() / ".cache") / "leanconv"


def clear_cache() -> int:
    """Remove every cached set; other files in the folder stay.

    Returns:
        Bytes that were freed. A training that still goes on keeps its mapped file until it ends.
    """
    freed = 0
    for pattern in _OURS:
        for path in _folder().glob(pattern):
            with suppress(FileNotFoundError):  # another process may remove it first
                size = path.stat().st_size
                path.unlink()
                freed += size
    return freed


def decoder() -> str:
    """What decides how a file becomes pixels."""
    return f"{_VERSION} Pillow {PIL.__version__} limit {Image.MAX_IMAGE_PIXELS}"


def content_key(found: Found, hashes: Sequence[str], imgsz: int, in_chans: int) -> str:
    """SHA-256 over the contents in their order, the form of the squares and the decoder."""
    digest = hashlib.sha256(f"{decoder()} {imgsz} {in_chans}".encode())
    for part, content in zip(found.parts, hashes, strict=True):
        digest.update(f" {content} {part.key} {part.count}".encode())
    missing = [i for i, label in enumerate(found.labels.tolist()) if label < 0]
    digest.update(repr(missing).encode())
    return digest.hexdigest()


def seen(found: Found, remember: bool) -> tuple[list[str], list[Header | Refused]]:
    """The content hash of every part and what each image says of itself.

    Args:
        found: the source.
        remember: hash the contents, and keep all of it in the cache; else nothing is hashed, and hashes are empty.
    """
    memo = _Memo(found.root) if remember else None
    starts = np.cumsum([0, *(part.count for part in found.parts)])
    known = [memo.get(part) if memo else None for part in found.parts]
    fresh = [i for i, values in enumerate(known) if values is None]
    places = [j for i in fresh for j in range(starts[i], starts[i + 1])]
    said = together(header, found.pictures(places))
    stamps = [_stamp(found.parts[i]) if memo else None for i in fresh]
    hashes = together(_content, [found.parts[i] for i in fresh]) if memo else iter([""] * len(fresh))
    for i, stamp, content in zip(fresh, stamps, hashes, strict=True):
        headers = [next(said) for _ in range(found.parts[i].count)]
        known[i] = (content, headers)
        if memo and stamp is not None and stamp == _stamp(found.parts[i]):
            memo.put(found.parts[i], stamp, content, headers)
    if memo and fresh:
        memo.write()
    complete = [values for values in known if values is not None]
    return [content for content, _ in complete], [one for _, said_of_part in complete for one in said_of_part]


@dataclass
class Entry:
    """A cached set: row r of the file is image ``order[r]`` of its source.

    ``known`` remembers fingerprint and statistics of the arrangements and labels that were asked for.
    """

    key: str
    shape: tuple[int, int, int]
    order: list[int]
    refused: dict[int, Refused]
    file: str
    stamp: list[int]
    sha256: str
    known: dict[str, Any] = field(default_factory=dict)

    def pixels(self) -> NDArray[np.uint8]:
        """The mapped rows. Copy on write: nothing that is written to them reaches the file."""
        if not self.order:
            return np.zeros((0, *self.shape), np.uint8)
        return np.memmap(_folder() / self.file, np.uint8, "c", shape=(len(self.order), *self.shape))

    def arranged(self, order: list[int]) -> Entry:
        """The same images in another order, or fewer of them; takes this one's place in the cache.

        Raises:
            OSError: the disk is full.
        """
        row = {image: r for r, image in enumerate(self.order)}
        rows = np.array([row[image] for image in order], np.int64)
        pixels = self.pixels()
        with writing(self.key, self.shape, order, len(order)) as writer:
            for start in range(0, len(rows), _ROWS):
                for r in range(start, min(start + _ROWS, len(rows))):
                    writer.put(r, pixels[rows[r]])
            return writer.finish(self.refused)

    def remember(self, name: str, values: Any) -> None:
        """Keep something under a name, as far as the disk allows."""
        self.known[name] = values
        try:
            self.save()
        except OSError:
            return

    def save(self) -> None:
        """Write what is known beside the pixels."""
        values = {name: value for name, value in vars(self).items() if name not in ("key", "refused")}
        values["refused"] = {str(i): [r.kind, r.reason] for i, r in self.refused.items()}
        _write(_folder() / f"{self.key}.json", {"format_version": _VERSION, **values})


def find(key: str, shape: tuple[int, int, int]) -> Entry | None:
    """The cached set of a key; None where there is none, or where it is not whole: then its files are removed."""
    for _ in range(2):  # another process may replace the file between the two reads
        entry = _read(key, shape)
        if entry is None or _whole(entry):
            return entry
    (_folder() / f"{key}.json").unlink(missing_ok=True)
    return None


class Writer:
    """A file of squares in the making."""

    def __init__(self, key: str, shape: tuple[int, int, int], order: list[int], file: BinaryIO, path: Path) -> None:
        self._key, self._shape, self._order, self._file, self._path = key, shape, order, file, path
        self._size = int(np.prod(shape))
        self._last = -1

    def put(self, row: int, pixels: NDArray[np.uint8]) -> None:
        """Write one square at its row."""
        if row != self._last + 1:
            self._file.seek(row * self._size)
        self._last = row
        self._file.write(np.ascontiguousarray(pixels).data)

    def finish(self, refused: dict[int, Refused]) -> Entry:
        """Make it the set of its key."""
        self._file.truncate(len(self._order) * self._size)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = _content(Part(1, self._path))
        digest = hashlib.sha256(np.array(self._order, np.int64).tobytes()).hexdigest()[:12]
        final = _folder() / f"{self._key}-{digest}.u8"
        os.replace(self._path, final)
        entry = Entry(self._key, self._shape, self._order, refused, final.name, _stat(final), sha256)
        entry.save()
        for old in _folder().glob(f"{self._key}-*.u8"):
            if old != final:
                old.unlink(missing_ok=True)
        return entry


@contextmanager
def writing(key: str, shape: tuple[int, int, int], order: list[int], rows: int) -> Iterator[Writer]:
    """A :class:`Writer`; its file is gone again unless it was finished.

    Raises:
        OSError: the folder cannot be written, or the disk has no room.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.part"):  # of processes that were killed
        with suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > _STALE:
                old.unlink()
    path = folder / f"{key}-{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        with path.open("w+b") as file:
            _reserve(file.fileno(), rows * int(np.prod(shape)))
            yield Writer(key, shape, order, file, path)
    finally:
        path.unlink(missing_ok=True)


def _reserve(file: int, size: int) -> None:
    """Say at once, not after an hour of decoding, that the disk has no room; where the file system can tell."""
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise


class _Memo:
    """What is known of the files of one source."""

    def __init__(self, root: str) -> None:
        name = hashlib.sha256(root.encode()).hexdigest()[:32]
        self._path = _folder() / f"seen-{name}.json"
        self._started = time.time()
        values = _json(self._path)
        files = values.get("files") if values.get("decoder") == decoder() else None
        self._known: dict[str, Any] = files if isinstance(files, dict) else {}
        self._used: dict[str, Any] = {}

    def get(self, part: Part) -> tuple[str, list[Header | Refused]] | None:
        try:
            stamp, content, said = self._known[_name(part)]
            if stamp != _stamp(part) or len(said) != part.count:
                return None
            headers = [Header(*one) if len(one) == 3 else Refused(*one) for one in said]
            self._used[_name(part)] = self._known[_name(part)]
            return str(content), headers
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, part: Part, stamp: list[int], content: str, said: list[Header | Refused]) -> None:
        if part.path is None or self._started - stamp[1] / 1e9 > _RACY:
            self._used[_name(part)] = [stamp, content, [list(vars(one).values()) for one in said]]

    def write(self) -> None:
        try:
            _folder().mkdir(parents=True, exist_ok=True)
            _write(self._path, {"decoder": decoder(), "files": self._used})
        except OSError:
            return


def _name(part: Part) -> str:
    return f"{part.path or ''}#{part.key}"


def _stamp(part: Part) -> list[int]:
    return [0, 0] if part.path is None else _stat(part.path)


def _stat(path: Path) -> list[int]:
    """Size and modification time (ns); of what is not there, something that no file has."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns]
    except OSError:
        return [-1, 0]


def _content(part: Part) -> str:
    if part.path is None:
        return part.key
    try:
        with part.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable {error.errno}"


def _folder() -> Path:
    return cache_folder() / "images"


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _write(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}-{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with temporary.open("w") as file:
            json.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(key: str, shape: tuple[int, int, int]) -> Entry | None:
    values = _json(_folder() / f"{key}.json")
    try:
        if values["format_version"] != _VERSION or tuple(values["shape"]) != shape:
            return None
        order = [int(image) for image in values["order"]]
        refused = {int(i): Refused(str(kind), str(reason)) for i, (kind, reason) in values["refused"].items()}
        file = str(values["file"])
        if Path(file).name != file or not isinstance(values["known"], dict):
            return None
        return Entry(key, shape, order, refused, file, list(values["stamp"]), str(values["sha256"]), values["known"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _whole(entry: Entry) -> bool:
    """The file has its size and is as it was left; where its time differs, its content is compared."""
    path = _folder() / entry.file
    stamp = _stat(path)
    if stamp[0] != len(entry.order) * int(np.prod(entry.shape)):
        return False
    return stamp == entry.stamp or _content(Part(1, path)) == entry.sha256
