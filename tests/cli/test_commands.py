"""The commands on good input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from leanconv import data, demo, recipe, training
from leanconv.cli import main, shown
from leanconv.demo import parallel
from leanconv.errors import Error
from leanconv.results import Difference, Run, Score
from pictures import flat, picture, quick

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shown, "tune_allocator", lambda: shown.Tuned(False, "not in tests"))
    (tmp_path / "quick.yaml").write_text(recipe.dump(quick()))


def test_train_and_predict(capsys: Capture) -> None:
    flat(Path("pics"))
    assert (
        main(["train", "pics", "--recipe", "quick.yaml", "--name", "flowers", "--set", "techniques.dropout.p=0.1"]) == 0
    )
    out, err = capsys.readouterr()
    assert err.count("flowers: epoch") == 2
    for word in (
        "runs/flowers",
        "test accuracy",
        "gap",
        "parameters",
        "MACs",
        "L2: ",
        "not tuned (not in tests)",
        "MB",
    ):
        assert word in out
    assert main(["train", "pics", "--recipe", "quick.yaml", "--epochs", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (record["name"], record["epochs"], record["recipe"]["training"]["epochs"]) == ("exp", 1, 1)

    picture(Path("photo.jpg"), (200, 40, 40), 3)
    assert main(["predict", "runs/flowers", "photo.jpg", "--top", "2"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("photo.jpg: ")
    assert line.count("%") == 2
    assert main(["predict", "runs/flowers", "runs/exp", "photo.jpg", "photo.jpg", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told) == 2
    assert sum(row["probability"] for row in told[0]["classes"].values()) == pytest.approx(1)


def test_train_overwrites_on_request(capsys: Capture) -> None:
    flat(Path("pics"))
    words = ["train", "pics", "--recipe", "quick.yaml", "--epochs", "1", "--name", "a"]
    assert main(words) == 0
    assert main(words) == 2
    assert main([*words, "--overwrite"]) == 0
    assert len(Path("runs/a/metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.source("S28")
def test_the_demo_trains_every_arm_and_prints_the_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.load("demo")
    few = {name: data.Split(part.images[::10], part.labels[::10]) for name, part in whole.splits.items()}
    monkeypatch.setattr(training.run, "load", lambda *_: replace(whole, **few))
    Path("fast.yaml").write_text(recipe.dump(quick("demo", **{"model.options.width": 2, "epochs": 1, "batch": 90})))
    assert main(["demo", "--recipe", "fast.yaml", "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    arms = ["plain", "+ batchnorm", "+ dropout", "+ l2", "+ separable", "all four"]
    for title in arms:
        assert f"{title}: epoch 1/1" in err
        assert sum(line.startswith(title) for line in out.splitlines()) == 1
    assert "One seed:" in out
    assert "450 images to train, 50 to select, 100 to test" in out
    folders = {p.name for p in Path("runs/demo").iterdir()}
    assert folders == {"plain", "batchnorm", "dropout", "l2", "separable", "all"}
    seeds = {recipe.load(p / "recipe.yaml").training.seed for p in Path("runs/demo").iterdir()}
    assert seeds == {0}


def test_trainings_at_once_give_what_they_give_in_turn(capsys: Capture) -> None:
    fast = quick("demo", **{"model.options.width": 2, "epochs": 1, "batch": 500})
    tasks = [parallel.Task("plain", "plain", f"at/once{i}", fast) for i in range(2)]
    for done in parallel.train(tasks, jobs=2):
        here = training.run.run("demo", fast, training.Job("here", overwrite=True))
        assert all(torch.equal(v, done.model.state_dict()[k]) for k, v in here.model.state_dict().items())
    assert capsys.readouterr().err.count("plain: epoch 1/1  loss") == 2


def test_a_training_that_fails_elsewhere_is_told_in_its_own_sentence() -> None:
    bad = parallel.Task("plain", "plain", "bad", quick("demo", batch=5000))
    with pytest.raises(Error, match="training: batch must be at most the number of training images, 4500, got"):
        parallel.train([bad], jobs=2)
    assert not Path("runs").exists()


def test_the_arms_differ_in_techniques_alone() -> None:
    whole = recipe.load("demo")
    found = demo.arms(whole)
    assert [title for title, _ in found.values()] == [
        "plain", "+ batchnorm", "+ dropout", "+ l2", "+ separable", "all four",
    ]  # fmt: skip
    assert found["all"][1] == whole
    assert found["plain"][1].techniques == {}
    for name, (_, arm) in found.items():
        assert (arm.model, arm.data, arm.training) == (whole.model, whole.data, whole.training)
        if name not in ("plain", "all"):
            assert arm.techniques == {name: whole.techniques[name]}


def run(correct: int) -> Run:
    """A record with this many of 100 test images right."""
    return Run("a", "done", {}, "", {}, {}, train=Score(95, 100), test=Score(correct, 100), seconds_per_epoch=1.0)


def test_one_seed_has_wilsons_interval_and_several_have_students() -> None:
    one = demo.Arm("a", (run(80),), 0.1)
    assert one.test == Difference(0.8, *Score(80, 100).interval())
    assert one.gap.value == pytest.approx(0.15)
    several = demo.Arm("a", (run(80), run(82), run(84), run(86), run(88)), 0.1)
    # mean 0.84, s = 0.0316228, t(4, 97.5 %) = 2.776: half = 2.776 * 0.0316228 / sqrt(5) = 0.039259
    assert several.test.value == pytest.approx(0.84)
    assert several.test.high - several.test.value == pytest.approx(0.039259, abs=1e-5)
    assert several.gap.value == pytest.approx(0.11)
    assert several.to_dict()["test_accuracies"] == [0.8, 0.82, 0.84, 0.86, 0.88]


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (5, 2.776), (10, 2.262), (11, 2.228), (20, 2.093), (41, 2.021)])
def test_students_quantiles(n: int, t: float) -> None:
    values = [0.0] * (n - 1) + [1.0]
    s = (1 / n) ** 0.5  # of one 1 among zeros: n/(n-1) * (1/n)(1 - 1/n) = 1/n
    found = demo.estimate(values, (0, 1))
    assert found.high - found.value == pytest.approx(t * s / n**0.5, rel=0.02)


def test_tables_are_aligned() -> None:
    text = shown.table(("a", "bb"), [("x", "1"), ("long", "100")])
    assert text.splitlines() == ["a      bb", "---------", "x       1", "long  100"]
