"""Batch norm and ReLU, forward and backward: native code against torch's two operations, and against a copy.

    python benchmarks/norm.py [--rounds 25] [--threads 1 2] [--isa avx2]

Maps are channels_last, as after a convolution in a MobileNet and in a network for CIFAR-10. A round runs every
contender once. The bytes that must move are those of four copies: x twice and y once forward, x twice, dy twice and dx
once backward. What is kept for the backward pass is x in ours, x and y in torch's.
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
from leanconv.kernels.norm import norm_act

SHAPES = [(32, 64, 64, 64), (32, 128, 32, 32), (32, 256, 16, 16), (32, 512, 8, 8), (32, 1024, 4, 4), (128, 32, 32, 32)]


def contenders(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    x, dy = (torch.randn(shape).to(dtype).to(memory_format=torch.channels_last) for _ in range(2))
    x.requires_grad_()
    weight, bias = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    learned, other = (x, weight, bias), torch.empty_like(x)

    def theirs() -> object:
        y = torch.relu(F.batch_norm(x, None, None, weight, bias, True))
        return torch.autograd.grad(y, learned, dy)

    def ours() -> object:
        return torch.autograd.grad(norm_act(x, weight, bias, act="relu")[0], learned, dy)

    return {"torch": theirs, "ours": ours, "copy": lambda: other.copy_(x.detach())}


def row(shape: tuple[int, ...], dtype: torch.dtype, threads: int, rounds: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    found = contenders(shape, dtype)
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(rounds + 3):
        for name, run in found.items():
            start = time.perf_counter()
            run()
            if number >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    against = statistics.median(a / b for a, b in zip(times["ours"], times["torch"], strict=True))
    bytes_ = medians["ours"] / (4 * medians["copy"])
    print(
        f"{shape!s:20} {dtype!s:15} {threads} threads {medians} {against:.2f} of torch, {bytes_:.2f} of four copies",
        flush=True,
    )
    return {
        "shape": list(shape), "dtype": str(dtype).removeprefix("torch."), "threads": threads, "median_ms": medians,
        "of_torch": round(against, 3), "of_four_copies": round(bytes_, 2),
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
        row(shape, dtype, threads, given.rounds)
        for dtype in (torch.float32, torch.bfloat16)
        for threads in given.threads
        for shape in SHAPES
    ]
    told = kernels.choice.explain("norm_act", SHAPES[0], torch.float32)
    print(bench.crowded() or "", bench.write("norm", {"choice": told.split(";")[0], "rows": rows}))


if __name__ == "__main__":
    main()
