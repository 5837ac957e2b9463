"""The command ``leanconv study``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from leanconv import recipe
from leanconv.cli import main
from leanconv.cli.study import seconds
from leanconv.errors import Error


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    pixels = rng.integers(0, 80, (240, 28, 28, 1), dtype=np.uint8)
    for label in range(3):
        pixels[labels == label, 9 * label : 9 * label + 9] += 150
    arrays = {"train_images": pixels[:180], "test_images": pixels[180:]}
    arrays |= {"train_labels": labels[:180], "test_labels": labels[180:]}
    np.savez(tmp_path / "images.npz", classes=np.array(["a", "b", "c"]), **arrays)
    quick = recipe.override(
        recipe.only(recipe.load("study"), ["batchnorm", "dropout"]), batch=32, **{"model.options.width": 4}
    )
    (tmp_path / "quick.yaml").write_text(recipe.dump(quick))
    return tmp_path


def test_a_study_its_status_more_seeds_and_its_recommendation(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "images.npz", "--recipe", "quick.yaml", "--arms", "add-one", "--epochs", "1", "--seeds", "2"]
    assert main([*words, "--no-sides", "--name", "s"]) == 0
    out, _ = capsys.readouterr()
    assert "effect on test accuracy" in out
    assert "recommended: " in out
    assert recipe.load(here / "runs/s/recommended.yaml").training.epochs == 1
    assert main(["study", "--status", "s", "--json", "--aim", "size"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["arms"]) == {"plain", "batchnorm", "dropout", "all"}
    assert told["seeds"] == 2
    assert told["recommended"]["recipe"] == "runs/s/recommended.yaml"
    assert main(["study", "--add-seeds", "1", "s"]) == 0
    capsys.readouterr()
    assert main(["study", "--status", "s", "--csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 * 3
    assert main(["study", "--resume", "s"]) == 0  # nothing is left
    assert "[1/" not in capsys.readouterr().err
    assert main([*words, "--name", "s"]) == 2
    assert "must be a new one" in capsys.readouterr().err
    # Other images under the same name are found out.
    with np.load(here / "images.npz") as old:
        arrays = dict(old)
    arrays["train_images"][0] ^= 1
    np.savez(here / "images.npz", **arrays)
    assert main(["study", "--resume", "s"]) == 2
    assert "must be that of the study s, got other images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "DATA must be given"),
        (["images.npz", "--seeds", "0"], "--seeds must be at least 1"),
        (["images.npz", "--jobs", "0"], "--jobs must be at least 1"),
        (["images.npz", "--budget", "soon"], "--budget must be a time"),
        (["images.npz", "--arms", "factoral"], "did you mean factorial"),
        (["images.npz", "--aim", "cheap"], "--aim must be accuracy"),
        (["images.npz", "--name", "../x"], "must be a plain name"),
        (["images.npz", "--resume", "s"], "DATA is known"),
        (["--resume", "nothing"], "got no such file"),
        (["--add-seeds", "x", "s"], "--add-seeds must be a number"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["study", *words]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (here / "runs").exists()


def test_a_budget_that_is_too_small_says_which_arms_fit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "images.npz", "--recipe", "quick.yaml", "--arms", "add-one", "--epochs", "40"]
    assert main([*words, "--no-sides", "--budget", "1s", "--name", "s", "--seeds", "2"]) == 2
    assert "arms that would fit: none" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "wanted"), [("45m", 2700), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("10", 600)])
def test_times(text: str, wanted: float) -> None:
    assert seconds(text) == wanted
    assert seconds(None) is None
    with pytest.raises(Error):
        seconds("")
