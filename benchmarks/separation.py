"""A trained dense network made separable: accuracy against multiply-adds and latency, and what each way of it keeps.

    python benchmarks/separation.py RUN DATA [--budgets 0.5 0.3333 0.25 0.2] [--learn 0.2] [--epochs 2]

RUN is the folder of a trained run, such as benchmarks/cifar10.py leaves in runs/cifar10-0; DATA the images that it was
trained on. For each budget of multiply-adds of the whole network:

- ``weights``: ranks and layers by truncated SVD of the weights, batch norm's statistics computed anew;
- ``outputs``: ranks and layers by what the layers put out on 4,096 training images, statistics computed anew;
- ``learned`` (budgets of --learn): the latter after some epochs of learning from the original network;
- ``fresh`` (likewise): the same network with drawn weights in its separable layers, after the same learning.

Accuracy is that of all test images; latencies of all networks at batch 1 are taken in turns at the end.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from typing import Any

import bench
import torch
from torch import Tensor, nn

from leanconv import allocator, data, measure, surgery, training
from leanconv import nn as layers
from leanconv.data import DataSet
from leanconv.techniques.separable import SeparableConv2d

CALIBRATION = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3333, 0.25, 0.2])
    parser.add_argument("--learn", type=float, nargs="*", default=[0.2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.1, help="of learning")
    arguments = parser.parse_args()
    if arguments.run is None or arguments.data is None:
        print("separation: left out, it needs RUN and DATA (python benchmarks/separation.py --help)")
        return
    allocator.tune_allocator()
    run = training.open_run(arguments.run)
    header = run.header
    images = data.load(arguments.data, imgsz=header.shape[1], in_chans=header.shape[0])
    images = replace(images, mean=header.mean, std=header.std)
    networks: dict[str, nn.Module] = {"dense": run.model}
    rows = [_row("dense", 1.0, run.model, images, header.shape, 0.0)]
    for budget in arguments.budgets:
        for method in ("weights", "outputs"):
            start = time.perf_counter()
            lean, _ = surgery.separate(
                run.model, budget=f"macs={budget}", batches=_batches(images), method=method, latency=False
            )
            name = f"{method} {budget:g}"
            networks[name] = lean
            rows.append(_row(name, budget, lean, images, header.shape, time.perf_counter() - start))
        if budget in arguments.learn:
            for name, student in (("learned", copy.deepcopy(lean)), ("fresh", _fresh(lean, _batches(images)))):
                start = time.perf_counter()
                surgery.distil(student, run.model, images, surgery.Distil(epochs=arguments.epochs, lr=arguments.lr))
                layers.precise_statistics(student, _batches(images))
                rows.append(
                    _row(f"{name} {budget:g}", budget, student, images, header.shape, time.perf_counter() - start)
                )
    x = torch.randn(1, *header.shape).contiguous(memory_format=torch.channels_last)
    times = measure.compare_latency({name: (net, x) for name, net in networks.items()}, runs=60)
    for name, found in times.latencies.items():
        next(row for row in rows if row["name"] == name)["ms"] = round(found.median, 4)
    record = {
        "run": run.record.digest,
        "epochs": arguments.epochs,
        "lr": arguments.lr,
        "calibration": CALIBRATION,
        "rows": rows,
    }
    print(bench.crowded() or "", bench.write("separation", record))


def _batches(images: DataSet) -> list[Tensor]:
    index = torch.linspace(0, len(images.train) - 1, CALIBRATION).round().long()
    parts = [data.normalise(images.train.images[i], images.mean, images.std) for i in torch.split(index, 256)]
    return [x.contiguous(memory_format=torch.channels_last) for x in parts]


def _fresh(lean: nn.Module, batches: list[Tensor]) -> nn.Module:
    """The same network, its separable layers as a new one has them."""
    new = copy.deepcopy(lean)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in new.modules():
            if isinstance(module, SeparableConv2d):
                for half in (module.depthwise, module.pointwise):
                    nn.init.kaiming_normal_(half.weight, mode="fan_in", nonlinearity="linear")
    layers.precise_statistics(new, batches)
    return new


def _row(name: str, budget: float, model: nn.Module, images: DataSet, shape: Any, seconds: float) -> dict[str, Any]:
    from leanconv import cost

    score = measure.score(model, images, "test")
    low, high = score.interval()
    counted = cost(model, (1, *shape))
    told = f"{name:14} {counted.macs / 1e6:7.1f} M MACs {counted.params / 1e3:7.0f} k params"
    print(f"{told}  {100 * score.accuracy:.2f} % ({100 * low:.2f} to {100 * high:.2f})  {seconds:.0f} s", flush=True)
    return {
        "name": name,
        "budget": budget,
        "macs": counted.macs,
        "params": counted.params,
        "correct": score.correct,
        "total": score.total,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
