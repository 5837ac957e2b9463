"""Single pieces of a study's work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leanconv import recipe
from leanconv.results import read_run
from leanconv.study.store import Row, Store
from leanconv.study.work import Images, Task, chosen_rate, execute

QUICK = recipe.override(
    recipe.load("demo"), epochs=2, **{"model.options.width": 4, "data.test": 0.2, "training.warmup": 0.0}
)


def images(tmp_path: Path) -> Images:
    import numpy as np

    rng = np.random.default_rng(0)
    labels = np.arange(240) % 3
    pixels = rng.integers(0, 80, (240, 28, 28, 1), dtype=np.uint8)
    for label in range(3):
        pixels[labels == label, 9 * label : 9 * label + 9] += 150
    np.savez(tmp_path / "images.npz", train_images=pixels[:180], train_labels=labels[:180], test_images=pixels[180:],
             test_labels=labels[180:], classes=np.array(["a", "b", "c"]))  # fmt: skip
    return Images(tmp_path / "images.npz")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def task(kind: str, made: recipe.Recipe = QUICK, **more: str) -> Task:
    return Task(kind, "all", 0, made.to_dict(), **{"name": "s/all/0", **more})


def test_a_training_gives_every_figure_and_is_not_repeated(here: Path) -> None:
    source = images(here)
    row = execute(task("run"), source)
    v = row.values or {}
    record = read_run(here / "runs/s/all/0")
    assert row.status == record.status == "done"
    assert record.test is not None
    assert record.train is not None
    assert v["test"] == record.test.accuracy
    assert v["gap"] == record.train.accuracy - record.test.accuracy
    assert (v["params"], v["macs"], v["epochs"]) == (record.params, record.macs, 2)
    assert len(v["curve"]["val"]) == len(v["curve"]["step"]) == 2
    assert v["shift"] > 0
    assert v["weight_norm"] > 0
    assert v["gradients"] >= 0
    assert v["roughness"] > 0
    assert {"dropout_single", "dropout_average", "dropout_scaled"} <= set(v)
    with Store(here / "study.db") as store:
        assert store.add(row)
        assert (store.rows()[0].values or {})["test"] == v["test"]
    before = (here / "runs/s/all/0/run.json").stat().st_mtime_ns
    again = execute(task("run"), source)
    assert (here / "runs/s/all/0/run.json").stat().st_mtime_ns == before
    assert (again.values or {})["test"] == v["test"]


@pytest.mark.source("S23")
def test_wrong_labels_are_counted(here: Path) -> None:
    noisy = recipe.override(recipe.only(QUICK, []), **{"data.label_noise": 0.25})
    row = execute(task("run", noisy), images(here))
    assert 0 <= (row.values or {})["memorised"] <= 1


def test_divergence_is_a_result(here: Path) -> None:
    wild = recipe.override(recipe.only(QUICK, []), lr=1e30)
    row = execute(task("run", wild), images(here))
    v = row.values or {}
    assert row.status == "diverged"
    assert (v["test"], v["diverged"]) == (pytest.approx(1 / 3), 1)
    assert "must stay finite" in v["why"]


def test_a_pilot_leaves_no_folder_and_the_best_on_val_is_chosen(here: Path) -> None:
    source = images(here)
    rows = [
        execute(task("pilot", recipe.override(QUICK, lr=lr, epochs=1), variant=str(lr), name="s/pilots/x"), source)
        for lr in (0.05, 1e30)
    ]
    assert not (here / "runs/s/pilots/x").exists()
    assert rows[0].status == "done"
    assert chosen_rate(rows) == 0.05
    assert chosen_rate([row for row in rows if row.status == "diverged"]) is None
    made = [Row("pilot", "a", 0, str(lr), values={"lr": lr, "val": v, "val_loss": loss}) for lr, v, loss in
            ((0.1, 0.5, 1.0), (0.2, 0.6, 0.9), (0.4, 0.6, 0.8))]  # fmt: skip
    assert chosen_rate(made) == 0.4


def test_a_task_is_plain_values() -> None:
    one = task("run")
    assert Task(**json.loads(json.dumps(one.to_dict()))) == one


def test_images_are_read_once_for_each_way_of_reading(here: Path) -> None:
    source = images(here)
    plain, noisy = QUICK, recipe.override(QUICK, **{"data.label_noise": 0.25})
    assert source.of(plain) is source.of(recipe.override(plain, lr=0.2))
    assert not torch.equal(source.of(plain).train.labels, source.of(noisy).train.labels)
    assert torch.equal(source.of(plain).train.images, source.of(noisy).train.images)
