"""Table 2-1 of the source in its own steps, to be read. The layers compute the same, with fewer passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanconv.errors import Error

__all__ = ["Steps", "accumulate_dtype", "algorithm1", "algorithm1_steps", "per_channel", "plain"]


def algorithm1(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Batch normalisation of one batch, as table 2-1 of the source (algorithm 1 of Ioffe & Szegedy) writes it.

    mu = 1/m sum x, s^2 = 1/m sum (x - mu)^2, x_hat = (x - mu) / sqrt(s^2 + eps), y = gamma x_hat + beta,
    for each channel. For maps m = N * H * W: a channel is one feature, wherever in the map it stands.

    Args:
        x: features of a batch, (N, C) or (N, C, ...).
        gamma: scale, (C,); step 1 of the table when None.
        beta: shift, (C,); step 1 of the table when None.
        eps: added to the variance, so that a constant channel divides by no zero.

    Returns:
        y, of the shape of x. Differentiable, so back-propagation through it is the reference for the layers' own.

    Raises:
        Error: x has fewer than two dimensions or no elements, or gamma or beta is not of shape (C,).

    Source:
        Table 2-1 (row S8); Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 1.
    """
    return algorithm1_steps(x, gamma, beta, eps).y


@dataclass(frozen=True)
class Steps:
    """What algorithm 1 computes on its way, for a batch x of m values in each channel.

    Attributes:
        mu: mean, (1, C, 1, ...).
        variance: s^2, with 1/m, (1, C, 1, ...).
        x_hat: normalised, of the shape of x.
        y: scaled and shifted, of the shape of x.
    """

    mu: Tensor
    variance: Tensor
    x_hat: Tensor
    y: Tensor


def algorithm1_steps(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, eps: float = 1e-5) -> Steps:
    """:func:`algorithm1` with everything that it computes on its way.

    Args:
        x: features of a batch, (N, C) or (N, C, ...).
        gamma: scale, (C,); step 1 of the table when None.
        beta: shift, (C,); step 1 of the table when None.
        eps: added to the variance.

    Raises:
        Error: as :func:`algorithm1`.

    Source: Table 2-1 (row S8).
    """
    if x.dim() < 2 or not x.numel():
        raise Error(f"algorithm1: x must be a batch (N, C, ...) with elements, got shape {tuple(x.shape)}")
    channels = x.shape[1]
    # Step 1: initialise the parameters, gamma = 1 and beta = 0.
    gamma = torch.ones(channels, dtype=x.dtype, device=x.device) if gamma is None else gamma
    beta = torch.zeros(channels, dtype=x.dtype, device=x.device) if beta is None else beta
    for name, value in (("gamma", gamma), ("beta", beta)):
        if value.shape != (channels,):
            raise Error(f"algorithm1: {name} must have one value per channel ({channels},), got {tuple(value.shape)}")
    # Step 2: mean and variance of the batch, each with 1/m.
    m = x.numel() // channels
    over = [d for d in range(x.dim()) if d != 1]
    mu = x.sum(over, keepdim=True) / m
    variance = ((x - mu) ** 2).sum(over, keepdim=True) / m
    # Step 3: change the features of the batch.
    x_hat = (x - mu) / torch.sqrt(variance + eps)
    return Steps(mu, variance, x_hat, per_channel(gamma, x) * x_hat + per_channel(beta, x))


def per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """A vector (C,) as (1, C, 1, ...), to meet x (N, C, ...)."""
    return vector.view(1, -1, *[1] * (x.dim() - 2))


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """The dtype of statistics: float32 for half precision, else that of x."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def plain(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, mean: Tensor | None, var: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with given or batch statistics, in operations that compilers and exporters fuse and differentiate.

    Returns:
        y in the dtype of x, and the mean and biased variance that were used, (C,), detached.
    """
    z = x.to(accumulate_dtype(x))
    if mean is None or var is None:
        over = [d for d in range(x.dim()) if d != 1]
        mean = z.mean(over)
        centred = z - per_channel(mean, z)
        var = (centred * centred).mean(over)
    else:
        centred = z - per_channel(mean.to(z.dtype), z)
    y = centred * per_channel((var.to(z.dtype) + eps).rsqrt(), z)
    y = y if gamma is None else y * per_channel(gamma.to(z.dtype), z)
    y = y if beta is None else y + per_channel(beta.to(z.dtype), z)
    return y.to(x.dtype), mean.detach(), var.detach()
