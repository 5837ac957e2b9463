"""A study from its design to its last row, resumable at every moment.

First every arm finds its learning rate by short trainings, judged on val. Then the trainings, seed by seed, so that
what there is at any moment is as balanced as can be, and the search for the largest stable rate. Last, alone on the
machine and in turns, the times.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from leanconv import measure, training
from leanconv import recipe as recipes
from leanconv.data import normalise
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.results import usable_cores
from leanconv.study import probes
from leanconv.study.design import Arm, Design
from leanconv.study.engine import Engine
from leanconv.study.store import Row, Store
from leanconv.study.work import Images, Task, chosen_rate
from leanconv.training.folder import RUNS

__all__ = ["DATABASE", "FEWEST", "Plan", "Study", "plan", "rates"]

DATABASE = "study.db"
FEWEST = 2
"""Seeds; with one there is no telling an effect from luck."""
PILOT_SHARE = 0.2
"""A pilot has this share of the epochs, at least one."""
PILOT_RATES = (1 / 3, 1.0, 3.0)
"""As multiples of the recipe's rate."""
BATCHES = (1, 64)
"""Images at once when inference is timed."""
TURNS = 30
STEP_TURNS = 15


@dataclass(frozen=True)
class Plan:
    """What fits into a budget.

    Attributes:
        seeds: that are trained.
        wanted: that were asked for.
        seconds: that the trainings still to come will take, on all workers together.
        fits: whether the wanted seeds do.
    """

    seeds: int
    wanted: int
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether nothing had to be cut."""
        return self.seeds == self.wanted


def rates(lr: float) -> tuple[float, ...]:
    """The rates that an arm's pilots try, two digits each."""
    return tuple(float(f"{lr * times:.2g}") for times in PILOT_RATES)


def plan(costs: Mapping[str, float], seeds: int, workers: int, budget: float | None) -> Plan:
    """How many seeds of every arm fit.

    Args:
        costs: seconds of one training of each arm.
        seeds: wanted.
        workers: at once.
        budget: seconds that are left; None: as many as it takes.

    Raises:
        Error: not even :data:`FEWEST` seeds fit; it says which arms would.
    """
    once = sum(costs.values()) / workers
    if budget is None or once * seeds <= budget:
        return Plan(seeds, seeds, once * seeds)
    fit = int(budget // once) if once > 0 else seeds
    if fit >= min(FEWEST, seeds):
        return Plan(fit, seeds, once * fit)
    room, fitting = budget * workers / FEWEST, []
    for arm, cost in costs.items():
        if cost <= room:
            fitting.append(arm)
            room -= cost
    told = ", ".join(fitting) if fitting else "none"
    raise Error(
        f"study: the budget must hold {FEWEST} seeds of every arm, about {_minutes(once * FEWEST)} more, got "
        f"{_minutes(budget)} (arms that would fit: {told}; `--arms add-one` has fewer)"
    )


def _minutes(seconds: float) -> str:
    return f"{max(0.0, seconds) / 60:.0f} min" if seconds >= 90 else f"{max(0.0, seconds):.0f} s"


class Study:
    """One study in its folder.

    Args:
        name: the folder is ``runs/<name>``.
        design: its arms.
        images: of the study.
        store: its results.
        told: is called with (done, in all, what) after every piece of work.
    """

    def __init__(
        self,
        name: str,
        design: Design,
        images: Images,
        store: Store,
        told: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.name, self.design, self.images, self.store = name, design, images, store
        self.told = told or (lambda done, total, what: None)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return RUNS / self.name

    def pilots(self) -> list[Task]:
        """The short trainings that choose the rates, those left to do."""
        tasks = []
        for arm in self.design.arms:
            settings = arm.recipe.training
            epochs = max(1, round(PILOT_SHARE * settings.epochs))
            # A seed of its own, so that no training of the study repeats what chose its rate.
            seed = settings.seed + 2**31
            for rate in rates(settings.lr):
                short = recipes.override(
                    arm.recipe, lr=rate, epochs=epochs, seed=seed, warmup=min(settings.warmup, epochs / 4)
                )
                name = f"{self.name}/pilots/{arm.name}-{rate:g}"
                tasks.append(Task("pilot", arm.name, 0, short.to_dict(), f"lr={rate:g}", name))
        return self._missing(tasks)

    def rate(self, arm: Arm) -> float:
        """The rate that an arm is trained with; the recipe's where every pilot diverged."""
        source = arm.like or arm.name
        found = chosen_rate([row for row in self.store.rows("pilot") if row.arm == source])
        return arm.recipe.training.lr if found is None else found

    def recipe(self, arm: Arm, seed: int) -> Recipe:
        """What is trained."""
        return recipes.override(arm.recipe, lr=self.rate(arm), seed=arm.recipe.training.seed + seed)

    def trainings(self, seeds: int) -> list[Task]:
        """The trainings and searches left to do, seed by seed."""
        tasks = [
            Task("run", arm.name, seed, self.recipe(arm, seed).to_dict(), "", f"{self.name}/{arm.name}/{seed}")
            for seed in range(seeds)
            for arm in self.design.every
        ]
        searches = [Task("stable", arm.name, 0, self.recipe(arm, 0).to_dict()) for arm in self.design.arms]
        return self._missing(tasks + searches)

    def costs(self) -> dict[str, float]:
        """Seconds of one training of each arm, by its pilots."""
        pilots = self.store.rows("pilot")
        per_epoch: dict[str, float] = {}
        for arm in self.design.arms:
            found = [float((row.values or {})["seconds_per_epoch"]) for row in pilots
                     if row.arm == arm.name and row.status == "done"]  # fmt: skip
            if found:
                per_epoch[arm.name] = statistics.median(found)
        usual = statistics.fmean(per_epoch.values()) if per_epoch else 0.0
        return {
            arm.name: per_epoch.get(arm.like or arm.name, usual) * arm.recipe.training.epochs
            for arm in self.design.every
        }

    def work(self, engine: Engine, tasks: Sequence[Task]) -> None:
        """Have tasks done; each row is written as soon as it is there."""
        self.told(0, len(tasks), "")
        for done, row in enumerate(engine.run(tasks), 1):
            self.store.add(row)
            what = {"pilot": row.variant, "run": f"seed {row.seed}", "stable": "largest stable rate"}[row.kind]
            self.told(done, len(tasks), f"{row.arm}, {what}: {_short(row)}")

    def times(self) -> None:
        """Inference and training step of every arm of the design, in turns, with nothing else beside it."""
        done = {row.arm for row in self.store.rows("times")}
        arms = [arm for arm in self.design.arms if arm.name not in done]
        if not arms:
            return
        finished = {row.arm for row in self.store.rows("run") if row.seed == 0 and row.status == "done"}
        start = time.perf_counter()
        models = {arm.name: self._model(arm, trained=arm.name in finished) for arm in self.design.arms}
        threads = self.design.arms[0].recipe.training.threads or usable_cores()
        values: dict[str, dict[str, Any]] = {arm.name: {"threads": threads} for arm in arms}
        held = self.images.of(self.design.arms[0].recipe)
        split = held.test or held.val
        for batch in BATCHES:
            x = normalise(split.images[:batch], held.mean, held.std).contiguous(memory_format=torch.channels_last)
            found = measure.compare_latency({n: (m, x) for n, m in models.items()}, runs=TURNS, threads=threads)
            for arm in arms:
                latency = found.latencies[arm.name]
                values[arm.name][f"ms_{batch}"] = latency.per_image
                values[arm.name][f"ms_{batch}_low"] = latency.low / len(x)
                values[arm.name][f"ms_{batch}_high"] = latency.high / len(x)
        batch = self.design.arms[0].recipe.training.batch
        x = normalise(held.train.images[:batch], held.mean, held.std).contiguous(memory_format=torch.channels_last)
        steps = measure.compare_training({n: (m, x) for n, m in models.items()}, runs=STEP_TURNS, threads=threads)
        for arm in arms:
            values[arm.name]["ms_step"] = steps.latencies[arm.name].median
            values[arm.name]["convolutions"] = probes.convolutions(models[arm.name])
        # One pass times all of them, so each has an equal share of it.
        each = (time.perf_counter() - start) / len(arms)
        for arm in arms:
            self.store.add(Row("times", arm.name, 0, seconds=each, values=values[arm.name]))

    def _model(self, arm: Arm, trained: bool) -> torch.nn.Module:
        folder = self.folder / arm.name / "0"
        if trained and (folder / "model.safetensors").is_file():
            return training.open_run(folder).model
        built, _ = training.run.prepare(self.recipe(arm, 0), self.images.of(arm.recipe))
        return built.model.eval()

    def _missing(self, tasks: Sequence[Task]) -> list[Task]:
        there = self.store.keys()
        return [task for task in tasks if task.key not in there]

    def table(self, value: str, rows: Sequence[Row] | None = None) -> Iterator[tuple[str, list[float]]]:
        """A value of the trainings, by arm, one per seed; nan where there is none."""
        found = {(row.arm, row.seed): row.values or {} for row in (rows or self.store.rows("run"))}
        seeds = 1 + max((seed for _, seed in found), default=-1)
        for arm in self.design.every:
            line = [found.get((arm.name, seed), {}).get(value) for seed in range(seeds)]
            yield arm.name, [math.nan if v is None else float(v) for v in line]


def _short(row: Row) -> str:
    values = row.values or {}
    if row.status == "diverged":
        return "diverged"
    if row.kind == "stable":
        return f"{values['rate']:g}" if values["rate"] else "none on the grid"
    return f"val {100 * values['val']:.1f} %"
