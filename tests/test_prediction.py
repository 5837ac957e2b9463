from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import leanconv
from leanconv import data, training
from leanconv.errors import Error
from leanconv.prediction import predict
from pictures import CLASSES, flat, picture, quick


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of 12 epochs on colours, and one of other classes, in one folder."""
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        flat(root / "pics")
        for seed in (0, 1):
            training.run.run("pics", quick(epochs=12, seed=seed), training.Job(f"s{seed}"))
        shutil.copytree("pics", "others")
        shutil.move("others/red", "others/rouge")
        training.run.run("others", quick(epochs=1), training.Job("others"))
        for name, colour in CLASSES.items():
            picture(root / f"{name}.jpg", colour, 7, side=31)
    return root


@pytest.fixture(autouse=True)
def _here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def test_photos_are_named() -> None:
    found = leanconv.predict("runs/s0", [f"{name}.jpg" for name in CLASSES])
    assert [p.classes[0] for p in found] == list(CLASSES)
    for p in found:
        assert sum(p.probabilities) == pytest.approx(1)
        assert list(p.probabilities) == sorted(p.probabilities, reverse=True)
        assert not any(p.spread)
    assert found[0].line(1).startswith("blue.jpg: blue ")


def probabilities(run: str, file: str) -> torch.Tensor:
    """One run by hand, in the order of its classes."""
    opened = training.open_run(run)
    h = opened.header
    x = data.normalise(data.read_image(file, h.shape[1], h.shape[0])[None], h.mean, h.std)
    with torch.no_grad():
        return opened.model(x).softmax(1)[0]


@pytest.mark.source("S7")
def test_several_runs_are_averaged() -> None:
    (found,) = predict(["runs/s0", "runs/s1"], "red.jpg")
    a, b = probabilities("runs/s0", "red.jpg"), probabilities("runs/s1", "red.jpg")
    assert not torch.equal(a, b)
    for name, p, s in zip(found.classes, found.probabilities, found.spread, strict=True):
        i = sorted(CLASSES).index(name)
        assert p == pytest.approx(float(a[i] + b[i]) / 2, rel=1e-5)
        assert s == pytest.approx(abs(float(a[i] - b[i])) / 2, rel=1e-3, abs=1e-7)


@pytest.mark.source("S5")
def test_monte_carlo_passes_give_a_mean_and_a_spread() -> None:
    (once,) = predict("runs/s0", "red.jpg")
    (many,) = predict("runs/s0", "red.jpg", passes=20)
    assert any(many.spread)
    assert dict(zip(many.classes, many.probabilities, strict=True))["red"] == pytest.approx(
        dict(zip(once.classes, once.probabilities, strict=True))["red"], abs=0.2
    )
    assert predict("runs/s0", "red.jpg", passes=20) == [many]


def test_what_cannot_be_predicted_is_told() -> None:
    Path("zero.jpg").write_bytes(b"")
    for runs, images, passes, sentence in (
        ("nowhere", "red.jpg", 0, "run: must be the folder of a run"),
        ("pics", "red.jpg", 0, "must hold model.safetensors"),
        ([], "red.jpg", 0, "at least one run must be given"),
        ("runs/s0", [], 0, "at least one image must be given"),
        ("runs/s0", "gone.jpg", 0, "image: must be a file that exists, got 'gone.jpg'"),
        ("runs/s0", "zero.jpg", 0, "a file of zero bytes"),
        ("runs/s0", "red.jpg", 1, "passes must be 0 .* got passes=1"),
        (["runs/s0", "runs/others"], "red.jpg", 0, "all runs must know the same classes"),
    ):
        with pytest.raises(Error, match=sentence):
            predict(runs, images, passes=passes)


def test_damaged_weights_are_told() -> None:
    shutil.copytree("runs/s0", "runs/cut", dirs_exist_ok=True)
    weights = Path("runs/cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(Error, match=r"whole \.safetensors file"):
        predict("runs/cut", "red.jpg")
