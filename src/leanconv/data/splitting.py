"""Seeded, stratified shares of labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from leanconv.data.order import SPLIT, shuffled
from leanconv.errors import Error

__all__ = ["stratified"]


def stratified(
    labels: NDArray[np.int64], shares: Mapping[str, float], classes: Sequence[str], seed: int
) -> dict[str, NDArray[np.int64]]:
    """Take from each class the same share for each purpose; what is left is for training.

    A class of n images gives ``max(1, round(n * share))`` to each purpose, so each purpose sees every class. Which
    ones, a hash of (seed, class, place in the class) decides.

    Args:
        labels: int64 (N,).
        shares: purpose -> share of all images, such as ``{"test": 0.2, "val": 0.08}``.
        classes: names, for the message.
        seed: any int.

    Returns:
        ``train`` and each purpose -> sorted indices.

    Raises:
        Error: a class is too small to leave one image for training.
    """
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in ("train", *shares)}
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 1 + len(shares):
            needed = " and ".join(("train", *shares))
            raise Error(
                f"data: class {name!r} must have at least {1 + len(shares)} readable images ({needed} get one each), "
                f"got {len(members)}"
            )
        mixed = members[shuffled(SPLIT, seed, label, len(members))]
        start = 0
        for purpose, share in shares.items():
            # Never so many that nothing is left for the rest: three images of a class are one for each purpose.
            left = len(members) - start - (len(parts) - 1 - list(shares).index(purpose))
            count = min(max(1, round(len(members) * share)), left)
            parts[purpose].append(mixed[start : start + count])
            start += count
        parts["train"].append(mixed[start:])
    return {name: np.sort(np.concatenate(taken)) for name, taken in parts.items()}
