"""Wrong labels on request, to see what a network learns by heart (row S23)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from leanconv.data.dataset import Split
from leanconv.data.order import NOISE, hashed, shuffled

__all__ = ["noisy"]


def noisy(split: Split, classes: int, share: float, seed: int) -> tuple[Split, tuple[str, ...]]:
    """Replace the labels of ``round(share * N)`` images by another class each, evenly drawn.

    Args:
        split: the training images.
        classes: how many there are, at least 2.
        share: 0 <= share < 1.
        seed: decides which images and which classes.

    Returns:
        The split, its labels as they were in ``clean``, and a sentence about it; the split itself where none changed.

    Source: row S23.
    """
    n = len(split)
    count = round(share * n)
    if not count:
        return split, ()
    chosen = np.sort(shuffled(NOISE, seed, 0, n)[:count])
    shift = 1 + (hashed(NOISE, seed, 1, chosen) >> np.uint64(32)).astype(np.int64) % (classes - 1)
    labels = split.labels.clone()
    index = torch.from_numpy(chosen)
    labels[index] = (labels[index] + torch.from_numpy(shift)) % classes
    told = f"{count} of {n} training labels ({share:.0%}) were replaced by another class on request, seed {seed}"
    return replace(split, labels=labels, clean=split.labels), (told,)
