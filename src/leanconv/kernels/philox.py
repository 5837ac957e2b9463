"""Random masks from Philox4x32-10: a counter-based generator, so any element's number can be computed on its own.

Counter layout (docs/decisions/001-dropout-keys.md). Key words: k0 = low 32 bits, k1 = high 32 bits of the drawn int64.
Counter words: c0, c1 = low and high 32 bits of (element index within the sample // elements per block); c2, c3 = low
and high 32 bits of the sample's index, which is its position in the optimizer step's batch (0 for a mask that the
batch shares).

- 16-bit numbers (:func:`keep_mask`), 8 per block: element e uses half e % 2 (0: low 16 bits) of word (e // 2) % 4 of
  block e // 8.
- 32-bit words (:func:`keep_exact`), 4 per block: element e uses word e % 4 of block e // 4, and the top bit of c3 is
  set, so that the two never share a block.

A mask thus depends on key, sample index and element index alone: not on threads, instruction set, device, batch split
or the number of processes. Three implementations give the same bits: :func:`philox` (plain ints, one counter, to
read), the torch twin (any device) and the native one; :mod:`leanconv.kernels.choice` picks.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels.choice import decide
from leanconv.kernels.keys import dropout_key, keyed, mix
from leanconv.kernels.ops import register
from leanconv.kernels.threads import parallel_for

__all__ = ["dropout_key", "keep_exact", "keep_mask", "keyed", "mix", "philox", "scale", "threshold"]

_MULTIPLY = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_WORD = 2**64 - 1
_EXACT = 1 << 31  # the top bit of c3: exact counts use other blocks than 16-bit numbers
_CHUNK = 1 << 14  # blocks at a time in the torch twin: its temporaries then stay in the second-level cache

Words = tuple[int, int, int, int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 of one counter in plain ints: the reference that everything here is tested against.

    Args:
        counter: c0, c1, c2, c3, each from 0 to 2^32 - 1.
        key: k0, k1, each from 0 to 2^32 - 1.

    Returns:
        Four random 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def threshold(p: float) -> int:
    """The 16-bit threshold below which an element is stopped: min(round(p * 65536), 65535).

    Args:
        p: probability to stop an element, 0 <= p < 1.

    Raises:
        Error: p is outside.
    """
    if not 0 <= p < 1:
        raise Error(f"threshold: p must satisfy 0 <= p < 1, got p={p}")
    return min(round(p * 65536), 65535)


def scale(threshold: int) -> float:
    """What kept elements are multiplied with: 65536 / (65536 - threshold), one over the REALISED keep probability.

    Args:
        threshold: from 0 to 65535.
    """
    _check_threshold(threshold)
    return 65536 / (65536 - threshold)


def keep_mask(key: Tensor, samples: int, elements: int, threshold: int, batch: bool = False) -> Tensor:
    """The mask of a Bernoulli dropout: True where the element's 16-bit number is at least the threshold.

    Never is a whole row stopped: where every number is below the threshold, the element with the largest number is
    kept (the first of equals).

    Args:
        key: int64 (2,): key and sample offset, from :func:`dropout_key`; the mask is made on its device.
        samples: rows N; row i is the sample with index key[1] + i.
        elements: elements M per sample.
        threshold: from 0 (nothing stops) to 65535.
        batch: one row for the whole batch; sample index 0, the offset is ignored.

    Returns:
        bool (N, M), or (1, M) with ``batch``.

    Raises:
        Error: threshold is outside.
    """
    _check_threshold(threshold)
    return torch.ops.leanconv.keep_mask(key, samples, elements, threshold, batch)  # type: ignore[no-any-return]


def keep_exact(key: Tensor, samples: int, elements: int, stopped: int, batch: bool = False) -> Tensor:
    """The mask of a dropout with exact counts: each row stops exactly ``stopped`` elements, every subset equally
    likely.

    Stopped are the elements with the smallest 32-bit words (the first of equals).

    Args:
        key: int64 (2,): key and sample offset, from :func:`dropout_key`; the mask is made on its device.
        samples: rows N; row i is the sample with index key[1] + i.
        elements: elements M per sample, from 1.
        stopped: from 0 to M - 1.
        batch: one row for the whole batch; sample index 0, the offset is ignored.

    Returns:
        bool (N, M), or (1, M) with ``batch``.

    Raises:
        Error: stopped is outside.
    """
    if not 0 <= stopped < elements:
        raise Error(f"keep_exact: stopped must satisfy 0 <= stopped < elements={elements}, got stopped={stopped}")
    return torch.ops.leanconv.keep_exact(key, samples, elements, stopped, batch)  # type: ignore[no-any-return]


def _check_threshold(threshold: int) -> None:
    if not 0 <= threshold <= 65535:
        raise Error(f"dropout mask: threshold must satisfy 0 <= threshold <= 65535, got threshold={threshold}")


def twin_mask(key: Tensor, samples: int, elements: int, threshold: int, batch: bool) -> Tensor:
    """:func:`keep_mask` in torch operations, on any device, without a synchronisation."""
    rows, first = _rows(key, samples, batch)
    blocks = -(-elements // 8)
    numbers = torch.empty((rows * blocks, 4, 2), dtype=torch.int32, device=key.device)
    for start in range(0, rows * blocks, _CHUNK):
        part = numbers[start : start + _CHUNK]
        for i, word in enumerate(_words(key, first, start, part.shape[0], blocks, 0)):
            part[:, i, 0], part[:, i, 1] = word & 0xFFFF, word >> 16
    numbers = numbers.view(rows, blocks * 8)[:, :elements]
    keep = numbers >= threshold
    # The largest number is kept anyway in a row that keeps something, so no row needs to be looked at.
    return keep.scatter_(1, numbers.argmax(1, keepdim=True), True) if elements else keep


def twin_exact(key: Tensor, samples: int, elements: int, stopped: int, batch: bool) -> Tensor:
    """:func:`keep_exact` in torch operations, on any device, without a synchronisation."""
    rows, first = _rows(key, samples, batch)
    blocks = -(-elements // 4)
    words = torch.stack(_words(key, first, 0, rows * blocks, blocks, _EXACT), 1).view(rows, blocks * 4)[:, :elements]
    smallest = words.sort(dim=1, stable=True).indices[:, :stopped]
    return torch.ones((rows, elements), dtype=torch.bool, device=key.device).scatter_(1, smallest, False)


def _rows(key: Tensor, samples: int, batch: bool) -> tuple[int, Tensor]:
    return (1, torch.zeros_like(key[1])) if batch else (samples, key[1])


def _words(key: Tensor, first: Tensor, start: int, count: int, blocks: int, high: int) -> list[Tensor]:
    """The four words of blocks start to start + count, counted over all rows of ``blocks`` blocks; int64 (count,) each.

    Products of two 32-bit words fill 64 bits: in int64 they wrap, which keeps every bit, and a mask undoes the sign.
    """
    flat = torch.arange(start, start + count, device=key.device)
    row = flat // blocks
    block, sample = flat - row * blocks, row + first
    c0, c1, c2, c3 = block & _MASK, block >> 32, sample & _MASK, (sample >> 32) & _MASK | high
    k0, k1 = key[0] & _MASK, (key[0] >> 32) & _MASK
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]
        c0, c1 = (p1 >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0), p1.bitwise_and_(_MASK)
        c2, c3 = (p0 >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1), p0.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def _fake(key: Tensor, samples: int, elements: int, limit: int, batch: bool) -> Tensor:
    return key.new_empty((1 if batch else samples, elements), dtype=torch.bool)


def _native_rows(op: str, key: Tensor, samples: int, elements: int, limit: int, batch: bool) -> Tensor:
    library = _native.load()
    assert library is not None  # the choice said so
    drawn, offset = key.tolist()
    out = torch.empty((1 if batch else samples, elements), dtype=torch.bool)
    fill = library.keep_mask if op == "keep_mask" else library.keep_exact
    sample = 0 if batch else offset
    fill(drawn & _WORD, sample, 1 if batch else samples, elements, limit, out.data_ptr(), parallel_for())
    return out


def _run(op: str, key: Tensor, samples: int, elements: int, limit: int, batch: bool) -> Tensor:
    if key.dtype != torch.int64 or key.shape != (2,):
        raise Error(f"{op}: key must be int64 of shape (2,), got {key.dtype} of shape {tuple(key.shape)}")
    choice = decide(op, (1 if batch else samples, elements), torch.bool, key.device.type)
    if choice.implementation == "native":
        return _native_rows(op, key, samples, elements, limit, batch)
    return _TWINS[op](key, samples, elements, limit, batch)


_TWINS = {"keep_mask": twin_mask, "keep_exact": twin_exact}
_SCHEMA = "(Tensor key, SymInt samples, SymInt elements, SymInt {}, bool batch) -> Tensor"
register("keep_mask" + _SCHEMA.format("threshold"), {"CompositeExplicitAutograd": partial(_run, "keep_mask")}, _fake)
register("keep_exact" + _SCHEMA.format("stopped"), {"CompositeExplicitAutograd": partial(_run, "keep_exact")}, _fake)
