"""A training step of MobileNetV1: leanconv's kernels against torch, its dense twin, and the memory of a step.

    python benchmarks/step.py [--rounds 15] [--threads 1 2] [--side 128 32] [--isa avx2] [--quick]

The network is torch.nn's layers (convolution, batch norm, ReLU in place); ours is the same network after
``leanconv.accelerate``. Contenders run in turns in one process, with glibc's allocator tuned (leanconv.allocator):
torch channels_last and channels first, torch.compile channels_last, ours, ours in the lean mode; then the dense twins.
A step is forward, cross entropy, backward, SGD with momentum. Memory is what a step adds to the process at its peak,
measured in a process of its own whose allocator gives freed memory back at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bench
import torch
from torch import nn
from torch.nn import functional as F

import leanconv
from leanconv import allocator

BLOCKS = (*((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)), *((512, 1),) * 5, (1024, 2), (1024, 1))
CASES = ((128, 32, 2), (32, 128, 1))  # side, batch, stride of the stem
NAMES = ("torch channels_last", "torch channels first", "torch.compile", "ours", "ours lean")


def mobilenet(stem: int, dense: bool = False) -> nn.Sequential:
    """MobileNetV1 of torch's layers; dense: each block one 3x3 convolution."""

    def conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> list[nn.Module]:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    layers, channels = conv(3, 32, 3, stem), 32
    for out, stride in BLOCKS:
        if dense:
            layers += conv(channels, out, 3, stride)
        else:
            layers += conv(channels, channels, 3, stride, channels) + conv(channels, out, 1, 1)
        channels = out
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)).train()


def stepper(name: str, side: int, batch: int, stem: int, dense: bool = False) -> Callable[[], float]:
    """A training step of a contender, by its name in NAMES."""
    model: nn.Module = mobilenet(stem, dense)
    x, labels = torch.randn(batch, 3, side, side), torch.randint(0, 1000, (batch,))
    if name != "torch channels first":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    if name.startswith("ours"):
        model = leanconv.accelerate(model, example=x[:2], lean=name.endswith("lean"), check=False)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = torch.compile(model) if name == "torch.compile" else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(run(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step


def measured(names: tuple[str, ...], case: tuple[int, int, int], rounds: int, dense: bool = False) -> dict[str, object]:
    """Median milliseconds of each, and the medians of paired ratios to torch channels_last."""
    steps = {name: stepper(name, *case, dense) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    since = None
    for turn in range(-3, rounds):
        since = bench.usage() if turn == 0 else since
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            steps[name]()
            if turn >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    others, base = bench.others(since), times[names[0]]
    ratios = {n: statistics.median(a / b for a, b in zip(t, base, strict=True)) for n, t in times.items()}
    return {
        "median_ms": {n: round(statistics.median(t), 1) for n, t in times.items()},
        "of_torch": {n: round(r, 3) for n, r in ratios.items()},
        "others": others,
    }


def resident() -> int:
    """Bytes of this process in memory; its largest value so far is reset to it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def memory(name: str, side: int, batch: int, stem: int) -> int:
    """Bytes that a step adds at its peak, in this process."""
    step = stepper(name, side, batch, stem)
    step(), step()
    before = resident()
    step()
    return _status("VmHWM") - before


def memories(case: tuple[int, int, int]) -> dict[str, int]:
    found = {}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for name in ("torch channels_last", "ours", "ours lean"):
        command = [sys.executable, __file__, "--memory", name, *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[name] = int(json.loads(done.stdout.splitlines()[-1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--side", type=int, nargs="+", choices=[c[0] for c in CASES], default=[c[0] for c in CASES])
    parser.add_argument("--isa", help="force an instruction set in ours")
    parser.add_argument("--quick", action="store_true", help="neither torch.compile nor the dense twins nor memory")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(memory(given.memory[0], *map(int, given.memory[1:]))))
        return
    if given.isa:
        os.environ["LEANCONV_ISA"] = given.isa
    allocator.tune_allocator()
    rows = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        for case in (c for c in CASES if c[0] in given.side):
            names = tuple(n for n in NAMES if not (given.quick and n == "torch.compile"))
            row: dict[str, object] = {"side": case[0], "batch": case[1], "threads": threads}
            row["separable"] = measured(names, case, given.rounds)
            if not given.quick:
                row["dense"] = measured(("torch channels_last", "ours"), case, max(3, given.rounds // 5), dense=True)
                row["memory_bytes"] = memories(case)
            print(json.dumps(row), flush=True)
            rows.append(row)
    taken = [
        found["others"] or 0.0
        for row in rows
        for found in row.values()
        if isinstance(found, dict) and "others" in found
    ]
    crowded = bench.crowded(max(taken, default=0.0))
    print(crowded or "", bench.write("step", {"isa": given.isa, "rows": rows, "crowded": crowded}))


if __name__ == "__main__":
    main()
