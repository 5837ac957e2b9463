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
import os
import statistics
import subprocess
import sys
from typing import Any

from leanconv.measure import median_interval
from leanconv.results import usable_cores

VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
CONTENDERS = ("as it comes", "tuned", "environment")
BATCH, SIDE = 32, 128


def child(tuned: bool, steps: int, threads: int) -> None:
    """Warm up, then answer each line of input by one of JSON: wall and processor seconds, page faults, memory."""
    import resource
    import time

    import torch
    import torch.nn.functional as F

    from leanconv.allocator import resident_cost, tune_allocator
    from leanconv.models import mobilenet_v1

    if tuned and not (record := tune_allocator()).tuned:
        sys.exit(f"not tuned: {record.reason}")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = mobilenet_v1().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (BATCH,))

    def step() -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, time.process_time() - cpu

    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        wall, cpu = zip(*(step() for _ in range(steps)), strict=True)
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps
        cost = resident_cost()
        print(json.dumps({"wall": wall, "cpu": cpu, "faults": faults, "peak": cost.peak, "now": cost.now}), flush=True)


def start(name: str, steps: int, threads: int) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    env |= VARIABLES if name == "environment" else {}
    command = [sys.executable, __file__, "--child", name, "--steps", str(steps), "--threads", str(threads)]
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        sys.exit(f"{name}: did not start")
    return process


def ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def run(rounds: int, steps: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    processes = {name: start(name, steps, threads) for name in CONTENDERS}
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    try:
        for turn in range(rounds):
            for place in range(len(CONTENDERS)):
                name = CONTENDERS[(turn + place) % len(CONTENDERS)]
                answers[name].append(ask(processes[name]))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return answers


def summary(given: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; ratios to the base are taken round by round, with their 95 % interval."""
    row: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        ours, theirs = ([statistics.median(a[clock]) for a in answers] for answers in (given, base))
        ratio, low, high = median_interval([a / b for a, b in zip(ours, theirs, strict=True)])
        row[f"{clock}_ms"] = round(1e3 * statistics.median(ours), 1)
        row[f"{clock}_ratio"] = [round(ratio, 3), round(low, 3), round(high, 3)]
    return row | {
        "faults_per_step": round(statistics.median(a["faults"] for a in given)),
        "peak_mb": round(given[-1]["peak"] / 1e6),
        "resident_mb": round((given[-1]["now"] or 0) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps of each contender in a round")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child == "tuned", arguments.steps, arguments.threads)
        return
    import bench

    answers = run(arguments.rounds, arguments.steps, arguments.threads)
    table = {name: summary(given, answers["as it comes"]) for name, given in answers.items()}
    for name, row in table.items():
        print(f"{name:12} {json.dumps(row)}")
    setting = {"model": "mobilenet_v1", "batch": BATCH, "imgsz": SIDE, "memory_format": "channels_last"}
    setting |= {"training_threads": arguments.threads}
    record = {**setting, "rounds": arguments.rounds, "steps": arguments.steps, "contenders": table}
    path = bench.write("allocator", record)
    print(bench.crowded() or f"load fits the cores of {bench.machine()['cpu']}")
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
