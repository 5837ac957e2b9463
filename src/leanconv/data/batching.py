"""Going through a split in batches, normalised and channels_last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.data.augmentation import augment, resolve_policy
from leanconv.data.dataset import DataSet
from leanconv.data.order import epoch_order
from leanconv.errors import Error

__all__ = ["Batch", "batch_sizes", "batches", "normalise"]


class Batch(NamedTuple):
    """Images float32 (N, C, H, W) normalised, channels_last; labels int64 (N,); positions in the epoch's order (N,)."""

    images: Tensor
    labels: Tensor
    positions: Tensor


def batch_sizes(n: int, size: int) -> tuple[int, ...]:
    """How n images fall into batches: ``size`` each, the rest in a last smaller one.

    A rest of one image joins the batch before it instead, for batch normalisation knows no variance of one value; so
    every image is seen once in an epoch, and the last batch may have size + 1.

    Raises:
        Error: size is below 1.
    """
    if size < 1:
        raise Error(f"batches: size must be at least 1, got size={size}")
    full, rest = divmod(n, size)
    sizes = [size] * full + [rest] * (rest > 0)
    if rest == 1 and full:
        sizes[-2:] = [size + 1]
    return tuple(sizes)


def batches(
    data: DataSet, split: str, size: int, *, epoch: int | None = None, seed: int = 0, policy: str = "none"
) -> Iterator[Batch]:
    """One pass over a split.

    Args:
        data: the set.
        split: ``train``, ``val`` or ``test``.
        size: images per batch; see :func:`batch_sizes` for the last one.
        epoch: from 0: in the order of :func:`epoch_order`, augmented. None: as they stand, never augmented, which is
            how a network is evaluated.
        seed: of order and augmentation.
        policy: :data:`leanconv.data.POLICIES` or ``auto``.

    Returns:
        An iterator of :class:`Batch`. With ``epoch=None`` positions are the images' own indices.

    Raises:
        Error: at once, not at the first batch: no such split or policy, or size is below 1, or above the number of
            images where an epoch is given.
    """
    if split not in data.splits:
        raise Error(f"batches: split must be one of {', '.join(data.splits)}, got {split!r}")
    n = len(data.splits[split])
    if epoch is not None and size > n:
        raise Error(f"batch: must be at most the number of {split} images, {n}, got {size}")
    sizes = batch_sizes(n, size)
    return _batches(data, split, sizes, epoch, seed, resolve_policy(policy, data.in_chans))


def _batches(
    data: DataSet, split: str, sizes: tuple[int, ...], epoch: int | None, seed: int, policy: str
) -> Iterator[Batch]:
    part = data.splits[split]
    order = None if epoch is None else epoch_order(len(part), seed, epoch)
    start = 0
    for size in sizes:
        positions = torch.arange(start, start + size)
        start += size
        if order is None or epoch is None:
            images, labels = part.images[positions[0] : positions[0] + size], part.labels[positions]
        else:
            chosen = order[positions]
            images = augment(part.images.index_select(0, chosen), seed, epoch, positions, policy)
            labels = part.labels[chosen]
        yield Batch(normalise(images, data.mean, data.std), labels, positions)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x / 255 - mean) / std per channel.

    Args:
        images: uint8 (N, C, H, W).
        mean, std: per channel, on the scale 0..1.

    Returns:
        float32 (N, C, H, W), channels_last.
    """
    shift = torch.tensor(mean, dtype=torch.float32).mul_(255).view(1, -1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32).mul_(255).reciprocal_().view(1, -1, 1, 1)
    # Plane by plane first: a vector per channel over channels_last values takes twice as long at three channels.
    x = images.to(torch.float32, copy=True).sub_(shift).mul_(scale)
    # Not .contiguous(): with one channel that leaves the strides as they are, and layers then choose the other layout.
    return torch.empty(x.shape, memory_format=torch.channels_last).copy_(x)
