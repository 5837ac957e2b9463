"""Blocks of MobileNets with dropout of whole channels in them: what leaving out half of the channels saves.

    python benchmarks/dropout_skip_block.py [--rounds 11] [--batch 32] [--pixels 14]

Each block takes one SGD step, interleaved: without dropout, with nn.Dropout2d, with one mask for the batch, and with
the stopped channels left out. ``products``: time inside the pointwise convolutions alone, forward and backward, of the
profiler, since what lies around them is bound by memory and by batch norm.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count

import bench
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from leanconv import tune_allocator
from leanconv.nn import Dropout2d, keyed, skip

P = 0.5
PROFILED = 5
WEIGHTS = {"aten::mkldnn_convolution": 1, "aten::convolution_backward": 2}


def pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def depthwise(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def normed(layer: nn.Module, channels: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(channels), nn.ReLU()]


def pointwise_layers(drop: nn.Module) -> nn.Sequential:
    """The two pointwise layers around a dropout, and nothing else."""
    return nn.Sequential(pointwise(512, 512), nn.ReLU(), drop, pointwise(512, 512))


def separable(drop: nn.Module) -> nn.Sequential:
    """Two blocks of MobileNetV1, dropout between them."""
    one = [*normed(depthwise(512), 512), *normed(pointwise(512, 512), 512)]
    two = [*normed(depthwise(512), 512), *normed(pointwise(512, 512), 512)]
    return nn.Sequential(*one, drop, *two)


def inverted(drop: nn.Module) -> nn.Sequential:
    """An inverted residual block of MobileNetV2, dropout before its projection."""
    inner = [*normed(pointwise(96, 576), 576), *normed(depthwise(576), 576)]
    return nn.Sequential(*inner, drop, pointwise(576, 96), nn.BatchNorm2d(96))


BLOCKS: dict[str, tuple[int, Callable[[nn.Module], nn.Sequential]]] = {
    "pointwise layers": (512, pointwise_layers),
    "MobileNetV1": (512, separable),
    "MobileNetV2": (96, inverted),
}


def step(model: nn.Sequential, x: Tensor, skips: bool = False) -> Callable[[], None]:
    model = model.to(memory_format=torch.channels_last)
    optimizer, steps = torch.optim.SGD(model.parameters(), 1e-3), count()
    if skips:
        skip(model, x)

    def run() -> None:
        with keyed(0, next(steps)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    return run


def products(run: Callable[[], None]) -> float:
    """Milliseconds of a step inside convolutions that are not depthwise."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        for _ in range(PROFILED):
            run()
    micro = 0.0
    for event in seen.key_averages(group_by_input_shape=True):
        weight = WEIGHTS.get(event.key)  # which of its inputs that is
        if weight is not None and event.input_shapes[weight][2:] == [1, 1]:
            micro += event.cpu_time_total
    return micro / PROFILED / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=14)
    given = parser.parse_args()
    tuned = tune_allocator()
    record = {}
    for name, (channels, block) in BLOCKS.items():
        torch.manual_seed(0)
        x = torch.randn(given.batch, channels, given.pixels, given.pixels)
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        runs = {
            "without dropout": step(block(nn.Identity()), x),
            "nn.Dropout2d": step(block(nn.Dropout2d(P)), x),
            "ours, masked": step(block(Dropout2d(P, "batch")), x),
            "ours, skip": step(block(Dropout2d(P, "batch")), x, skips=True),
        }
        medians = bench.interleave(runs, given.rounds)
        inside = {label: products(runs[label]) for label in ("without dropout", "ours, skip")}
        share = inside["ours, skip"] / inside["without dropout"]
        print(f"{name}, p = {P}\n{bench.table(medians, 'without dropout')}\nproducts alone {share:.2f}x\n", flush=True)
        record[name] = {
            "median_ms": {label: round(1e3 * seconds, 2) for label, seconds in medians.items()},
            "ratio": {label: round(seconds / medians["without dropout"], 3) for label, seconds in medians.items()},
            "products_ms": {label: round(milli, 2) for label, milli in inside.items()},
            "products_ratio": round(share, 3),
        }
    sizes = {"batch": given.batch, "pixels": given.pixels, "p": P, "rounds": given.rounds}
    path = bench.write("dropout_skip_block", {**sizes, "tuned_malloc": tuned.tuned, "step": record})
    print(bench.crowded() or "the machine was free")
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
