"""What running a file needs on a disk, beside numpy."""

from __future__ import annotations

from pathlib import Path

import pytest

from lean_plans import Builder
from leanconv import _native
from leanconv.runtime.file import write
from runtime_size import LIMIT, needed


@pytest.mark.skipif(not _native.available(), reason="needs the native library")
def test_the_runtime_is_small(tmp_path: Path) -> None:
    builder = Builder((8, 8, 3))
    builder.linear(builder.add("mean", builder.conv(0, 4)), 5)
    write(tmp_path / "x.lean", builder.plan(), builder.tensors)
    files = needed(tmp_path / "x.lean", (3, 8, 8))
    names = {path.name for path in files}
    assert {"engine.py", "reference.py", "images.py", "structures.py", "errors.py"} <= names
    assert any("libleanconv" in name for name in names)
    assert not any("train" in str(path.parent.name) for path in files)
    assert sum(path.stat().st_size for path in files) < LIMIT
