"""What int8 costs in accuracy on real images: three rules for the ranges, with and without equalisation.

    python benchmarks/int8_accuracy.py DATA [--images N] [--calibrate N] [--only NAME]

DATA holds CIFAR-10 in any form that ``leanconv train`` reads, with train and test apart. Networks are trained on it
(runs/int8-NAME, taken up again if they are there), on one thread: ``small``, separable, with ReLU, and a MobileNetV2 of
half the width with ReLU6, and with hard-swish. Each is measured as it is and, but for hard-swish, ``unequal``: the same
function with the channels between layers multiplied by random powers of two from 2^-4 to 2^4, as networks come whose
training did not keep them apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import leanconv
from int8_plans import unequal
from leanconv import recipe, training
from leanconv.deploy.quantisation import Int8, Samples, quantise
from leanconv.deploy.quantisation.samples import chosen
from leanconv.runtime import file
from leanconv.training import Run

NETWORKS: dict[str, dict[str, Any]] = {
    "small": {"model": "small", "epochs": 7},
    "v2": {"model": "int8_networks:mobilenet_v2", "epochs": 8},
    "hardswish": {"model": "int8_networks:mobilenet_v2", "epochs": 5, "model.options.act": "hardswish"},
}
SETTINGS = {"techniques.batchnorm": False, "precision": "32-true", "data.augment": "flip_crop", "threads": 1}
WAYS = [(rule, even, True) for rule in ("minmax", "percentile", "mse") for even in (False, True)]
WAYS.append(("mse", True, False))
STEPS = ("equalised", "corrected")
POWERS = 4


def trained(data: str, name: str) -> Run:
    """The run of a network; trained where there is none."""
    folder = Path("runs") / f"int8-{name}"
    if (folder / "model.safetensors").exists():
        return training.open_run(folder)
    whole = recipe.override(recipe.load("cifar10"), **SETTINGS, **NETWORKS[name])
    return training.train(data, recipe=whole, name=folder.name)


def measured(plan: Any, tensors: Any, samples: Samples, words: str, base: dict[str, Any]) -> None:
    """One record for each way."""
    for rule, even, correct in WAYS:
        how = Int8(rule, equalise=even, correct=correct, max_drop=100)
        made = quantise(plan, tensors, samples, how)
        before, after = made.before, made.after
        assert before is not None
        assert after.score is not None
        done = " ".join(word if on else "-" * len(word) for word, on in zip(STEPS, (even, correct), strict=True))
        print(
            f"{words:<14} {rule:<10} {done}  float {100 * before.accuracy:.2f}  int8 {100 * after.score.accuracy:.2f}  "
            f"{0 - after.lost:+.2f}  differ {100 * (1 - (after.agreement or 0)):.2f} %  {after.ratio:.1f} dB",
            flush=True,
        )
        bench.write("int8_accuracy", base | {
            "rule": rule, "equalised": made.links, "corrected": correct, "float": before.correct,
            "int8": after.score.correct, "total": before.total, "agreement": after.agreement,
            "db": round(after.ratio, 2), "seconds": round(made.seconds, 1),
        })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--calibrate", type=int, default=256)
    parser.add_argument("--only", choices=sorted(NETWORKS))
    arguments = parser.parse_args()
    if arguments.data is None:
        print("int8_accuracy: left out, it needs DATA (python benchmarks/int8_accuracy.py --help)")
        return
    for name in [arguments.only] if arguments.only else NETWORKS:
        run = trained(arguments.data, name)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "network.lean"
            leanconv.export(run, path)
            plan, tensors = file.read(path)
            whole = chosen(None, run, plan, arguments.calibrate)
            samples = Samples(whole.calibration, whole.measured.first(arguments.images), whole.source)
            base = {"network": name, "recipe": run.record.digest, "calibrated": len(samples.calibration), "powers": 0}
            measured(plan, tensors, samples, name, base)
            if name == "hardswish":  # it lets no factors through
                continue
            measured(*unequal(plan, tensors, POWERS), samples, f"{name}, unequal", base | {"powers": POWERS})


if __name__ == "__main__":
    main()
