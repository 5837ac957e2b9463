"""What is installed to run a `.lean` file, beside numpy: the wheel, built anew, and the parts of it that are used.

    python benchmarks/size.py [--python PYTHON]

`runtime` is what a process opens of the package to load a file and run it, and the rest of these rooms; at most
`limit`. `package` is the whole wheel, with training, surgery and the embedded images. Of PYTHON the sizes of
onnxruntime, openvino and the like are told, each without what it depends on. Bytes as files have them, no byte code.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lean_plans import mobilenet
from leanconv.runtime.file import write
from runtime_size import LIMIT, needed

PROGRAMS = ("onnxruntime", "openvino", "ncnn", "ai-edge-litert", "executorch", "torch")
ROOT = Path(__file__).resolve().parents[1]


def installed(package: str, python: str) -> dict[str, Any] | None:
    """Version and bytes of a package in another Python; None: it is not there."""
    code = (
        "import json, sys, importlib.metadata as m; d = m.distribution(sys.argv[1]); "
        "print(json.dumps([d.version, sum(f.locate().stat().st_size for f in d.files "
        "if f.suffix != '.pyc' and f.locate().is_file())]))"
    )
    done = subprocess.run([python, "-c", code, package], capture_output=True, text=True)
    if done.returncode:
        return None
    version, size = json.loads(done.stdout)
    return {"version": version, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="has the other programs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, str(ROOT)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        subprocess.run([*pip, "install", "--no-deps", "--target", f"{folder}/there", str(wheel)], check=True)
        file = Path(folder) / "net.lean"
        write(file, *mobilenet())
        files = needed(file, (3, 224, 224), Path(folder) / "there")
        sizes = {str(path): path.stat().st_size for path in files}
        package = [p for p in Path(folder, "there").rglob("*") if p.is_file() and p.suffix != ".pyc"]
        record = {
            "unit": "bytes",
            "wheel": wheel.stat().st_size,
            "limit": LIMIT,
            "runtime": sum(sizes.values()),
            "library": sum(size for name, size in sizes.items() if name.endswith((".so", ".dylib"))),
            "modules": len(sizes),
            "package": sum(p.stat().st_size for p in package),
            "numpy": installed("numpy", sys.executable),
            "others": {name: installed(name, given.python) for name in PROGRAMS},
        }
    for name, value in record.items():
        print(f"{name:10} {json.dumps(value)}")
    print(bench.write("size", record))


if __name__ == "__main__":
    main()
