"""Dropout of units in one operation: y = x * (keep ? scale : 0), where the mask is made on the way and never stored.

The mask is that of :mod:`leanconv.kernels.philox`, a function of key, sample and element alone, so the backward pass
makes it again: only the key is kept. Native code makes it a tile at a time in the first-level cache and multiplies at
once. Where it does not run, torch's operations make the whole mask and keep it, since making it takes them longer than
the rest of the layer.

How units of a sample are counted does not depend on how they lie in memory: row-major in (N, F) and (N, C, L), channels
last in maps and volumes.

Source: Srivastava et al. 2014, section 4; Salmon et al., SC 2011 (numbers that can be made again).
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import philox
from leanconv.kernels.choice import NATIVE, decide
from leanconv.kernels.ops import eager, register, register_autograd
from leanconv.kernels.threads import parallel_for

__all__ = ["dropout", "dropout_reference", "mask_of", "masked"]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_WORD = 2**64 - 1


def dropout(x: Tensor, key: Tensor, limit: int, scale: float, exact: bool = False, batch: bool = False) -> Tensor:
    """y = x * (keep ? scale : 0), keep from :func:`mask_of`. Differentiable in x any number of times.

    A stopped value is multiplied by 0, as torch does it: what is not finite becomes not a number.

    Args:
        x: (N, ...), or (F,) for one sample; floating or complex.
        key: int64 (2,): key and sample offset, from :func:`~leanconv.kernels.philox.dropout_key`, on x's device.
        limit: the 16-bit threshold; with ``exact``, how many units of a sample stop.
        scale: what kept values are multiplied with.
        exact: exact counts instead of independent units.
        batch: one mask for all samples.

    Returns:
        y in the shape, dtype and memory format of x.

    Raises:
        Error: x has no dimension, or limit is out of range.
    """
    if x.dim() == 0:
        raise Error("dropout: x must have at least one dimension, got a scalar")
    if _transformed(x) or not _has_native(x):
        return _composed(x, key, limit, scale, exact, batch)
    if not eager(x):
        return torch.ops.leanconv.dropout(x, key, limit, scale, exact, batch)  # type: ignore[no-any-return]
    if decide("dropout", tuple(x.shape), x.dtype, x.device.type).implementation != "native":
        return _composed(x, key, limit, scale, exact, batch)
    _check(x, key, limit, exact)
    if x.requires_grad and torch.is_grad_enabled():
        return _Dropout.apply(x, key, limit, scale, exact, batch)  # type: ignore[no-untyped-call, no-any-return]
    return _native_dropout(x, key, limit, scale, exact, batch)


def dropout_reference(
    x: Tensor, key: Tensor, limit: int, scale: float, exact: bool = False, batch: bool = False
) -> Tensor:
    """:func:`dropout` step by step, for reading; torch differentiates it."""
    return x * mask_of(x.shape, key, limit, exact, batch) * scale


def mask_of(shape: tuple[int, ...], key: Tensor, limit: int, exact: bool = False, batch: bool = False) -> Tensor:
    """The mask that :func:`dropout` makes for an input of this shape: bool, True where kept, broadcastable to it.

    Args:
        shape: (N, ...), or (F,) for one sample.
        key, limit, exact, batch: as of :func:`dropout`.

    Returns:
        (N, ...) or, with ``batch``, (1, ...); (F,) for one sample.
    """
    samples, units = _sizes(shape)
    make = philox.keep_exact if exact else philox.keep_mask
    keep = make(key, samples, units, limit, batch)
    if len(shape) == 1:
        return keep.view(shape)
    if len(shape) < 4:
        return keep.view(keep.shape[0], *shape[1:])
    # Units of maps are counted channels last, so that a channels_last input meets a mask of its own memory format.
    return keep.view(keep.shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """x * keep * scale in the order that saves the least for backward: the mask, never a second float map.

    Args:
        x: any shape.
        keep: bool, broadcastable to x.
        scale: a number.
    """
    if keep.numel() < x.numel() and x.dtype in (torch.float32, torch.float64):
        return x * (keep.to(x.dtype) * scale)
    return x * keep * scale


def _sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Samples, and the units of one."""
    return (1, shape[0]) if len(shape) == 1 else (shape[0], prod(shape[1:]))


def _transformed(x: Tensor) -> bool:
    """Inside torch.func, or one of many gradients at once: torch's operations have the rules for that."""
    active: bool = torch._C._are_functorch_transforms_active()
    return active or (not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(x))


def _has_native(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in NATIVE["dropout"]


def _composed(x: Tensor, key: Tensor, limit: int, scale: float, exact: bool, batch: bool) -> Tensor:
    return masked(x, mask_of(x.shape, key, limit, exact, batch), scale)


def _check(x: Tensor, key: Tensor, limit: int, exact: bool) -> None:
    units = _sizes(x.shape)[1]
    if key.dtype != torch.int64 or key.shape != (2,):
        raise Error(f"dropout: key must be int64 of shape (2,), got {key.dtype} of shape {tuple(key.shape)}")
    if exact and not 0 <= limit < units:
        raise Error(f"dropout: limit must satisfy 0 <= limit < units={units} with exact counts, got limit={limit}")
    if not exact and not 0 <= limit <= 65535:
        raise Error(f"dropout: limit must satisfy 0 <= limit <= 65535, got limit={limit}")


def _forward(x: Tensor, key: Tensor, limit: int, scale: float, exact: bool, batch: bool) -> Tensor:
    """The registered operation: nothing stored, whatever runs."""
    if decide("dropout", tuple(x.shape), x.dtype, x.device.type).implementation == "native":
        _check(x, key, limit, exact)
        return _native_dropout(x, key, limit, scale, exact, batch)
    return _as(_composed(x, key, limit, scale, exact, batch), x)


def _native_dropout(x: Tensor, key: Tensor, limit: int, scale: float, exact: bool, batch: bool) -> Tensor:
    library = _native.load()
    assert library is not None  # the choice said so
    like, (x, channels) = x, _lying(x)
    y = torch.empty_like(x)
    samples, units = _sizes(x.shape)
    drawn, offset = key.tolist()
    cuts = torch.empty((samples, 2), dtype=torch.int64) if exact and units > _native.DROPOUT_ROW else None
    library.dropout(
        (samples, units, channels),
        (drawn & _WORD, offset, limit),
        scale,
        (x.data_ptr(), y.data_ptr(), None if cuts is None else cuts.data_ptr()),
        dtype=_DTYPES[x.dtype],
        exact=exact,
        batch=batch,
        parallel_for=parallel_for(),
    )
    return y if x is like else _as(y, like)


def _lying(x: Tensor) -> tuple[Tensor, int]:
    """The same values as native code reads them, and how many channels lie apart; 0: in the order of counting."""
    x = x.resolve_neg()
    if x.dim() < 4:
        return x.contiguous(), 0
    last = x.movedim(1, -1)
    if last.is_contiguous():
        return x, 0
    if x.is_contiguous() and x.shape[1] <= _native.DROPOUT_CHANNELS:
        return x, x.shape[1]
    return last.contiguous().movedim(-1, 1), 0


def _as(y: Tensor, x: Tensor) -> Tensor:
    """The same values laid out as x is."""
    like = torch.empty_like(x)
    return y if y.stride() == like.stride() else like.copy_(y)


def _fake(x: Tensor, key: Tensor, limit: int, scale: float, exact: bool, batch: bool) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, key, *ctx.rest = inputs
    ctx.save_for_backward(key)


def _differentiate(function: Any, ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    return function(dy, key, *ctx.rest), None, None, None, None, None


class _Dropout(torch.autograd.Function):
    """The same without torch's dispatcher on the way, which takes longer than a small layer."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _keep(ctx, inputs, inputs[0])
        ctx.save_for_forward(inputs[1])
        return _native_dropout(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _differentiate(dropout, ctx, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return dropout(tangents[0], ctx.saved_tensors[0], *ctx.rest)


register(
    "dropout(Tensor x, Tensor key, SymInt limit, float scale, bool exact, bool batch) -> Tensor",
    {"CompositeExplicitAutograd": _forward},
    _fake,
)
register_autograd("dropout", _keep, partial(_differentiate, torch.ops.leanconv.dropout))
