"""What the runtime's benchmarks say about contenders, and the processor that they let them see."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from leanconv import _native
from leanconv.benchmarking import Measured, Measurement

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def contending(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("contending")


def row(milliseconds: float, difference: float = 0.0, cores: float = 2.0) -> Measured:
    ratio = milliseconds / 10
    return Measured(milliseconds, milliseconds, milliseconds, 1.0, None, ratio, ratio, ratio, difference, "1", cores)


def test_the_best_is_the_fastest_that_answers_as_torch_does(contending: ModuleType) -> None:
    rows = {
        "leanconv": row(10),
        "leanconv-float": row(2),
        "wrong": row(4, difference=1e-2),
        "some-int8": row(5, difference=1e-2),
        "slow": row(8, cores=1.0),
    }
    told = contending._cell("net", Measurement(1, 2, 5, None, None, rows, (), 0.0))
    assert (told["best_other"], told["ratio_to_best"], told["waited"]) == ("some-int8", 2.0, ["slow"])
    del rows["some-int8"]
    assert contending._cell("net", Measurement(1, 2, 5, None, None, rows, (), 0.0))["best_other"] == "slow"
    del rows["slow"], rows["wrong"]
    assert contending._cell("net", Measurement(1, 2, 5, None, None, rows, (), 0.0))["ratio_to_best"] is None


def test_a_missing_tool_is_named(tmp_path: Path) -> None:
    words = [sys.executable, "-S", str(BENCHMARKS / "conversion.py")]
    for kind in ("ncnn", "executorch", "litert", "litert-int8", "onnxruntime-int8", "openvino-int8"):
        files = [str(tmp_path / "x.onnx"), str(tmp_path / "y")]
        (tmp_path / "x.onnx").touch()
        done = subprocess.run([*words, kind, *files], capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert set(json.loads(done.stdout)) == {"missing"}


def hidden(contending: ModuleType, folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    with contending.only_avx2(folder, True):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def refuses_cpuid() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and {"cpuid_fault", "avx2"} <= set(info.read_text().split())


@pytest.mark.skipif(not refuses_cpuid(), reason="needs a processor that can refuse CPUID")
@pytest.mark.skipif(not _native.available(), reason="needs the native library")
def test_a_processor_with_avx2_and_no_more(contending: ModuleType, tmp_path: Path) -> None:
    code = """
import json, os
del os.environ["LEANCONV_ISA"]
from leanconv import _native
library = _native.load()
print(json.dumps([library.isas, library.paths, library.isa]))
"""
    done = hidden(contending, tmp_path, code)
    assert done.returncode == 0, done.stderr
    isas, paths, isa = json.loads(done.stdout)
    assert "avx512" not in isas
    assert isa == "avx2"
    assert not {"avxvnni", "avx512", "vnni", "amx"} & set(paths)


@pytest.mark.skipif(not refuses_cpuid(), reason="needs a processor that can refuse CPUID")
def test_other_faults_are_faults_still(contending: ModuleType, tmp_path: Path) -> None:
    done = hidden(contending, tmp_path, "import ctypes; ctypes.string_at(0)")
    assert done.returncode == -11
    handled: Any = hidden(contending, tmp_path, "import faulthandler; faulthandler.enable(); import numpy; print(1)")
    assert (handled.returncode, handled.stdout) == (0, "1\n"), handled.stderr


@pytest.mark.skipif(refuses_cpuid(), reason="this processor can")
def test_a_processor_that_cannot_is_told(contending: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--avx2: needs a C compiler and a processor that can refuse CPUID"):
        hidden(contending, tmp_path, "")
