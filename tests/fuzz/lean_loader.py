"""Feeds changed ``.lean`` files to the loader: each must be refused with ``leanconv.Error``, or run, by numpy and by
native code with the same result.

    python tests/fuzz/lean_loader.py --cases 100000 --seed 1     random changes, no further package needed
    python tests/fuzz/lean_loader.py --atheris -runs=100000      the same changes led by coverage (pip install atheris)

Changes are made to bytes, and to single nodes of the header's and the plan's JSON, after which the header's sum is made
anew, so that what lies behind it is reached. A file that raises anything else is kept as ``lean-crash-<number>`` in the
working directory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from math import prod
from pathlib import Path
from types import FunctionType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lean_files import damaged, opened, pack, sealed

ODD = (
    *(0, 1, 2, 3, 5, 8, 15, 16, 17, 64, 144, -1, 2**16, 2**16 + 1, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64),
    *(10**30, 0.0, 0.5, -0.0, 1e300, 1e-300, True, False, None, "", "\ud800", "none", "relu", "F32", "I8", "L", "RGB"),
    *([], {}, [0], [1, 1], [0, 0, 0, 0], {"size": [2, 2]}, {"weight": "t0", "bias": "t1"}, "x" * 300, "t0", "t1"),
    *([2, 2, 3, None, 0.5, 7], "I32", "scale", {"weight": "weight0", "scale": "scale0", "bias": "bias0"}),
    *("conv", "depthwise", "linear", "affine", "max_pool", "avg_pool", "mean", "add", "multiply", "concat", "softmax"),
    *("block", "activation", "quantize", "dequantize", "window", "groups", "act", "parts", "count_padding"),
)  # fmt: skip
BOUNDED = ("none", "relu", "relu6")
CHEAP = 10**7


def nodes(data: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as (container, key)."""
    found: list[tuple[Any, Any]] = []
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            found.append((data, key))
            found += nodes(data[key])
    return found


def change(data: Any, draw: random.Random) -> None:
    """Change one node."""
    places = nodes(data)
    if not places:
        return
    container, key = draw.choice(places)
    other, at = draw.choice(places)
    kind = draw.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(draw.randrange(len(container) + 1), json.loads(json.dumps(container[key])))
    elif kind == 2 and isinstance(container, dict):
        container[draw.choice([word for word in ODD if isinstance(word, str)])] = container[key]
    elif kind == 3:
        container[key] = json.loads(json.dumps(other[at]))
    elif kind == 4 and type(container[key]) is int:
        container[key] += draw.choice((-16, -2, -1, 1, 2, 16))
    elif kind == 5 and type(container[key]) is int:
        container[key] *= draw.choice((-1, 2, 3, 2**20))
    elif kind == 6 and isinstance(container[key], list):
        draw.shuffle(container[key])
    else:
        container[key] = json.loads(json.dumps(draw.choice(ODD)))


def mutant(content: bytes, draw: random.Random) -> bytes:
    """A file that has been changed in one to four places."""
    if draw.random() < 0.2:
        kinds = ("bit", "change", "insert", "delete", "cut")
        edits = [(draw.choice(kinds), draw.random(), draw.random() < 0.8, draw.randbytes(draw.randint(1, 4)))]
        return damaged(content, edits)
    try:
        head, body = opened(content)
        plan = json.loads(head["__metadata__"]["plan"])
    except Exception:
        return damaged(content, [("bit", draw.random(), True, draw.randbytes(1))])
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        change(head if draw.random() < 0.15 else plan, draw)
    if isinstance(head.get("__metadata__"), dict) and "plan" in head["__metadata__"]:
        head["__metadata__"]["plan"] = json.dumps(plan)
    return pack(sealed(head), body)


def seeds() -> list[bytes]:
    """Files with every operation in them."""
    from byte_plans import in_bytes
    from lean_plans import Builder, mobilenet
    from leanconv.runtime.file import write
    from leanconv.runtime.plan import Picture, Window

    builder = Builder((6, 6, 3))
    x = builder.conv(0, 4, window=Window((3, 3), padding=(1, 1, 1, 1)), act="relu")
    x = builder.block(x, 4, Window((3, 3), padding=(1, 1, 1, 1)), 6, residual=x)
    x = builder.add(
        "concat", x, builder.conv(x, 4, groups=2), builder.depthwise(x, Window((2, 2), padding=(0, 0, 1, 1)))
    )
    x = builder.add("multiply", x, builder.linear(builder.add("mean", x), 12, act="sigmoid"))
    x = builder.add("max_pool", builder.affine(x), window=Window((2, 2), (2, 2)))
    x = builder.add("avg_pool", x, window=Window((2, 2), (1, 1), (1, 1, 0, 0)), count_padding=False)
    x = builder.add("softmax", builder.linear(builder.add("activation", x, act="silu"), 2))
    plan = builder.plan(classes=("a", "猫"), picture=Picture(6, "RGB", (0.5,) * 3, (0.2,) * 3), about={"from": "here"})
    made = []
    small = mobilenet(0.0625, 32, 3)
    for one in ((plan, builder.tensors), small, in_bytes(plan, builder.tensors), in_bytes(*small, floats=0)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder, "m.lean"), *one)
            made.append(Path(folder, "m.lean").read_bytes())
    return made


def attempt(content: bytes, path: Path) -> str:
    """``refused``, ``run`` or ``too dear`` (to be run); anything that is raised is a find."""
    import numpy as np

    from leanconv import _native
    from leanconv.errors import Error
    from leanconv.runtime.file import read
    from leanconv.runtime.reference import Reference

    path.write_bytes(content)
    try:
        plan, tensors = read(path)
    except Error as error:
        said = str(error)
        said.encode()
        if "\n" in said or len(said) > 600 or not said.startswith((path.name, str(path))):
            raise AssertionError(f"not a sentence about the file: {said}") from error
        return "refused"
    if cost(plan) > CHEAP:
        return "too dear"
    try:
        reference = Reference(plan, tensors)
    except Error:  # sums of bytes that could overflow
        return refused_too(plan, tensors)
    y = reference.run(np.ones((1, *plan.values[plan.input].shape), np.float32))
    if _native.load() is not None:
        compared(plan, tensors, y)
    if y.shape != (1, *plan.values[plan.output].shape) or y.dtype != np.float32:
        raise AssertionError(f"another shape than the plan says: {y.shape}, {y.dtype}")
    return "run"


def refused_too(plan: Any, tensors: Any) -> str:
    """Native code must refuse what numpy refuses."""
    from leanconv import _native
    from leanconv.errors import Error
    from leanconv.runtime.compiled import Compiled

    if _native.load() is not None:
        try:
            Compiled(plan, tensors, 1)
        except Error:
            return "refused"
        raise AssertionError("native code takes sums that could overflow")
    return "refused"


def one_step_off(plan: Any) -> bool:
    """Whether executors may differ by a step of a byte: where floats that each rounds its own way become bytes."""
    parts = [part for step in plan.steps for part in step.parts or (step,)]
    if not any(value.quant for value in plan.values):
        return False
    curved = any(part.act not in BOUNDED for part in parts)
    return curved or any(part.op == "quantize" and part.inputs != (plan.input,) for part in parts)


def compared(plan: Any, tensors: Any, y: Any) -> None:
    """Native code must give what numpy gave."""
    import numpy as np

    from leanconv.runtime.compiled import Compiled

    other = Compiled(plan, tensors, 1).run(np.ones((1, *plan.values[plan.input].shape), np.float32))
    if one_step_off(plan):
        return
    if np.isfinite(y).all() and np.abs(other - y).max() > 1e-3 * np.abs(y).max() + 1e-6:
        raise AssertionError(f"native code and numpy differ by {np.abs(other - y).max()} of {np.abs(y).max()}")


def cost(plan: Any) -> int:
    """About how many numbers running it touches."""
    found = 0
    for part in (part for step in plan.steps for part in step.parts or (step,)):
        height, width, channels = plan.values[part.inputs[0]].shape
        top, left, below, right = part.window.padding
        found += (height + top + below) * (width + left + right) * channels
        inner = channels if part.op in ("conv", "linear") else 1
        found += prod(plan.values[part.output].shape) * prod(part.window.size) * inner
    return found


def plain(cases: int, seed: int) -> Counter[str]:
    """So many random cases; what became of them."""
    draw, known = random.Random(seed), seeds()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for case in range(cases):
            content = mutant(draw.choice(known), draw)
            try:
                found[attempt(content, Path(folder, "m.lean"))] += 1
            except BaseException:
                Path(f"lean-crash-{case}").write_bytes(content)
                raise
    return found


def guided(words: list[str]) -> None:
    """atheris: goes on until -runs or -max_total_time of its own say stop."""
    import atheris

    # Not atheris.instrument_imports: it leaves modules of an editable installation as they are, without an error.
    for name in ("checking", "encoding", "file", "integers", "kinds", "operations", "reference", "shapes"):
        module = import_module(f"leanconv.runtime.{name}")
        for value in vars(module).values():
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                atheris.instrument_func(value)
    folder = Path(tempfile.mkdtemp())
    (folder / "corpus").mkdir()
    for i, seed in enumerate(seeds()):
        (folder / "corpus" / str(i)).write_bytes(seed)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        return mutant(content, random.Random(seed))[:most]

    words = [sys.argv[0], *words, "-max_len=65536", str(folder / "corpus")]
    atheris.Setup(words, lambda content: (attempt(content, folder / "m.lean"), None)[1], custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="led by coverage; further words go to atheris")
    arguments, rest = parser.parse_known_args()
    if arguments.atheris:
        guided(rest)
        return
    start = time.perf_counter()
    found = plain(arguments.cases, arguments.seed)
    told = ", ".join(f"{count:,} {what}" for what, count in sorted(found.items()))
    print(f"{arguments.cases:,} files in {time.perf_counter() - start:.0f} s: {told}")


if __name__ == "__main__":
    main()
