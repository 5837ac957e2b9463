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

    Only ratios within one result mean something, and only where the machine is not overloaded: a contender longer than
    a time slice of the scheduler is interrupted by other processes, one of a millisecond is not, so a
    busy machine flatters the short ones. :func:`crowded` tells.
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


Usage = tuple[float, float, float]


def others(since: Usage | None = None) -> float | None:
    """Cores that other processes kept busy on average; None where it cannot be told.

    Args:
        since: what :func:`usage` said then; None: since this module was imported.
    """
    since = since or _START
    if since is None or (now := usage()) is None:
        return None
    wall, busy, own = (after - before for after, before in zip(now, since, strict=True))
    return round(max(0.0, busy - own) / max(wall, 1e-9), 2)


def crowded(taken: float | None = None) -> str | None:
    """A sentence where other processes took more than a tenth of a core, so that no ratio can be trusted; else None.

    Args:
        taken: how many cores they took; None: :func:`others`.
    """
    taken = others() if taken is None else taken
    if taken is None or taken <= 0.1:
        return None
    return (
        f"other processes took {taken} cores meanwhile: they interrupt the longer contenders, do not quote these ratios"
    )


def usage() -> Usage | None:
    """Seconds: wall clock, processor time of the whole machine, and of this process and its children."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(x) for x in stat.read_text().splitlines()[0].split()[1:9]]
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for disks
    return time.perf_counter(), busy, sum(os.times()[:4])


_START = usage()


def machine() -> dict[str, Any]:
    """Processor, cores at hand, what others took of them, versions, torch's threads, the native instruction set."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "others": others(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "native": _native.isa(),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def write(name: str, record: Mapping[str, Any]) -> Path:
    """Append the record, with time, machine and :func:`crowded`, as one line of benchmarks/results/NAME.jsonl.

    A record's own ``crowded`` counts, where it looked at the time of its measurement alone.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    line = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "crowded": crowded(),
        **record,
    }
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return path


def table(medians: Mapping[str, float], base: str) -> str:
    """One line per contender: milliseconds, and how many times the base it takes."""
    width = max(map(len, medians))
    return "\n".join(f"{n:{width}}  {1e3 * s:9.3f} ms  {s / medians[base]:7.2f}x" for n, s in medians.items())
