"""Loading and augmentation: seconds of the first and second load, of one epoch's batches, and memory.

Synthetic 12-megapixel JPEGs (4000 x 3000) and, where it is at hand, CIFAR-10 as parquet files, each measured in a
process of its own with an empty cache. The figure to reach: after the first epoch, loading and augmentation take less
than a tenth of an epoch of the recipe that is meant for such images (photos, cifar10): ``share`` is the milliseconds
of an image's loading and augmentation over those and its training step together.

python benchmarks/loading.py [--photos 200] [--imgsz 224] [--cifar DIR] [--threads N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch
from PIL import Image

from leanconv import allocator, data, recipe
from leanconv.training import optim, run

CLASSES = 4
SIZE = (4000, 3000)
STEPS = 12
POLICIES = {  # the last one is the recipe's
    "photos": ("none", "flip_crop", "photo_light", "photo"),
    "cifar10": ("none", "flip_crop", "crop_flip_cutout"),
}


def photos(root: Path, count: int) -> None:
    """Smooth random landscapes with grain: JPEGs of two to four megabytes, made by all cores."""
    with ProcessPoolExecutor() as pool:
        list(pool.map(_photo, [root] * count, range(count), chunksize=10))


def _photo(root: Path, i: int) -> None:
    width, height = SIZE
    random = np.random.default_rng(i)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BILINEAR))
    grain = np.tile(random.integers(0, 24, (300, 400, 1), dtype=np.uint8), (height // 300, width // 400, 1))
    place = root / f"class{i % CLASSES}" / f"{i:05}.jpg"
    place.parent.mkdir(parents=True, exist_ok=True)
    # Nine tenths of the range and the grain: no value overflows.
    Image.fromarray(smooth // 10 * 9 + grain).save(place, quality=90)


def memory() -> dict[str, int]:
    """MiB: resident, of it the process's own (anonymous) and mapped files, which the system takes back at need."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    wanted = {"VmRSS": "resident", "RssAnon": "own", "RssFile": "mapped", "VmHWM": "peak"}
    found = (line.split() for line in lines)
    return {wanted[words[0][:-1]]: int(words[1]) // 1024 for words in found if words and words[0][:-1] in wanted}


def step_ms(name: str, images: data.DataSet) -> float:
    """Milliseconds an image of a training step of the recipe, median."""
    chosen = recipe.load(name)
    built, _ = run.prepare(chosen, images)
    optimizer = optim.make(built.model, built.roles, chosen.training)
    half = chosen.training.precision.startswith("bf16")
    taken = []
    for step in itertools.islice(data.steps(images, chosen.training.batch, epoch=0, seed=0, policy="none"), STEPS):
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(built.model(step[0].images).float(), step[0].labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(1e3 * (time.perf_counter() - started) / len(step[0].labels))
    return statistics.median(taken[2:])


def one(name: str, source: str, imgsz: int | None, policies: list[str], batch: int) -> dict[str, Any]:
    """Measure in this process."""
    before = memory()
    started = time.perf_counter()
    images = data.load(source, imgsz=imgsz)
    loading = time.perf_counter() - started
    epochs = {}
    for policy in policies:
        started = time.perf_counter()
        count = sum(len(b.labels) for step in data.steps(images, batch, epoch=0, seed=0, policy=policy) for b in step)
        epochs[policy] = time.perf_counter() - started
    mib = sum(s.images.numel() for s in images.splits.values()) / 2**20
    after = memory()
    step = step_ms(name, images)
    spent = 1e3 * epochs[policies[-1]] / count
    return {
        "load": round(loading, 3),
        "epoch": {policy: round(seconds, 3) for policy, seconds in epochs.items()},
        "ms_per_image": {policy: round(1e3 * seconds / count, 4) for policy, seconds in epochs.items()},
        "images": sum(map(len, images.splits.values())),
        "squares_mib": round(mib, 1),
        "memory_mib": {"before": before, "after": after},
        "step_ms_per_image": round(step, 4),
        "share": round(spent / (spent + step), 4),
    }


def apart(words: list[str], cache: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--one", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LEANCONV_CACHE": str(cache)},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(name: str, source: Path, imgsz: int, batch: int, threads: int) -> dict[str, Any]:
    words = [name, str(source), str(imgsz), str(batch), str(threads)]
    with tempfile.TemporaryDirectory() as cache:
        turns = {turn: apart(words, Path(cache)) for turn in ("first", "second")}
    for turn, values in turns.items():
        told = f"share {values['share']:.1%}; {values['memory_mib']['after']}"
        print(f"{name}, {turn} load: {values['load']:.2f} s; epoch: {values['epoch']}; {told}")
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--cifar", type=Path, help="folder with train.parquet and test.parquet")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, source, imgsz, batch, threads = given.one
        torch.set_num_threads(int(threads))
        allocator.tune_allocator()
        print(json.dumps(one(name, source, int(imgsz), list(POLICIES[name]), int(batch))))
        return
    torch.set_num_threads(given.threads)
    record: dict[str, Any] = {"photos": given.photos, "imgsz": given.imgsz, "unit": "seconds"}
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder), given.photos)
        record["jpeg_mib"] = round(sum(p.stat().st_size for p in Path(folder).rglob("*.jpg")) / 2**20, 1)
        record["12 megapixels"] = measured("photos", Path(folder), given.imgsz, 32, given.threads)
    if given.cifar:
        record["cifar10"] = measured("cifar10", given.cifar, 32, 128, given.threads)
    bench.write("loading", record)


if __name__ == "__main__":
    main()
