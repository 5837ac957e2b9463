"""Tell glibc's allocator to keep the memory that tensors free.

As it comes, glibc gives every large block back to the kernel when it is freed; the next tensor of that size then is
page-faulted in afresh, tens of thousands of 4 KiB pages in one training step. :func:`tune_allocator` makes it keep
them. The price is resident memory: what was the peak stays with the process (:func:`resident_cost`), until
:func:`release_memory`. Imports no torch. Why ``mallopt`` and not the environment: docs/decisions/004-allocator.md.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

__all__ = ["Keeper", "Resident", "Tuned", "gives_back", "keepers", "release_memory", "resident_cost", "tune_allocator"]

# Parameters of mallopt(3), from malloc.h. The environment's variables of the same meaning count as the user's choice.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_ENVIRONMENT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
_TUNABLES = ("mmap_threshold", "trim_threshold", "top_pad", "mmap_max")
_PAD = 64 * 2**20
_MALLINFO2 = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


@dataclass(frozen=True)
class Tuned:
    """Whether freed memory is kept, and why or why not."""

    tuned: bool
    reason: str


@dataclass(frozen=True)
class Resident:
    """Memory of this process in bytes.

    Attributes:
        peak: the most that was resident at once.
        now: what is resident, None where the system does not tell.
        kept: what the allocator and the keepers hold free for later, None where it does not tell; the price of tuning.
    """

    peak: int
    now: int | None
    kept: int | None

    def __str__(self) -> str:
        parts = [f"peak {_mb(self.peak)}"]
        parts += [f"resident {_mb(self.now)}"] if self.now is not None else []
        parts += [f"of it kept free {_mb(self.kept)}"] if self.kept is not None else []
        return ", ".join(parts)


class Keeper(Protocol):
    """Keeps memory beside the allocator, too."""

    @property
    def free(self) -> int:
        """Bytes that it holds and nobody uses."""

    def release(self) -> int:
        """Give them back to the system; how many there were."""


keepers: list[Keeper] = []
"""Whoever keeps memory enters here."""


class _Dl(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


class _Mallinfo2(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO2)


def tune_allocator() -> Tuned:
    """Make glibc keep freed memory, for the whole process and from now on. May be called at any time and repeatedly.

    Sets M_MMAP_MAX = 0 (large blocks come from the heap, not from maps of their own), M_TRIM_THRESHOLD = -1 (the heap
    is never given back) and M_TOP_PAD = 64 MiB (it grows in such steps). Blocks above 64 MiB that a thread other than
    the main one asks for are still mapped afresh: glibc's other arenas are no larger.

    Returns:
        Whether it holds, and the reason. Nothing is changed where malloc is not glibc's (macOS, Windows, musl, a
        preloaded jemalloc) or where the environment already sets one of glibc's four variables.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return Tuned(False, f"malloc is not glibc's on {platform.system()}")
    libc = ctypes.CDLL(None)
    owner = _owner(libc)
    if not owner.startswith("libc"):
        return Tuned(False, f"malloc is {owner}'s, not glibc's")
    chosen = _chosen()
    if chosen:
        return Tuned(False, f"left as the environment sets it ({chosen})")
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _PAD))
    if not all(libc.mallopt(name, value) for name, value in wanted):
        return Tuned(False, f"glibc {platform.libc_ver()[1]} refused mallopt")
    _told.append(True)
    for keeper in keepers:
        keeper.release()
    return Tuned(True, f"glibc {platform.libc_ver()[1]} keeps freed memory")


def gives_back() -> bool:
    """Whether large blocks that are freed go back to the kernel: malloc is glibc's, and nobody told it to keep them."""
    return not _told and _is_glibc()


def resident_cost() -> Resident:
    """What this process holds in memory, for logs: call it at the end of training."""
    return Resident(_peak(), _now(), _kept())


def release_memory() -> bool:
    """Give memory that the allocator and the keepers hold free back to the system; what is freed later is kept again.

    Returns:
        Whether any was given back.
    """
    released = sum(keeper.release() for keeper in keepers) > 0
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return released
    return bool(ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))) or released


def _owner(libc: ctypes.CDLL) -> str:
    """File name of the library whose malloc this process uses."""
    info = _Dl()
    address = ctypes.cast(libc.malloc, ctypes.c_void_p)
    found = libc.dladdr(address, ctypes.byref(info))
    return os.path.basename(os.fsdecode(info.file)) if found and info.file else "unknown"


@lru_cache(maxsize=1)
def _is_glibc() -> bool:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    return _owner(ctypes.CDLL(None)).startswith("libc")


def _chosen() -> str:
    """The variable by which the user has already decided, or nothing."""
    for name in _ENVIRONMENT:
        if name in os.environ:
            return name
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return next((f"GLIBC_TUNABLES {t}" for t in _TUNABLES if f"glibc.malloc.{t}=" in tunables), "")


def _peak() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _now() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _kept() -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # glibc before 2.33, musl
        return None
    mallinfo.restype = _Mallinfo2
    return int(mallinfo().fordblks) + sum(keeper.free for keeper in keepers)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


_told = [True] if _chosen() else []  # variables that are set later say nothing: glibc reads them when a process starts
