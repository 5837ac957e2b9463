"""``leanconv export``: from a run to a file that is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from leanconv import recipe, runtime, training
from leanconv.cli import main
from leanconv.graph import evaluating
from pictures import quick, trained

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = recipe.override(quick(), **{"techniques.separable": True})
    return trained(tmp_path_factory.mktemp("exporting"), whole)


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_a_run_as_a_file_that_runs_without_torch(capsys: Capture) -> None:
    assert main(["export", "runs/a", "--output", "a.lean"]) == 0
    out, err = capsys.readouterr()
    for word in ("file", "size", "MACs", "steps", "memory", "difference", "the rule holds"):
        assert word in out
    assert err == ""
    run = training.open_run("runs/a")
    x = torch.randn(3, *run.header.shape, generator=torch.Generator().manual_seed(0))
    with runtime.load("a.lean", verify=True) as engine, evaluating(run.model):
        assert engine.classes == run.header.classes == ("blue", "green", "red")
        picture = engine.plan.picture
        assert picture is not None
        assert (picture.side, picture.mode) == (run.header.shape[1], "RGB")
        assert picture.mean == run.header.mean
        assert np.allclose(engine(x.numpy()), run.model(x).numpy(), atol=1e-5)


def test_a_file_is_replaced_only_on_request(capsys: Capture) -> None:
    Path("b.lean").write_text("mine")
    assert main(["export", "runs/a", "--output", "b.lean"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("b.lean").read_text() == "mine"
    assert main(["export", "runs/a", "--output", "b.lean", "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == "b.lean"
    assert told["bytes"] == Path("b.lean").stat().st_size
    assert told["holds"]
    assert told["difference"]["inputs"] > 5  # noise, and images of the run


def test_a_run_as_onnx(capsys: Capture) -> None:
    import onnx

    assert main(["export", "runs/a", "--output", "a.onnx", "--format", "onnx"]) == 0
    out = capsys.readouterr().out
    assert "compared with    onnxruntime" in out
    assert "memory" not in out
    told = {entry.key: entry.value for entry in onnx.load("a.onnx").metadata_props}
    assert json.loads(told["classes"]) == ["blue", "green", "red"]
    assert tuple(json.loads(told["mean"])) == training.open_run("runs/a").header.mean


def test_a_rewritten_run_whose_images_are_gone(place: Path, capsys: Capture) -> None:
    assert main(["fold", "runs/a", "--output", "folded", "--no-latency"]) == 0
    (place / "pics").rename(place / "elsewhere")
    try:
        assert main(["export", "runs/folded", "--output", "folded.lean"]) == 0
    finally:
        (place / "elsewhere").rename(place / "pics")
    assert "note             compared on noise alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs/none"], "must be the folder of a run"),
        (["runs/a", "--format", "tflite"], "--format must be lean or onnx, got 'tflite'"),
    ],
)
def test_bad_words(words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(["export", *words, "--output", "c.lean"]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("c.lean").exists()


# --- int8 ------------------------------------------------------------------------------------------------------------


def test_a_run_in_bytes(capsys: Capture) -> None:
    words = ["export", "runs/a", "--output", "a8.lean", "--int8", "--max-drop", "100"]
    assert main([*words, "--layers"]) == 0
    out, err = capsys.readouterr()
    for word in (
        "calibration",
        "accuracy         float",
        "measured on",
        "kept in float",
        "checked",
        "times smaller",
        "dB",
    ):
        assert word in out
    assert err == ""
    assert main([*words, "--overwrite", "--json", "--rule", "minmax", "--calibrate", "8", "--no-equalise"]) == 0
    told = json.loads(capsys.readouterr().out)["quantised"]
    assert told["options"] | {"rule": "minmax", "calibrate": 8, "equalise": False, "max_drop": 100.0} == told["options"]
    assert told["calibrated"] == 8
    assert told["before"]["total"] == told["after"]["score"]["total"] == told["measured"]
    assert main(["predict", "a8.lean", "pics"]) == 0


def test_other_images_in_bytes(capsys: Capture) -> None:
    words = ["export", "runs/a", "--output", "b8.lean", "--int8", "--data", "pics", "--max-drop", "100", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)["quantised"]
    assert "pics" in told["source"]
    assert told["before"] is not None


def test_bytes_without_images(place: Path, capsys: Capture) -> None:
    (place / "pics").rename(place / "elsewhere")
    try:
        assert main(["export", "runs/a", "--output", "c8.lean", "--int8"]) == 2
    finally:
        (place / "elsewhere").rename(place / "pics")
    assert "pics" in capsys.readouterr().err
    assert not Path("c8.lean").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--data", "pics"], "--data is for --int8, got it without"),
        (["--max-drop", "1"], "--max-drop is for --int8, got it without"),
        (["--layers"], "--layers is for --int8, got it without"),
        (["--int8", "--percentile", "99", "--rule", "mse"], "--percentile is for --rule percentile, got --rule mse"),
        (["--int8", "--rule", "max"], "rule must be one of mse, percentile, minmax, got 'max'"),
        (["--int8", "--format", "onnx"], "--int8 writes .lean files alone, got --format onnx"),
    ],
)
def test_bad_words_of_int8(words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(["export", "runs/a", "--output", "d.lean", *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("d.lean").exists()


def test_a_network_of_ones_own(capsys: Capture) -> None:
    words = [
        "export",
        "leanconv.models:small",
        "--input",
        "3,32,32",
        "--option",
        "num_classes=4",
        "--output",
        "own.lean",
    ]
    assert main([*words, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.1"]) == 0
    assert "the rule holds" in capsys.readouterr().out
    with runtime.load("own.lean") as engine:
        assert engine.input_shape == (3, 32, 32)
        picture = engine.plan.picture
        assert picture is not None
        assert (picture.mean, picture.std, picture.mode) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "RGB")
        assert engine.output_shape == (4,)
    assert main([*words, "--overwrite"]) == 0
    with runtime.load("own.lean") as engine:
        assert engine.plan.picture is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing"], "the network must be the folder of a run or package.module:attribute, got 'nothing'"),
        (["leanconv.models:small", "--mean", "1,1,1"], "--mean and --std must be given together, got one of them"),
        (
            ["leanconv.models:small", "--mean", "1,1", "--std", "1,1,1"],
            "--mean must be 3 numbers with commas between them",
        ),
        (["leanconv.models:small", "--input", "3,32,48", "--mean", "1", "--std", "1"], "--mean is for square photos"),
        (["runs/a", "--mean", "1,1,1"], "--mean goes with a MODEL, got the run runs/a"),
        (["runs/a", "--weights", "x.safetensors"], "--weights goes with a MODEL, got the run runs/a"),
    ],
)
def test_bad_words_of_networks(words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(["export", *words, "--output", "bad.lean"]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err
    assert not Path("bad.lean").exists()
