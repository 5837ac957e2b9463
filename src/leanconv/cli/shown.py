"""How results look in a terminal."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from leanconv.allocator import Tuned, resident_cost, tune_allocator
from leanconv.results import Difference, Score

if TYPE_CHECKING:
    from leanconv.training import Run

__all__ = ["as_csv", "as_json", "counting", "memory", "points", "run", "share", "table", "tune"]


def as_json(values: Any) -> str:
    """Indented JSON."""
    return json.dumps(values, indent=2, ensure_ascii=False)


def as_csv(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Comma-separated values with a head, quoted where they must be."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([head, *rows])
    return file.getvalue()


def counting(what: str, turns: int = 1) -> Callable[[int, int], None] | None:
    """Shows ``1,280 of 5,000 images`` on a terminal while it is called with (done, total); else None.

    Args:
        what: is counted.
        turns: how often all of them are gone through.
    """
    if not sys.stderr.isatty():
        return None
    turn = 1

    def show(done: int, total: int) -> None:
        nonlocal turn
        told = f"{done:,} of {total:,} {what}" + (f", run {turn} of {turns}" if turns > 1 else "")
        print(f"\r{told}\033[K", end="", file=sys.stderr, flush=True)
        if done == total:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            turn += 1

    return show


def tune() -> Tuned:
    """Tune the allocator for this process."""
    return tune_allocator()


def share(score: Score | None) -> str:
    """``89.1 (87.0 to 90.9)``, in percent, with the 95 % Wilson interval."""
    if score is None:
        return "-"
    low, high = score.interval()
    return f"{100 * score.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def points(difference: Difference | None) -> str:
    """``+3.1 (+1.0 to +5.2)``, in percentage points."""
    if difference is None:
        return "-"
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def memory(tuned: Tuned | None) -> str:
    """What the allocator was told, and what this process holds."""
    told = "as it was" if tuned is None else ("tuned" if tuned.tuned else f"not tuned ({tuned.reason})")
    return f"allocator {told}; memory: {resident_cost()}"


def run(done: Run, tuned: Tuned | None) -> str:
    """The summary of one finished run."""
    record = done.record
    held = "test" if record.test else "val"
    lines = [
        f"run              {done.folder}",
        f"train accuracy   {share(record.train)} %",
        f"val accuracy     {share(record.val)} %, chose epoch {record.best} of {record.epochs}",
        f"test accuracy    {share(record.test)} %" + (", measured once" if record.test else "there is no test set"),
        f"gap              {points(record.gap)} points, train - {held}, both in eval mode on unaugmented images",
        f"parameters       {record.params:,}",
        f"MACs             {record.macs:,} an image",
        f"time             {record.seconds_per_epoch:.2f} s an epoch, {record.ms_per_image:.3f} ms an image (batch 1)",
        f"memory           {memory(tuned)}",
    ]
    lines += _by_class(record.quality.get(held))
    decay = record.extra.get("decay")
    lines += [f"decay            {decay}"] if decay else []
    lines += [f"note             {note}" for note in record.notes]
    return "\n".join(lines)


def _by_class(quality: dict[str, Any] | None) -> list[str]:
    """Balanced accuracy and the classes that are found least often, where classes differ."""
    if not quality:
        return []
    recall = sorted((value, name) for name, value in quality["recall"].items() if value is not None)
    worst = ", ".join(f"{name} {100 * value:.1f} %" for value, name in recall[:3])
    balanced, macro = 100 * quality["balanced_accuracy"], 100 * quality["macro_f1"]
    return [f"by class         balanced accuracy {balanced:.1f} %, macro F1 {macro:.1f} %; found least: {worst}"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns, so many to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([lines[0], rule, *(line.rstrip() for line in lines[1:])])
