"""What a study measures beside the trainings themselves, and what it reads out of their records."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from leanconv import data
from leanconv.data import Batch, DataSet
from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.kernels.keys import keyed
from leanconv.recipe import Recipe
from leanconv.results import Epoch
from leanconv.techniques.dropout import monte_carlo
from leanconv.techniques.separable import SeparableConv2d
from leanconv.training import optim
from leanconv.training.build import attach, from_scratch
from leanconv.training.run import prepare

__all__ = [
    "Ensemble",
    "Stable",
    "convolutions",
    "ensemble",
    "gradients",
    "largest_stable_rate",
    "memorised",
    "shifts",
    "stable",
    "to_reach",
    "weight_norm",
]

STEPS = 200
LOWEST, HIGHEST = -10, 6
"""Powers of two: the grid of learning rates."""
_LAST = 20


# --- the largest stable learning rate (S12) ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Stable:
    """The largest stable learning rate of an arm.

    Attributes:
        rate: the greatest on the grid at which training is stable; None where none is.
        tried: rate -> whether it was.
        bounded: the grid's highest rate was stable too: the true one may be larger.
    """

    rate: float | None
    tried: Mapping[float, bool]
    bounded: bool


def largest_stable_rate(recipe: Recipe, images: DataSet, steps: int = STEPS) -> Stable:
    """The greatest rate of 2^-10, 2^-9, ..., 2^6 that :func:`stable` finds stable.

    From the power of two next to the recipe's rate it goes up or down until the answer changes; rates above an
    unstable one are taken to be unstable too.

    Args:
        recipe: of the arm; its rate, warm-up and schedule do not enter.
        images: to train on.
        steps: optimizer steps of one trial.

    Source: row S12.
    """
    start = min(HIGHEST, max(LOWEST, round(math.log2(recipe.training.lr))))
    tried: dict[float, bool] = {}

    def holds(power: int) -> bool:
        tried[2.0**power] = stable(recipe, images, 2.0**power, steps)
        return tried[2.0**power]

    power = start
    if holds(power):
        while power < HIGHEST and holds(power + 1):
            power += 1
    else:
        while power >= LOWEST and (power == LOWEST or not holds(power - 1)):
            power -= 1
        power -= 1
    found = 2.0**power if power >= LOWEST else None
    return Stable(found, dict(sorted(tried.items())), power == HIGHEST)


def stable(recipe: Recipe, images: DataSet, rate: float, steps: int = STEPS) -> bool:
    """Whether training at a constant rate, without warm-up, stays finite and ends below the initial loss.

    The initial loss is that of the first batch before the first step, the last one the mean over the last 20 batches
    before their steps; the loss is C0 without penalties, after which weights must be finite too.

    Args:
        recipe: whose network, optimizer, batch, order, augmentation and techniques are used.
        images: to train on.
        rate: of learning.
        steps: optimizer steps.

    Source: row S12.
    """
    built, _ = prepare(from_scratch(recipe), images)
    settings = recipe.training
    optimizer = optim.make(built.model, built.roles, settings)
    attachments, _ = attach(built, recipe, optimizer, len(images.train))
    optim.set_rate(optimizer, rate)
    losses: list[float] = []
    model = built.model.train()
    try:
        for step, batch in enumerate(itertools.islice(_endless(recipe, images), steps)):
            with keyed(settings.seed, step, 0):
                loss = cross_entropy(model(batch.images), batch.labels, label_smoothing=settings.label_smoothing)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    return False
                stopped: Mapping[str, Tensor] = {}
                for attachment in attachments:
                    stopped = {**stopped, **attachment.stopped()}
                penalties = [p for a in attachments if (p := a.penalty(stopped)) is not None]
                torch.stack([loss, *(p.reshape(()) for p in penalties)]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    finally:
        for attachment in attachments:
            attachment.close()
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return finite and statistics.fmean(losses[-_LAST:]) < losses[0]


def _endless(recipe: Recipe, images: DataSet) -> Iterator[Batch]:
    settings = recipe.training
    for epoch in itertools.count():
        policy, balance = recipe.data.augment, recipe.data.balance
        steps = data.steps(images, settings.batch, epoch=epoch, seed=settings.seed, policy=policy, balance=balance)
        for (batch,) in steps:
            yield batch


# --- dropout as an ensemble (S5), wrong labels learnt by heart (S23) --------------------------------------------------


@dataclass(frozen=True)
class Ensemble:
    """Shares of right answers of one network with dropout.

    Attributes:
        single: of one sub-network, the mean over those that were drawn.
        average: of the average of their probabilities.
        scaled: of the whole network, as it is used: weight scaling.
        samples: sub-networks that were drawn.
    """

    single: float
    average: float
    scaled: float
    samples: int

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


@torch.no_grad()
def ensemble(model: nn.Module, images: DataSet, split: str = "test", samples: int = 20, most: int = 1_000) -> Ensemble:
    """What averaging over dropout's sub-networks is worth, beside one of them and beside weight scaling.

    Args:
        model: has dropout.
        images: normalised as it was trained.
        split: of them; at most ``most`` images, evenly spaced.
        samples: sub-networks.
        most: images.

    Raises:
        Error: the model has no dropout.

    Source: row S5.
    """
    held = images.splits[split]
    index = torch.linspace(0, len(held) - 1, min(most, len(held))).round().long()
    x = data.normalise(held.images[index], images.mean, images.std).contiguous(memory_format=torch.channels_last)
    labels = held.labels[index]
    drawn = monte_carlo(model, x, samples).passes
    with evaluating(model):
        scaled = model(x).argmax(1)

    def right(answers: Tensor) -> float:
        return float((answers == labels).float().mean())

    single = statistics.fmean(right(one.argmax(1)) for one in drawn)
    return Ensemble(single, right(drawn.mean(0).argmax(1)), right(scaled), samples)


@torch.no_grad()
def memorised(model: nn.Module, noisy: DataSet, clean: DataSet) -> float:
    """Share of wrong training labels that the network gives back: noise that it has learnt.

    Args:
        model: in any mode; evaluated.
        noisy: the images with the labels that it was trained on.
        clean: the same images with their own labels.

    Raises:
        Error: the sets differ in size, or no label was changed.

    Source: row S23.
    """
    if len(noisy.train) != len(clean.train):
        raise Error(f"memorised: both sets must be of one size, got {len(noisy.train)} and {len(clean.train)}")
    wrong = (noisy.train.labels != clean.train.labels).nonzero().flatten()
    if not len(wrong):
        raise Error("memorised: some training labels must be wrong, got none")
    right = 0
    with evaluating(model):
        for part in torch.split(wrong, 256):
            x = data.normalise(noisy.train.images[part], noisy.mean, noisy.std)
            answers = model(x.contiguous(memory_format=torch.channels_last)).argmax(1)
            right += int((answers == noisy.train.labels[part]).sum())
    return right / len(wrong)


# --- read out of the epochs (S11, S12, S16) ---------------------------------------------------------------------------


def shifts(epochs: Sequence[Epoch]) -> list[float]:
    """How far each hidden layer's input to its activation moves from epoch to epoch, in order of depth.

    ``1/(E-1) sum_e |mean_e - mean_{e-1}| / std_{e-1}``, of what enters the activation in the last step of each epoch:
    the internal covariate shift, in standard deviations.

    Source: row S11.
    """
    seen = [_hidden(epoch) for epoch in epochs]
    seen = [rows for rows in seen if rows]
    found = []
    for path in seen[0] if len(seen) > 1 else ():
        moved = [
            abs(b[path][0] - a[path][0]) / a[path][1]
            for a, b in itertools.pairwise(seen)
            if path in a and path in b and a[path][1] > 0
        ]
        if moved:
            found.append(statistics.fmean(moved))
    return found


def _hidden(epoch: Epoch) -> dict[str, tuple[float, float]]:
    rows = {row["path"]: row["pre"] for row in epoch.extra.get("layers", ()) if row.get("pre")}
    return {path: (float(pre["mean"]), float(pre["std"])) for path, pre in rows.items()}


def gradients(epochs: Sequence[Epoch]) -> float:
    """How unequal the layers' gradients are: ``1/E sum_e |log10(g_first / g_last)|``; 0 is even, nan unknown.

    g are the Euclidean norms of the gradients of the first and the last module with a weight, in the last step of each
    epoch: far from 0 they vanish or explode on their way.

    Source: row S12.
    """
    found = []
    for epoch in epochs:
        norms = [r["grad_norm"] for r in epoch.extra.get("layers", ()) if r.get("grad_norm")]
        if len(norms) > 1:
            found.append(abs(math.log10(float(norms[0]) / float(norms[-1]))))
    return statistics.fmean(found) if found else math.nan


def weight_norm(epoch: Epoch) -> float:
    """Euclidean norm of all weights of convolutions and linear layers after the epoch.

    Source: row S16.
    """
    rows = [row for row in epoch.extra.get("layers", ()) if "Norm" not in row["kind"]]
    return math.sqrt(sum(float(row.get("weight_norm", 0.0)) ** 2 for row in rows))


def to_reach(steps: Sequence[float], values: Sequence[float], wanted: float) -> float | None:
    """Optimizer steps until a value is reached, between two epochs by linear interpolation; None: never.

    Args:
        steps: done at the end of each epoch.
        values: such as accuracy on val after each epoch.
        wanted: to reach.
    """
    before: tuple[float, float] | None = None
    for step, value in zip(steps, values, strict=True):
        if value >= wanted:
            if before is None:
                return float(step)
            return before[0] + (step - before[0]) * (wanted - before[1]) / (value - before[1])
        before = (float(step), value)
    return None


# --- what each convolution holds (S19) --------------------------------------------------------------------------------


def convolutions(model: nn.Module) -> list[dict[str, int]]:
    """Input channels and parameters of each convolution, in order; a separable one counts as one.

    Source: row S19.
    """
    inside: set[nn.Module] = set()
    found = []
    for module in model.modules():
        if module in inside or not isinstance(module, nn.Conv2d | SeparableConv2d):
            continue
        inside.update(module.modules())
        found.append({"in": module.in_channels, "params": sum(p.numel() for p in module.parameters())})
    return found
