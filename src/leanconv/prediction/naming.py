"""What is in a photo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanconv import data
from leanconv.data import Pictures
from leanconv.errors import Error
from leanconv.prediction.members import Runs, answers, members, several
from leanconv.runtime.prediction import Prediction
from leanconv.training import Run

__all__ = ["Prediction", "predict"]


def predict(
    runs: Runs,
    images: str | Path | Sequence[str | Path],
    samples: int = 0,
    *,
    unreadable: Callable[[str, str], None] | None = None,
    progress: data.Progress | None = None,
) -> list[Prediction]:
    """Classes with probabilities for each image.

    The probability of a class is the mean of the softmax over all members: ``p(c) = 1/M sum_m softmax(f_m(x))_c``.
    Members are the runs or, with ``samples`` T > 1, T passes of each run with dropout on (Gal & Ghahramani 2016).
    Each run reads the image in its own size, with its own mean and deviation. Images are read as they are needed: 64
    of them are in memory at a time, however many there are.

    Args:
        runs: a run or its folder, or several; with several, all must know the same classes.
        images: a file, a folder (every image below it), or several of either.
        samples: 0: dropout off, weights scaled; T > 1: Monte-Carlo dropout with T passes.
        unreadable: called with (image, reason) for an image that cannot be read, which is then left out; None: that is
            an error.
        progress: called with (images done, images in all), once more for each further run.

    Raises:
        Error: no run or image; a folder that is no run, damaged weights, runs of different classes; an image that
            cannot be read; ``samples`` below 0 or 1; samples of a network without dropout.

    Source: row S7; row S5 for the samples.
    """
    if not several(images):
        raise Error("predict: at least one image must be given, got none")
    opened = members("predict", runs, samples)
    pictures = data.unlabelled(several(images))
    bad: dict[int, str] = {}
    means, variances = map(
        torch.stack,
        zip(*[_member(run, pictures, samples, bad, (unreadable is None, progress)) for run in opened], strict=True),
    )
    for place, reason in sorted(bad.items()):
        if unreadable is not None:
            unreadable(pictures.names[place], reason)
    mean = means.mean(0)
    # Law of total variance: within the runs' samples, and between the runs.
    spread = (variances.mean(0) + means.var(0, correction=0)).sqrt()
    names = opened[0].header.classes
    good = [i for i in range(len(pictures)) if i not in bad]
    return [_sorted(pictures.names[i], names, mean[i], spread[i]) for i in good]


def _member(
    run: Run, pictures: Pictures, samples: int, bad: dict[int, str], how: tuple[bool, data.Progress | None]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the probabilities of one run, each (images, classes), float64."""
    header, (strict, progress) = run.header, how
    mean, variance = torch.zeros(2, len(pictures), len(header.classes), dtype=torch.float64)
    for places, pixels, refused in pictures.read(header.shape[1], header.shape[0], progress):
        for i, one in refused.items():
            if strict:
                raise Error(f"image: must be readable, got {one.reason} from {pictures.names[i]!r}")
            bad[i] = one.reason
        if places:
            logs, within = answers(run.model, data.normalise(pixels, header.mean, header.std), samples)
            mean[places], variance[places] = logs.exp(), within
    return mean, variance


def _sorted(file: str, names: tuple[str, ...], mean: Tensor, spread: Tensor) -> Prediction:
    order = mean.argsort(descending=True, stable=True).tolist()
    values = [(names[i], float(mean[i]), float(spread[i])) for i in order]
    classes, probabilities, spreads = zip(*values, strict=True)
    return Prediction(file, classes, probabilities, spreads)
