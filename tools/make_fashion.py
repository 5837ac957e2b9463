#!/usr/bin/env python3
"""Make the small set that ships with the package out of the official Fashion-MNIST.

Usage: python tools/make_fashion.py TRAIN TEST [OUT]

TRAIN and TEST are parquet files (columns ``image`` = {bytes: PNG} and ``label``; needs pyarrow and pillow), or the
official ``...-images-idx3-ubyte.gz``, whose ``...-labels-idx1-ubyte.gz`` stands beside it. OUT (default
src/leanconv/data/fashion/fashion.npz) gets 500 training and 100 test images of each class, picked with a fixed seed:
``images`` uint8 (6000, 28, 28), ``labels`` uint8 (6000,), ``classes``, and ``train`` = 5000, the number of training
images, which come first.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
from pathlib import Path

import numpy as np

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SEED = 20170825
OUT = Path(__file__).resolve().parent.parent / "src/leanconv/data/fashion/fashion.npz"


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return read_parquet(path) if path.suffix == ".parquet" else read_idx(path)


def read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(path)
    images = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    return np.stack(images), np.array(table["label"].to_pylist(), np.uint8)


def read_idx(path: Path) -> tuple[np.ndarray, np.ndarray]:
    labels = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    with gzip.open(path) as pixels, gzip.open(labels) as names:
        images = np.frombuffer(pixels.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        return images, np.frombuffer(names.read(), np.uint8, offset=8)


def pick(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Indices in the official order, the same number of each class."""
    members = (np.flatnonzero(labels == label) for label in range(len(CLASSES)))
    return np.sort(np.concatenate([rng.choice(m, per_class, replace=False) for m in members]))


def main(train: Path, test: Path, out: Path = OUT) -> None:
    rng = np.random.Generator(np.random.PCG64(SEED))
    images, labels = [], []
    for path, per_class in ((train, 500), (test, 100)):
        pixels, names = read(path)
        chosen = pick(names, per_class, rng)
        images.append(pixels[chosen])
        labels.append(names[chosen])
    out.parent.mkdir(parents=True, exist_ok=True)
    pixels, names = np.concatenate(images), np.concatenate(labels)
    np.savez_compressed(out, images=pixels, labels=names, classes=np.array(CLASSES), train=np.int64(len(labels[0])))
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"{out}: {len(names)} images, {out.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
