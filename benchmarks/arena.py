"""Our training step of MobileNetV1 with and without the arena (leanconv.kernels.arena), and what the step holds.

    python benchmarks/arena.py [--rounds 12] [--steps 2] [--threads 2] [--side 128 32]

Contenders, each a process of its own, in turns: the allocator tuned (leanconv.tune_allocator) and as it comes, each
without the arena and with it; with the tuned one also an arena of huge pages, and torch's own way to these,
THP_MEM_ALLOC_ENABLE. The package uses the arena where the allocator is not tuned.
Ratios are to the allocator in the same state without an arena, and to the tuned one, with their 95 % interval; memory
is that of the whole process. Without an arena and with the allocator tuned, page faults per step are all that an arena
could save, beside the faults of the caches and of address translation.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import sys
from collections.abc import Callable
from typing import Any

from leanconv.benchmarking import turns

TUNED, PLAIN = "tuned", "as it comes"
CONTENDERS = {
    TUNED: TUNED,
    "tuned, arena": TUNED,
    "tuned, arena of huge pages": TUNED,
    "tuned, torch's huge pages": TUNED,
    PLAIN: PLAIN,
    "as it comes, arena": PLAIN,
}


def in_huge_pages(mapped: Callable[[int], Any]) -> Callable[[int], Any]:
    """Segments of the arena for which the kernel was asked for huge pages."""

    def advised(size: int) -> Any:
        segment = mapped(size)
        address, length = ctypes.c_void_p(segment.ctypes.data), ctypes.c_size_t(size)
        if ctypes.CDLL(None).madvise(address, length, mmap.MADV_HUGEPAGE):
            sys.exit("this kernel has no huge pages on request")
        return segment

    return advised


def contender(setup: dict[str, Any]) -> None:
    import step
    import torch

    from leanconv import allocator
    from leanconv.kernels import arena

    name = setup["name"]
    if CONTENDERS[name] == TUNED and not (record := allocator.tune_allocator()).tuned:
        sys.exit(f"not tuned: {record.reason}")
    torch.set_num_threads(setup["threads"])
    if "arena" in name:
        allocator.gives_back = lambda: True  # else a tuned allocator takes its place
    else:
        arena.SMALLEST = sys.maxsize
    if "arena of huge" in name:
        arena._mapped = in_huge_pages(arena._mapped)
    turns.serve(step.stepper("ours", *setup["case"]), {"torch": str(torch.__version__)}, warmup=4)


def compared(case: tuple[int, int, int], given: argparse.Namespace) -> dict[str, Any]:
    from leanconv.measure import median_interval

    started = {}
    for name in CONTENDERS:
        setup = json.dumps({"name": name, "case": case, "threads": given.threads})
        extra = {"THP_MEM_ALLOC_ENABLE": "1"} if "torch's" in name else {}
        started[name] = turns.Contender(name, [sys.executable, __file__, "--contender", setup], extra)
    answers = turns.in_turns(started, given.rounds, dict.fromkeys(CONTENDERS, given.steps))
    rows = {}
    for name, answer in answers.items():
        rows[name] = turns.summary(answer)
        for base in dict.fromkeys((CONTENDERS[name], TUNED)):
            ratio = median_interval(turns.ratios(answer, answers[base]))
            rows[name][f"of {base}"] = [round(r, 3) for r in ratio]
    return {"side": case[0], "batch": case[1], "contenders": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps of each contender in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, nargs="+", choices=(128, 32), default=(128, 32))
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contender(json.loads(given.contender))
        return
    import bench
    import step

    rows = []
    for case in (c for c in step.CASES if c[0] in given.side):
        row = compared(case, given)
        rows.append(row)
        print(f"{case[0]} x {case[0]}, batch {case[1]}")
        for name, found in row["contenders"].items():
            print(f"  {name:34} {json.dumps(found)}")
    record = {"training_threads": given.threads, "rounds": given.rounds, "steps": given.steps, "rows": rows}
    crowded = bench.crowded(max(part["others"] for row in rows for part in row["contenders"].values()))
    print(crowded or "", bench.write("arena", record | {"crowded": crowded}))


if __name__ == "__main__":
    main()
