"""The loader against files that were changed at random (`make test-slow`)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("lean_loader.py")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_changed_files_are_refused_or_run(tmp_path: Path, seed: int) -> None:
    words = [sys.executable, str(SCRIPT), "--cases", "5000", "--seed", str(seed)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("5,000 files in")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
def test_changes_led_by_coverage(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--atheris", "-runs=10000"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert " cov: " in done.stderr  # else nothing was instrumented, and chance alone led
