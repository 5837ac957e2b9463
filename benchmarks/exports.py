"""Export of networks that others wrote: which of them a .lean file can hold, and how near it comes to torch.

    pip install --no-deps pytorchcv==0.0.67 && pip install -c constraints.txt requests transformers
    python benchmarks/exports.py [--only NAME ...]

The networks are those of benchmarks/zoo.py, with its drawn statistics; the outputs are those of the file, read back and
run by leanconv.runtime, against torch in float64 on six images at most. *Exact* is an error of at most twice torch's in
float32 and 4 eps, *loose* one of at most 1e-5 of the largest output or four times torch's, *missing* a network with
operations that no .lean file has, *refused* anything else that is one sentence.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import bench
import torch
import zoo

import leanconv
from leanconv.errors import Error


def examined(network: zoo.Network, folder: Path) -> dict[str, Any]:
    """What became of one network."""
    torch.manual_seed(0)
    model = network.make().eval()
    if network.drawn:
        model = zoo.drawn(model, network.pixels)
    start = time.perf_counter()
    try:
        told = leanconv.export(model, folder / "net.lean", example=zoo.images(network.pixels, 0, 2), overwrite=True)
    except Error as error:
        text = str(error)
        return {"result": "missing" if "must consist of operations" in text else "refused", "why": text}
    difference = told.difference
    return {
        "result": "exact" if difference.holds else "loose",
        "ours": difference.ours,
        "theirs": difference.theirs,
        "scale": difference.scale,
        "steps": told.steps,
        "blocks": told.blocks,
        "memory": told.memory,
        "executor": told.executor,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="networks whose names contain one of these")
    arguments = parser.parse_args()
    try:
        import pytorchcv.model_provider  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"exports: left out, {error} (python benchmarks/exports.py --help)")
        return
    chosen = [n for n in zoo.networks() if not arguments.only or any(part in n.name for part in arguments.only)]
    records = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the networks' authors
        for network in chosen:
            one = records[network.name] = examined(network, Path(folder))
            told = one.get("why") or f"{one['ours']:.2g} (torch {one['theirs']:.2g}), {one['blocks']} blocks"
            print(f"{network.name:36} {one['result']:8} {told}", flush=True)
    counts = dict(Counter(one["result"] for one in records.values()))
    print(counts)
    if not arguments.only:
        print(f"appended to {bench.write('exports', {'totals': counts, 'networks': records})}")


if __name__ == "__main__":
    main()
