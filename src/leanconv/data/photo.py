"""Augmentation of photos: a random crop drawn to full size, mirrored, with other light and colour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from leanconv.data.order import PHOTO, hashed

__all__ = ["Photo", "photo", "plane_sums"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's mode L
_DRAWS = 8
_AT_ONCE = 600_000  # values


@dataclass(frozen=True)
class Photo:
    """How far an image may be changed.

    Attributes:
        scale: smallest share of the area that the crop keeps; the largest is 1.
        ratio: width to height of the crop is between 1 / ratio and ratio, evenly in its logarithm.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter .. 1 + jitter each.
    """

    scale: float
    ratio: float
    jitter: float


def photo(images: Tensor, seed: int, epoch: int, positions: Tensor, how: Photo) -> Tensor:
    """Crop, mirror and light each image as its position in the epoch decides.

    The crop is sampled bilinearly, without antialiasing: it is never shrunk. With s, c, b the factors of saturation,
    contrast and brightness, g the luma of each pixel and m the mean luma of the whole image,
    ``x -> b (c (s x + (1 - s) g) + (1 - c) m)``; grey images have no saturation.

    Args:
        images: (N, C, H, W), uint8 or floating on the scale 0..255.
        seed: any int.
        epoch: from 0.
        positions: int64 (N,), positions in the epoch's order.
        how: the ranges.

    Returns:
        A new tensor of the same shape and dtype; 8-bit values are rounded.

    Source: Szegedy et al. 2015, "Going deeper with convolutions" (crops); Howard 2013 (light and colour).
    """
    if images.numel() > _AT_ONCE and len(images) > 1:
        # In pieces that stay in the processor's cache: at 224 pixels a third less time.
        parts = torch.tensor_split(torch.arange(len(images)), -(-images.numel() // _AT_ONCE))
        return torch.cat([photo(images[p], seed, epoch, positions[p], how) for p in parts if len(p)])
    draws = _draws(seed, epoch, positions)
    grid = _grid(draws, images.shape, how).to(images.device)
    x = images if images.is_floating_point() else images.float()
    x = grid_sample(x, grid.to(x.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    x = _lit(x, _mean_luma(images).to(x.dtype), _factors(draws[:, 5:], how.jitter).to(x))
    x = x.clamp_(0, 255)
    return x if images.is_floating_point() else x.round_().to(images.dtype)


def _draws(seed: int, epoch: int, positions: Tensor) -> NDArray[np.float64]:
    """(N, 8) numbers, even over 0 <= u < 1."""
    places = positions.cpu().numpy()[:, None] * _DRAWS + np.arange(_DRAWS)
    bits = hashed(PHOTO, seed, epoch, places.reshape(-1)).reshape(places.shape)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _grid(draws: NDArray[np.float64], shape: torch.Size, how: Photo) -> Tensor:
    """float64 (N, H, W, 2): where each pixel of the result is taken from, as ``grid_sample`` counts."""
    area = how.scale + (1 - how.scale) * draws[:, 0]
    ratio = np.exp((2 * draws[:, 1] - 1) * math.log(how.ratio))
    # A side that would be longer than the image is cut to it, and the area is smaller then.
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    mirrored = np.where(draws[:, 4] < 0.5, -1.0, 1.0)
    across = _line((2 * draws[:, 2] - 1) * (1 - width), width * mirrored, shape[3])
    down = _line((2 * draws[:, 3] - 1) * (1 - height), height, shape[2])
    n, (h, w) = len(draws), shape[2:]
    return torch.stack((across[:, None, :].expand(n, h, w), down[:, :, None].expand(n, h, w)), 3)


def _line(middle: NDArray[np.float64], reach: NDArray[np.float64], side: int) -> Tensor:
    """float32 (N, side): centres of pixels over middle - reach .. middle + reach."""
    centres = (2 * np.arange(side) + 1) / side - 1
    return torch.from_numpy((middle[:, None] + reach[:, None] * centres[None]).astype(np.float32))


def _factors(draws: NDArray[np.float64], jitter: float) -> Tensor:
    """(N, 3): brightness, contrast, saturation."""
    return torch.from_numpy(1 + jitter * (2 * draws[:, :3] - 1))


def _mean_luma(images: Tensor) -> Tensor:
    """float64 (N,): of the whole image; exact for 8-bit images, so equal in whatever batch they come."""
    sums = plane_sums(images)
    return (sums * _weights(images.shape[1], sums)).sum(1) / (images.shape[2] * images.shape[3])


def plane_sums(images: Tensor) -> Tensor:
    """float64 (N, C). Whole numbers add up to the same in every order, so 8-bit images give exact sums."""
    if images.is_floating_point() or images.device.type != "cpu":
        return images.sum((2, 3), dtype=torch.float64)
    # numpy's sum over 8-bit values takes a twentieth of torch's time.
    return torch.from_numpy(images.contiguous().numpy().sum((2, 3), dtype=np.uint64).astype(np.float64))


def _weights(channels: int, like: Tensor) -> Tensor:
    luma = _LUMA if channels == 3 else (1 / channels,) * channels
    return torch.tensor(luma, dtype=like.dtype, device=like.device)


def _lit(x: Tensor, mean: Tensor, factors: Tensor) -> Tensor:
    """b (c (s x + (1 - s) g) + (1 - c) m), in place."""
    brightness, contrast, saturation = (f.view(-1, 1, 1, 1) for f in factors.unbind(1))
    constant = brightness * (1 - contrast) * mean.view(-1, 1, 1, 1)
    if x.shape[1] == 1:
        return x.mul_(brightness * contrast).add_(constant)
    weights = _weights(x.shape[1], x).tolist()
    grey = x[:, :1] * weights[0]
    for channel, weight in enumerate(weights[1:], 1):
        grey.add_(x[:, channel : channel + 1], alpha=weight)
    grey.mul_(brightness * contrast * (1 - saturation)).add_(constant)
    return x.mul_(brightness * contrast * saturation).add_(grey)
