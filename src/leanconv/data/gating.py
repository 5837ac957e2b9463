"""The gate: what is wrong with a set of images, said before a network learns from it.

A finding has a stable code. ``error``: figures measured on this set would deceive. ``warning``: look before you train.
``note``: good to know.

====  =======================================================================
D101  images that could not be read
D102  images over the pixel limit (decompression bombs), which are not read
D201  a class without any image
D202  a class that some split lacks
D203  classes of very unequal size
D204  a class with very few training images
D301  the same picture in more than one split
D302  the same picture twice in one split
D303  the same picture under different classes
D401  class shares of training and held-out images differ
D402  brightness or contrast of training and held-out images differ
D403  training and held-out images differ (two-sample test)
D501  images of several modes
D502  images of several sizes
D601  labels replaced on request
====  =======================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from leanconv.data.comparing import channel_effects, class_shares, two_sample
from leanconv.data.dataset import DataSet, Split, Unreadable

__all__ = ["Finding", "Report", "gate"]

_SHOWN = 10
_IMBALANCE = 5.0
_FEW = 10
_LEAKED = 0.05  # of the held-out images: from here on the accuracy is no longer what it says
_APART = 0.05  # total variation of class shares
_EFFECT, _Z = 0.25, 4.0
_P = 0.005

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        code: stable, such as ``D301``.
        severity: ``error``, ``warning`` or ``note``.
        message: one sentence.
        count: how many images, classes or channels it concerns.
        shown: some of them by name, at most ten.
    """

    code: str
    severity: Severity
    message: str
    count: int
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What the gate says of a set.

    Attributes:
        source, fingerprint, classes, counts, imgsz, in_chans, mean, std: of the set.
        total: images listed.
        modes, sizes: as stored -> how many.
        largest: width and height of the image with the most pixels.
        compared: the split that training is compared with, ``test`` or, without one, ``val``.
        tests: the statistics behind D401 to D403.
        findings: errors first, then warnings, then notes.
        notes: what was passed over, from loading.
    """

    source: str
    fingerprint: str
    classes: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    imgsz: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    total: int
    modes: Mapping[str, int]
    sizes: Mapping[str, int]
    largest: tuple[int, int]
    compared: str
    tests: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """No error and no warning."""
        return all(finding.severity == "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"format_version": 1, "clean": self.clean, **asdict(self)}


def gate(data: DataSet) -> Report:
    """Look at a set before it is trained on.

    Nothing is changed and no random state is touched; the same set gives the same report. The pixels are read once.

    Args:
        data: the set, as :func:`leanconv.data.load` gives it.

    Returns:
        The report. ``json.dumps(report.to_dict())`` works.

    Source: row S22.
    """
    compared = "test" if data.test is not None else "val"
    tests = _tests(data, compared)
    found = [*_unreadable(data), *_classes(data), *_same(data), *_apart(tests, compared), *_mixed(data), *_noise(data)]
    rank = {"error": 0, "warning": 1, "note": 2}
    facts = data.facts
    return Report(
        source=data.source,
        fingerprint=data.fingerprint,
        classes=data.classes,
        counts=data.counts,
        imgsz=data.imgsz,
        in_chans=data.in_chans,
        mean=data.mean,
        std=data.std,
        total=facts.total or sum(map(len, data.splits.values())),
        modes=facts.modes,
        sizes=dict(list(facts.sizes.items())[:_SHOWN]),
        largest=facts.largest,
        compared=compared,
        tests=tests,
        findings=tuple(sorted(found, key=lambda finding: (rank[finding.severity], finding.code))),
        notes=data.notes,
    )


def _unreadable(data: DataSet) -> Iterator[Finding]:
    bombs = [one for one in data.facts.unreadable if one.kind == "limit"]
    others = [one for one in data.facts.unreadable if one.kind != "limit"]
    total = data.facts.total
    if others:
        told = f"{len(others)} of {total} images cannot be read and are left out"
        yield Finding("D101", "warning", told, len(others), _shown(map(_reason, others)))
    if bombs:
        told = f"{len(bombs)} of {total} images have more pixels than the limit and are left out, unread"
        yield Finding("D102", "warning", told, len(bombs), _shown(map(_reason, bombs)))


def _reason(one: Unreadable) -> str:
    return f"{one.name}: {one.reason}"


def _classes(data: DataSet) -> Iterator[Finding]:
    if data.facts.empty:
        empty = data.facts.empty
        yield Finding("D201", "warning", f"{len(empty)} classes are named but hold no image", len(empty), _shown(empty))
    lacking = [f"{split}/{name}" for split, table in data.counts.items() for name, n in table.items() if not n]
    if lacking:
        told = f"{len(lacking)} times a class has no image in a split: its accuracy there cannot be known"
        yield Finding("D202", "warning", told, len(lacking), _shown(lacking))
    sizes = {name: n for name, n in data.counts["train"].items() if n}
    most, least = max(sizes, key=lambda c: sizes[c]), min(sizes, key=lambda c: sizes[c])
    if sizes[most] > _IMBALANCE * sizes[least]:
        told = (
            f"the largest class has {sizes[most] / sizes[least]:.1f} times the training images of the smallest "
            f"({most}: {sizes[most]}, {least}: {sizes[least]}); --set data.balance=weights or sampler may help"
        )
        yield Finding("D203", "warning", told, len(sizes), (f"{most}: {sizes[most]}", f"{least}: {sizes[least]}"))
    few = [f"{name}: {n}" for name, n in sizes.items() if n < _FEW]
    if few:
        told = f"{len(few)} classes have fewer than {_FEW} training images"
        yield Finding("D204", "warning", told, len(few), _shown(few))


def _same(data: DataSet) -> Iterator[Finding]:
    """Pictures whose decoded squares are equal, bit by bit."""
    places: dict[bytes, list[tuple[str, int]]] = {}
    for name, split in data.splits.items():
        for i, digest in enumerate(_digests(split)):
            places.setdefault(digest, []).append((name, i))
    several = [group for group in places.values() if len(group) > 1]
    across = [group for group in several if len({name for name, _ in group}) > 1]
    twins = [group for group in several if len({name for name, _ in group}) < len(group)]
    labels = {name: split.clean if split.clean is not None else split.labels for name, split in data.splits.items()}
    conflicting = [group for group in several if len({int(labels[name][i]) for name, i in group}) > 1]

    def shown(groups: Sequence[list[tuple[str, int]]]) -> tuple[str, ...]:
        return _shown(" = ".join(_name(data, *member) for member in group[:3]) for group in groups)

    if across:
        yield _leak(data, across, shown([_ends(group) for group in across]))
    if twins:
        told = f"{len(twins)} pictures stand more than once in one split"
        yield Finding("D302", "note", told, len(twins), shown([_twins(group) for group in twins]))
    if conflicting:
        told = f"{len(conflicting)} pictures stand under different classes"
        yield Finding("D303", "warning", told, len(conflicting), shown(conflicting))


def _leak(data: DataSet, across: Sequence[list[tuple[str, int]]], shown: tuple[str, ...]) -> Finding:
    """An error where they are so many that the measured accuracy no longer says what it seems to."""
    held = {(name, i) for group in across for name, i in group if name != "train"}
    shares = {
        name: sum(split == name for split, _ in held) / len(data.splits[name])
        for name in data.splits
        if name != "train"
    }
    worst = max(shares, key=lambda name: shares[name])
    told = (
        f"{len(across)} pictures stand in more than one split: {shares[worst]:.1%} of {worst} is not unseen, "
        "and its accuracy comes out too high"
    )
    return Finding("D301", "error" if shares[worst] >= _LEAKED else "warning", told, len(across), shown)


def _ends(group: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """One member of each split."""
    return list({name: (name, i) for name, i in reversed(group)}.values())[::-1]


def _twins(group: list[tuple[str, int]]) -> list[tuple[str, int]]:
    names = [name for name, _ in group]
    twice = next(name for name in names if names.count(name) > 1)
    return [member for member in group if member[0] == twice]


def _digests(split: Split) -> Iterator[bytes]:
    for part in torch.split(split.images, 256):
        for image in part.numpy():
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _name(data: DataSet, split: str, i: int) -> str:
    files = data.splits[split].files
    if not files:
        return f"{split}[{i}]"
    return files[i] if files[i].startswith(split) else f"{split}: {files[i]}"


def _tests(data: DataSet, compared: str) -> dict[str, Any]:
    train, held = data.train, data.splits[compared]
    n = len(data.classes)
    labels = train.clean if train.clean is not None else train.labels
    ours, theirs = (torch.bincount(x, minlength=n).numpy() for x in (labels, held.labels))
    effects = channel_effects(train.images, held.images)
    return {
        "class_shares": asdict(class_shares(ours, theirs)),
        "channels": {name: {"d": d, "z": z} for name, (d, z) in effects.items()},
        "two_sample": asdict(two_sample(train.images, held.images)),
    }


def _apart(tests: Mapping[str, Any], compared: str) -> Iterator[Finding]:
    shares, channels, energy = tests["class_shares"], tests["channels"], tests["two_sample"]
    if shares["p"] < _P and shares["distance"] >= _APART:
        told = (
            f"class shares of train and {compared} differ by {shares['distance']:.0%} "
            f"(chi-square {shares['chi2']:.1f}, {shares['df']} degrees of freedom, {_p(shares['p'])})"
        )
        yield Finding("D401", "warning", told, shares["df"] + 1)
    far = {name: v for name, v in channels.items() if abs(v["d"]) >= _EFFECT and abs(v["z"]) >= _Z}
    if far:
        name = max(far, key=lambda key: abs(far[key]["d"]))
        what, channel = name.split()
        side = "higher" if far[name]["d"] > 0 else "lower"
        told = (
            f"channel statistics of train and {compared} differ: the images' own {what} of channel {channel} lies "
            f"{abs(far[name]['d']):.2f} deviations {side} in {compared}"
        )
        yield Finding("D402", "warning", told, len(far), _shown(f"{key}: {v['d']:+.2f}" for key, v in far.items()))
    if energy["p"] < _P:
        told = (
            f"train and {compared} do not look like one distribution (energy distance {energy['statistic']:.3g}, "
            f"{_p(energy['p'])} from {energy['permutations']} permutations of {sum(energy['sampled'])} images)"
        )
        yield Finding("D403", "warning", told, sum(energy["sampled"]))


def _p(value: float) -> str:
    return f"p = {value:.2g}" if value >= 1e-4 else "p < 0.0001"


def _mixed(data: DataSet) -> Iterator[Finding]:
    facts = data.facts
    if len(facts.modes) > 1:
        shown = _shown(f"{mode}: {n}" for mode, n in facts.modes.items())
        kind = "colour" if data.in_chans == 3 else "grey"
        told = f"images come in {len(facts.modes)} modes and are all read as {kind}"
        yield Finding("D501", "note", told, len(facts.modes), shown)
    if len(facts.sizes) > 1:
        shown = _shown(f"{size}: {n}" for size, n in facts.sizes.items())
        told = f"images come in {len(facts.sizes)} sizes and are cut and resized to {data.imgsz} x {data.imgsz}"
        yield Finding("D502", "note", told, len(facts.sizes), shown)


def _noise(data: DataSet) -> Iterator[Finding]:
    if data.train.clean is not None:
        count = int((data.train.clean != data.train.labels).sum())
        told = f"{count} of {len(data.train)} training labels were replaced by another class on request"
        yield Finding("D601", "note", told, count)


def _shown(names: Any) -> tuple[str, ...]:
    names = list(names)
    return tuple(names[:_SHOWN])
