"""One pass over labelled images: accuracy, and what it hides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from leanconv.data import DataSet, batches
from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.results import Outcome, Score

__all__ = ["BINS", "Tally", "classify", "classify_together", "score"]

BINS = 15
"""Bins of the expected calibration error."""

MISTAKES = 24
"""So many of the surest ones are kept."""


class Tally:
    """Counts answers batch by batch; see :func:`classify` for the formulas.

    Args:
        classes: names, in the order of the outputs.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._confusion = torch.zeros(len(self.classes) ** 2, dtype=torch.int64)
        self._surprise = torch.zeros((), dtype=torch.float64)
        # Per bin: images, right answers, summed confidence.
        self._bins = torch.zeros(3, BINS, dtype=torch.float64)
        # Probability, place, truth, answer.
        self._mistakes: list[tuple[float, int, int, int]] = []

    def add(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            log_probabilities: (N, classes); the classes' probabilities sum to 1.
            labels: int64 (N,).
        """
        logs, labels = log_probabilities.double().cpu(), labels.cpu()
        best, answers = logs.max(1)
        start = int(self._confusion.sum())
        wrong = (answers != labels).nonzero().flatten().tolist()
        found = [(float(best[i].exp()), start + i, int(labels[i]), int(answers[i])) for i in wrong]
        self._mistakes = sorted([*self._mistakes, *found], key=lambda m: (-m[0], m[1]))[:MISTAKES]
        self._confusion += torch.bincount(labels * len(self.classes) + answers, minlength=len(self._confusion))
        self._surprise -= logs.gather(1, labels[:, None]).sum()
        sure = best.exp()
        place = (sure * BINS).ceil().sub(1).clamp(0, BINS - 1).nan_to_num(0).long()
        for row, values in enumerate((torch.ones_like(sure), (answers == labels).double(), sure)):
            self._bins[row].index_add_(0, place, values)

    def outcome(self) -> Outcome:
        """What was counted.

        Raises:
            Error: nothing was.
        """
        total = int(self._confusion.sum())
        if not total:
            raise Error("classify: at least one image must be given, got none")
        _, right, sure = self._bins
        bins = [(int(n), r / n, c / n) for n, r, c in self._bins.T.tolist() if n]
        matrix = self._confusion.view(len(self.classes), -1).tolist()
        return Outcome(
            self.classes,
            tuple(map(tuple, matrix)),
            float(self._surprise) / total,
            float((right - sure).abs().sum()) / total,
            tuple(bins),
            tuple((i, self.classes[truth], self.classes[answer], p) for p, i, truth, answer in self._mistakes),
        )


def classify(model: nn.Module, data: DataSet, split: str, size: int = 256) -> Outcome:
    """Everything that a classifier's answers on a split tell, in one pass in eval mode, unaugmented.

    With p_k the softmax of image k, y_k its class and N images: the answer is argmax p_k; the loss is the negative
    log-likelihood ``-1/N sum_k log p_k(y_k)`` in nats. The expected calibration error sorts the images by confidence
    c_k = max p_k into 15 bins ((b-1)/15, b/15] and is ``sum_b |B_b|/N |share right in B_b - mean c in B_b|``: 0 where a
    network is right as often as it thinks. Recall, precision, F1 and their means: :class:`leanconv.results.Outcome`.

    Args:
        model: (N, C, H, W) -> (N, classes).
        data: the set.
        split: ``train``, ``val`` or ``test``.
        size: images per pass.

    Raises:
        Error: no such split.

    Source: calibration error: Guo et al. 2017, arXiv:1706.04599, equation 3; balanced accuracy: Brodersen et al. 2010,
        doi:10.1109/ICPR.2010.764.
    """
    return classify_together([(model, data)], split, size)


def classify_together(members: Sequence[tuple[nn.Module, DataSet]], split: str, size: int = 256) -> Outcome:
    """:func:`classify` for the average of several networks: ``p_k = 1/M sum_m softmax(f_m(x_k))``.

    Args:
        members: networks with the same outputs, each with the same images in the form that it reads.
        split: of the sets.
        size: images per pass.

    Raises:
        Error: no network, no such split, or sets with other labels.

    Source: row S7.
    """
    if not members:
        raise Error("classify: at least one network must be given, got none")
    first = members[0][1]
    tally = Tally(first.classes)
    with ExitStack() as stack:
        for model, _ in members:
            stack.enter_context(evaluating(model))
        for parts in zip(*[batches(data, split, size) for _, data in members], strict=True):
            labels = parts[0].labels
            if any(not torch.equal(labels, part.labels) for part in parts):
                raise Error("classify: all networks must see the same images, got other labels")
            logs = [_log_probabilities(model, part.images) for (model, _), part in zip(members, parts, strict=True)]
            tally.add(logs[0] if len(logs) == 1 else _average(logs), labels)
    return tally.outcome()


def score(model: nn.Module, data: DataSet, split: str, size: int = 256) -> Score:
    """Accuracy and mean cross entropy (nats) of a classifier on a split: :attr:`classify(...).score <classify>`.

    Args:
        model: (N, C, H, W) -> (N, classes).
        data: the set.
        split: ``train``, ``val`` or ``test``.
        size: images per pass.

    Raises:
        Error: no such split.
    """
    return classify(model, data, split, size).score


def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return log_softmax(model(images.to(device)).double(), 1)


def _average(logs: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of probabilities, which are never held themselves: they might be 0."""
    return torch.logsumexp(torch.stack([one.cpu() for one in logs]), 0) - math.log(len(logs))
