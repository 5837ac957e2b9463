"""Files that are replaced at once or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanconv import results
from leanconv.errors import Error
from leanconv.runtime import writing


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    results.write_bytes(path, b"old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(Error, match="No space left on device"):
        results.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
