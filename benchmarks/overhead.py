"""What a training spends beside its steps: writing the place down, measuring after each epoch, watching the layers.

    python benchmarks/overhead.py [DATA] [--recipe NAME] [--epochs 2]

Without DATA: the images of the demo with its recipe; with it: the recipe cifar10.

The figure to reach: the checkpoint of every epoch and the measurements of the layers together under 5 % of the time.
Scoring train and val is told apart. Trains into runs/overhead, which is overwritten.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench

from leanconv import allocator, recipe, training
from leanconv.training import loop

PARTS = {"save": "checkpoints", "measure": "scores on train and val, best weights", "watched_step": "watched steps"}


def timed(spent: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, its seconds added to ``spent[name]``."""

    def call(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - start

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="demo")
    parser.add_argument("--recipe")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    allocator.tune_allocator()
    spent: dict[str, float] = defaultdict(float)
    for name in PARTS:
        setattr(loop._Training, name, timed(spent, name, getattr(loop._Training, name)))
    name = arguments.recipe or ("demo" if arguments.data == "demo" else "cifar10")
    chosen = recipe.override(recipe.load(name), epochs=arguments.epochs)
    done = training.run.run(arguments.data, chosen, training.Job("overhead", overwrite=True))
    steps = sum(row.seconds for row in done.metrics)
    total = steps + spent["save"] + spent["measure"]
    per_step = steps / done.metrics[-1].step
    watching = max(0.0, spent["watched_step"] - arguments.epochs * per_step)
    shares = {
        "checkpoints": spent["save"] / total,
        "watching": watching / total,
        "scores": spent["measure"] / total,
    }
    for name, share in shares.items():
        print(f"{name:12} {share:.2%} of {total:.0f} s")
    record = {"recipe": chosen.digest, "data": Path(arguments.data).name, "epochs": arguments.epochs}
    print(bench.crowded() or "", bench.write("overhead", record | {"seconds": total, "shares": shares}))


if __name__ == "__main__":
    main()
