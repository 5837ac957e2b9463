"""One SGD step of MobileNetV1 at 128 pixels, batch 32: the allocator as it comes against tune_allocator().

    python benchmarks/allocator.py [--rounds 12] [--steps 2]

One process per contender, all alive at once; in each round every one of them takes its steps while the others wait, and
the next round begins with another one. ``environment`` is glibc told by MALLOC_ variables before the process starts,
the most that can be had: tune_allocator(), which comes later and by a call, should not lie behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

VARIABLES = {
    "MALLOC_MMAP_THRESHOLD_": "8000000000",
    "MALLOC_TRIM_THRESHOLD_": "16000000000",
    "MALLOC_TOP_PAD_": "67108864",
}
CONTENDERS = ("as it comes", "tuned", "environment")
BATCH, SIDE = 32, 128


def child(tuned: bool, steps: int) -> None:
    """Warm up, then answer each line of input with a line of JSON: the seconds and page faults of some steps."""
    import resource
    import time

    import torch
    import torch.nn.functional as F

    from leanconv.allocator import resident_cost, tune_allocator
    from leanconv.models import mobilenet_v1

    if tuned and not (record := tune_allocator()).tuned:
        sys.exit(f"not tuned: {record.reason}")
    torch.manual_seed(0)
    model = mobilenet_v1().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    x = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (BATCH,))

    def step() -> float:
        start = time.perf_counter()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    for _ in range(3):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        seconds = [step() for _ in range(steps)]
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps
        cost = resident_cost()
        print(json.dumps({"s": seconds, "faults": faults, "peak": cost.peak, "now": cost.now}), flush=True)


def start(name: str, steps: int) -> subprocess.Popen[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    env |= VARIABLES if name == "environment" else {}
    command = [sys.executable, __file__, "--child", name, "--steps", str(steps)]
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


def run(rounds: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    processes = {name: start(name, steps) for name in CONTENDERS}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps of each contender in a round")
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child == "tuned", arguments.steps)
        return
    import bench

    from leanconv.measure import median_interval

    answers = run(arguments.rounds, arguments.steps)
    times = {name: [statistics.median(a["s"]) for a in given] for name, given in answers.items()}
    table = {}
    for name, given in answers.items():
        ratio, low, high = median_interval(
            [t / base for t, base in zip(times[name], times["as it comes"], strict=True)]
        )
        table[name] = {
            "step_ms": round(1e3 * statistics.median(times[name]), 1),
            "ratio": round(ratio, 3),
            "ratio_95": [round(low, 3), round(high, 3)],
            "faults_per_step": round(statistics.median(a["faults"] for a in given)),
            "peak_mb": round(given[-1]["peak"] / 1e6),
            "resident_mb": round((given[-1]["now"] or 0) / 1e6),
        }
        print(f"{name:12} {json.dumps(table[name])}")
    setting = {"model": "mobilenet_v1", "batch": BATCH, "imgsz": SIDE, "memory_format": "channels_last"}
    record = {**setting, "rounds": arguments.rounds, "steps": arguments.steps, "contenders": table}
    path = bench.write("allocator", record)
    print(bench.crowded() or f"load fits the cores of {bench.machine()['cpu']}")
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
