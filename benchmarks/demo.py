"""The demo's six arms over five seeds: means with Student's 95 % interval, and how long one seed takes on this machine.

    python benchmarks/demo.py [--seeds 5] [--jobs N] [--all-only]

The figure to reach: "all four" at 88 % mean test accuracy or more, and one seed of all arms within five minutes on two
cores. Runs go to runs/benchmark in the working directory, earlier ones are overwritten.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

import bench

from leanconv import demo, recipe, training


def all_only(seeds: int) -> None:
    """Test accuracies of the whole recipe over the seeds."""
    whole = recipe.load("demo")
    scores = []
    for seed in range(seeds):
        run = training.train("demo", recipe=recipe.override(whole, seed=seed), name=f"benchmark-{seed}", overwrite=True)
        scores.append(run.record.test.accuracy)
    mean = demo.estimate(scores, (0.0, 1.0))
    print(f"all: test {100 * mean.value:.2f} ({100 * mean.low:.2f} to {100 * mean.high:.2f}) over {seeds} seeds")
    record = {
        "recipe": whole.digest,
        "epochs": whole.training.epochs,
        "seeds": seeds,
        "arm": "all",
        "test_accuracies": scores,
    }
    print(bench.write("demo", record | {"test": asdict(mean)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, help="trainings at once (default: as the cores allow)")
    parser.add_argument("--all-only", action="store_true", help="only the arm with every technique, seed after seed")
    arguments = parser.parse_args()
    if arguments.all_only:
        all_only(arguments.seeds)
        return
    whole = recipe.load("demo")
    start = time.perf_counter()
    arms = demo.run(whole, range(arguments.seeds), "benchmark", arguments.jobs)
    seconds = (time.perf_counter() - start) / arguments.seeds
    for arm in arms:
        test, gap = arm.test, arm.gap
        print(
            f"{arm.title:14} test {100 * test.value:.2f} ({100 * test.low:.2f} to {100 * test.high:.2f})  "
            f"gap {100 * gap.value:+.2f}  {arm.seconds_per_epoch:.2f} s/epoch  {arm.ms_per_image:.3f} ms/image"
        )
    print(f"{seconds:.0f} s for one seed of all arms")
    record = {
        "recipe": whole.digest,
        "epochs": whole.training.epochs,
        "seeds": arguments.seeds,
        "jobs": arguments.jobs,
        "seconds_per_seed": round(seconds, 1),
        "arms": [arm.to_dict() for arm in arms],
    }
    print(bench.crowded() or "", bench.write("demo", record))


if __name__ == "__main__":
    main()
