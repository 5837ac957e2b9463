from __future__ import annotations

from pathlib import Path

import pytest

from leanconv.errors import Error
from leanconv.training.folder import choose, claim, open_run


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_runs_without_a_name_are_counted() -> None:
    for expected in ("exp", "exp2", "exp3"):
        folder = choose(None)
        assert folder == Path("runs", expected)
        assert not folder.exists()
        claim(folder)


def test_a_name_that_exists_needs_overwrite() -> None:
    claim(choose("a"))
    Path("runs/a/run.json").write_text("{}")
    Path("runs/a/notes.txt").write_text("mine")
    with pytest.raises(Error, match="must be a new one unless --overwrite is given, got 'a'"):
        choose("a")
    claim(choose("a", overwrite=True))
    assert [p.name for p in Path("runs/a").iterdir()] == ["notes.txt"]


def test_a_folder_that_is_no_run_is_never_overwritten() -> None:
    Path("runs/photos").mkdir(parents=True)
    Path("runs/photos/a.jpg").write_text("x")
    with pytest.raises(Error, match="only the folder of a run can be overwritten"):
        choose("photos", overwrite=True)
    Path("runs/file").write_text("x")
    with pytest.raises(Error, match="got a file of that name"):
        choose("file", overwrite=True)


@pytest.mark.parametrize("name", ["", " ", "../a", "/tmp/a", "a/../../b", ".", "a\\b"])
def test_names_stay_inside_runs(name: str) -> None:
    with pytest.raises(Error, match="name: must be a plain name"):
        choose(name)


def test_names_may_be_grouped() -> None:
    assert choose("demo/plain") == Path("runs/demo/plain")


def test_what_is_no_run_is_told() -> None:
    with pytest.raises(Error, match="must be the folder of a run, such as runs/exp, got 'nowhere'"):
        open_run("nowhere")
    Path("empty").mkdir()
    with pytest.raises(Error, match=r"must hold model.safetensors, got 'empty' without it"):
        open_run("empty")
