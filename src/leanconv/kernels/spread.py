"""Rows or columns of a matrix spread out between zeros: the gradient, in full size, of what was computed in part.

torch writes zeros first and then goes over all of them again; this writes each entry once. Drawing rows or columns
together is torch's ``index_select``, which is as fast as memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leanconv import _native
from leanconv.kernels.choice import decide
from leanconv.kernels.ops import eager
from leanconv.kernels.threads import parallel_for

__all__ = ["spread"]


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
    if not (part.dim() == 2 and part.is_contiguous() and part.device == index.device and eager(part)):
        return spread_reference(part, index, dim, size)
    if decide("spread", tuple(shape), part.dtype, part.device.type).implementation != "native":
        return spread_reference(part, index, dim, size)
    library = _native.load()
    assert library is not None  # the choice said so
    full, keep = part.new_empty(shape), torch.zeros(size, dtype=torch.uint8).index_fill_(0, index, 1)
    addresses = (keep.data_ptr(), full.data_ptr(), part.data_ptr())
    library.spread(dim == 0, (shape[0], shape[1], len(index)), addresses, parallel_for())
    return full


def spread_reference(part: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """:func:`spread` in torch's operations."""
    shape = list(part.shape)
    shape[dim] = size
    return part.new_zeros(shape).index_copy_(dim, index, part)
