"""Random numbers that are functions of (seed, epoch, position) and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanconv.errors import Error
from leanconv.kernels.keys import mix

__all__ = [
    "AUGMENT",
    "BALANCE",
    "NOISE",
    "ORDER",
    "PHOTO",
    "SPLIT",
    "balanced_order",
    "epoch_order",
    "hashed",
    "shuffled",
]

# One stream of numbers per purpose, so that the order of an epoch tells nothing about its augmentation.
ORDER, AUGMENT, SPLIT, NOISE, BALANCE, PHOTO = 1, 2, 3, 4, 5, 6


def hashed(stream: int, seed: int, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64 random bits for every position: SplitMix64 of (position xor key), key = mix(mix(seed, epoch), stream).

    A bijection of the positions for every key, so no two positions share their bits.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    key = np.uint64(mix(mix(seed, epoch), stream))
    z = (positions.astype(np.uint64) ^ key) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(stream: int, seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1: the positions sorted by their hashes."""
    return np.argsort(hashed(stream, seed, epoch, np.arange(n)), kind="stable").astype(np.int64)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Which image stands at which position of an epoch.

    Args:
        n: number of training images.
        seed: any int.
        epoch: from 0.

    Returns:
        int64 (n,), a permutation of 0..n-1 that depends on the arguments alone.

    Raises:
        Error: n is negative.
    """
    if n < 0:
        raise Error(f"epoch_order: n must be at least 0, got n={n}")
    return torch.from_numpy(shuffled(ORDER, seed, epoch, n))


def balanced_order(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """As many images as there are, each class equally often (to within one), drawn with replacement.

    Position by position the classes take turns; which image of its class is taken, a hash of (seed, epoch, position)
    decides; then all are shuffled as :func:`epoch_order` does.

    Args:
        labels: int64 (n,).
        seed: any int.
        epoch: from 0.

    Returns:
        int64 (n,), indices of images.
    """
    values = labels.numpy()
    n = len(values)
    members = [np.flatnonzero(values == label) for label in np.unique(values)]
    turn = (np.arange(n) + mix(seed, epoch) % max(1, len(members))) % max(1, len(members))
    bits = hashed(BALANCE, seed, epoch, np.arange(n)) >> np.uint64(32)
    drawn = np.zeros(n, np.int64)
    for place, images in enumerate(members):
        at = turn == place
        drawn[at] = images[(bits[at] * np.uint64(len(images))) >> np.uint64(32)]
    return torch.from_numpy(drawn[shuffled(ORDER, seed, epoch, n)])
