"""Products over kept rows and columns alone: what :func:`~leanconv.nn.skip` computes, and when it pays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanconv.kernels.spread import gather_columns, spread

__all__ = ["gather", "linear", "pays", "place"]

# Rows of a product from which leaving out entries of its weight is quicker than computing them (2 threads, AVX-512, two
# layers 1024 and 4096 wide, p = 0.5, benchmarks/dropout_skip.py). Gathering and spreading go over the weight once each;
# each entry left out saves its multiply-adds, one per row of the product, forward and backward.
_FROM = 32
# From here on the weight's gradient, too, is made of kept entries alone and spread out; below, the full product is as
# quick as the spreading.
_SPREAD_FROM = 32


def pays(count: int) -> bool:
    """Whether skipping pays for a product of ``count`` rows: samples, times output positions of a convolution.

    True from 32 on, whatever the width: time gathering and time saved both grow with the entries left out.
    """
    return count >= _FROM


def gather(weight: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """weight[rows][:, columns]; None stands for all. Differentiable, any number of times."""
    if rows is not None:
        weight = weight.index_select(0, rows)
    return weight if columns is None else weight.index_select(1, columns)


def place(x: Tensor, index: Tensor, dim: int, size: int) -> Tensor:
    """A tensor of ``size`` along ``dim`` that holds ``x`` at ``index`` and 0 elsewhere: index_select undone."""
    shape = list(x.shape)
    shape[dim] = size
    full = x.new_zeros(shape).index_copy_(dim, index, x)
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return full.contiguous(memory_format=torch.channels_last) if last else full


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """y = x weight[rows][:, columns]^T + bias[rows]; None stands for all rows or columns.

    Gradients come back in full size with 0 for what was left out. Plain index_select through autograd gives the same
    numbers, but adds every slice back into a second full-size tensor.

    Args:
        x: (N, columns).
        weight: (out, in).
        bias: (out,) or None.
        rows, columns: int64, ascending.

    Returns:
        (N, rows).
    """
    if torch.is_autocast_enabled(x.device.type):
        return torch.nn.functional.linear(
            x, gather(weight, rows, columns), None if bias is None else gather(bias, rows, None)
        )
    result: Tensor = _Linear.apply(x, weight, bias, rows, columns)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, columns: Tensor | None
    ) -> Tensor:
        kept = weight if rows is None else weight.index_select(0, rows)
        kept = kept if columns is None else gather_columns(kept, columns)
        ctx.save_for_backward(x, kept, rows, columns)
        ctx.shape = weight.shape
        y = _roomy(x, len(x), len(kept))
        if bias is None:
            return torch.mm(x, kept.t(), out=y)
        return torch.addmm(bias if rows is None else bias.index_select(0, rows), x, kept.t(), out=y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept, rows, columns = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx = torch.mm(grad, kept, out=_roomy(grad, len(grad), kept.shape[1])) if need_x else None
        dw = _weight_gradient(grad, x, rows, columns, ctx.shape) if need_weight else None
        db = None
        if need_bias:
            db = grad.sum(0) if rows is None else place(grad.sum(0), rows, 0, ctx.shape[0])
        return dx, dw, db, None, None


def _roomy(like: Tensor, rows: int, columns: int) -> Tensor:
    """Memory for a product whose rows begin at multiples of 16 numbers: others take up to twice the time to write."""
    return torch.empty_strided((rows, columns), (-(-columns // 16) * 16, 1), dtype=like.dtype, device=like.device)


def _weight_gradient(grad: Tensor, x: Tensor, rows: Tensor | None, columns: Tensor | None, shape: torch.Size) -> Tensor:
    """grad^T x, spread over (out, in)."""
    if len(x) < _SPREAD_FROM:
        grad = grad if rows is None else place(grad, rows, 1, shape[0])
        return grad.t() @ (x if columns is None else place(x, columns, 1, shape[1]))
    kept = torch.mm(grad.t(), x, out=_roomy(x, grad.shape[1], x.shape[1]))
    kept = kept if columns is None else spread(kept, columns, 1, shape[1])
    return kept if rows is None else spread(kept, rows, 0, shape[0])
