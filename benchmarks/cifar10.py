"""CIFAR-10 from scratch with the recipe of that name: what it reaches, how long it takes, with how many parameters.

    python benchmarks/cifar10.py DATA [--seeds 1] [--precision NAME]

DATA holds CIFAR-10 in any form that ``leanconv train`` reads, with train and test apart, for instance a folder with
train.parquet and test.parquet. The figure to reach: 91 % test accuracy within 60 minutes on two cores, under 1 M
parameters. The time is that of the whole command: reading, training, measuring after each epoch, the final test. A run
that was stopped goes on where it was, and its time is then not recorded.
"""

from __future__ import annotations

import argparse
import time

import bench

from leanconv import recipe, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--precision", help="default: the recipe's")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("cifar10: left out, it needs DATA (python benchmarks/cifar10.py --help)")
        return
    for seed in range(arguments.seeds):
        whole = recipe.override(recipe.load("cifar10"), seed=seed, precision=arguments.precision)
        start = time.perf_counter()
        run = training.train(arguments.data, recipe=whole, name=f"cifar10-{seed}", overwrite=True)
        minutes = (time.perf_counter() - start) / 60
        record, test = run.record, run.record.test
        if test is None or record.params is None or record.macs is None:
            raise SystemExit(f"cifar10: DATA must have a test split, got {arguments.data}")
        low, high = test.interval()
        print(
            f"seed {seed}: test {100 * test.accuracy:.2f} % ({100 * low:.2f} to {100 * high:.2f}), "
            f"{record.params / 1e3:.0f} k parameters, {record.macs / 1e6:.1f} M MACs, {minutes:.1f} minutes"
        )
        values = {
            "recipe": record.digest,
            "precision": whole.training.precision,
            "seed": seed,
            "epochs": record.epochs,
            "best_epoch": record.best,
            "params": record.params,
            "macs": record.macs,
            "minutes": round(minutes, 1),
            "seconds_per_epoch": record.seconds_per_epoch,
            "test": {"correct": test.correct, "total": test.total, "low": low, "high": high},
            "ms_per_image": record.ms_per_image,
            "memory": record.extra.get("memory"),
        }
        print(bench.crowded() or "", bench.write("cifar10", values))


if __name__ == "__main__":
    main()
