"""What the runtime needs of the package, for its test and `benchmarks/size.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

LIMIT = 5_000_000  # bytes, beside numpy

_CODE = """
import json, sys
import numpy as np
import leanconv.runtime
net = leanconv.runtime.load(sys.argv[1], threads=1)
net(np.zeros((1, *map(int, sys.argv[2:])), np.float32))
from leanconv import _native
named = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
found = {file for name, file in named.items() if name.partition(".")[0] == "leanconv" and file}
print(json.dumps([leanconv.__file__, *sorted(found | {_native.load().path})]))
"""


def needed(file: Path, shape: tuple[int, int, int], where: Path | None = None) -> list[Path]:
    """The package's files that a process opened to load a network and run it, and all else of these rooms.

    Args:
        file: a ``.lean`` file.
        shape: (C, H, W) of its input.
        where: the folder that has the package; None: as it is installed here.
    """
    environment = {**os.environ, "LEANCONV_NATIVE": "1"} | ({"PYTHONPATH": str(where)} if where else {})
    words = [sys.executable, "-c", _CODE, str(file), *map(str, shape)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment, cwd=file.parent)
    package, *opened = (Path(name).resolve() for name in json.loads(done.stdout))
    rooms = [path for room in ("runtime", "_native") for path in (package.parent / room).glob("*.py")]
    return sorted({*opened, *rooms})
