"""Files that are replaced in one step: the old one or the new one, never a mixture."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from leanconv.errors import Error

__all__ = ["write_whole"]


def write_whole(
    path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview], before: Callable[[Path], None] | None = None
) -> None:
    """Write a file at once: under another name beside it, then renamed.

    Args:
        path: the file.
        pieces: what it holds, one after another.
        before: called with the path between writing and renaming.

    Raises:
        Error: it cannot be written; what stood there stays.
    """
    path, temporary = Path(path), ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if before is not None:
            before(path)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise Error(f"{path}: must be writable, got {error.strerror}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
