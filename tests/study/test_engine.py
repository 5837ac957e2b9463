"""Processes that work for a study, and the study that they work for."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from leanconv import recipe
from leanconv.errors import Error
from leanconv.study.design import design
from leanconv.study.engine import Local
from leanconv.study.run import FEWEST, Study, plan, rates
from leanconv.study.store import Row, Store
from leanconv.study.work import Images, Task
from study.made import striped

QUICK = recipe.override(
    recipe.only(recipe.load("demo"), ["batchnorm", "dropout"]),
    epochs=2,
    batch=32,
    **{"model.options.width": 4, "training.warmup": 0.0},
)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return striped(tmp_path / "images.npz")


def test_a_whole_study_and_nothing_of_it_twice(source: Path) -> None:
    made = design(QUICK, "factorial")
    engine = Local(source, 2)
    told: list[str] = []
    (source.parent / "runs/s").mkdir(parents=True)
    try:
        with Store(source.parent / "runs/s/study.db") as store:
            study = Study("s", made, Images(source), store, lambda done, total, what: told.append(what))
            assert len(study.pilots()) == 3 * len(made.arms)
            study.work(engine, study.pilots())
            assert study.pilots() == []
            assert all(study.rate(arm) in rates(0.05) for arm in made.every)
            assert all(cost > 0 for cost in study.costs().values())
            first = study.trainings(1)
            study.work(engine, first[: len(first) // 2])
            rest = study.trainings(1)
            assert len(rest) == len(first) - len(first) // 2
            study.work(engine, rest)
            assert study.trainings(1) == []
            assert {t.seed for t in study.trainings(2)} == {1}
            study.times()
            rows = store.rows("times")
            assert {row.arm for row in rows} == {arm.name for arm in made.arms}
            assert all((row.values or {})[key] > 0 for row in rows for key in ("ms_1", "ms_64", "ms_step"))
            study.times()
            assert len(store.rows("times")) == len(rows)
            accuracy = dict(study.table("test"))
            assert set(accuracy) == {arm.name for arm in made.every}
            assert all(0 <= value <= 1 for (value,) in accuracy.values())
    finally:
        engine.close()
    assert any("largest stable rate" in what for what in told)


def test_a_worker_that_is_killed_is_replaced_and_its_training_goes_on(source: Path) -> None:
    long = recipe.override(QUICK, epochs=40)
    task = Task("run", "all", 0, long.to_dict(), "", "s/all/0")
    engine = Local(source, 1)
    try:
        killed = threading.Thread(target=_kill, args=(engine, source.parent / "runs/s/all/0/metrics.jsonl"))
        killed.start()
        (row,) = engine.run([task])
        killed.join()
    finally:
        engine.close()
    assert row.status == "done"
    assert (row.values or {})["epochs"] == 40


def _kill(engine: Local, file: Path) -> None:
    while not (file.is_file() and file.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    process = engine._slots[0].process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def test_what_cannot_be_done_is_one_error(source: Path) -> None:
    engine = Local(source, 1)
    try:
        bad = recipe.override(QUICK, batch=10_000)
        with pytest.raises(Error, match="batch must be at most the number of training images"):
            list(engine.run([Task("run", "all", 0, bad.to_dict(), "", "s/all/0")]))
    finally:
        engine.close()
    with pytest.raises(Error, match="at least one worker is needed, got 0"):
        Local(source, 0)


def test_a_budget_cuts_seeds_and_says_which_arms_fit() -> None:
    costs = {"plain": 60.0, "a": 60.0, "b": 240.0}
    assert plan(costs, 5, 2, None).seconds == 900
    assert plan(costs, 5, 2, 1000).fits
    cut = plan(costs, 5, 2, 600)
    assert (cut.seeds, cut.wanted, cut.fits) == (3, 5, False)
    with pytest.raises(Error, match=r"must hold 2 seeds of every arm, about 6 min more, got 2 min .*fit: plain, a;"):
        plan(costs, 5, 2, 120)
    with pytest.raises(Error, match="fit: none"):
        plan(costs, 5, 2, 1)
    assert FEWEST == 2


def test_an_arm_whose_pilots_all_diverge_keeps_its_rate(tmp_path: Path) -> None:
    made = design(QUICK, "add-one", sides=False)
    with Store(tmp_path / "study.db") as store:
        study = Study("s", made, Images(tmp_path), store)
        for rate in rates(0.05):
            store.add(Row("pilot", "plain", 0, f"lr={rate:g}", "diverged"))
        assert study.rate(made.arms[0]) == 0.05
