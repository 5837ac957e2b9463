"""How well trained runs do on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leanconv import data
from leanconv.data import Pictures
from leanconv.errors import Error
from leanconv.measure import Tally
from leanconv.prediction.members import Runs, answers, members
from leanconv.results import Outcome
from leanconv.training import Run, images_of

__all__ = ["Evaluation", "Mistake", "evaluate"]

_BATCH = 256


@dataclass(frozen=True)
class Mistake:
    """An image that was called something else.

    Attributes:
        image: its name.
        truth: its class.
        answer: what it was called.
        probability: that the network gave to that answer.
        place: among the images of the split, from 0.
    """

    image: str
    truth: str
    answer: str
    probability: float
    place: int


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        outcome: accuracy, balanced accuracy, macro F1, recall per class, confusion, calibration.
        runs: folders of the runs that answered together.
        source: where the images come from.
        split: of them.
        samples: of Monte-Carlo dropout; 0: dropout off.
        mistakes: every image that was called something else, the surest first.
        skipped: (image, reason) of those that could not be read.
        notes: what a reader should know, a sentence each.
    """

    outcome: Outcome
    runs: tuple[str, ...]
    source: str
    split: str
    samples: int
    mistakes: tuple[Mistake, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def to_dict(self, mistakes: int | None = None) -> dict[str, Any]:
        """Plain values: what :meth:`Outcome.to_dict` gives, and the rest; at most so many mistakes."""
        return {
            "runs": list(self.runs),
            "source": self.source,
            "split": self.split,
            "samples": self.samples,
            **self.outcome.to_dict(),
            "mistakes": [vars(mistake) for mistake in self.mistakes[:mistakes]],
            "skipped": [{"image": name, "reason": reason} for name, reason in self.skipped],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, eq=False)
class _Held:
    """Images to test on, in the form that each run reads: ``stream(run)`` gives places and normalised images."""

    names: Sequence[str]
    labels: Tensor
    source: str
    split: str
    notes: tuple[str, ...]
    stream: Callable[[Run], Iterator[tuple[list[int], Tensor]]]
    bad: dict[int, str]


def evaluate(
    runs: Runs,
    images: str | Path | None = None,
    *,
    split: str | None = None,
    samples: int = 0,
    progress: data.Progress | None = None,
) -> Evaluation:
    """How often trained runs are right, and how they are wrong.

    The probability of a class is the mean over the runs, and over ``samples`` passes of each with dropout on, as in
    :func:`leanconv.predict`; the answer is the most probable class. Classes are matched by name.

    Args:
        runs: a run or its folder, or several, which then answer together.
        images: a source as for :func:`leanconv.data.load`, which may hold fewer classes than the network knows and no
            training images. None, or the very images that the run was trained on: those, with the splits that the run
            had, so that none it learned from is counted.
        split: ``train``, ``val``, ``test``; None: ``test`` where there is one, else ``val``, else all images.
        samples: 0: dropout off; T > 1: Monte-Carlo dropout with T passes.
        progress: called with (images done, images in all).

    Raises:
        Error: no run; a folder that is no run; runs of different classes; bad images; a class that the network does
            not know; no such split; no image that can be read; samples of a network without dropout.

    Source: row S7; row S5 for the samples.
    """
    opened = members("eval", runs, samples)
    own = _own(opened, images)
    held = _of_runs(opened, own, split, progress) if own is not None else _of_source(opened, images, split, progress)
    classes = opened[0].header.classes
    logs = torch.stack([_logs(run, held, samples) for run in opened])
    mean = torch.logsumexp(logs, 0) - math.log(len(opened))
    good = torch.tensor([i for i in range(len(held.names)) if i not in held.bad], dtype=torch.int64)
    if not len(good):
        raise Error(f"data: images of {held.source} must be readable, got {len(held.names)} that are not")
    tally = Tally(classes)
    tally.add(mean[good], held.labels[good])
    return Evaluation(
        tally.outcome(),
        tuple(str(run.folder) for run in opened),
        held.source,
        held.split,
        samples,
        _mistakes(held, mean, good.tolist(), classes),
        tuple((held.names[i], reason) for i, reason in sorted(held.bad.items())),
        held.notes,
    )


def _own(runs: list[Run], images: str | Path | None) -> list[Run] | None:
    """The runs that were trained on these images; None where there is none."""
    if images is None:
        return runs
    wanted = _place(images)
    return [run for run in runs if run.record.data.get("path") == wanted] or None


def _place(images: str | Path) -> str:
    path = Path(images).expanduser()
    return str(path.resolve()) if path.exists() and str(images) != "demo" else str(images)


def _of_runs(opened: list[Run], own: list[Run], split: str | None, progress: data.Progress | None) -> _Held:
    """The images that the runs were trained on, in their own splits."""
    first = own[0]
    sets = {run: images_of(run, progress) for run in opened} if len(own) == len(opened) else {}
    if not sets or any(_splitting(run) != _splitting(first) for run in own):
        raise Error(
            "eval: runs that answer together on images they were trained on must share their data and its splits, "
            f"got {' and '.join(str(run.folder) for run in opened)}"
        )
    known = sets[first].splits
    chosen = split or ("test" if "test" in known else "val")
    if chosen not in known:
        raise Error(f"split: must be one of {', '.join(known)} of {sets[first].source}, got {chosen!r}")
    part = known[chosen]
    names = part.files or [f"{chosen} {i}" for i in range(len(part))]
    notes = [
        f"{run.folder}: the images are no longer those it was trained on (another fingerprint)"
        for run in opened
        if run.record.data.get("fingerprint") != sets[run].fingerprint
    ]
    labels = part.labels if part.clean is None else part.clean

    def stream(run: Run) -> Iterator[tuple[list[int], Tensor]]:
        for x, _, positions in data.batches(sets[run], chosen, _BATCH):
            yield positions.tolist(), x

    return _Held(names, labels, sets[first].source, chosen, tuple(notes), stream, {})


def _splitting(run: Run) -> tuple[Any, ...]:
    section = run.record.recipe.get("data", {})
    return run.record.data.get("path"), *(section.get(key) for key in ("val", "test", "split_seed"))


def _of_source(
    opened: list[Run], images: str | Path | None, split: str | None, progress: data.Progress | None
) -> _Held:
    """Other images, read as they are needed."""
    pictures: Pictures = data.labelled(str(images), opened[0].header.classes, split)
    labels = pictures.labels
    if labels is None:
        raise Error(f"eval: images must have labels, got {images}")
    bad: dict[int, str] = {}

    def stream(run: Run) -> Iterator[tuple[list[int], Tensor]]:
        header = run.header
        for places, pixels, refused in pictures.read(header.shape[1], header.shape[0], progress):
            bad.update({i: one.reason for i, one in refused.items()})
            if places:
                yield places, data.normalise(pixels, header.mean, header.std)

    return _Held(pictures.names, labels, pictures.source, pictures.split, pictures.notes, stream, bad)


def _logs(run: Run, held: _Held, samples: int) -> Tensor:
    """Logarithms of the probabilities of one run, (images, classes)."""
    logs = torch.zeros(len(held.names), len(run.header.classes), dtype=torch.float64)
    for places, x in held.stream(run):
        logs[places], _ = answers(run.model, x, samples)
    return logs


def _mistakes(held: _Held, logs: Tensor, good: list[int], classes: tuple[str, ...]) -> tuple[Mistake, ...]:
    best, found = logs.max(1)
    wrong = [i for i in good if int(found[i]) != int(held.labels[i])]
    wrong.sort(key=lambda i: -float(best[i]))
    return tuple(
        Mistake(held.names[i], classes[int(held.labels[i])], classes[int(found[i])], float(best[i].exp()), i)
        for i in wrong
    )
