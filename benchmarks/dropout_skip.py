"""One SGD step of two 4096-wide layers with dropout between them: what stopping half of the units costs and saves.

    python benchmarks/dropout_skip.py [--rounds 15] [--batches 32 128 512] [--width 4096]

Contenders, interleaved: without dropout, nn.Dropout (a mask per sample), ours with one mask for the batch, the same
with the stopped units left out (``skip``, as its rule decides, and ``always``), and strict mode with and without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count

import bench
import torch
from torch import Tensor, nn

from leanconv import tune_allocator
from leanconv.nn import Dropout, keyed, skip, strict

P = 0.5


def network(width: int, dropout: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), dropout, nn.Linear(width, width))


def step(
    model: nn.Module, x: Tensor, target: Tensor, prepare: Callable[..., object] | None = None
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    if prepare is not None:
        prepare(model, optimizer)
    steps = count()

    def run() -> None:
        with keyed(0, next(steps)):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()

    return run


def contenders(width: int, batch: int) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    x, target = torch.randn(batch, width), torch.randn(batch, width)

    def both(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        strict(model, optimizer, x)
        skip(model, x)

    def made(dropout: nn.Module, prepare: Callable[..., object] | None = None) -> Callable[[], None]:
        return step(network(width, dropout), x, target, prepare)

    def ours() -> Dropout:
        return Dropout(P, mask="batch")

    return {
        "without dropout": made(nn.Identity()),
        "nn.Dropout": made(nn.Dropout(P)),
        "ours, masked": made(ours()),
        "ours, skip": made(ours(), lambda model, optimizer: skip(model, x)),
        "ours, skip always": made(ours(), lambda model, optimizer: skip(model, x, always=True)),
        "ours, strict": made(ours(), lambda model, optimizer: strict(model, optimizer, x)),
        "ours, strict and skip": made(ours(), both),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--width", type=int, default=4096)
    given = parser.parse_args()
    tuned = tune_allocator()
    record = {}
    for batch in given.batches:
        medians = bench.interleave(contenders(given.width, batch), given.rounds)
        print(f"batch {batch}, {given.width} wide, p = {P}\n{bench.table(medians, 'without dropout')}\n", flush=True)
        base = medians["without dropout"]
        record[f"batch {batch}"] = {
            "median_ms": {name: round(1e3 * seconds, 2) for name, seconds in medians.items()},
            "ratio": {name: round(seconds / base, 3) for name, seconds in medians.items()},
        }
    given_record = {"width": given.width, "p": P, "rounds": given.rounds, "tuned_malloc": tuned.tuned, "step": record}
    path = bench.write("dropout_skip", given_record)
    print(bench.crowded() or "the machine was free")
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
