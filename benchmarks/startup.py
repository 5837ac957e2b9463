"""Seconds that `import leanconv` and `leanconv --help` take, each a process of its own, beside an empty Python.

python benchmarks/startup.py [--rounds 21]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import bench

CONTENDERS = {
    "python -c pass": ["-c", "pass"],
    "import leanconv": ["-c", "import leanconv"],
    "leanconv --help": ["-m", "leanconv.cli", "--help"],
    "import torch": ["-c", "import torch"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, arguments in CONTENDERS.items():
            taken[name].append(seconds(arguments))
    medians = {name: round(statistics.median(values), 4) for name, values in taken.items()}
    bench.write("startup", {"unit": "seconds, median of whole processes", "rounds": rounds, "medians": medians})
    for name, value in medians.items():
        print(f"{value:8.3f} s  {name}")


if __name__ == "__main__":
    main()
