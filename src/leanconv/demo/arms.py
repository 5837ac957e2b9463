"""What each technique brings: one small network without any, with one of them each, and with all.

The arms are the recipe ``demo`` with none, one or all of its techniques; nothing here knows which techniques exist.
Seeds, epochs and images are the same for every arm; time for inference is measured at the end, in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from leanconv import measure, recipe, training
from leanconv.data import DataSet, normalise
from leanconv.demo.parallel import Task
from leanconv.demo.parallel import train as train_at_once
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.results import Difference, Run, usable_cores
from leanconv.training.progress import Watch

__all__ = ["Arm", "arms", "estimate", "run"]

BATCH = 64  # images per forward pass where milliseconds per image are measured
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 % quantiles of t, 1 to 9 degrees of freedom


@dataclass(frozen=True)
class Arm:
    """One column of the comparison: a recipe, and its runs over the seeds.

    Attributes:
        title: ``plain``, ``+ dropout``, ..., ``all four``.
        runs: one record per seed.
        ms_per_image: inference in batches of :data:`BATCH`, all arms measured in turns.
    """

    title: str
    runs: tuple[Run, ...]
    ms_per_image: float

    @property
    def test(self) -> Difference:
        """Test accuracy: mean over the seeds with its 95 % interval; for one seed, Wilson's over the images."""
        return estimate([_held(r).accuracy for r in self.runs], _held(self.runs[0]).interval())

    @property
    def train(self) -> Difference:
        """Training accuracy, in eval mode on unaugmented images, as :attr:`test`."""
        scores = [r.train for r in self.runs if r.train is not None]
        return estimate([s.accuracy for s in scores], scores[0].interval())

    @property
    def gap(self) -> Difference:
        """Training minus test accuracy; for one seed with Newcombe's interval."""
        gaps = [r.gap for r in self.runs if r.gap is not None]
        return estimate([g.value for g in gaps], (gaps[0].low, gaps[0].high))

    @property
    def seconds_per_epoch(self) -> float:
        """Median over the seeds, training alone."""
        return statistics.median(r.seconds_per_epoch or 0.0 for r in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, accuracies as shares."""
        first = self.runs[0]
        return {
            "arm": self.title,
            "seeds": len(self.runs),
            "train": asdict(self.train),
            "test": asdict(self.test),
            "gap": asdict(self.gap),
            "test_accuracies": [_held(r).accuracy for r in self.runs],
            "parameters": first.params,
            "macs": first.macs,
            "seconds_per_epoch": self.seconds_per_epoch,
            "ms_per_image": self.ms_per_image,
        }


def arms(whole: Recipe) -> dict[str, tuple[str, Recipe]]:
    """Folder name -> (title, recipe): without any technique of the recipe, with each alone, with all."""
    names = list(whole.techniques)
    single = {name: (f"+ {name}", recipe.only(whole, [name])) for name in sorted(names)}
    words = {2: "both", 3: "all three", 4: "all four", 5: "all five"}
    every = {"all": (words.get(len(names), "all"), whole)} if len(names) > 1 else {}
    return {"plain": ("plain", recipe.only(whole, [])), **single, **every}


def run(whole: Recipe, seeds: Sequence[int] = (0,), folder: str = "demo", jobs: int | None = None) -> list[Arm]:
    """Train every arm with every seed; runs go to ``runs/<folder>/<arm>``, earlier ones are overwritten.

    Args:
        whole: the recipe with all its techniques.
        seeds: of weights, order, augmentation and masks; the images and their split stay the same.
        folder: under ``runs``.
        jobs: trainings at once, each a process; 1: one after the other in this one. None: as many as the cores allow
            with the recipe's number of threads.

    Raises:
        Error: no seed, jobs below 1; or as :func:`leanconv.train`.
    """
    cores = usable_cores()
    jobs = max(1, cores // (whole.training.threads or cores)) if jobs is None else jobs
    if not seeds or jobs < 1:
        raise Error(f"demo: needs at least one seed and one job, got {len(seeds)} seeds and jobs={jobs}")
    tasks = [
        _task(title, f"{folder}/{name}", recipe.override(arm, seed=seed), several=len(seeds) > 1)
        for seed in seeds
        for name, (title, arm) in arms(whole).items()
    ]
    images = training.run.load("demo", whole)
    done = _in_turn(tasks, images) if jobs == 1 else train_at_once(tasks, jobs)
    trained: dict[str, list[training.Run]] = {}
    for task, finished in zip(tasks, done, strict=True):
        trained.setdefault(task.title, []).append(finished)
    ms = _milliseconds({title: runs[0] for title, runs in trained.items()}, images, whole.training.threads)
    return [Arm(title, tuple(r.record for r in runs), ms[title]) for title, runs in trained.items()]


def _task(title: str, name: str, seeded: Recipe, several: bool) -> Task:
    seed = seeded.training.seed
    return (
        Task(title, f"{title}, seed {seed}", f"{name}-{seed}", seeded) if several else Task(title, title, name, seeded)
    )


def _in_turn(tasks: Sequence[Task], images: DataSet) -> list[training.Run]:
    watch = Watch()
    jobs = [training.Job(task.name, overwrite=True, title=task.told) for task in tasks]
    return [training.run.run(images, task.recipe, job, watch) for task, job in zip(tasks, jobs, strict=True)]


def estimate(values: Sequence[float], single: tuple[float, float]) -> Difference:
    """Mean with its 95 % interval, ``mean +- t s / sqrt(n)`` (Student's t); for one value the interval given."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(mean, *single)
    quantile = _T[len(values) - 2] if len(values) - 2 < len(_T) else 1.96 + 2.5 / (len(values) - 1)
    half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return Difference(mean, mean - half, mean + half)


def _held(record: Run) -> Any:
    return record.test or record.val


def _milliseconds(runs: Mapping[str, training.Run], images: DataSet, threads: int | None) -> dict[str, float]:
    split = images.test or images.val
    x = normalise(split.images[:BATCH], images.mean, images.std).contiguous(memory_format=torch.channels_last)
    found = measure.compare_latency({title: (r.model, x) for title, r in runs.items()}, threads=threads)
    return {title: latency.per_image for title, latency in found.latencies.items()}
