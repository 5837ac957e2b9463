"""From what a source holds to squares in memory or in the cache, arranged by splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanconv.data import cache as caching
from leanconv.data.dataset import DataSet, Facts, Split, Unreadable, channel_statistics, fingerprint
from leanconv.data.found import Found
from leanconv.data.images import Header, Progress, Refused, squares
from leanconv.data.noise import noisy
from leanconv.data.splitting import stratified
from leanconv.errors import Error

__all__ = ["Form", "read"]

_OWN_SIZE = 96
_SIZE = 64
_SHOWN = 5
# A set whose files are small, and its squares too, is decoded in a second and held in memory.
_SMALL_FILES, _SMALL_SQUARES = 8 << 20, 64 << 20

Plan = dict[str, NDArray[np.int64]]
Put = Callable[[int, NDArray[np.uint8]], None]


@dataclass(frozen=True)
class Form:
    """What a set is to become; the fields are the arguments of :func:`leanconv.data.load`."""

    imgsz: int | None
    in_chans: int | None
    val: float
    test: float
    seed: int
    label_noise: float
    cache: bool
    strict: bool


def read(found: Found, form: Form, progress: Progress | None) -> DataSet:
    """Decode, or take from the cache, split, and count what was seen.

    Raises:
        Error: nothing readable, or an unreadable image where ``strict``; a class too small to be split.
    """
    reader = _Reader(found, form, progress)
    pixels, plan, refused, entry, notes = reader.squares()
    splits, start = {}, 0
    for name, index in plan.items():
        part = pixels[start : start + len(index)]
        start += len(index)
        labels = torch.from_numpy(found.labels[index])
        if len(index):
            splits[name] = Split(part, labels, tuple(found.names[i] for i in index))
    splits["train"], noise = noisy(splits["train"], len(found.classes), form.label_noise, form.seed)
    skipped = tuple(found.names[i] for i in sorted(refused))
    said = [*found.notes, *_skipped_note(skipped, len(found)), *notes]
    said += [*_choice_notes(found, form, splits), *noise]
    stamp = _known(entry, splits, found.classes)
    return DataSet(
        splits["train"], splits["val"], splits.get("test"), found.classes, *stamp, found.source, tuple(said), skipped,
        _facts(found, reader.headers, refused),
    )  # fmt: skip


class _Reader:
    """Headers first, then pixels."""

    def __init__(self, found: Found, form: Form, progress: Progress | None) -> None:
        self.found, self.form, self.progress = found, form, progress
        small = form.cache and _bytes(found) <= _SMALL_FILES
        self.hashes, self.headers = caching.seen(found, form.cache and not small)
        self.known = [i for i, one in enumerate(self.headers) if isinstance(one, Header)]
        self._refuse({i: one for i, one in enumerate(self.headers) if isinstance(one, Refused)})
        side, channels = _form([one for one in self.headers if isinstance(one, Header)], form.imgsz, form.in_chans)
        self.shape = (channels, side, side)
        self.cached = form.cache and not small
        if small and len(self.known) * channels * side * side > _SMALL_SQUARES:
            self.hashes, self.headers = caching.seen(found, True)
            self.cached = True

    def squares(self) -> tuple[Tensor, Plan, dict[int, Refused], caching.Entry | None, tuple[str, ...]]:
        """Squares in the order of the plan, the plan, what was refused, where it is kept, what to tell."""
        if not self.cached:
            return *self._in_memory(), None, ()
        try:
            try:
                pixels, plan, refused, entry = self._in_cache()
            except FileNotFoundError:  # another process has just put its own arrangement in its place
                pixels, plan, refused, entry = self._in_cache()
            return pixels, plan, refused, entry, ()
        except OSError as error:
            why = error.strerror or type(error).__name__
            told = f"the cache {caching.cache_folder()} could not be written ({why}): images are held in memory"
            return *self._in_memory(), None, (told,)

    def _in_memory(self) -> tuple[Tensor, Plan, dict[int, Refused]]:
        plan = _plan(self.found, self.known, self.form)
        order = np.concatenate([*plan.values()])
        pixels = np.zeros((len(order), *self.shape), np.uint8)
        refused = self._decode(order, pixels.__setitem__)
        if refused:
            row = {image: r for r, image in enumerate(order.tolist())}
            plan = _plan(self.found, [i for i in self.known if i not in refused], self.form)
            pixels = pixels[[row[image] for image in np.concatenate([*plan.values()]).tolist()]]
        return torch.from_numpy(pixels), plan, self._all(refused)

    def _in_cache(self) -> tuple[Tensor, Plan, dict[int, Refused], caching.Entry]:
        key = caching.content_key(self.found, self.hashes, self.shape[1], self.shape[0])
        entry = caching.find(key, self.shape)
        if entry is None:
            order = np.concatenate([*_plan(self.found, self.known, self.form).values()])
            with caching.writing(key, self.shape, order.tolist(), len(order)) as writer:
                refused = self._decode(order, writer.put)
                entry = writer.finish(refused)
        self._refuse(entry.refused)
        plan = _plan(self.found, [i for i in self.known if i not in entry.refused], self.form)
        order = np.concatenate([*plan.values()])
        if entry.order != order.tolist():
            entry = entry.arranged(order.tolist())
        return torch.from_numpy(entry.pixels()), plan, self._all(entry.refused), entry

    def _decode(self, order: NDArray[np.int64], put: Put) -> dict[int, Refused]:
        """Read the images in the source's order, each to its row."""
        ascending = np.argsort(order, kind="stable")
        places = order[ascending].tolist()
        results = squares(self.found.pictures(places), len(places), self.shape[1], self.shape[0], self.progress)
        refused: dict[int, Refused] = {}
        for row, place, result in zip(ascending.tolist(), places, results, strict=True):
            if isinstance(result, Refused):
                refused[place] = result
                self._refuse({place: result})
            else:
                put(row, result)
        self._readable(refused)
        return refused

    def _refuse(self, refused: Mapping[int, Refused]) -> None:
        """Strictly, or where nothing is left."""
        if refused and self.form.strict:
            first = min(refused)
            raise Error(f"data: every image must be readable, got {self.found.names[first]} ({refused[first].reason})")
        self._readable(refused)

    def _readable(self, refused: Mapping[int, Refused]) -> None:
        bad = self._all(refused)
        if len(bad) < len(self.found):
            return
        empty = sum(one.kind == "empty" for one in bad.values())
        got = f"{len(bad)} files of zero bytes" if empty == len(bad) else f"{len(bad)} that are not"
        first = self.found.names[min(bad)]
        where = self.found.source.split(" ", 1)[1]
        raise Error(f"data: images of {where} must be readable, got {got} (the first is {first})")

    def _all(self, refused: Mapping[int, Refused]) -> dict[int, Refused]:
        return {**{i: one for i, one in enumerate(self.headers) if isinstance(one, Refused)}, **refused}


def _plan(found: Found, images: Sequence[int], form: Form) -> Plan:
    """Split -> images, ascending: as the source says, and by share where it does not."""
    index = np.array(images, np.int64)
    where = np.array(found.splits)[index]
    given = {name: index[where == name] for name in ("train", "val", "test")}
    if (where == "all").any():
        shares = {"test": form.test, "val": (1 - form.test) * form.val} if form.test else {"val": form.val}
        pool = index[where == "all"]
    else:
        shares = {} if len(given["val"]) else {"val": form.val}
        pool = given["train"]
    parts = stratified(found.labels[pool], shares, found.classes, form.seed)
    return {**given, **{name: pool[chosen] for name, chosen in parts.items()}}


def _form(found: Sequence[Header], imgsz: int | None, in_chans: int | None) -> tuple[int, int]:
    sizes = {(h.width, h.height) for h in found}
    own = next(iter(sizes)) if len(sizes) == 1 else (0, 1)
    side = own[0] if own[0] == own[1] and own[0] <= _OWN_SIZE else _SIZE
    channels = 1 if found and all(h.grey for h in found) else 3
    return imgsz or side, in_chans or channels


def _bytes(found: Found) -> int:
    """Of all files together; sets without files count as large."""
    paths = {part.path for part in found.parts}
    if None in paths:
        return _SMALL_FILES + 1
    return sum(path.stat().st_size for path in paths if path is not None and path.exists())


def _known(
    entry: caching.Entry | None, splits: Mapping[str, Split], classes: tuple[str, ...]
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean, deviation and fingerprint, from the cache where it knows them."""
    digest = hashlib.sha256(repr(classes).encode())
    for name in sorted(splits):
        digest.update(name.encode() + splits[name].labels.contiguous().numpy().tobytes())
    name = digest.hexdigest()
    if entry is not None and name in entry.known:
        try:
            mean, std, stamp = entry.known[name]
            return tuple(map(float, mean)), tuple(map(float, std)), str(stamp)
        except (TypeError, ValueError):
            del entry.known[name]
    mean, std = channel_statistics(splits["train"].images)
    values = (mean, std, fingerprint(dict(splits), classes))
    if entry is not None:
        entry.remember(name, values)
    return values


def _facts(found: Found, headers: Sequence[Header | Refused], refused: Mapping[int, Refused]) -> Facts:
    said = [one for one in headers if isinstance(one, Header)]
    bad = tuple(Unreadable(found.names[i], found.splits[i], one.kind, one.reason) for i, one in sorted(refused.items()))
    modes = Counter(one.mode for one in said)
    sizes = Counter(f"{one.width}x{one.height}" for one in said)
    largest = max(((one.width, one.height) for one in said), key=lambda s: s[0] * s[1], default=(0, 0))
    return Facts(len(found), dict(modes.most_common()), dict(sizes.most_common()), largest, bad, found.empty)


def _skipped_note(skipped: tuple[str, ...], total: int) -> tuple[str, ...]:
    if not skipped:
        return ()
    shown = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
    return (f"{len(skipped)} of {total} images could not be read and were skipped: {shown}",)


def _choice_notes(found: Found, form: Form, splits: Mapping[str, Split]) -> tuple[str, ...]:
    notes, given = [], set(found.splits)
    if "all" in given and form.test:
        notes.append(f"test is {form.test:.0%} of the images, stratified, seed {form.seed}")
    if "val" not in given:
        notes.append(f"val is {form.val:.0%} of the training images, stratified, seed {form.seed}")
    for name in ("val", "test"):
        if name in splits:
            missing = [c for i, c in enumerate(found.classes) if not (splits[name].labels == i).any()]
            if missing:
                notes.append(f"{name} has no image of {', '.join(missing)}")
    return tuple(notes)
