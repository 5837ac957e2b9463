"""What a classifier is worth beyond its share of right answers: everything that a confusion matrix tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.errors import Error
from leanconv.results.shares import Score

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What one pass over a split gave.

    With n_ij = images of class i that were called j, the sums t_i = sum_j n_ij (images of a class), q_j = sum_i n_ij
    (answers), and N images in all.

    Attributes:
        classes: names; row and column i of the matrix are ``classes[i]``.
        confusion: n_ij: a row per true class, a column per answer.
        negative_log_likelihood: -1/N sum log p(true class), in nats; inf where a true class was held impossible.
        calibration_error: expected calibration error, see :func:`leanconv.measure.classify`.
        mistakes: the surest ones, at most 24: place among the images, from 0, true class, answer, its probability.
        calibration: of each bin with images, the surest last: images, share right, mean probability of the answer.
    """

    classes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    negative_log_likelihood: float
    calibration_error: float
    calibration: tuple[tuple[int, float, float], ...] = ()
    mistakes: tuple[tuple[int, str, str, float], ...] = ()

    def __post_init__(self) -> None:
        shapes = {len(row) for row in self.confusion} | {len(self.confusion)}
        if shapes != {len(self.classes)}:
            raise Error(f"Outcome: confusion must be square, a row per class, got {len(self.classes)} classes")

    @property
    def score(self) -> Score:
        """Right answers sum_i n_ii of N, with the negative log-likelihood as loss."""
        right = sum(row[i] for i, row in enumerate(self.confusion))
        return Score(right, sum(self.images), self.negative_log_likelihood)

    @property
    def images(self) -> tuple[int, ...]:
        """t_i: images of each class."""
        return tuple(map(sum, self.confusion))

    @property
    def answers(self) -> tuple[int, ...]:
        """q_j: how often each class was answered."""
        return tuple(map(sum, zip(*self.confusion, strict=True)))

    @property
    def recall(self) -> tuple[float, ...]:
        """n_ii / t_i, the share of a class that was found; nan for a class without images."""
        return tuple(_share(row[i], n) for i, (row, n) in enumerate(zip(self.confusion, self.images, strict=True)))

    @property
    def precision(self) -> tuple[float, ...]:
        """n_jj / q_j, the share of a class's answers that were right; nan for a class that was never answered."""
        return tuple(_share(self.confusion[j][j], n) for j, n in enumerate(self.answers))

    @property
    def f1(self) -> tuple[float, ...]:
        """2 n_ii / (t_i + q_i), the harmonic mean of recall and precision; nan where both are undefined."""
        sums = [t + q for t, q in zip(self.images, self.answers, strict=True)]
        return tuple(_share(2 * self.confusion[i][i], n) for i, n in enumerate(sums))

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the recall over the classes that have images."""
        return _mean(self.recall)

    @property
    def macro_f1(self) -> float:
        """Mean of F1 over the classes that have images or were answered."""
        return _mean(self.f1)

    def worst(self, count: int) -> list[tuple[str, float]]:
        """The classes of lowest recall with it, lowest first; classes without images are left out."""
        known = [(name, value) for name, value in zip(self.classes, self.recall, strict=True) if not math.isnan(value)]
        return sorted(known, key=lambda pair: pair[1])[:count]

    def confused(self, count: int) -> list[tuple[str, str, int]]:
        """The commonest mistakes: true class, answer, how many images; commonest first."""
        found = [
            (self.classes[i], self.classes[j], n)
            for i, row in enumerate(self.confusion)
            for j, n in enumerate(row)
            if i != j and n
        ]
        return sorted(found, key=lambda mistake: -mistake[2])[:count]

    def brief(self) -> dict[str, float]:
        """What an epoch's record keeps: ``balanced_accuracy`` and ``macro_f1``."""
        return {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, by class name; None where a share is undefined, and no zeros in the confusion."""
        low, high = self.score.interval()
        return {
            "images": self.score.total,
            "correct": self.score.correct,
            "accuracy": self.score.accuracy,
            "interval": [low, high],
            "loss": self.negative_log_likelihood,
            **self.brief(),
            "calibration_error": self.calibration_error,
            "calibration": [list(row) for row in self.calibration],
            "mistakes": [list(row) for row in self.mistakes],
            "recall": self._named(self.recall),
            "precision": self._named(self.precision),
            "confusion": {
                name: {other: n for other, n in zip(self.classes, row, strict=True) if n}
                for name, row in zip(self.classes, self.confusion, strict=True)
            },
        }

    def _named(self, values: Sequence[float]) -> dict[str, float | None]:
        return {name: None if math.isnan(v) else v for name, v in zip(self.classes, values, strict=True)}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
