"""A training step of MobileNetV1 as people run it, against ours: frameworks and the allocator as they come.

    python benchmarks/untuned.py [--rounds 12] [--steps 2] [--threads 2] [--side 128 32] [--keras-python PATH]

benchmarks/step.py holds glibc's allocator tuned for all; here each contender is a process of its own and has it as it
comes, except ``ours``, which is leanconv.accelerate under leanconv.tune_allocator (what ``leanconv train`` does).
``most people`` is torch's eager mode, channels first. Keras runs on jax, channels last, compiled as keras does it by
default (``train_on_batch``), one step a round since it takes seconds; it is left out where the Python named has no
keras or jax. Network, loss and optimizer are those of step.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from leanconv.benchmarking import turns

MOST_PEOPLE = "torch channels first"
TORCH = ("ours", "ours untuned", "torch channels_last tuned", "torch channels_last", MOST_PEOPLE)
KERAS = "keras on jax"
SOURCES = str(Path(turns.__file__).parents[2])  # of leanconv, which the other Python does not have
ON_JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": SOURCES}


def torch_contender(setup: dict[str, Any]) -> None:
    import step
    import torch

    from leanconv import allocator

    name = setup["name"]
    if (name == "ours" or name.endswith(" tuned")) and not (record := allocator.tune_allocator()).tuned:
        sys.exit(f"not tuned: {record.reason}")
    torch.set_num_threads(setup["threads"])
    kind = name.removesuffix(" tuned").removesuffix(" untuned")
    turns.serve(step.stepper(kind, *setup["case"]), {"torch": str(torch.__version__)})


def keras_contender(setup: dict[str, Any]) -> None:
    """The network of step.mobilenet in keras; its padding of strided convolutions lies elsewhere, its size does not."""
    if setup["threads"] < len(os.sched_getaffinity(0)):  # jax takes all cores it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setup["threads"]])
    import jax
    import keras
    import numpy as np
    from keras import layers

    side, batch, stem = setup["case"]
    keras.utils.set_random_seed(0)
    z = inputs = keras.Input((side, side, 3))

    def normalised(layer: Any, z: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(layer(z)))

    z = normalised(layers.Conv2D(32, 3, stem, padding="same", use_bias=False), z)
    for out, stride in setup["blocks"]:
        z = normalised(layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False), z)
        z = normalised(layers.Conv2D(out, 1, use_bias=False), z)
    model = keras.Model(inputs, layers.Dense(1000)(layers.GlobalAveragePooling2D()(z)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, side, side, 3), dtype=np.float32)
    labels = generator.integers(0, 1000, batch)
    about = {"keras": keras.__version__, "jax": jax.__version__, "backend": keras.backend.backend()}
    turns.serve(lambda: model.train_on_batch(x, labels), about, warmup=2)


def has_keras(python: str) -> bool:
    done = subprocess.run([python, "-c", "import keras, jax"], capture_output=True, env=os.environ | ON_JAX)
    return done.returncode == 0


def start(name: str, case: tuple[int, int, int], threads: int, keras_python: str) -> turns.Contender:
    import step

    setup = {"name": name, "case": case, "threads": threads, "blocks": step.BLOCKS}
    python = keras_python if name == KERAS else sys.executable
    extra = ON_JAX if name == KERAS else {}
    return turns.Contender(name, [python, __file__, "--contender", json.dumps(setup)], extra)


def compared(case: tuple[int, int, int], given: argparse.Namespace, keras: bool) -> dict[str, Any]:
    names = (*TORCH, KERAS) if keras else TORCH
    contenders = {name: start(name, case, given.threads, given.keras_python) for name in names}
    about = {key: value for contender in contenders.values() for key, value in contender.about.items()}
    answers = turns.in_turns(contenders, given.rounds, {n: 1 if n == KERAS else given.steps for n in names})
    rows = {}
    for name, answer in answers.items():
        rows[name] = turns.summary(answer)
        rows[name]["of_most_people"] = round(statistics.median(turns.ratios(answer, answers[MOST_PEOPLE])), 3)
        rows[name]["ours_of_it"] = round(statistics.median(turns.ratios(answers["ours"], answer)), 3)
    return {"side": case[0], "batch": case[1], "versions": about, "contenders": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps of each contender in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", type=int, nargs="+", choices=(128, 32), default=(128, 32))
    parser.add_argument("--keras-python", default=sys.executable, help="a Python that has keras and jax")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        setup = json.loads(given.contender)
        (keras_contender if setup["name"] == KERAS else torch_contender)(setup)
        return
    import bench
    import step

    keras = has_keras(given.keras_python)
    if not keras:
        print(f"keras on jax is left out: {given.keras_python} cannot import both; name one by --keras-python")
    rows = []
    for case in (c for c in step.CASES if c[0] in given.side):
        row = compared(case, given, keras)
        rows.append(row)
        print(f"{case[0]} x {case[0]}, batch {case[1]}, {row['versions']}")
        for name, found in row["contenders"].items():
            print(f"  {name:26} {json.dumps(found)}")
    record = {"training_threads": given.threads, "rounds": given.rounds, "steps": given.steps, "rows": rows}
    found = [(name, part["others"]) for row in rows for name, part in row["contenders"].items()]
    crowded = bench.crowded(max(others for name, others in found if name != KERAS))  # jax leaves a core to others
    print(crowded or "", bench.write("untuned", record | {"crowded": crowded}))


if __name__ == "__main__":
    main()
