"""Dropout of 3.2 M elements, p = 0.5: native code without a stored mask against torch's, and against a copy.

    python benchmarks/dropout.py [--rounds 25] [--threads 1 2] [--isa avx2]

A round runs every contender once. ``ours`` and ``torch`` are the forward pass of the operation; ``layer`` and ``torch,
both`` a training step of leanconv's layer and of torch's: forward, kept for backward, backward. ``copy`` writes into
memory that is there, ``clone`` into fresh one, as the others do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import bench
import torch
from torch.nn import functional as F

from leanconv import allocator, kernels
from leanconv.kernels.dropout import dropout
from leanconv.nn import Dropout, Dropout2d

P, LIMIT, SCALE = 0.5, 32768, 2.0
CASES: list[tuple[str, tuple[int, ...], torch.memory_format]] = [
    ("features", (32, 100_000), torch.contiguous_format),
    ("channels_last", (32, 128, 28, 28), torch.channels_last),
    ("channels_first", (32, 128, 28, 28), torch.contiguous_format),
    ("small", (128, 1024), torch.contiguous_format),
]


def contenders(
    shape: tuple[int, ...], form: torch.memory_format, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    x = torch.randn(shape).to(dtype).contiguous(memory_format=form)
    other, key, learned = torch.empty_like(x), torch.tensor([2024, 0]), x.clone().requires_grad_()
    layer, exact, channels = Dropout(P), Dropout(P, count="exact"), Dropout2d(P)
    units = x[0].numel()
    found = {
        "copy": lambda: other.copy_(x),
        "clone": lambda: x.clone(),
        "ours": lambda: dropout(x, key, LIMIT, SCALE),
        "batch mask": lambda: dropout(x, key, LIMIT, SCALE, batch=True),
        "exact": lambda: dropout(x, key, units // 2, SCALE, exact=True),
        "torch": lambda: F.dropout(x, P, True),
        "layer": lambda: torch.autograd.grad(layer(learned), learned, x),
        "exact, both": lambda: torch.autograd.grad(exact(learned), learned, x),
        "torch, both": lambda: torch.autograd.grad(F.dropout(learned, P, True), learned, x),
    }
    if len(shape) == 4:
        found["Dropout2d"] = lambda: channels(x)
        found["torch, Dropout2d"] = lambda: F.dropout2d(x, P, True)
    return found


def row(
    name: str, shape: tuple[int, ...], form: torch.memory_format, dtype: torch.dtype, threads: int, rounds: int
) -> dict[str, object]:
    torch.set_num_threads(threads)
    found = contenders(shape, form, dtype)
    times: dict[str, list[float]] = {contender: [] for contender in found}
    for number in range(rounds + 3):
        for contender, run in found.items():
            start = time.perf_counter()
            run()
            if number >= 3:
                times[contender].append(1e3 * (time.perf_counter() - start))
    medians = {contender: round(statistics.median(values), 3) for contender, values in times.items()}
    copies = {
        contender: round(statistics.median(a / b for a, b in zip(values, times["copy"], strict=True)), 2)
        for contender, values in times.items()
    }
    print(f"{name:14} {dtype!s:15} {threads} threads, in copies: {copies}", flush=True)
    return {
        "case": name, "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "threads": threads,
        "median_ms": medians, "of_a_copy": copies,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", help="force an instruction set in ours")
    given = parser.parse_args()
    if given.isa:
        os.environ["LEANCONV_ISA"] = given.isa
    allocator.tune_allocator()
    rows = [
        row(*case, dtype, threads, given.rounds)
        for dtype in (torch.float32, torch.bfloat16)
        for threads in given.threads
        for case in CASES
    ]
    told = kernels.choice.explain("dropout", CASES[0][1], torch.float32)
    print(bench.crowded() or "", bench.write("dropout", {"p": P, "choice": told.split(";")[0], "rows": rows}))


if __name__ == "__main__":
    main()
