"""Taking ``.lean`` files apart and putting them together again, sums and all, as an adversary could."""

from __future__ import annotations

import binascii
import json
from typing import Any


def opened(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, and the tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def sealed(head: dict[str, Any]) -> dict[str, Any]:
    """With the sum that the header should have."""
    metadata = head.get("__metadata__")
    if isinstance(metadata, dict):
        metadata.pop("header_crc32", None)
        metadata["header_crc32"] = f"{binascii.crc32(json.dumps(head, sort_keys=True).encode()):08x}"
    return head


def pack(head: dict[str, Any], body: bytes) -> bytes:
    raw = json.dumps(head).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def at(data: Any, path: tuple[Any, ...]) -> Any:
    """What stands at a path of keys and indices."""
    for key in path:
        data = data[key]
    return data


def damaged(content: bytes, edits: list[tuple[str, float, bool, bytes]]) -> bytes:
    """A file after some accidents: (what, where from 0 to 1, whether in the header alone, bytes that come in)."""
    made = bytearray(content)
    for kind, where, early, new in edits:
        length = min(len(made), 8 + int.from_bytes(content[:8], "little")) if early else len(made)
        at = min(int(where * length), len(made) - 1)
        if kind == "bit":
            made[at] ^= 1 << (new[0] % 8)
        elif kind == "cut":
            del made[at:]
        else:
            made[at : at + (0 if kind == "insert" else len(new))] = b"" if kind == "delete" else new
        made = made or bytearray(b"{")
    return bytes(made)
