"""``leanconv eval``, ``predict`` on folders, and ``runs``."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from leanconv import recipe, training
from leanconv.cli import main
from pictures import CLASSES, flat, picture, quick

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    flat(root / "pics")
    (root / "quick.yaml").write_text(recipe.dump(quick()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        training.run.run("pics", quick(epochs=12), training.Job("a"))
        training.run.run("pics", quick(epochs=1, seed=1), training.Job("group/b"))
    return root


@pytest.fixture(autouse=True)
def _here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_eval_prints_accuracy_classes_and_mistakes(capsys: Capture) -> None:
    assert main(["eval", "runs/group/b"]) == 0
    out = capsys.readouterr().out
    record = training.open_run("runs/group/b").record
    assert record.test is not None
    assert f"accuracy           {100 * record.test.accuracy:.1f} (" in out
    assert f"{record.test.total} of folder" in out
    for name in CLASSES:
        assert f"\n{name} " in out
    wrong = record.test.total - record.test.correct
    assert wrong
    assert f"surest mistakes ({min(wrong, 10)} of {wrong})" in out
    assert main(["eval", "runs/a", "pics", "--json", "--split", "val"]) == 0
    told = json.loads(capsys.readouterr().out)
    val = training.open_run("runs/a").record.quality["val"]
    assert {key: told[key] for key in val} == val
    assert main(["eval", "runs/a", "runs/group/b", "--csv"]) == 0
    head, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert head[1:] == sorted(CLASSES) == [row[0] for row in rows]
    assert sum(int(cell) for row in rows for cell in row[1:]) == record.test.total


def test_predict_leaves_unreadable_images_of_a_folder_out(capsys: Capture, tmp_path: Path) -> None:
    for name, colour in CLASSES.items():
        picture(tmp_path / "new" / f"{name}.png", colour, 5)
    (tmp_path / "new" / "cut.jpg").write_bytes(b"")
    assert main(["predict", "runs/a", str(tmp_path / "new"), "--csv", "--top", "1"]) == 1
    out, err = capsys.readouterr()
    head, *rows = csv.reader(out.splitlines())
    assert head == ["image", "class", "probability", "spread"]
    assert [Path(row[0]).stem for row in rows] == sorted(CLASSES)
    assert all(row[1] == Path(row[0]).stem for row in rows)
    assert err == f"leanconv: {tmp_path / 'new' / 'cut.jpg'} could not be read and is left out: zero bytes\n"


def test_runs_lists_the_finished_and_the_broken(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    half = tmp_path / "runs" / "half"
    shutil.copytree("runs/a", half)
    record = json.loads((half / "run.json").read_text())
    record |= {"status": "stopped", "val": None, "test": None, "train": None, "params": None, "macs": None}
    (half / "run.json").write_text(json.dumps(record))
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(lines[:5]))
    assert main(["runs", "--sort", "name"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "status", "model"]
    assert [row.split()[:2] for row in rows] == [
        ["runs/a", "done"],
        ["runs/group/b", "done"],
        ["runs/half", "stopped"],
    ]
    a, b = training.open_run("runs/a").record, training.open_run("runs/group/b").record
    fifth = json.loads(lines[4])["val"]
    assert rows[2].split()[3:5] == ["5/12", f"{100 * fifth['correct'] / fifth['total']:.1f}"]
    assert a.test is not None
    assert b.test is not None
    assert a.test.accuracy > b.test.accuracy
    assert main(["runs", "--sort", "test", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["folder"] for one in told] == ["runs/a", "runs/group/b", "runs/half"]
    assert told[0]["test"]["correct"] == a.test.correct
    (half / "run.json").write_text("{")
    assert main(["runs", "runs"]) == 1
    assert ["runs/half", "damaged"] in [row.split()[:2] for row in capsys.readouterr().out.splitlines()]


def test_runs_where_there_are_none(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert "no runs here yet" in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["eval"], "eval: RUN must be the folder of a run such as runs/exp, got nothing"),
        (["eval", "pics"], "eval: RUN must be the folder of a run such as runs/exp, got 'pics'"),
        (["eval", "runs/a", "pics", "more"], "eval: DATA must be one source of images, got pics, more"),
        (["eval", "runs/a", "--mistakes", "-1"], "--mistakes must be at least 0, got -1"),
        (["eval", "runs/a", "--split", "tset"], "split: must be one of train, val, test"),
        (["eval", "runs/a", "gone"], "got nothing at 'gone'"),
        (["eval", "runs/a", "--samples", "1"], "eval: samples must be 0 (off) or at least 2, got samples=1"),
        (["eval", "runs/a", "--json", "--csv"], "not allowed with"),
        (["predict", "runs/a", "runs/group"], "a folder must hold images, got 'runs/group' without any"),
        (["runs", "gone"], "runs: FOLDER must be a folder that exists, got 'gone'"),
        (["runs", "--sort", "size"], "--sort must be one of time, name, val"),
    ],
)
def test_bad_input(words: list[str], sentence: str, capsys: Capture) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert sentence in err
