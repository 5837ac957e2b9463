"""JSON files that are replaced in one step, and lines that are appended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leanconv.errors import Error
from leanconv.runtime.writing import write_whole

__all__ = ["FORMAT_VERSION", "append_line", "read_json", "read_lines", "write_bytes", "write_json"]

FORMAT_VERSION = 1


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write plain values, with ``format_version``, in one step: the old file or the new one, never a mixture.

    Raises:
        Error: the file cannot be written (the old one is untouched), or a value is not plain.
    """
    path = Path(path)
    try:
        text = json.dumps(_encode({"format_version": FORMAT_VERSION, **values}), indent=1, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise Error(f"{path.name}: values must be plain, got {error}") from None
    write_bytes(path, (text + "\n").encode())


def write_bytes(path: str | Path, content: bytes, before: Callable[[Path], None] | None = None) -> None:
    """Write a file at once: under another name beside it, then renamed; ``before`` is called between the two.

    Raises:
        Error: it cannot be written; what stood there stays.
    """
    write_whole(path, [content], before)


def read_json(path: str | Path) -> dict[str, Any]:
    """What :func:`write_json` wrote, without ``format_version``.

    Raises:
        Error: no such file, no JSON object, or of a later version.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Error(f"{path}: must be a readable file, got {error.strerror}") from None
    return _object(text, str(path))


def append_line(path: str | Path, values: Mapping[str, Any]) -> None:
    """Append one JSON object as a line; half a line that an interrupted run left is cut off first.

    Raises:
        Error: the file cannot be written (what stood in it stays), or a value is not plain.
    """
    path = Path(path)
    try:
        line = json.dumps(_encode({"format_version": FORMAT_VERSION, **values}), ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise Error(f"{path.name}: values must be plain, got {error}") from None
    try:
        with open(path, "ab+") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(line)
    except OSError as error:
        raise Error(f"{path}: must be writable, got {error.strerror}") from None


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """What :func:`append_line` wrote, without ``format_version``; empty where there is no file.

    A last line without its end, which an interrupted run leaves, is passed over.

    Raises:
        Error: a line is no JSON object, or of a later version, with its number.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [_object(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Error(f"{where}: must be JSON, got {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise Error(f"{where}: must be a JSON object, got {type(values).__name__}")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise Error(f"{where}: format_version must be {FORMAT_VERSION}, got {version!r}")
    return values


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(inner) for inner in value]
    return value
