"""Forward and backward of batch normalisation in few passes over memory.

Forward, batch statistics: read x (mean), write x - mean, read it twice (variance, what rounding left of the mean), write y.
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

    def spread(self, vector: Tensor) -> Tensor:
        """A vector (C,) so that it meets the flat form."""
        return vector.repeat(self.pixels) if self.pixels else vector.unsqueeze(1)

    def total(self, t: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Sum per channel of the flat form, (C,); in two stages, which keeps more digits than one."""
        if self.pixels:
            return t.sum(0, dtype=dtype).view(self.pixels, self.channels).sum(0)
        return t.sum(2, dtype=dtype).sum(0)


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
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return plain(x, gamma, beta, eps, mean, var)
    layout, dtype = Layout.of(x), accumulate_dtype(x)
    flat = layout.flat(x)
    gamma = _vector(gamma, 1, flat, layout, dtype)
    beta = _vector(beta, 0, flat, layout, dtype)
    count = flat.numel() // layout.channels
    centre = layout.total(flat.detach(), dtype) / count if mean is None else mean.to(dtype).clone()
    given = None if mean is None or var is None else var.to(dtype)
    if flat.dtype == dtype:
        # Batch normalisation does not see a shift, so the subtracted constant needs no gradient of its own; what is
        # kept for the backward pass is x - centre in place of x.
        data, pivot = flat - layout.spread(centre), None
    else:
        data, pivot = flat, centre
    y, rest, _, used = _Normalise.apply(data, pivot, gamma, beta, given, eps, layout)  # type: ignore[no-untyped-call]
    mean_used = centre + rest if mean is None else centre
    return layout.unflat(y, x.shape), mean_used, used


def _vector(vector: Tensor | None, value: float, flat: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    if vector is None:
        return torch.full((layout.channels,), value, dtype=dtype, device=flat.device)
    return vector.to(dtype)


class _Normalise(torch.autograd.Function):
    """y of the flat form, with the gradients of the paper collected into three passes."""

    @staticmethod
    def forward(
        data: Tensor, pivot: Tensor | None, gamma: Tensor, beta: Tensor, given: Tensor | None, eps: float, layout: Layout
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = data if pivot is None else data - layout.spread(pivot)
        work = torch.empty_like(t)
        if given is None:
            count = t.numel() // layout.channels
            rest = layout.total(t) / count  # what rounding left of the mean
            var = layout.total(torch.mul(t, t, out=work)) / count - rest * rest
            var = var.clamp_(min=0)
        else:
            rest, var = torch.zeros_like(gamma), given.clone()
        inv = (var + eps).rsqrt_()
        scale = gamma * inv
        y = torch.addcmul(layout.spread(beta - scale * rest), t, layout.spread(scale), out=work)
        return y.to(data.dtype), rest, inv, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        data, pivot, gamma, _, given, ctx.eps, ctx.layout = inputs
        _, rest, inv, var = output
        ctx.batch = given is None
        ctx.mark_non_differentiable(rest, inv, var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(data, pivot, gamma, rest, inv)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        data, pivot, gamma, rest, inv = ctx.saved_tensors
        layout: Layout = ctx.layout
        t = data if pivot is None else data - layout.spread(pivot)
        g = dy.to(t.dtype)
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            dx, dgamma, dbeta = paper_gradients(g, t, gamma, None if ctx.batch else inv, ctx.eps, layout)
        else:
            dx, dgamma, dbeta = _gradients(g, t, gamma, rest, inv, ctx)
        return (None if dx is None else dx.to(data.dtype), None, dgamma, dbeta, None, None, None)


def _gradients(
    g: Tensor, t: Tensor, gamma: Tensor, rest: Tensor, inv: Tensor, ctx: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """:func:`paper_gradients`, collected: dx = a g + k (x - mean) + c with three values per channel."""
    layout: Layout = ctx.layout
    need_x, _, need_gamma, need_beta = ctx.needs_input_grad[:4]
    scale = gamma * inv
    if not ctx.batch:
        dgamma = layout.total(g * t) * inv if need_gamma else None
        dbeta = layout.total(g) if need_beta else None
        return g * layout.spread(scale) if need_x else None, dgamma, dbeta
    count = t.numel() // layout.channels
    work = torch.mul(t, g)
    dbeta = layout.total(g)
    along = layout.total(work) - rest * dbeta  # sum of dy (x - mean)
    if not need_x:
        return None, along * inv, dbeta
    k = -scale * inv * inv * along / count
    c = -scale * dbeta / count - k * rest
    dx = torch.addcmul(layout.spread(c), t, layout.spread(k), out=work).addcmul_(g, layout.spread(scale))
    return dx, along * inv, dbeta


def paper_gradients(
    dy: Tensor, x: Tensor, gamma: Tensor, inv: Tensor | None, eps: float, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward pass as section 3 of Ioffe & Szegedy writes it, equation by equation, itself differentiable.

    Args:
        dy: dl/dy, flat.
        x: the input, flat.
        gamma: (C,).
        inv: 1 / sqrt(var + eps) of given statistics, for an x from which their mean was taken; None for the batch's own.
        eps: added to the batch's variance.
        layout: how the flat form lies.

    Returns:
        dl/dx (flat), dl/dgamma and dl/dbeta (C,).
    """
    if inv is not None:
        return dy * layout.spread(gamma * inv), layout.total(dy * x) * inv, layout.total(dy)
    m = x.numel() // layout.channels
    centred = x - layout.spread(layout.total(x) / m)
    var = layout.total(centred * centred) / m
    inv = (var + eps).rsqrt()
    x_hat = centred * layout.spread(inv)
    dx_hat = dy * layout.spread(gamma)
    dvar = layout.total(dx_hat * centred) * -0.5 * inv**3
    dmu = -layout.total(dx_hat) * inv + dvar * layout.total(-2 * centred) / m
    dx = dx_hat * layout.spread(inv) + layout.spread(dvar) * 2 * centred / m + layout.spread(dmu) / m
    return dx, layout.total(dy * x_hat), layout.total(dy)
