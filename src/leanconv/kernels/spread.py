"""Rows or columns of a matrix spread out between zeros, and gathered: what a computation of some of them needs.

A gradient of some, in full size: torch writes zeros first and then goes over all of them again; this writes each entry
once. Rows are gathered by torch's ``index_select``, which is as fast as memory; for columns it is not, it reads entry
by entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanconv import _native
from leanconv.kernels.choice import decide
from leanconv.kernels.ops import eager
from leanconv.kernels.threads import parallel_for

__all__ = ["gather_columns", "spread"]


def spread(part: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """A tensor of ``size`` along ``dim`` that holds ``part`` at ``index`` and 0 elsewhere; not differentiable.

    Args:
        part: any shape; its size along ``dim`` is that of ``index``.
        index: int64, ascending, each once.
        dim: which dimension.
        size: how many there are then.
    """
    shape = list(part.shape)
    shape[dim] = size
    if not _native_moves("spread", part, index, tuple(shape)):
        return spread_reference(part, index, dim, size)
    library = _native.load()
    assert library is not None  # the choice said so
    full, keep = part.new_empty(shape), _marks(index, size)
    addresses = (keep.data_ptr(), full.data_ptr(), part.data_ptr())
    library.spread(dim == 0, (shape[0], shape[1], len(index), part.stride(0)), addresses, parallel_for())
    return full


def spread_reference(part: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """:func:`spread` in torch's operations."""
    shape = list(part.shape)
    shape[dim] = size
    return part.new_zeros(shape).index_copy_(dim, index, part)


def gather_columns(full: Tensor, index: Tensor) -> Tensor:
    """``full.index_select(1, index)``; not differentiable.

    Args:
        full: (rows, columns, ...).
        index: int64, ascending, each once.
    """
    if not full.is_contiguous() or not _native_moves("gather", full, index, tuple(full.shape)):
        return full.index_select(1, index)
    library = _native.load()
    assert library is not None  # the choice said so
    rows, columns = full.shape
    part, keep = full.new_empty(rows, len(index)), _marks(index, columns)
    addresses = (keep.data_ptr(), full.data_ptr(), part.data_ptr())
    library.gather(False, (rows, columns, len(index), len(index)), addresses, parallel_for())
    return part


def _native_moves(op: str, x: Tensor, index: Tensor, shape: tuple[int, ...]) -> bool:
    if not (x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= x.shape[1] and x.device == index.device and eager(x)):
        return False
    return decide(op, shape, x.dtype, x.device.type).implementation == "native"


def _marks(index: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.uint8).index_fill_(0, index, 1)
