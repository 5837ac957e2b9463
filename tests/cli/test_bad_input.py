"""Bad input: one sentence (subject, rule, what was got), exit code 2, no traceback, nothing written or overwritten."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leanconv import recipe, training
from leanconv.cli import main
from pictures import flat, picture, quick

Capture = pytest.CaptureFixture[str]


class Evil:
    """Runs a function when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path("touched").touch, ()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, bad images, and one finished run."""
    root = tmp_path_factory.mktemp("bad")
    flat(root / "pics")
    flat(root / "small", each=3)
    (root / "empty").mkdir()
    for i in range(4):
        picture(root / "single" / "only" / f"{i}.png", (9, 9, 9), i)
        for name in ("a", "b"):
            (root / "zero" / name).mkdir(parents=True, exist_ok=True)
            (root / "zero" / name / f"{i}.jpg").write_bytes(b"")
    picture(root / "photo.jpg", (200, 40, 40), 1)
    (root / "text.jpg").write_text("no photo")
    torch.save({"state_dict": Evil()}, root / "evil.pt")
    torch.save({"weight": torch.zeros(2)}, root / "other.pt")
    (root / "bad.yaml").write_text("training: {epochs: many}")
    (root / "quick.yaml").write_text(recipe.dump(quick()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        training.run.run("pics", quick(), training.Job("done"))
        training.run.run("pics", quick(), training.Job("cut"))
    weights = root / "runs/cut/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    return root


def fingerprint(root: Path) -> dict[str, str]:
    """Every file under a folder with its digest."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


TRAIN = ["train", "pics", "--recipe", "quick.yaml"]
CASES = {
    "no data": (["train"], "train: DATA must be a folder of images or `demo`, got nothing"),
    "missing folder": (["train", "nowhere"], "a folder that exists, got nothing at 'nowhere'"),
    "a file as folder": (["train", "photo.jpg"], "photo.jpg"),
    "empty folder": (["train", "empty"], "empty"),
    "one class": (["train", "single"], "class"),
    "zero bytes": (["train", "zero"], "files of zero bytes"),
    "wrong model": ([*TRAIN, "--model", "mobilenet_v"], "got 'mobilenet_v' (did you mean mobilenet_v1"),
    "wrong module": ([*TRAIN, "--model", "nomodule:net"], "nomodule must be importable"),
    "unfit shape": ([*TRAIN, "--model", "mlp", "--set", "model.options={imgsz: 28}"], "mlp: "),
    "large batch": ([*TRAIN, "--batch", "1000"], "batch must be at most the number of training images, 21, got"),
    "existing name": ([*TRAIN, "--name", "done"], "name: must be a new one unless --overwrite is given, got 'done'"),
    "name outside": ([*TRAIN, "--name", "../up"], "name: must be a plain name"),
    "overwrite, bad batch": ([*TRAIN, "--name", "done", "--overwrite", "--batch", "1000"], "batch must be at most"),
    "overwrite, bad model": ([*TRAIN, "--name", "done", "--overwrite", "--model", "x"], "model: a name must be one of"),
    "wrong recipe": (["train", "pics", "--recipe", "defualt"], "got 'defualt' (did you mean default?)"),
    "bad recipe": (["train", "pics", "--recipe", "bad.yaml"], "bad.yaml: training.epochs must be an integer"),
    "bad epochs": ([*TRAIN, "--epochs", "0"], "training.epochs must be at least 1, got 0"),
    "bad lr": ([*TRAIN, "--lr", "fast"], "training.lr must be a number, got 'fast'"),
    "bad set": ([*TRAIN, "--set", "momentum"], "--set must be KEY=VALUE"),
    "unknown key": ([*TRAIN, "--set", "training.epoch=3"], "'epoch' (did you mean epochs?)"),
    "wrong technique": ([*TRAIN, "--set", "techniques.dropot={p: 0.1}"], "got 'dropot'"),
    "bad option": ([*TRAIN, "--set", "techniques.dropout.p=1.5"], "dropout: p must satisfy 0 <= p < 1, got p=1.5"),
    "weights gone": ([*TRAIN, "--weights", "gone.pt"], "weights: must be a file, the folder of a run or package"),
    "weights with code": ([*TRAIN, "--weights", "evil.pt"], "got a file that needs code to be read, which is not exec"),
    "weights of another": (
        [*TRAIN, "--weights", "other.pt"],
        "weights: other.pt must fit the network, got one that la",
    ),
    "weights no text": ([*TRAIN, "--weights", "text.jpg"], "weights: text.jpg must be a whole file of weights"),
    "weights no module": (
        [*TRAIN, "--weights", "no_such:thing"],
        "weights: no_such:thing must be there, got ModuleNot",
    ),
    "freeze unknown": ([*TRAIN, "--freeze", "neck"], "model.freeze must be one of none, stem, backbone, got 'neck'"),
    "predict nothing": (
        ["predict"],
        "predict: RUN must be the folder of a run such as runs/exp, or a .lean file, got nothing",
    ),
    "predict no run": (["predict", "nowhere", "photo.jpg"], "got 'nowhere'"),
    "predict a folder": (
        ["predict", "pics", "photo.jpg"],
        "RUN must be the folder of a run such as runs/exp, or a .lean file, got 'pics'",
    ),
    "predict no image": (["predict", "runs/done"], "at least one image must be given"),
    "predict gone": (["predict", "runs/done", "gone.jpg"], "image: must be a file that exists, got 'gone.jpg'"),
    "predict text": (["predict", "runs/done", "text.jpg"], "image: must be readable"),
    "predict truncated": (["predict", "runs/cut", "photo.jpg"], "the weights must be a whole .safetensors file"),
    "predict samples": (["predict", "runs/done", "photo.jpg", "--samples", "-1"], "samples must be 0"),
    "predict top": (["predict", "runs/done", "photo.jpg", "--top", "0"], "--top must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_bad_input(case: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(place)
    before = fingerprint(place)
    words, sentence = CASES[case]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("leanconv: error: ")
    assert err.count("\n") == 1, err
    assert sentence in err
    assert fingerprint(place) == before


def test_a_process_leaves_with_2_and_without_a_traceback(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leanconv.cli", "train", "nowhere", "--name", "a"],
        capture_output=True,
        text=True,
        cwd=place,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_unwritable_place_is_told(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(place)
    real: Callable[..., None] = Path.mkdir

    def denied(self: Path, *args: object, **kwargs: object) -> None:
        if "runs" in self.parts:
            raise PermissionError(13, "Permission denied")
        real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", denied)
    assert main([*TRAIN, "--name", "new"]) == 2
    assert "runs/new: must be a folder that can be written, got Permission denied" in capsys.readouterr().err
