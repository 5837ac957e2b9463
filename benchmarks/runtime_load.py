"""From nothing to the first answer of a `.lean` file: MobileNetV1's weights (17 MB), each round a process of its own.

python benchmarks/runtime_load.py [--rounds 11] [--threads 1]

The file is in the page cache, Python's byte code is compiled. What numpy takes to import is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import bench
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lean_plans import mobilenet
from leanconv.runtime.file import write

CODE = """
import json, sys, time
at = [time.perf_counter()]
def done(name): at.append(time.perf_counter()); found[name] = at[-1] - at[-2]
found = {}
import numpy as np; done("import numpy")
from leanconv.runtime.engine import load; done("import the runtime")
from leanconv.runtime.file import read
read(sys.argv[1]); done("read and check the file")
read(sys.argv[1]); done("read it again")
read(sys.argv[1], verify=True); done("read it with SHA-256")
at.append(time.perf_counter())
net = load(sys.argv[1], threads=int(sys.argv[3])); done("load")
x = np.ones((1, 3, 224, 224), np.float32); at.append(time.perf_counter())
net(x); done("first answer")
net(x); done("second answer")
from leanconv.runtime import images
import PIL.Image, PIL.ImageOps; done("import Pillow")
named = net.classify(sys.argv[2]); done("classify a JPEG of 640 x 480")
named = net.classify(sys.argv[2]); done("classify it again")
found["executor"] = net.executor
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        from PIL import Image

        file, photo = f"{folder}/m.lean", f"{folder}/photo.jpg"
        write(file, *mobilenet())
        pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(photo)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = f"{folder}/compiled"
        environment |= {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        words = [sys.executable, "-c", CODE, file, photo, str(arguments.threads)]
        for _ in range(arguments.rounds + 1):
            done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
            rounds.append(json.loads(done.stdout))
    executor = rounds[0].pop("executor")
    medians = {name: round(statistics.median(r[name] for r in rounds[1:]), 5) for name in rounds[0]}
    record = {"unit": "seconds, medians", "rounds": arguments.rounds, "executor": executor, "medians": medians}
    bench.write("runtime_load", {**record, "runtime_threads": arguments.threads})
    print(f"executor: {executor}")
    for name, value in medians.items():
        print(f"{1e3 * value:8.2f} ms  {name}")


if __name__ == "__main__":
    main()
