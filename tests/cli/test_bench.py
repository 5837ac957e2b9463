"""``leanconv bench``: what it prints and refuses. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from byte_plans import in_bytes
from lean_plans import Builder, mobilenet
from leanconv import _native
from leanconv.benchmarking import command, measure
from leanconv.cli import main
from leanconv.errors import Error
from leanconv.runtime.file import write
from leanconv.runtime.plan import Window
from leanconv.runtime.work import macs

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny.lean"
    builder = Builder((8, 8, 3))
    x = builder.block(builder.conv(0, 4), 6, Window((3, 3), (1, 1), (1, 1, 1, 1)))
    builder.linear(builder.add("mean", x), 5)
    write(path, builder.plan(), builder.tensors)
    return path


def test_the_figures_as_json(file: Path, capsys: Capture) -> None:
    assert main(["bench", str(file), "--rounds", "2", "--batch", "1", "3", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"file", "shape", "macs", "executor", "isa", "path", "missing", "measurements"}
    assert told["macs"] == 8 * 8 * (3 * 4 + 9 * 4 + 4 * 6) + 6 * 5
    assert [one["batch"] for one in told["measurements"]] == [1, 3]
    for one in told["measurements"]:
        ours = one["contenders"]["leanconv"]
        assert ours["low"] <= ours["median"] <= ours["high"]
        assert (ours["ratio"], ours["difference"]) == (1, 0)
        assert [layer["op"] for layer in one["layers"]] == ["conv", "block", "mean", "linear"]
        assert sum(layer["macs"] for layer in one["layers"]) == told["macs"]
        if _native.available():
            assert one["peak"] > 1e8
            assert sum(layer["share"] for layer in one["layers"]) == pytest.approx(1)


def test_steps_in_int8_are_measured_by_their_own_peak(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path / "bytes.lean", *in_bytes(*mobilenet(0.25, 32, 10), floats=0))
    assert main(["bench", str(tmp_path / "bytes.lean"), "--rounds", "2", "--threads", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (one,) = told["measurements"]
    if not _native.available():
        assert (one["int8_peak"], told["path"]) == (None, None)
        return
    assert told["path"] == _native.int8()
    assert one["int8_peak"] > 1e8
    blocks = [layer for layer in one["layers"] if layer["op"] == "block"]
    for layer in blocks:
        assert layer["of_peak"] == pytest.approx(layer["macs"] / layer["microseconds"] * 1e6 / one["int8_peak"])


def test_the_table_without_native_code(file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANCONV_NATIVE", "0")
    assert main(["bench", str(file), "--rounds", "1", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "no peak" in out
    assert "numpy" in out
    assert "% of time" in out


def test_a_contender_without_its_package_is_named(file: Path, tmp_path: Path, capsys: Capture) -> None:
    onnx = tmp_path / "x.onnx"
    onnx.write_bytes(b"")
    words = [str(file), "--against", "openvino", "--onnx", str(onnx), "--rounds", "1", "--threads", "1"]
    code = (
        "import sys; from leanconv.benchmarking import contenders; sys.modules['openvino'] = None; "
        "contenders.main(sys.argv[1:])"
    )
    setup = command("openvino", {"file": str(onnx), "batch": 1, "shape": (3, 8, 8), "threads": 1})[-1]
    done = subprocess.run([sys.executable, "-c", code, setup], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"missing": "openvino"}
    try:
        import openvino  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        assert main(["bench", *words]) == 0
        assert "openvino is left out: openvino is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--threads", "65"], "--threads must be 1 to 64, got 65"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--against", "caffe"], "--against must be among onnxruntime, openvino, torch, got 'caffe'"),
        (["--against", "torch"], "torch needs the run that tiny.lean was made of, --run RUN, got none"),
        (["--against", "openvino"], "leanconv export RUN --format onnx --output"),
    ],
)
def test_bad_words(file: Path, words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(["bench", str(file), *words]) == 2
    assert sentence in capsys.readouterr().err


def test_only_lean_files(capsys: Capture) -> None:
    assert main(["bench", "a.onnx"]) == 2
    assert "FILE must be a .lean file" in capsys.readouterr().err


def test_a_contender_that_fails_is_an_error(file: Path) -> None:
    with pytest.raises(Error, match="broken: its process must answer, got its end with code 3"):
        measure(file, rounds=1, commands=lambda _: {"broken": [sys.executable, "-c", "raise SystemExit(3)"]})


def test_answers_are_compared_with_a_reference(file: Path) -> None:
    code = """
import sys
from leanconv.benchmarking import turns
turns.serve(lambda: sum(range(10**5)), {"version": "7", "answers": [1.0, 2.0, 4.0, 3.0, 0.0]})
"""
    asked = []

    def reference(setup: Mapping[str, Any]) -> list[float]:
        asked.append(dict(setup))
        return [1.0, 2.0, 3.0, 4.0, 0.0]

    report = measure(file, rounds=2, commands=lambda _: {"busy": [sys.executable, "-c", code]}, reference=reference)
    assert asked == [{"batch": 1, "shape": (3, 8, 8), "threads": 1}]
    rows = report.measurements[0].contenders
    assert (rows["busy"].difference, rows["busy"].version) == (0.25, "7")
    assert rows["leanconv"].difference > 0
    assert 0 < rows["busy"].cores < 1.5


def test_no_torch_is_imported(file: Path) -> None:
    code = "import sys; from leanconv.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    words = ["bench", str(file), "--rounds", "1", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_arithmetic_is_that_of_the_paper() -> None:
    plan, _ = mobilenet()
    assert macs(plan) == 568_740_352
