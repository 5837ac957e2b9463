"""Several trainings at once: each is the command ``leanconv train demo`` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from leanconv import recipe as recipes
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.training import Run, open_run
from leanconv.training.folder import RUNS

__all__ = ["Task", "train"]

_ERROR = "leanconv: error: "


@dataclass(frozen=True)
class Task:
    """One training.

    Attributes:
        title: of its arm.
        told: stands before its progress.
        name: of its run.
        recipe: of its run.
    """

    title: str
    told: str
    name: str
    recipe: Recipe


def train(tasks: Sequence[Task], jobs: int) -> list[Run]:
    """Train them, ``jobs`` at a time; a bar for each on a terminal, else a line per epoch, on stderr.

    Raises:
        Error: what a training raised; the others are ended.
    """
    running: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(jobs)
    with tempfile.TemporaryDirectory() as place, _Bars() as bars:
        try:
            futures = [
                pool.submit(_one, task, Path(place) / f"{i}.yaml", bars, running) for i, task in enumerate(tasks)
            ]
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(running):
                process.terminate()
            raise
        finally:
            pool.shutdown()


def _one(task: Task, file: Path, bars: _Bars, running: set[subprocess.Popen[str]]) -> Run:
    file.write_text(recipes.dump(task.recipe), encoding="utf-8")
    words = ["train", "demo", "--recipe", str(file), "--name", task.name, "--overwrite"]
    command = [sys.executable, "-m", "leanconv.cli", *words]
    bar = bars.add(task)
    last = "it said nothing"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        running.add(process)
        assert process.stderr is not None  # a pipe was asked for
        for line in process.stderr:
            last = line.strip() or last
            if line.startswith(f"{task.name}: epoch "):
                bars.epoch(bar, task, last.removeprefix(f"{task.name}: "))
    running.discard(process)
    if process.returncode:
        told = last.removeprefix(_ERROR)
        raise Error(told if last.startswith(_ERROR) else f"demo: {task.title} must train, got: {told}")
    return open_run(RUNS / task.name)


class _Bars(Progress):
    """One bar per training, which moves with each epoch."""

    def __init__(self) -> None:
        self.shown = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=12), TextColumn("{task.fields[told]}"))
        super().__init__(*columns, TimeElapsedColumn(), console=self.shown, disable=not self.shown.is_terminal)

    def add(self, task: Task) -> int:
        return int(self.add_task(task.told, total=task.recipe.training.epochs, told="starts"))

    def epoch(self, bar: int, task: Task, told: str) -> None:
        with suppress(KeyError):  # the display was closed meanwhile
            self.update(self.task_ids[bar], advance=1, told=told)
        if not self.shown.is_terminal:
            print(f"{task.told}: {told}", file=sys.stderr, flush=True)
