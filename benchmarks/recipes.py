"""What the recipes small-images and photos reach on 5,000 CIFAR-10 images, and how long they take.

    python benchmarks/recipes.py DATA [--recipes small-images photos] [--side 96] [--epochs N]

DATA holds CIFAR-10 as ``leanconv train`` reads it. 500 training images and 200 test images of each class; ``photos``
gets them enlarged to --side pixels, since no set of photos of that size may be shipped or fetched: its accuracy is that
of blurred images, its time that of photos.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import factorial

from leanconv import recipe, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--recipes", nargs="+", default=["small-images", "photos"])
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    arguments = parser.parse_args()
    if arguments.data is None:
        print("recipes: left out, it needs DATA (python benchmarks/recipes.py --help)")
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "cifar10-5000.npz"
        factorial.subset(arguments.data, images)
        for name in arguments.recipes:
            side = arguments.side if name == "photos" else None
            chosen = recipe.override(recipe.load(name), epochs=arguments.epochs, imgsz=side)
            start = time.perf_counter()
            record = training.train(images, recipe=chosen, name=f"recipe-{name}", overwrite=True).record
            assert record.test is not None
            low, high = record.test.interval()
            found[name] = {
                "imgsz": record.data["imgsz"],
                "epochs": record.epochs,
                "minutes": round((time.perf_counter() - start) / 60, 1),
                "params": record.params,
                "macs": record.macs,
                "test": {"correct": record.test.correct, "total": record.test.total, "low": low, "high": high},
            }
            accuracy = f"{100 * record.test.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
            print(f"{name:14} {accuracy}, {found[name]['minutes']} minutes, {record.params:,} parameters", flush=True)
    print(bench.crowded() or "", bench.write("recipes", {"recipes": found}))


if __name__ == "__main__":
    main()
