"""``.lean`` files: safetensors files that hold a plan.

Eight bytes with the header's length (little endian), the header in JSON, the tensors. In the header each tensor has
``dtype``, ``shape`` and ``data_offsets``, and ``__metadata__`` has five strings: ``format``, ``format_version``,
``plan`` (see :mod:`leanconv.runtime.encoding`), ``sha256`` of the tensors' bytes and ``header_crc32`` of the rest of
the header. The file may come from anyone: each number is checked before anything is done with it. Both sums tell
damage; an adversary can make them anew, and gets no further than these checks let him.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from binascii import crc32
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv.errors import Error
from leanconv.runtime.checking import check
from leanconv.runtime.encoding import LARGEST, from_json, parse, shown, to_json
from leanconv.runtime.kinds import TYPES
from leanconv.runtime.plan import Plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]

__all__ = ["BYTES_VERSION", "FORMAT", "FORMAT_VERSION", "HEADER", "read", "write"]

FORMAT, FORMAT_VERSION = "leanconv", "1"
BYTES_VERSION = "2"
"""The version of a file with values of bytes; one without is what version 1 could say."""
HEADER = 2**24
"""The longest header, bytes."""

_KEYS = {"format", "format_version", "plan", "sha256", "header_crc32"}
_TENSORS, _RANK = 200_000, 8
_LINE = 64
_WORDS = {np.dtype(name): word for word, (name, _) in TYPES.items()}


def write(path: str | os.PathLike[str], plan: Plan, tensors: Tensors) -> None:
    """Write a network to one file, in one step.

    Args:
        path: the file; what stands there is replaced.
        plan: the plan.
        tensors: name -> float32, int32 or int8, every tensor that the plan's steps name and no other.

    Raises:
        Error: the plan does not hold together (:func:`leanconv.runtime.checking.check`), a tensor is of another type,
            the header would be too long, or the file cannot be written; what stood there stays.
    """
    from leanconv.runtime.writing import write_whole

    name = os.path.basename(path)
    try:
        for key, tensor in tensors.items():
            if tensor.dtype not in _WORDS or key == "__metadata__":
                raise Error(f"tensors must be float32, int32 or int8, got {tensor.dtype} of {shown(key)}")
        types = {key: _WORDS[tensor.dtype] for key, tensor in tensors.items()}
        check(plan, {key: tensor.shape for key, tensor in tensors.items()}, types)
        head = _head(plan, tensors)
        if len(head) > HEADER:
            raise Error(f"its header must have at most {HEADER} bytes, got {len(head)}")
        _, metadata = _header(head, sum(tensor.nbytes for tensor in tensors.values()))
        from_json(metadata["plan"])
    except Error as error:
        raise Error(f"{name}: {error}") from None
    write_whole(path, [len(head).to_bytes(8, "little"), head, *_bodies(tensors)])


def read(path: str | os.PathLike[str], verify: bool = False) -> tuple[Plan, dict[str, NDArray[Any]]]:
    """What a file holds, checked.

    Args:
        path: the file.
        verify: compare the tensors' bytes with their SHA-256, which reads all of them. The header is always compared.

    Returns:
        The plan, and name -> values, read-only views of the file, which is mapped into memory: it must be replaced as
        :func:`write` does it, not changed in place, while they are in use.

    Raises:
        Error: no such file, no ``.lean`` file, of a later version, damaged, or a plan that does not hold together; one
            sentence that begins with the file's name.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):  # a pipe would be waited for
        raise Error(f"{path}: must be a file that exists, got {'no file' if os.path.exists(path) else 'nothing'}")
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise Error(f"{path}: must be a readable file, got {error.strerror}") from None
    except ValueError:  # mmap has nothing to map
        raise Error(f"{path}: must be a .lean file, got an empty one") from None
    try:
        return _read(content, verify)
    except Error as error:
        raise Error(f"{os.path.basename(path)}: {error}") from None


def _read(content: mmap.mmap, verify: bool) -> tuple[Plan, dict[str, NDArray[Any]]]:
    size = len(content)
    length = int.from_bytes(content[:8], "little")
    if size < 8 or not 2 <= length <= min(HEADER, size - 8):
        raise Error(f"must be a .lean file with a header of at most {HEADER} bytes, got {size} bytes with {length}")
    start = 8 + length
    table, metadata = _header(content[8:start], size - start)
    plan = from_json(metadata["plan"])
    if (metadata["format_version"] == BYTES_VERSION) != any(value.quant is not None for value in plan.values):
        raise Error(f"format_version must be {BYTES_VERSION!r} exactly where there are bytes, got the other one")
    check(plan, {name: entry[0] for name, entry in table.items()}, {name: entry[2] for name, entry in table.items()})
    if verify and _sum(memoryview(content)[start:]) != metadata["sha256"]:
        raise Error("its tensors must be as they were written, got another SHA-256: the file is damaged")
    return plan, {
        name: np.frombuffer(content, TYPES[word][0], math.prod(shape), start + begin).reshape(shape)
        for name, (shape, begin, word) in table.items()
    }


def _header(raw: bytes, size: int) -> tuple[dict[str, tuple[tuple[int, ...], int, str]], dict[str, str]]:
    """Name -> shape, first byte and type, and the metadata; ``size``: bytes that follow the header."""
    data = parse(raw, "header")
    if not isinstance(data, dict) or not isinstance(data.get("__metadata__"), dict):
        raise Error("must be a .lean file, got a safetensors header without __metadata__")
    metadata = data["__metadata__"]
    if metadata.get("format") != FORMAT:
        raise Error(f"must be a .lean file, format {FORMAT!r}, got {shown(metadata.get('format'))}")
    if metadata.get("format_version") not in (FORMAT_VERSION, BYTES_VERSION):
        wanted = f"{FORMAT_VERSION!r} or {BYTES_VERSION!r}"
        raise Error(f"format_version must be {wanted}, got {shown(metadata.get('format_version'))}")
    if set(metadata) != _KEYS or not all(isinstance(value, str) for value in metadata.values()):
        raise Error(f"its metadata must be the texts {', '.join(sorted(_KEYS))}, got {shown(sorted(metadata))}")
    if _header_sum(data) != metadata["header_crc32"]:
        raise Error("its header must be as it was written, got another CRC-32: the file is damaged")
    entries = {name: entry for name, entry in data.items() if name != "__metadata__"}
    if len(entries) > _TENSORS:
        raise Error(f"it must have at most {_TENSORS} tensors, got {len(entries)}")
    table = {name: _entry(name, entry) for name, entry in entries.items()}
    at = 0
    for name, (_, begin, end, _) in sorted(table.items(), key=lambda item: item[1][1:3]):
        if begin != at:
            raise Error(f"its tensors must follow one another, got {shown(name)} at byte {begin} instead of {at}")
        at = end
    if at != size:
        raise Error(f"its tensors must fill the file, {at} bytes, got {size}: the file is cut or damaged")
    return {name: (shape, begin, word) for name, (shape, begin, _, word) in table.items()}, metadata


def _entry(name: str, entry: Any) -> tuple[tuple[int, ...], int, int, str]:
    told = f"tensor {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Error(f"{told}: must have dtype, shape and data_offsets, got {shown(entry)}")
    word = entry["dtype"]
    if not isinstance(word, str) or word not in TYPES:
        raise Error(f"{told}: dtype must be {', '.join(TYPES)}, got {shown(word)}")
    each = TYPES[word][1]
    shape, offsets = entry["shape"], entry["data_offsets"]
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise Error(f"{told}: {what} must be whole numbers, got {shown(numbers)}")
    if len(shape) > _RANK or math.prod(shape) > LARGEST or 0 in shape:
        raise Error(f"{told}: shape must have at most {_RANK} sizes from 1 and 2^31 - 1 numbers, got {shown(shape)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != each * math.prod(shape) or offsets[0] % each:
        span = f"{each * math.prod(shape)} bytes from a multiple of {each}"
        raise Error(f"{told}: data_offsets must span {span}, got {shown(offsets)}")
    return tuple(shape), offsets[0], offsets[1], word


def _head(plan: Plan, tensors: Tensors) -> bytes:
    version = BYTES_VERSION if any(value.quant is not None for value in plan.values) else FORMAT_VERSION
    metadata = {"format": FORMAT, "format_version": version, "plan": to_json(plan)}
    metadata["sha256"] = _sum(*_bodies(tensors))
    data: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name in _order(tensors):
        tensor = tensors[name]
        offsets = [at, at + tensor.nbytes]
        data[name] = {"dtype": _WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        at = offsets[1]
    metadata["header_crc32"] = _header_sum(data)
    try:
        head = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Error("its names must be text that UTF-8 can hold, got half a surrogate pair") from None
    return head + b" " * (-(8 + len(head)) % _LINE)


def _order(tensors: Tensors) -> list[str]:
    """Those that end on a full cache line first: then each of them begins on one too. Of the others bytes last."""
    return sorted(tensors, key=lambda name: (tensors[name].nbytes % _LINE != 0, -tensors[name].itemsize))


def _bodies(tensors: Tensors) -> Iterator[memoryview]:
    for name in _order(tensors):
        yield np.ascontiguousarray(tensors[name], TYPES[_WORDS[tensors[name].dtype]][0]).reshape(-1).view(np.uint8).data


def _header_sum(data: Mapping[str, Any]) -> str:
    """CRC-32 of all but itself: importing hashlib would take longer than the rest of the reading."""
    metadata = {key: value for key, value in data["__metadata__"].items() if key != "header_crc32"}
    return f"{crc32(json.dumps({**data, '__metadata__': metadata}, sort_keys=True).encode()):08x}"


def _sum(*pieces: bytes | memoryview) -> str:
    import hashlib

    made = hashlib.sha256()
    for piece in pieces:
        made.update(piece)
    return made.hexdigest()
