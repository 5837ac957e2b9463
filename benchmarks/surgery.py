"""Fold and separation of a network of the size of ResNet-50: seconds and peak memory.

    python benchmarks/surgery.py [--side 224] [--images 32]

A bottleneck network as He et al. 2016 have it (25.6 M parameters, 4.1 G multiply-adds at 224 pixels), with random
weights and statistics; each verb in a process of its own. The figures to reach: under 60 seconds on two cores, and a
peak of memory of less than three times the network, the network itself and all activations counted.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import bench
import torch
from torch import Tensor, nn

VERBS = ("fold", "fold without float64", "separate", "separate by weights")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch norms, and a skip connection."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width),
        )  # fmt: skip
        same = inputs == 4 * width and stride == 1
        skip = (nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
        self.skip = nn.Identity() if same else nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 width, H', W')."""
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Module:
    """Random weights, statistics and affine parameters away from where they start."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            blocks.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)
                module.weight.uniform_(0.2, 0.6)
    return model


def one(verb: str, side: int, images: int) -> dict[str, Any]:
    """Seconds, and mebibytes of the peak above what the process held before the network was there."""
    from leanconv import allocator, surgery

    allocator.tune_allocator()
    torch.zeros(64, 64) @ torch.zeros(64, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model = resnet50()
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 2**20
    example = torch.randn(1, 3, side, side)
    start = time.perf_counter()
    if verb.startswith("fold"):
        _, told = surgery.fold(model, example=example, latency=False, check=verb == "fold")
    else:
        aware = verb == "separate"
        batches = [torch.randn(8, 3, side, side) for _ in range(images // 8)]
        _, told = surgery.separate(
            model, budget="macs=0.8", example=example, batches=batches if aware else None, latency=False
        )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    found = {"edits": len(told.edits), "seconds": round(seconds, 1), "network_mib": round(size, 1)}
    return found | {"peak_mib": round(peak, 1), "peak_over_network": round(peak / size, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.side, given.images)))
        return
    found = {}
    for verb in VERBS:
        words = [sys.executable, __file__, "--one", verb, "--side", str(given.side), "--images", str(given.images)]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found[verb] = json.loads(done.stdout.splitlines()[-1])
        print(f"{verb:22} {found[verb]}", flush=True)
    print(bench.crowded() or "", bench.write("surgery", {"side": given.side, "images": given.images, "verbs": found}))


if __name__ == "__main__":
    main()
