"""Images on which a tiny network learns at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def striped(path: Path) -> Path:
    """180 images to train on and 60 to test, three classes: a light stripe at the top, in the middle, below."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    pixels = rng.integers(0, 80, (240, 28, 28, 1), dtype=np.uint8)
    for label in range(3):
        pixels[labels == label, 9 * label : 9 * label + 9] += 150
    parts = {"train": slice(0, 180), "test": slice(180, 240)}
    arrays = {f"{n}_images": pixels[part] for n, part in parts.items()}
    arrays |= {f"{n}_labels": labels[part] for n, part in parts.items()}
    np.savez(path, classes=np.array(["a", "b", "c"]), **arrays)
    return path
