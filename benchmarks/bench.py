"""What the benchmark scripts share: contenders interleaved, the machine, results appended to benchmarks/results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from leanconv import _native

RESULTS = Path(__file__).parent / "results"


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int = 30, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each contender; every round runs all of them, starting with another one each time.

    Only ratios within one result mean something: the machine may be shared, and its load then hits all alike.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(-warmup, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[name]) for name in names}


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, load, versions, torch's threads, and the native instruction set."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "native": _native.isa(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def write(name: str, record: Mapping[str, Any]) -> Path:
    """Append the record, with the time and the machine, as one line of benchmarks/results/NAME.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    line = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), **record}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def table(medians: Mapping[str, float], base: str) -> str:
    """One line per contender: milliseconds, and how many times the base it takes."""
    width = max(map(len, medians))
    return "\n".join(f"{n:{width}}  {1e3 * s:9.3f} ms  {s / medians[base]:7.2f}x" for n, s in medians.items())
