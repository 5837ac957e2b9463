"""``leanconv data``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leanconv.cli import data as command
from leanconv.errors import Error
from pictures import flat


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args(words))


def test_a_clean_set_is_a_page_and_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("demo") == 0
    page = capsys.readouterr().out
    assert "Ankle boot     450   50    100" in page
    assert "two-sample test  energy distance" in page
    assert page.rstrip().endswith("clean: nothing found")


def test_findings_are_exit_1_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = flat(tmp_path, each=20)
    (root / "red" / "cut.png").write_bytes((root / "red" / "0.png").read_bytes()[:90])
    assert call(str(root), "--imgsz", "16", "--no-cache") == 1
    page = capsys.readouterr().out
    assert "D101 warning     1 of 61 images cannot be read and are left out" in page
    assert "- red/cut.png: truncated" in page
    assert "read as 16 x 16 colour" in page
    assert "look before you train: 1 warning" in page


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(str(flat(tmp_path, each=20)), "--json", "--in-chans", "1") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clean"] is True
    assert told["in_chans"] == 1
    assert told["classes"] == ["blue", "green", "red"]


def test_bad_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Error, match="DATA must be a folder of images, a file of them or `demo`, got nothing"):
        call()
    with pytest.raises(Error, match="got nothing at"):
        call(str(tmp_path / "no"))
    root = flat(tmp_path, each=5)
    (root / "red" / "empty.png").write_bytes(b"")
    with pytest.raises(Error, match=r"every image must be readable, got red/empty.png \(zero bytes\)"):
        call(str(root), "--strict-data")


def test_the_cache_is_used_cleared_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(12):
            grain = random.integers(0, 256, (400, 400, 3), dtype=np.uint8)
            Image.fromarray(grain).save(tmp_path / "set" / name / f"{i}.png")
    assert call(str(tmp_path / "set"), "--no-cache") in (0, 1)
    assert not (tmp_path / "cache").exists()
    assert call(str(tmp_path / "set")) in (0, 1)
    assert list((tmp_path / "cache").rglob("*.u8"))
    capsys.readouterr()
    assert call("--clear-cache") == 0
    assert "cleared: " in capsys.readouterr().err
    assert not list((tmp_path / "cache").rglob("*.u8"))
