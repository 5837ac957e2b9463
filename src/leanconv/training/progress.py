"""What a person sees while a network trains: a bar on a terminal, else one line per epoch. Both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from leanconv.results import Epoch

__all__ = ["Watch", "line"]


def line(row: Epoch, epochs: int) -> str:
    """One epoch in a line: ``epoch 3/10  loss 0.512  train 85.1 %  val 83.0 %  gap +2.1  1.9 s``.

    Args:
        row: of ``metrics.jsonl``.
        epochs: of the whole training.
    """
    penalty = f" + {row.penalty:.3f}" if row.penalty else ""
    train, val = 100 * row.train.accuracy, 100 * row.val.accuracy
    return (
        f"epoch {row.epoch}/{epochs}  loss {row.loss:.3f}{penalty}  train {train:.1f} %  val {val:.1f} %  "
        f"gap {train - val:+.1f}  {row.seconds:.1f} s"
    )


class Watch:
    """Shows trainings, one after the other; ``shown=False`` keeps silent."""

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self.console = Console(stderr=True)
        self.live = shown and self.console.is_terminal
        self.title, self.epochs = "", 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
            refresh_per_second=4,
        )
        self.task = TaskID(0)

    def tell(self, sentence: str) -> None:
        """One sentence that a person should see before the training."""
        if self.shown:
            print(sentence, file=sys.stderr, flush=True)

    def reading(self, done: int, total: int) -> None:
        """So many image files are read."""
        if self.live:
            self.console.print(f"reading images: {done:,} of {total:,}", end="\n" if done == total else "\r")

    @contextmanager
    def training(self, title: str, epochs: int, steps: int) -> Iterator[Self]:
        """While one network trains.

        Args:
            title: stands before the bar.
            epochs: of the training.
            steps: per epoch.
        """
        self.title, self.epochs = title, epochs
        self.task = self.bar.add_task(title, total=epochs * steps, told="")
        with self.bar:
            yield self

    def at(self, steps: int) -> None:
        """So many optimizer steps are done, where a training goes on."""
        self.bar.update(self.task, completed=steps)

    def step(self) -> None:
        """One optimizer step is done."""
        self.bar.advance(self.task)

    def epoch(self, row: Epoch) -> None:
        """One epoch is done and measured."""
        told = line(row, self.epochs)
        self.bar.update(self.task, told=told)
        if self.shown and not self.live:
            print(f"{self.title}: {told}", file=sys.stderr, flush=True)
