"""Memory for what lies between a block's kernels, handed out again when the last tensor over it is gone.

A training step asks for the same maps again and again, and glibc, as it comes, gives large ones back to the kernel,
which clears each page anew when it is touched. :func:`leanconv.tune_allocator` ends that for the whole process, a
decision that is the user's; until it is made, the large tensors that no user sees (d, p, gradients of maps, scratch)
come from segments of this module's own, best fit, neighbours joined again. A tuned allocator does as well, so then
nothing comes from here, nor where malloc is not glibc's. What is held exceeds the most that was in use at once by a
quarter or one segment at most; ``leanconv.allocator`` counts what is free of it and gives it back. Measured in
docs/decisions/011-kernels.md.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanconv import allocator

__all__ = ["Arena", "empty", "empty_like"]

SMALLEST = 1 << 16
"""Bytes from which a tensor's memory comes from here; less is what malloc is good at."""
_SEGMENT = 32 << 20
_STEP = 4096
"""Blocks are multiples of it."""
_PRIVATE: dict[str, Any] = (  # Windows has no flags; elsewhere memory would be shared with forked processes
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
)


class _Lent(np.ndarray[Any, Any]):
    """A block that a tensor holds; when it goes, the block comes back."""

    block: tuple[int, int, Any]
    back: deque[tuple[int, int, Any]]

    def __del__(self) -> None:
        self.back.append(self.block)  # and no more: it may run anywhere, in the middle of take() too


class Arena:
    """Blocks of segments.

    Attributes:
        held: bytes of all segments.
    """

    def __init__(self, segment: int = _SEGMENT, slack: float = 0.25) -> None:
        """An empty one.

        Args:
            segment: bytes that are taken from the system at least.
            slack: how much more may be held than was ever in use at once, as a part of it.
        """
        self.held, self._lent, self._most = 0, 0, 0
        self._segment, self._slack = segment, slack
        self._blocks: dict[int, tuple[int, Any]] = {}  # free: address to bytes and segment
        self._ends: dict[int, int] = {}  # end to address
        self._back: deque[tuple[int, int, Any]] = deque()
        self._lock = Lock()

    @property
    def free(self) -> int:
        """Bytes that no tensor has."""
        with self._lock:
            self._collect()
            return self.held - self._lent

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor of so many values, whatever they are, in one dimension. Its storage cannot be resized."""
        size = -(-count * dtype.itemsize // _STEP) * _STEP
        with self._lock:
            self._collect()
            self._lent += size
            self._most = max(self._most, self._lent)
            fitting = [(left, at) for at, (left, _) in self._blocks.items() if left >= size]
            at = min(fitting)[1] if fitting else self._grow(size)
            left, segment = self._remove(at)
            if left > size:
                self._insert(at + size, left - size, segment)
        start = at - segment.ctypes.data
        lent = segment[start : start + size].view(_Lent)
        lent.block, lent.back = (at, size, segment), self._back
        return torch.frombuffer(lent, dtype=dtype, count=count)

    def release(self) -> int:
        """Give segments that are free as a whole back to the system; how many bytes that were."""
        with self._lock:
            self._collect()
            before, self._most = self.held, self._lent
            self._shrink(0)
            return before - self.held

    def _grow(self, size: int) -> int:
        """A new free segment that has room for a block, perhaps in the place of others that have not."""
        whole = max(self._segment, size)
        self._shrink(int(self._most * (1 + self._slack)) - whole)
        segment = _mapped(whole)
        self.held += whole
        self._insert(segment.ctypes.data, whole, segment)
        return int(segment.ctypes.data)

    def _collect(self) -> None:
        """Take back what tensors let go, joined to its free neighbours."""
        while self._back:
            at, size, segment = self._back.popleft()
            self._lent -= size
            if at + size in self._blocks:  # never another segment's: between two there is a gap
                size += self._remove(at + size)[0]
            if at in self._ends:
                before = self._ends[at]
                size, at = size + self._remove(before)[0], before
            self._insert(at, size, segment)

    def _shrink(self, limit: int) -> None:
        """Let free segments go until no more than this is held."""
        for at, (size, segment) in list(self._blocks.items()):
            if self.held > limit and size == segment.nbytes:
                self._remove(at)
                self.held -= size

    def _insert(self, at: int, size: int, segment: Any) -> None:
        self._blocks[at], self._ends[at + size] = (size, segment), at

    def _remove(self, at: int) -> tuple[int, Any]:
        size, segment = self._blocks.pop(at)
        del self._ends[at + size]
        return size, segment


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """As torch.empty on the CPU; of four dimensions it is channels_last."""
    count = math.prod(shape)
    if count * dtype.itemsize < SMALLEST or not allocator.gives_back():
        last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(*shape, dtype=dtype, memory_format=last)
    flat = _arena.take(count, dtype)
    if len(shape) != 4:
        return flat.view(*shape)
    n, c, h, w = shape
    return flat.view(n, h, w, c).permute(0, 3, 1, 2)


def empty_like(x: Tensor) -> Tensor:
    """As torch.empty_like of a tensor on the CPU; of four dimensions it is channels_last."""
    return empty(x.shape, x.dtype)


def _mapped(size: int) -> Any:
    """Memory of its own, as bytes, with a gap behind it."""
    return np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE, **_PRIVATE), dtype=np.uint8, count=size)


_arena = Arena()
allocator.keepers.append(_arena)
