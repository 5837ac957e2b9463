"""Going through a split in batches, normalised and channels_last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, get_args

import torch
from torch import Tensor

from leanconv.data.augmentation import augment, resolve_policy
from leanconv.data.dataset import DataSet
from leanconv.data.order import balanced_order, epoch_order
from leanconv.errors import Error

__all__ = ["Balance", "Batch", "batch_sizes", "batches", "class_weights", "normalise", "steps"]

Balance = Literal["none", "weights", "sampler"]
"""Of unequal classes: nothing, weights in the loss (:func:`class_weights`), or each class drawn equally often."""


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Some images; unpacks as ``images, labels, positions``.

    Attributes:
        images: float32 (N, C, H, W), normalised, channels_last.
        labels: int64 (N,).
        positions: int64 (N,), in the epoch's order.
        offset: place of the first image in the whole batch of its optimizer step.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
    offset: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels, self.positions))


def batch_sizes(n: int, size: int, least: int = 2) -> tuple[int, ...]:
    """How n images fall into batches: ``size`` each, the rest in a last smaller one.

    A rest below ``least`` joins the batch before it instead: of one image there is no variance for batch
    normalisation. So every image is seen once in an epoch, and the last batch may have up to size + least - 1.

    Raises:
        Error: size is below 1.
    """
    if size < 1:
        raise Error(f"batches: size must be at least 1, got size={size}")
    full, rest = divmod(n, size)
    sizes = [size] * full + [rest] * (rest > 0)
    if 0 < rest < least and full:
        sizes[-2:] = [size + rest]
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
    return _batches(data, split, sizes, epoch, seed, resolve_policy(policy, data.in_chans, data.imgsz))


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
            images = part.images[start - size : start]
            yield Batch(normalise(images, data.mean, data.std), part.labels[positions], positions)
        else:
            yield _made(data, split, order, positions, (seed, epoch, policy))


def _made(
    data: DataSet, split: str, order: Tensor, positions: Tensor, how: tuple[int, int, str], offset: int = 0
) -> Batch:
    """The images that stand at some positions of an epoch."""
    part, (seed, epoch, policy) = data.splits[split], how
    chosen = order[positions]
    images = augment(part.images.index_select(0, chosen), seed, epoch, positions, policy)
    return Batch(normalise(images, data.mean, data.std), part.labels[chosen], positions, offset)


def steps(
    data: DataSet,
    size: int,
    *,
    epoch: int,
    seed: int,
    policy: str,
    balance: str = "none",
    start: int = 0,
    parts: int = 1,
    mine: Sequence[int] | None = None,
) -> Iterator[list[Batch]]:
    """One epoch of training: a list of micro-batches for each optimizer step.

    Which images, in which order and form, depends on (seed, epoch, position) alone, so neither ``start`` nor ``parts``
    nor ``mine`` changes what any image is.

    Args:
        data: the set; its training images are gone through.
        size: images per optimizer step. A rest below ``2 * parts`` joins the step before it.
        epoch: from 0.
        seed: of order, sampling and augmentation.
        policy: :data:`leanconv.data.POLICIES` or ``auto``.
        balance: ``sampler``: each class equally often (:func:`leanconv.data.balanced_order`); ``none`` and ``weights``:
            every image once.
        start: steps that are left out, at no cost.
        parts: contiguous micro-batches, of sizes that differ by at most one, that each step's batch is cut into.
        mine: which of them are made, in this order; None: all.

    Returns:
        An iterator of lists of :class:`Batch`.

    Raises:
        Error: at once: size is below 1, above the number of images or below ``parts``; ``start`` or ``mine`` out of
            range; no such policy or balance.
    """
    n = len(data.train)
    if size > n:
        raise Error(f"batch: must be at most the number of train images, {n}, got {size}")
    if not 1 <= parts <= size:
        raise Error(f"steps: parts must satisfy 1 <= parts <= size={size}, got parts={parts}")
    chosen = tuple(range(parts)) if mine is None else tuple(mine)
    if any(not 0 <= part < parts for part in chosen):
        raise Error(f"steps: mine must be from 0 to parts - 1 = {parts - 1}, got mine={list(chosen)}")
    if balance not in get_args(Balance):
        raise Error(f"steps: balance must be one of {', '.join(get_args(Balance))}, got {balance!r}")
    sizes = batch_sizes(n, size, 2 * parts)
    if not 0 <= start <= len(sizes):
        raise Error(f"steps: start must satisfy 0 <= start <= {len(sizes)} steps, got start={start}")
    how = (seed, epoch, resolve_policy(policy, data.in_chans, data.imgsz))
    return _steps(data, sizes, how, balance, start, (parts, chosen))


def _steps(
    data: DataSet,
    sizes: tuple[int, ...],
    how: tuple[int, int, str],
    balance: str,
    start: int,
    cut: tuple[int, tuple[int, ...]],
) -> Iterator[list[Batch]]:
    seed, epoch, _ = how
    labels, (parts, mine) = data.train.labels, cut
    sampled = balance == "sampler"
    order = balanced_order(labels, seed, epoch) if sampled else epoch_order(len(labels), seed, epoch)
    ends = list(accumulate(sizes))
    for size, end in list(zip(sizes, ends, strict=True))[start:]:
        positions = torch.arange(end - size, end)
        # Sizes of the parts differ by at most one, the larger ones first.
        edges = [part * (size // parts) + min(part, size % parts) for part in range(parts + 1)]
        yield [_made(data, "train", order, positions[edges[part] : edges[part + 1]], how, edges[part]) for part in mine]


def class_weights(data: DataSet) -> Tensor:
    """Weights of the classes in the loss, inverse to how many training images each has.

    w_c = N / (K N_c), where K classes have images: the mean over the N training images is 1. A class without training
    images has weight 0.

    Args:
        data: the set.

    Returns:
        float32 (classes,).
    """
    counts = torch.bincount(data.train.labels, minlength=len(data.classes)).double()
    present = int((counts > 0).sum())
    weights = counts.sum() / (present * counts.clamp(min=1))
    return torch.where(counts > 0, weights, torch.zeros_like(weights)).float()


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
