"""The runtime beside onnxruntime, openvino and torch: whole networks at 224 x 224, in turns.

    pip install --no-deps pytorchcv==0.0.67 && pip install -c constraints.txt requests
    python benchmarks/runtime.py [--only NAME ...] [--batch 1 16] [--threads 1 2] [--rounds 11] [--python PATH]

Each network is written as .lean and as ONNX; `leanconv.benchmarking` has every contender in a process of its own.
PATH is a Python with numpy, onnxruntime and openvino; contenders that it lacks are named and left out. openvino runs in
float32, torch channels_last, eager and compiled (frozen). `ratio to the best` is our time by that of the fastest
other; `dense by separable` is the dense twin's time by MobileNetV1's, where both ran (their multiply-adds: 8.55).
Weights are random, but those of EfficientNet-Lite0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

NAMES = ("mobilenet_v1", "dense_twin", "mobilenet_v2", "efficientnet_lite0", "resnet18")
SHAPE = (3, 224, 224)


def build(name: str) -> Any:
    """A network in eval mode; the same weights in every process."""
    import torch
    import zoo

    from leanconv import models

    makers: Mapping[str, Callable[[], Any]] = {
        "mobilenet_v1": models.mobilenet_v1,
        "dense_twin": lambda: models.dense_twin(models.mobilenet_v1()),
        "mobilenet_v2": lambda: zoo.pytorchcv("mobilenetv2_w1"),
        "efficientnet_lite0": zoo.lite0,
        "resnet18": lambda: zoo.pytorchcv("resnet18"),
    }
    torch.manual_seed(0)
    return makers[name]().eval()


def of_torch(name: str, setup: Mapping[str, Any]) -> dict[str, list[str]]:
    """The commands of torch's contenders."""
    kinds = ("torch", "torch.compile")
    return {
        kind: [sys.executable, __file__, "--contender", json.dumps({**setup, "kind": kind}), name] for kind in kinds
    }


def measured(name: str, given: argparse.Namespace, folder: str) -> dict[str, Any]:
    import torch

    import leanconv
    from leanconv.benchmarking import measure

    model, x = build(name), torch.randn(2, *SHAPE)
    file = Path(folder) / f"{name}.lean"
    leanconv.export(model, file, example=x)
    others = [] if given.torch_only else ["onnxruntime", "openvino"]
    if others:
        leanconv.export(model, file.with_suffix(".onnx"), "onnx", example=x)
    commands = None if given.no_torch else (lambda setup: of_torch(name, setup))
    told = measure(
        file,
        others,
        batch=given.batch,
        threads=given.threads,
        rounds=given.rounds,
        python=given.python,
        commands=commands,
    )
    cells = []
    for one in told.measurements:
        rest = {n: row for n, row in one.contenders.items() if n != "leanconv"}
        best = min(rest, key=lambda n: rest[n].median, default=None)
        rows = {
            n: {
                "ms": round(row.median, 3),
                "low": round(row.low, 3),
                "high": round(row.high, 3),
                "by_ours": round(row.ratio, 3),
                "by_ours_interval": [round(row.ratio_low, 3), round(row.ratio_high, 3)],
                "of_peak": row.of_peak and round(row.of_peak, 3),
                "difference": row.difference,
                "version": row.version,
            }
            for n, row in one.contenders.items()
        }
        cell = {"batch": one.batch, "threads": one.threads, "peak": one.peak, "others": round(one.others, 2)}
        ratio = round(1 / rest[best].ratio, 3) if best else None
        cells.append({**cell, "best_other": best, "ratio_to_best": ratio, "contenders": rows})
        print(f"{name}, batch {one.batch}, {one.threads} threads; others took {one.others:.2f} cores", flush=True)
        for n, row in one.contenders.items():
            share = f"{100 * row.of_peak:5.1f} % of peak" if row.of_peak else ""
            print(f"  {n:14} {row.median:8.2f} ms  {row.ratio:5.2f} x ours  {share}", flush=True)
    for contender, package in told.missing.items():
        print(f"  {contender} is left out: {package} is not installed")
    return {"macs": told.macs, "executor": told.executor, "isa": told.isa, "missing": told.missing, "cells": cells}


def dense_by_separable(networks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The dense twin's time by the network's, for each contender and cell."""
    if not {"mobilenet_v1", "dense_twin"} <= set(networks):
        return []
    made = []
    for lean, dense in zip(networks["mobilenet_v1"]["cells"], networks["dense_twin"]["cells"], strict=True):
        pairs = {n: (row["ms"], lean["contenders"].get(n)) for n, row in dense["contenders"].items()}
        ratios = {n: round(ms / row["ms"], 2) for n, (ms, row) in pairs.items() if row}
        made.append({"batch": lean["batch"], "threads": lean["threads"], **ratios})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--python", default=sys.executable, help="a Python with numpy, onnxruntime and openvino")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    parser.add_argument("--torch-only", action="store_true", help="leave onnxruntime and openvino out")
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        from leanconv.benchmarking import contenders

        contenders.serve_torch(build(given.contender[1]), json.loads(given.contender[0]))
        return
    import bench

    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            try:
                networks[name] = measured(name, given, folder)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}")
    ratios = dense_by_separable(networks)
    for ratio in ratios:
        print("dense by separable", json.dumps(ratio))
    most = max((cell["others"] for n in networks.values() for cell in n["cells"]), default=0.0)
    record = {"rounds": given.rounds, "networks": networks, "dense_by_separable": ratios}
    crowded = bench.crowded(most)
    print(crowded or "", bench.write("runtime", {**record, "crowded": crowded}))


if __name__ == "__main__":
    main()
