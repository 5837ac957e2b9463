"""The full factorial over the four techniques on 5,000 CIFAR-10 images: how long it takes, what of that is training.

    python benchmarks/factorial.py DATA [--seeds 3] [--place FOLDER] [--resume]

500 training images and 200 test images of each class, recipe ``study``, every arm and side arm.
``FOLDER/runs/factorial`` holds the study and its report; it is resumed where it was broken off, but then its time says
nothing.

Overhead is what the workers could have trained meanwhile: jobs x wall-clock time, less the seconds of all pieces of
work and of the pass that takes the times, as a share of the first. Of the pieces' own seconds, the share spent in
epochs is told too; the rest is the gate of the data, the measuring after training, and what the study asks of the
networks.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import numpy as np

from leanconv import data
from leanconv.results import usable_cores
from leanconv.study.run import DATABASE
from leanconv.study.store import Store

NAME = "factorial"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--place", type=Path)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("factorial: left out, it needs DATA (python benchmarks/factorial.py --help)")
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.place or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        images = place / "cifar10-5000.npz"
        if not images.exists():
            subset(arguments.data, images)
        what = (
            ["--resume", NAME] if arguments.resume else [str(images), "--name", NAME, "--seeds", str(arguments.seeds)]
        )
        if arguments.epochs and not arguments.resume:
            what += ["--epochs", str(arguments.epochs)]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "leanconv", "study", *what], cwd=place, check=True)
        took = _took(place / "runs" / NAME / DATABASE, time.perf_counter() - start)
    took["resumed"] = arguments.resume
    print(", ".join(f"{key} {value}" for key, value in took.items()))
    print(bench.crowded() or "", bench.write("factorial", took))


def subset(source: str, file: Path) -> None:
    """500 training images and 200 test images of each class, as an archive."""
    whole = data.load(source)
    arrays: dict[str, Any] = {"classes": np.array(whole.classes)}
    for split, each in (("train", 500), ("test", 200)):
        part = whole.splits[split]
        labels = part.labels.numpy()
        chosen = np.concatenate([np.flatnonzero(labels == c)[:each] for c in range(len(whole.classes))])
        arrays[f"{split}_images"] = part.images[chosen].permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez(file, **arrays)


def _took(database: Path, wall: float) -> dict[str, Any]:
    with Store(database, create=False) as store:
        rows = store.rows()
    spent = {kind: math.fsum(row.seconds for row in rows if row.kind == kind) for kind in ("pilot", "run", "stable")}
    times = math.fsum(row.seconds for row in rows if row.kind == "times")
    runs = [row for row in rows if row.kind == "run"]
    epochs = math.fsum((row.values or {}).get("train_seconds", 0.0) for row in runs)
    jobs = len({row.worker for row in rows if row.kind == "run"}) or usable_cores()
    return {
        "runs": len(runs),
        "diverged": sum(row.status == "diverged" for row in runs),
        "jobs": jobs,
        "minutes": round(wall / 60, 1),
        **{f"{kind}_seconds": round(value) for kind, value in spent.items()},
        "times_seconds": round(times, 1),
        "overhead_percent": round(100 * (1 - (math.fsum(spent.values()) + jobs * times) / (jobs * wall)), 2),
        "epochs_share_of_runs": round(epochs / spent["run"], 3) if spent["run"] else None,
    }


if __name__ == "__main__":
    main()
