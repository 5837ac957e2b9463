"""docs/source.md is complete, true in what it names, and `make source` judges it as it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
IDS = [f"S{i}" for i in range(1, 29) if i != 9] + ["S9a", "S9b"]
MARK = re.compile(r"mark\.source\(([^)]*)\)")


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("leanconv_source_tool", ROOT / "tools" / "source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


TOOL = tool()
TEXT = (ROOT / "docs" / "source.md").read_text(encoding="utf-8")
ROWS: dict[str, Any] = TOOL.read(TEXT)
NAMED = sorted(
    {name for row in ROWS.values() for name in re.findall(r"`(leanconv\.[\w.]+)`", row.fields["Names"])}
    | set(re.findall(r"`(leanconv\.[\w.]+)`", (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")))
)


def test_every_row_is_there_once() -> None:
    assert sorted(ROWS) == sorted(IDS)


@pytest.mark.parametrize("name", NAMED)
def test_every_name_exists(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return
    raise AssertionError(f"{name}: no such module")


def test_every_command_exists() -> None:
    from leanconv.cli import COMMANDS

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for row in ROWS.values():
        for command in re.findall(r"`([^`]+)`", row.fields["Command"]):
            program, word, *_ = command.split()
            assert program in ("make", "leanconv"), f"{row.id}: {command}"
            known = word in COMMANDS if program == "leanconv" else re.search(rf"^{word}:", makefile, re.MULTILINE)
            assert known, f"{row.id}: {command}"


def test_marks_name_rows_and_shown_rows_have_marks() -> None:
    marked: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        if file != Path(__file__):
            marked |= {
                row for mark in MARK.findall(file.read_text(encoding="utf-8")) for row in re.findall(r"S\w+", mark)
            }
    assert marked <= set(ROWS), sorted(marked - set(ROWS))
    bare = [row.id for row in ROWS.values() if row.status != "open" and row.id not in marked]
    assert not bare, f"rows that no test shows: {bare}"
    shown = [row.id for row in ROWS.values() if row.status == "open" and row.id in marked]
    assert not shown, f"open rows that tests show: {shown}"


def test_every_open_row_says_why() -> None:
    for row in ROWS.values():
        assert (row.status == "shown") == (row.reason == ""), row.id


# --- the tool on small projects of its own ---------------------------------------------------------------------------

ROW = """### {id} · {id} as title
- **The text:** says
  something.
- **leanconv:** has it.
- **Differs:** -
- **Names:** -
- **Command:** -
- **Status:** {status}
"""
GOOD = """import pytest

@pytest.mark.source("S1", "S2")
@pytest.mark.parametrize("n", [1, 2])
def test_two(n):
    pass

@pytest.mark.source("S3")
@pytest.mark.slow
def test_slow():
    pass

def test_not_run():
    raise AssertionError
"""
BAD = """import pytest

@pytest.fixture
def torn():
    yield
    raise AssertionError

@pytest.mark.source("S1")
def test_good():
    pass

@pytest.mark.source("S4")
def test_fails():
    raise AssertionError

@pytest.mark.source("S5")
def test_skipped():
    pytest.skip("no")

@pytest.mark.source("S6")
@pytest.mark.xfail
def test_expected():
    raise AssertionError

@pytest.mark.source("S7")
def test_torn(torn):
    pass

@pytest.mark.source("S1", "S77")
def test_strange():
    pass

@pytest.mark.source
def test_bare():
    pass
"""
INI = "[pytest]\naddopts = -q --strict-markers\nmarkers =\n  source(row): r\n  slow: s\n"


def made(folder: Path, statuses: dict[str, str], tests: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run the tool on a project of these rows and tests: exit code, its JSON, what it said on stderr."""
    (folder / "tests").mkdir()
    (folder / "pytest.ini").write_text(INI)
    (folder / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (folder / "tests" / "test_rows.py").write_text(tests)
    rows = "\n".join(ROW.format(id=row, status=status) for row, status in statuses.items())
    (folder / "rows.md").write_text(f"# Rows\n\n{rows}", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools" / "source.py"), "--json", "--rows", "rows.md", "--tests", "tests"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "LEANCONV_"))}
    done = subprocess.run([*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def results(found: dict[str, Any]) -> dict[str, str]:
    return {row["row"]: row["result"] for row in found["rows"]}


def test_rows_are_what_they_say(tmp_path: Path) -> None:
    statuses = {"S1": "shown", "S2": "open in part: half of it", "S3": "open: later"}
    code, found, said = made(tmp_path, statuses, GOOD)
    assert (code, results(found), found["wrong"]) == (0, {"S1": "ok", "S2": "ok", "S3": "ok"}, []), said
    first = found["rows"][0]
    assert [test.rpartition("::")[2] for test in first["passed"]] == ["test_two[1]", "test_two[2]"]
    assert (first["title"], first["failed"], found["rows"][1]["reason"]) == ("S1 as title", [], "half of it")


def test_it_works_with_workers_and_slow_tests(tmp_path: Path) -> None:
    code, found, said = made(tmp_path, dict.fromkeys(("S1", "S2", "S3"), "shown"), GOOD, "-n", "2", "--slow")
    assert (code, found.get("wrong")) == (0, []), said
    assert [len(row["passed"]) for row in found["rows"]] == [2, 2, 1]


def test_whatever_is_wrong_is_found(tmp_path: Path) -> None:
    statuses = {
        "S1": "open: later",
        "S2": "shown",
        "S3": "open in part: x",
        **dict.fromkeys(("S4", "S5", "S6"), "shown"),
    }
    code, found, said = made(tmp_path, {**statuses, "S7": "shown", "S8": "open: later"}, BAD)
    assert code == 1
    expected = {"S2": "no passing test", "S3": "no passing test", "S4": "1 failing", "S5": "no passing test"}
    expected |= {"S6": "no passing test", "S7": "1 failing", "S8": "ok"}
    got = results(found)
    assert got.pop("S1").startswith("has passing tests")
    assert got == expected
    rule = "a mark must name a row of docs/source.md"
    assert f"tests/test_rows.py::test_strange: {rule}, got 'S77'" in found["wrong"]
    assert f"tests/test_rows.py::test_bare: {rule}, got none" in found["wrong"]
    assert "source: S4: 1 failing" in said


def test_a_file_that_cannot_be_imported_is_found(tmp_path: Path) -> None:
    code, found, _ = made(tmp_path, {"S1": "open: later"}, "import no_such_module\n")
    assert code == 1
    assert "tests/test_rows.py: cannot be imported" in found["wrong"]


@pytest.mark.parametrize("status", ["shown: a reason", "open", "done", "open:"])
def test_a_status_of_another_form_is_an_error(status: str) -> None:
    with pytest.raises(TOOL.Unreadable, match="S1: status must be"):
        TOOL.read(ROW.format(id="S1", status=status))


def test_what_cannot_be_read_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main(["--rows", str(tmp_path / "none.md")]) == 2
    assert "none.md" in capsys.readouterr().err


def test_a_row_twice_or_without_a_field_is_an_error() -> None:
    row = ROW.format(id="S1", status="shown")
    with pytest.raises(TOOL.Unreadable, match="S1: a row must stand once"):
        TOOL.read(row + "\n" + row)
    with pytest.raises(TOOL.Unreadable, match=r"got \['Names'\]"):
        TOOL.read(row.replace("- **Names:** -\n", ""))
    with pytest.raises(TOOL.Unreadable, match="'Names' twice"):
        TOOL.read(row + "- **Names:** -\n")


def test_the_table_has_every_row_and_every_reason() -> None:
    text = TOOL.table(TOOL.records(ROWS, TOOL.Outcomes()))
    for row in ROWS.values():
        assert re.search(rf"^{row.id}\s+{re.escape(row.title)}", text, re.MULTILINE)
        assert row.reason in text
