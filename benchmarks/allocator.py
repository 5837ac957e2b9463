"""One SGD step of MobileNetV1 at 128 pixels, batch 32: the allocator as it comes against tune_allocator().

    python benchmarks/allocator.py [--rounds 12] [--steps 2] [--threads N]

One process per contender, all alive at once; in each round every one of them takes its steps while the others wait, and
the next round begins with another one. ``environment`` is glibc told by MALLOC_ variables before the process starts,
the most that can be had: tune_allocator(), which comes later and by a call, should not lie behind it.

Wall time counts on a free machine; processor time, with one thread, says
the same on a shared one (with more it counts their waiting too).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from leanconv.benchmarking import turns
from leanconv.measure import median_interval
from leanconv.results import usable_cores

VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
CONTENDERS = ("as it comes", "tuned", "environment")
BATCH, SIDE = 32, 128


def child(tuned: bool, threads: int) -> None:
    import torch
    import torch.nn.functional as F

    from leanconv.allocator import tune_allocator
    from leanconv.models import mobilenet_v1

    if tuned and not (record := tune_allocator()).tuned:
        sys.exit(f"not tuned: {record.reason}")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = mobilenet_v1().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (BATCH,))

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    turns.serve(step, {"torch": str(torch.__version__)})


def run(rounds: int, steps: int, threads: int) -> turns.Answers:
    command = [sys.executable, __file__, "--threads", str(threads), "--child"]
    started = {n: turns.Contender(n, [*command, n], VARIABLES if n == "environment" else {}) for n in CONTENDERS}
    return turns.in_turns(started, rounds, dict.fromkeys(CONTENDERS, steps))


def summary(given: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; ratios to the base are taken round by round, with their 95 % interval."""
    intervals = {clock: median_interval(turns.ratios(given, base, clock)) for clock in ("wall", "cpu")}
    found = {f"{clock}_ratio": [round(r, 3) for r in interval] for clock, interval in intervals.items()}
    return turns.summary(given) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps of each contender in a round")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child == "tuned", arguments.threads)
        return
    import bench

    answers = run(arguments.rounds, arguments.steps, arguments.threads)
    table = {name: summary(given, answers["as it comes"]) for name, given in answers.items()}
    for name, row in table.items():
        print(f"{name:12} {json.dumps(row)}")
    setting = {"model": "mobilenet_v1", "batch": BATCH, "imgsz": SIDE, "memory_format": "channels_last"}
    setting |= {"training_threads": arguments.threads}
    crowded = bench.crowded(max(row["others"] for row in table.values()))
    record = {**setting, "rounds": arguments.rounds, "steps": arguments.steps, "contenders": table, "crowded": crowded}
    path = bench.write("allocator", record)
    print(crowded or f"load fits the cores of {bench.machine()['cpu']}")
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
