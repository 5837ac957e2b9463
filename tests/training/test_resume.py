"""Interrupted trainings go on to the same result, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import leanconv
from interrupting import Interrupting
from leanconv import recipe as recipes
from leanconv import training
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.training import Job, Run, Stopped, state
from pictures import flat, quick

EVERYTHING: dict[str, Any] = {
    "epochs": 4,
    "training.batch": 7,
    "training.accumulate": 2,
    "training.clip": 1.0,
    "training.ema": 0.9,
    "training.label_smoothing": 0.1,
    "training.warmup": 0.5,
    "data.augment": "flip_crop",
}
SOURCE: dict[str, Any] = {"epochs": 3, "training.batch": 8}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def result(run: Run) -> dict[str, Any]:
    """What must be equal: weights, every figure of every epoch and of the end; no times."""
    rows = [{k: v for k, v in asdict(row).items() if k != "seconds"} for row in run.metrics]
    record = run.record
    final = (record.status, record.epochs, record.best, record.train, record.val, record.test)
    weights = {name: value.clone() for name, value in run.model.state_dict().items()}
    return {"rows": rows, "final": final, "weights": weights, "notes": record.notes}


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["rows"] == b["rows"]
    assert a["final"] == b["final"]
    assert a["notes"] == b["notes"]
    assert a["weights"].keys() == b["weights"].keys()
    for name, value in a["weights"].items():
        assert torch.equal(value, b["weights"][name]), name


def read(folder: Path) -> Any:
    """The state, or the error that tells why not."""
    try:
        return state.load(folder)
    except Error as error:
        return error


def recipe(kind: str) -> Recipe:
    if kind == "adamw":
        return quick(**EVERYTHING, **{"training.optimizer": "adamw", "techniques.l2.where": "decoupled"})
    if kind == "source":
        return recipes.override(recipes.load("source"), **SOURCE, **{"data.imgsz": 16, "training.threads": 1})
    return quick(**EVERYTHING)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "source"])
def test_a_stopped_training_goes_on_bit_for_bit(kind: str) -> None:
    images = flat(Path("pics"))
    whole = training.run.run(images, recipe(kind), Job("whole"))
    expected = result(Run(whole.folder))
    steps = whole.metrics[-1].step
    for step in sorted(random.Random(kind).sample(range(1, steps + 1), 3)):
        name = f"cut{step}"
        with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped:
            training.run.run(images, recipe(kind), Job(name), Interrupting(step))
        assert stopped.value.code == 143
        record = training.folder.Run(Path("runs", name)).record
        assert record.status == "stopped"
        done = leanconv.train(resume=name)
        same(result(Run(done.folder)), expected)
        assert not (done.folder / state.STATE).exists()


def test_stopped_again_and_again() -> None:
    images = flat(Path("pics"))
    expected = result(training.run.run(images, recipe("sgd"), Job("whole")))
    job = Job("often")
    for _ in range(100):
        try:
            done = training.run.run(images, recipe("sgd"), job, Interrupting(2, signal.SIGINT))
            break
        except Stopped:
            job = Job("often", resume=Path("runs/often"))
    same(result(Run(done.folder)), expected)


def test_resume_finds_the_newest_run_on_the_data_and_a_finished_one_is_left_as_it_is() -> None:
    images = flat(Path("pics"))
    with pytest.raises(Error, match=r"resume: there must be an earlier run in runs, got none on .*pics"):
        leanconv.train(images, resume=True)
    with pytest.raises(Stopped):
        training.run.run(images, quick(epochs=2), Job("a"), Interrupting(3))
    training.run.run(flat(Path("others")), quick(epochs=1), Job("b"))
    done = leanconv.train(images, resume=True)
    assert done.folder == Path("runs/a")
    before = {p.name: p.read_bytes() for p in done.folder.iterdir()}
    assert leanconv.train(images, resume="a").record == done.record
    assert {p.name: p.read_bytes() for p in done.folder.iterdir()} == before


def test_a_resume_with_another_recipe_or_other_data_is_refused_and_nothing_changes() -> None:
    images = flat(Path("pics"))
    with pytest.raises(Stopped):
        training.run.run(images, quick(epochs=2), Job("a"), Interrupting(3))
    before = {p.name: p.read_bytes() for p in Path("runs/a").iterdir()}
    with pytest.raises(Error, match=r"recipe must be that of the run in runs/a, got training.lr=0.9 instead of"):
        leanconv.train(images, resume="a", lr=0.9)
    with pytest.raises(Error, match="resume: the data must be that of the run in runs/a, got other images in more"):
        leanconv.train(flat(Path("more"), 9), resume="a")
    with pytest.raises(Error, match="resume: must be the name or the folder of a run, got 'none'"):
        leanconv.train(images, resume="none")
    assert {p.name: p.read_bytes() for p in Path("runs/a").iterdir()} == before


def test_every_damaged_byte_of_a_state_is_found_and_the_one_before_is_offered() -> None:
    images = flat(Path("pics"))
    with pytest.raises(Stopped):
        training.run.run(images, quick(epochs=3), Job("a"), Interrupting(8))
    path = Path("runs/a") / state.STATE
    content = path.read_bytes()
    found = state.load(path.parent)
    assert found is not None
    chooser = random.Random(0)
    told = 0
    for place in [*range(0, 9), *chooser.sample(range(len(content)), 60), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chooser.randrange(8)
        path.write_bytes(damaged)
        other = read(path.parent)
        if isinstance(other, Error):
            assert "; the one before, epoch" in str(other), place
            told += 1
        else:  # a blank of the header that became another blank
            assert other is not None
            assert other[0] == found[0], place
            assert all(torch.equal(v, other[1][g][n]) for g, group in found[1].items() for n, v in group.items()), place
    assert told > 60
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Error, match="the one before, epoch 2 step"):
        leanconv.train(images, resume="a")
    path.unlink()
    assert leanconv.train(images, resume="a").record.status == "done"


def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path) -> None:
    images = flat(Path("pics"))
    with pytest.raises(Stopped):
        training.run.run(images, quick(epochs=3), Job("a"), Interrupting(3))
    before = (Path("runs/a") / state.STATE).read_bytes()
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import leanconv\nfrom leanconv.training import run\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)\n"
        "leanconv.train(resume='a')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "must be writable, got File too large" in done.stderr
    assert (Path("runs/a") / state.STATE).read_bytes() == before
    assert leanconv.train(resume="a").record.status == "done"


KEEPS = ("best", "last")


def test_early_stopping_and_its_resume() -> None:
    images = flat(Path("pics"))
    stopping = quick(epochs=30, **{"training.patience": 2})
    done = training.run.run(images, stopping, Job("whole"))
    assert done.record.epochs == done.record.best + 2 < 30
    with pytest.raises(Stopped):
        training.run.run(images, stopping, Job("a"), Interrupting(done.metrics[-1].step))
    same(result(leanconv.train(resume="a")), result(Run(done.folder)))


def test_the_last_epoch_is_kept_where_that_is_asked_for() -> None:
    images = flat(Path("pics"))
    runs = {keep: training.run.run(images, quick(epochs=4, **{"training.keep": keep}), Job(keep)) for keep in KEEPS}
    accuracies = [epoch.val.accuracy for epoch in runs["best"].metrics]
    assert runs["last"].record.best == 4
    assert runs["last"].record.val is not None
    assert runs["last"].record.val.accuracy == accuracies[-1]
    assert runs["best"].record.val is not None
    assert runs["best"].record.val.accuracy == max(accuracies)
    last = quick(epochs=4, **{"training.keep": "last"})
    with pytest.raises(Stopped):
        training.run.run(images, last, Job("a"), Interrupting(runs["last"].metrics[2].step))
    same(result(leanconv.train(resume="a")), result(Run(runs["last"].folder)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "source"])
def test_killed_at_random_moments(kind: str) -> None:
    """kill -9, 15 times for each recipe, over every phase: training, checkpoints, measuring, the end."""
    images = flat(Path("pics"))
    Path("r.yaml").write_text(recipes.dump(recipe(kind)))
    expected = result(training.run.run(images, recipe(kind), Job("whole")))
    words = [sys.executable, "-m", "leanconv", "train", str(images), "--recipe", "r.yaml", "--name", "x"]
    started = time.perf_counter()
    subprocess.run([*words[:-1], "timed"], check=True, capture_output=True)
    chooser, kills = random.Random(kind), 0
    length = _seconds_of_work(Path("runs/timed"), started)
    while kills < 15:
        resumed = [*words, "--resume", "x"] if Path("runs/x/recipe.yaml").exists() else words
        process = subprocess.Popen(resumed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        touched = _mtime(Path("runs/x/run.json"))
        while process.poll() is None and _mtime(Path("runs/x/run.json")) == touched:
            time.sleep(0.001)
        time.sleep(chooser.uniform(0, length))
        process.kill()
        kills += 1
        if process.wait() == 0:
            same(result(Run(Path("runs/x"))), expected)
            subprocess.run(["rm", "-r", "runs/x"], check=True)
    if not Path("runs/x").exists():
        return
    subprocess.run([*words, "--resume", "x"], check=True, capture_output=True)
    same(result(Run(Path("runs/x"))), expected)


def _mtime(path: Path) -> float:
    return path.stat().st_mtime_ns if path.exists() else 0.0


def _seconds_of_work(folder: Path, started: float) -> float:
    begun = (folder / "recipe.yaml").stat().st_mtime
    return max(0.1, (folder / "run.json").stat().st_mtime - begun)


@pytest.mark.slow
def test_two_processes_have_the_masks_of_one(tmp_path: Path) -> None:
    images = flat(Path("pics"))
    settings = {"epochs": 2, "training.batch": 8, "techniques.batchnorm": False, "techniques.dropout.p": 0.4}
    Path("r.yaml").write_text(recipes.dump(recipes.override(quick(), **settings)))
    one = training.run.run(images, recipes.load("r.yaml"), Job("one"))
    words = ["-m", "leanconv", "train", str(images), "--recipe", "r.yaml", "--name", "two"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    two = Run(Path("runs/two"))
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_leaves_in_good_order_on_a_signal(number: signal.Signals, code: int) -> None:
    images = flat(Path("pics"))
    Path("r.yaml").write_text(recipes.dump(quick(epochs=100_000)))
    words = [sys.executable, "-m", "leanconv", "train", str(images), "--recipe", "r.yaml", "--name", "x"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not Path("runs/x/metrics.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(number)
    out, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert told.splitlines()[-1] == f"leanconv: training: stopped by {number.name}, `--resume` goes on from here"
    assert "Traceback" not in told
    assert out == ""
    assert Run(Path("runs/x")).record.status == "stopped"
    assert state.load(Path("runs/x")) is not None
