"""A set of images with its splits, held as 8-bit tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leanconv.errors import Error

__all__ = ["DataSet", "Facts", "Split", "Unreadable", "channel_statistics", "fingerprint"]


@dataclass(frozen=True, eq=False)
class Split:
    """Images of one purpose.

    Attributes:
        images: uint8 (N, C, H, W), contiguous.
        labels: int64 (N,), indices into the classes.
        files: where each image came from, relative to the data's root; empty for the embedded set.
        clean: the labels before noise was put into them on request; None: they are as they were.
    """

    images: Tensor
    labels: Tensor
    files: tuple[str, ...] = ()
    clean: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.dtype != torch.uint8 or self.labels.shape != self.images.shape[:1]:
            got = f"{self.images.dtype} {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise Error(f"Split: images must be uint8 (N, C, H, W) with labels (N,), got {got}")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Unreadable:
    """An image that was passed over.

    Attributes:
        name: of the file, or of the table with the row.
        split: where it stood; ``all`` where shares decide.
        kind: ``empty``, ``missing``, ``limit`` (too many pixels), ``unknown``, ``truncated`` or ``damaged``.
        reason: the same in words.
    """

    name: str
    split: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """What was seen of the files while they were read.

    Attributes:
        total: images listed, unreadable ones included.
        modes: Pillow's mode -> how many, most frequent first.
        sizes: ``width x height`` as stored -> how many, most frequent first.
        largest: width and height of the image with the most pixels.
        unreadable: those that were skipped.
        empty: ``split/class`` of classes without any image.
    """

    total: int = 0
    modes: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    largest: tuple[int, int] = (0, 0)
    unreadable: tuple[Unreadable, ...] = ()
    empty: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training, selecting and testing images of the same classes.

    Attributes:
        train: what the network learns from.
        val: what selects; part of no training.
        test: what is told at the end and chooses nothing; None where there is none.
        classes: names; label i means ``classes[i]``. The sorted names of the training folders.
        mean, std: per channel over the training images, on the scale 0..1; std is at least 1/255.
        fingerprint: SHA-256 (hexadecimal) over classes, labels and pixels of all splits.
        source: where the images came from, in words.
        notes: what a reader should know, a sentence each, such as skipped files.
        skipped: the files that could not be read.
        facts: what was seen of the files.
    """

    train: Split
    val: Split
    test: Split | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    source: str
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    facts: Facts = field(default_factory=Facts)

    @classmethod
    def build(
        cls,
        splits: dict[str, Split],
        classes: tuple[str, ...],
        source: str,
        notes: tuple[str, ...] = (),
        skipped: tuple[str, ...] = (),
    ) -> DataSet:
        """A set from its splits (``train``, ``val``, perhaps ``test``), statistics and fingerprint computed."""
        mean, std = channel_statistics(splits["train"].images)
        test = splits.get("test")
        digest = fingerprint(splits, classes)
        return cls(splits["train"], splits["val"], test, classes, mean, std, digest, source, notes, skipped)

    @property
    def in_chans(self) -> int:
        """Channels: 1 grey, 3 colour."""
        return self.train.images.shape[1]

    @property
    def imgsz(self) -> int:
        """Side of the images in pixels."""
        return self.train.images.shape[-1]

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> class -> number of images."""
        n = len(self.classes)
        tables = {name: torch.bincount(split.labels, minlength=n).tolist() for name, split in self.splits.items()}
        return {name: dict(zip(self.classes, table, strict=True)) for name, table in tables.items()}


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation (1/N) of each channel of uint8 (N, C, H, W), on the scale 0..1; deviation at least 1/255.

    Exact: from the histogram of each channel, in float64.
    """
    values = torch.arange(256, dtype=torch.float64)
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in torch.split(images[:, channel], 1024):
            counts += torch.bincount(part.reshape(-1), minlength=256)
        share = counts / counts.sum()
        mean = float((share * values).sum())
        variance = float((share * (values - mean) ** 2).sum())
        means.append(mean / 255)
        stds.append(max(variance**0.5, 1.0) / 255)
    return tuple(means), tuple(stds)


def fingerprint(splits: dict[str, Split], classes: tuple[str, ...]) -> str:
    """SHA-256 over the class names and, split by split, shape, labels and pixels."""
    digest = hashlib.sha256(repr(classes).encode())
    for name in sorted(splits):
        split = splits[name]
        digest.update(f"{name} {tuple(split.images.shape)}".encode())
        digest.update(split.labels.contiguous().numpy().tobytes())
        for part in torch.split(split.images, 1024):
            digest.update(part.reshape(-1).numpy().data)
    return digest.hexdigest()
