"""A dropout mask of 3.2 M elements: native Philox, its torch twin, and what torch has.

    python benchmarks/philox.py [--rounds 30]

Run it with the tuned allocator too (MALLOC_MMAP_THRESHOLD_ and friends): without it page faults of fresh tensors count.
"""

from __future__ import annotations

import argparse
import os

import bench
import torch
import torch.nn.functional as F

from leanconv import _native
from leanconv.kernels import philox as ph

ROWS, ELEMENTS, P = 32, 100_000, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    key, limit, ones = torch.tensor([2024, 0]), ph.threshold(P), torch.ones(ROWS, ELEMENTS)
    contenders = {
        "torch twin": lambda: ph.twin_mask(key, ROWS, ELEMENTS, limit, False),
        "torch bernoulli_ (bool)": lambda: torch.empty((ROWS, ELEMENTS), dtype=torch.bool).bernoulli_(P),
        "torch bernoulli_ (float)": lambda: torch.empty((ROWS, ELEMENTS)).bernoulli_(P),
        "torch F.dropout": lambda: F.dropout(ones, P, True),
        "a copy of the mask": torch.ones((ROWS, ELEMENTS), dtype=torch.bool).clone,
    }
    library, base = _native.load(), "torch twin"
    if library is not None:
        base = "native mask"
        contenders[base] = lambda: ph.keep_mask(key, ROWS, ELEMENTS, limit)
        contenders["native mask, then x * mask * scale"] = lambda: (
            ones * ph.keep_mask(key, ROWS, ELEMENTS, limit) * ph.scale(limit)
        )
        contenders["native exact count"] = lambda: ph.keep_exact(key, ROWS, ELEMENTS, ELEMENTS // 2)
    record = {}
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        medians = bench.interleave(contenders, rounds)
        print(f"{ROWS} x {ELEMENTS}, p = {P}, {threads} thread(s)\n{bench.table(medians, base)}\n")
        record[f"{threads} threads"] = {name: round(1e3 * seconds, 4) for name, seconds in medians.items()}
    tuned = "MALLOC_MMAP_THRESHOLD_" in os.environ
    path = bench.write("philox", {"elements": ROWS * ELEMENTS, "p": P, "tuned_malloc": tuned, "median_ms": record})
    print(bench.crowded() or "the machine was free")
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
