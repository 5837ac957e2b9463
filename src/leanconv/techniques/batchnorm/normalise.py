"""Forward and backward of batch normalisation in few passes over memory.

Forward, batch statistics: read x (mean), write x - mean, read it (variance, what rounding left of the mean), write y.
Two passes and no E[x^2] - E[x]^2: a channel of mean 1e4 and deviation 1 keeps its digits in float32. Half precision
is computed in float32. The memory is seen as rows that hold whole pixels with all their channels (channels_last), or as
planes (channels first), so that inner loops are long and nothing is reordered.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from leanconv.techniques.batchnorm.reference import accumulate_dtype, plain

__all__ = ["Layout", "normalise", "paper_gradients"]

ROW = 512  # elements that a row should have at least: below, loop overhead shows


@dataclass(frozen=True)
class Layout:
    """How (N, C, ...) lies in memory, and how a value per channel meets it.

    Attributes:
        channels: C.
        pixels: how many pixels a row holds, each with its C channels side by side; 0 for planes (N, C, L).
    """

    channels: int
    pixels: int

    @staticmethod
    def of(x: Tensor) -> Layout:
        """The layout in which a tensor can be read without a copy; planes for one that has none of the two."""
        if not x.movedim(1, -1).is_contiguous():
            return Layout(x.shape[1], 0)
        pixels = 1
        for size in reversed(x.shape[2:]):
            if pixels * x.shape[1] >= ROW:
                break
            pixels *= size
        return Layout(x.shape[1], pixels)

    def flat(self, x: Tensor) -> Tensor:
        """(N, C, ...) as (rows, pixels * C) or (N, C, L)."""
        if self.pixels:
            return x.movedim(1, -1).reshape(-1, self.pixels * self.channels)
        return x.reshape(x.shape[0], self.channels, prod(x.shape[2:]))

    def unflat(self, t: Tensor, shape: torch.Size) -> Tensor:
        """Back to (N, C, ...), with the strides that x had."""
        if self.pixels:
            return t.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
        return t.view(shape)

    def spread(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        """Vectors (C,) so that they meet the flat form."""
        if not self.pixels:
            return tuple(v.unsqueeze(1) for v in vectors)
        if self.pixels == 1:
            return vectors
        stacked = torch.stack(vectors) if len(vectors) > 1 else vectors[0].unsqueeze(0)
        return stacked.unsqueeze(1).expand(-1, self.pixels, -1).reshape(len(vectors), -1).unbind(0)

    def total(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Sum per channel of the flat form, (C,); in two stages, which keeps more digits than one."""
        if not self.pixels:
            return t.sum(2, dtype=dtype).sum(0)
        rows = t.sum(0, dtype=dtype)
        return rows if self.pixels == 1 else rows.view(self.pixels, self.channels).sum(0)


def normalise(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, with the batch's statistics where none are given.

    Args:
        x: (N, C) or (N, C, ...), with elements.
        gamma: (C,) or None for 1.
        beta: (C,) or None for 0.
        eps: added to the variance.
        mean: (C,), taken as a constant.
        var: (C,), taken as a constant.

    Returns:
        y in the dtype and memory format of x, the mean and the biased variance that were used, (C,), without gradient.
    """
    if _transformed():
        return plain(x, gamma, beta, eps, mean, var)
    layout, dtype = Layout.of(x), accumulate_dtype(x)
    flat = layout.flat(x)
    gamma = _vector(gamma, 1, flat, layout, dtype)
    beta = _vector(beta, 0, flat, layout, dtype)
    if mean is None or var is None:
        centre, given = layout.total(flat.detach(), dtype) / (flat.numel() // layout.channels), None
    else:
        centre, given = mean.to(dtype), var.to(dtype)
    if flat.dtype == dtype:
        # Batch normalisation does not see a shift, so the subtracted constant needs no gradient of its own; what is
        # kept for the backward pass is x - centre in place of x.
        data, pivot = flat - layout.spread(centre)[0], None
    else:
        data, pivot = flat, centre if given is None else centre.clone()
    if torch.is_grad_enabled() and (data.requires_grad or gamma.requires_grad or beta.requires_grad):
        y, rest, used = _Normalise.apply(data, pivot, gamma, beta, given, eps, layout)  # type: ignore[no-untyped-call]
    else:
        y, rest, _, used = _forward(data, pivot, gamma, beta, given, eps, layout, overwrite=True)
    return layout.unflat(y, x.shape), centre if rest is None else centre + rest, used


def _transformed() -> bool:
    """Whether a compiler, an exporter or a torch.func transform looks on: it gets plain operations."""
    tracing = torch._C._get_tracing_state() is not None
    return torch.compiler.is_compiling() or tracing or torch._C._are_functorch_transforms_active()


def _vector(vector: Tensor | None, value: float, flat: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    if vector is None:
        return torch.full((layout.channels,), value, dtype=dtype, device=flat.device)
    return vector if vector.dtype == dtype else vector.to(dtype)


def _forward(
    data: Tensor,
    pivot: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    given: Tensor | None,
    eps: float,
    layout: Layout,
    overwrite: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """y, what rounding left of the batch's mean, 1 / sqrt(var + eps), var; ``overwrite``: data is no longer needed."""
    t = data if pivot is None else data - layout.spread(pivot)[0]
    rest: Tensor | None = None
    if given is None:
        count = t.numel() // layout.channels
        rest = layout.total(t) / count
        work = t * t
        var = (layout.total(work) / count - rest * rest).clamp_(min=0)
        inv = (var + eps).rsqrt_()
        scale = gamma * inv
        shift = torch.addcmul(beta, scale, rest, value=-1)
    else:
        var, inv = given, (given + eps).rsqrt_()
        scale, shift = gamma * inv, beta
        work = t if overwrite or pivot is not None else torch.empty_like(t)
    shift_, scale_ = layout.spread(shift, scale)
    y = torch.addcmul(shift_, t, scale_, out=work)
    y = y if y.dtype == data.dtype else y.to(data.dtype)
    return y, rest, inv, var


class _Normalise(torch.autograd.Function):
    """y of the flat form, with the gradients of the paper collected into few passes."""

    @staticmethod
    def forward(
        ctx: Any,
        data: Tensor,
        pivot: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        given: Tensor | None,
        eps: float,
        layout: Layout,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        y, rest, inv, var = _forward(data, pivot, gamma, beta, given, eps, layout, overwrite=False)
        ctx.eps, ctx.layout = eps, layout
        ctx.mark_non_differentiable(*(v for v in (rest, var) if v is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(data, pivot, gamma, rest, inv)
        return y, rest, var

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        data, pivot, gamma, rest, inv = ctx.saved_tensors
        layout: Layout = ctx.layout
        dx: Tensor | None
        dgamma: Tensor | None
        dbeta: Tensor | None
        t = data if pivot is None else data - layout.spread(pivot)[0]
        g = dy if dy.dtype == t.dtype else dy.to(t.dtype)
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            dx, dgamma, dbeta = paper_gradients(g, t, gamma, inv if rest is None else None, ctx.eps, layout)
        else:
            dx, dgamma, dbeta = _gradients(g, t, gamma, rest, inv, ctx)
        return (None if dx is None else dx.to(data.dtype), None, dgamma, dbeta, None, None, None)


def _gradients(
    g: Tensor, t: Tensor, gamma: Tensor, rest: Tensor | None, inv: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """:func:`paper_gradients`, collected: dx = a g + k (x - mean) + c with three values per channel."""
    layout: Layout = ctx.layout
    need_x, _, need_gamma, need_beta = ctx.needs_input_grad[:4]
    scale = gamma * inv
    if rest is None:
        dgamma = layout.total(g * t) * inv if need_gamma else None
        dbeta = layout.total(g) if need_beta else None
        return g * layout.spread(scale)[0] if need_x else None, dgamma, dbeta
    work = t * g
    dbeta = layout.total(g)
    dgamma = (layout.total(work) - rest * dbeta) * inv  # sum of dy x_hat
    if not need_x:
        return None, dgamma, dbeta
    slope = scale / -(t.numel() // layout.channels)
    k = slope * inv * dgamma
    c, k, a = layout.spread(torch.addcmul(slope * dbeta, k, rest, value=-1), k, scale)
    return torch.addcmul(c, t, k, out=work).addcmul_(g, a), dgamma, dbeta


def paper_gradients(
    dy: Tensor, x: Tensor, gamma: Tensor, inv: Tensor | None, eps: float, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass as section 3 of Ioffe & Szegedy writes it, equation by equation, itself differentiable.

    Args:
        dy: dl/dy, flat.
        x: the input, flat.
        gamma: (C,).
        inv: 1 / sqrt(var + eps) of given statistics, for an x without their mean; None for the batch's own.
        eps: added to the batch's variance.
        layout: how the flat form lies.

    Returns:
        dl/dx (flat), dl/dgamma and dl/dbeta (C,).
    """
    if inv is not None:
        return dy * layout.spread(gamma * inv)[0], layout.total(dy * x) * inv, layout.total(dy)
    m = x.numel() // layout.channels
    centred = x - layout.spread(layout.total(x) / m)[0]
    var = layout.total(centred * centred) / m
    inv = (var + eps).rsqrt()
    inv_, gamma_ = layout.spread(inv, gamma)
    x_hat, dx_hat = centred * inv_, dy * gamma_
    dvar = layout.total(dx_hat * centred) * -0.5 * inv**3
    dmu = -layout.total(dx_hat) * inv + dvar * layout.total(-2 * centred) / m
    dvar_, dmu_ = layout.spread(dvar, dmu)
    dx = dx_hat * inv_ + dvar_ * 2 * centred / m + dmu_ / m
    return dx, layout.total(dy * x_hat), layout.total(dy)
