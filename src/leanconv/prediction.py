"""What is in an image: one trained run, or the average of several (a model ensemble, row S7 of the source)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv import data
from leanconv.errors import Error
from leanconv.techniques.dropout import monte_carlo, weight_scaling
from leanconv.training import Run, open_run

__all__ = ["Prediction", "predict"]

_BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The classes of one image.

    Attributes:
        image: where it was read from.
        classes: names, most probable first.
        probabilities: of these classes, between 0 and 1, adding up to 1.
        spread: standard deviation of each probability over runs and Monte-Carlo passes; zeros where there is one run
            and no passes.
    """

    image: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    spread: tuple[float, ...]

    def line(self, top: int = 3) -> str:
        """``photo.jpg: rose 93.1 %, tulip 5.2 %, daisy 1.0 %``."""
        told = []
        for name, p, s in list(zip(self.classes, self.probabilities, self.spread, strict=True))[:top]:
            told.append(f"{name} {100 * p:.1f} %" + (f" ± {100 * s:.1f}" if any(self.spread) else ""))
        return f"{self.image}: {', '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``image``, and ``classes`` as name -> probability and spread."""
        rows = zip(self.classes, self.probabilities, self.spread, strict=True)
        return {"image": self.image, "classes": {n: {"probability": p, "spread": s} for n, p, s in rows}}


def predict(
    runs: str | Path | Run | Sequence[str | Path | Run],
    images: str | Path | Sequence[str | Path],
    passes: int = 0,
) -> list[Prediction]:
    """Classes with probabilities for each image.

    The probability of a class is the mean of the softmax over all members: ``p(c) = 1/M sum_m softmax(f_m(x))_c``.
    Members are the runs or, with ``passes`` T > 1, T passes of each run with dropout on (Gal & Ghahramani 2016).
    Each run reads the image in its own size, with its own mean and deviation.

    Args:
        runs: a run or its folder, or several; with several, all must know the same classes.
        images: a file, or several.
        passes: 0: dropout off, weights scaled; T > 1: Monte-Carlo dropout with T passes.

    Raises:
        Error: no run or image; a folder that is no run, damaged weights, runs of different classes; an image that
            cannot be read; ``passes`` below 0 or 1; passes of a network without dropout.

    Source: row S7; row S5 for the passes.
    """
    members = [r if isinstance(r, Run) else open_run(r) for r in _several(runs)]
    files = [str(image) for image in _several(images)]
    if not files:
        raise Error("predict: at least one image must be given, got none")
    if passes < 0 or passes == 1:
        raise Error(f"predict: passes must be 0 (off) or at least 2, got passes={passes}")
    _agree(members)
    means, variances = map(torch.stack, zip(*[_member(run, files, passes) for run in members], strict=True))
    mean = means.mean(0)
    # Law of total variance: within the runs' passes, and between the runs.
    spread = (variances.mean(0) + means.var(0, correction=0)).sqrt()
    names = members[0].header.classes
    return [_sorted(file, names, m, s) for file, m, s in zip(files, mean, spread, strict=True)]


def _several(given: Any) -> list[Any]:
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]


def _agree(runs: list[Run]) -> None:
    if not runs:
        raise Error("predict: at least one run must be given, got none")
    for run in runs[1:]:
        if run.header.classes != runs[0].header.classes:
            raise Error(
                f"predict: all runs must know the same classes, got {', '.join(runs[0].header.classes)} in "
                f"{runs[0].folder} and {', '.join(run.header.classes)} in {run.folder}"
            )


def _member(run: Run, files: list[str], passes: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the probabilities of one run, each (images, classes), float64."""
    header = run.header
    pixels = torch.stack([data.read_image(file, header.shape[1], header.shape[0]) for file in files])
    x = data.normalise(pixels, header.mean, header.std)
    found = [_probabilities(run.model, part, passes) for part in torch.split(x, _BATCH)]
    means, variances = zip(*found, strict=True)
    return torch.cat(means), torch.cat(variances)


def _probabilities(model: nn.Module, x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    if passes:
        drawn = monte_carlo(model, x, passes)
        return drawn.mean.double(), drawn.spread.double().square()
    mean = weight_scaling(model, x).double()
    return mean, torch.zeros_like(mean)


def _sorted(file: str, names: tuple[str, ...], mean: Tensor, spread: Tensor) -> Prediction:
    order = mean.argsort(descending=True, stable=True).tolist()
    values = [(names[i], float(mean[i]), float(spread[i])) for i in order]
    classes, probabilities, spreads = zip(*values, strict=True)
    return Prediction(file, classes, probabilities, spreads)
