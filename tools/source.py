"""`make source`: every row of docs/source.md, the tests that show it, and their result.

A row is shown by tests that bear ``@pytest.mark.source("S8")`` (several rows in one mark are fine). Its status stands
in docs/source.md, the only place that knows the rows:

    - **Status:** shown                         at least one of its tests passes
    - **Status:** open in part: <reason>        at least one of its tests passes, and the reason says what is missing
    - **Status:** open: <reason>                it has no passing test yet

Exit code 0 where every row is what it says; 1 where a row is not, a test fails or a mark names a row that does not
exist; 2 where docs/source.md cannot be read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^### (S\d+[a-z]?) · (.+)$")
FIELD = re.compile(r"^- \*\*([A-Za-z ]+):\*\* (.*)$")
STATUS = re.compile(r"^(shown|open in part|open)(?:: (.+))?$")
FIELDS = ("The text", "leanconv", "Differs", "Names", "Command", "Status")


class Unreadable(ValueError):
    """docs/source.md does not have the form that this file describes."""


@dataclass(frozen=True)
class Row:
    """One row of docs/source.md: ``fields`` by their bold label."""

    id: str
    title: str
    fields: Mapping[str, str]

    @property
    def status(self) -> str:
        """``shown``, ``open in part`` or ``open``."""
        return self._status()[0]

    @property
    def reason(self) -> str:
        """Why it is open; empty where it is shown."""
        return self._status()[1]

    def _status(self) -> tuple[str, str]:
        found = STATUS.match(self.fields["Status"])
        if found is None or (found[1] == "shown") == bool(found[2]):
            rule = "status must be 'shown', 'open in part: reason' or 'open: reason'"
            raise Unreadable(f"{self.id}: {rule}, got {self.fields['Status']!r}")
        return found[1], found[2] or ""


def read(text: str) -> dict[str, Row]:
    """The rows of docs/source.md by id, in its order.

    Raises:
        Unreadable: a row twice, without one of its fields, with one twice, or with a status of another form.
    """
    rows: dict[str, Row] = {}
    for block in re.split(r"^(?=#{1,3} )", text, flags=re.MULTILINE):
        lines = block.splitlines()
        heading = HEADING.match(lines[0]) if lines else None
        if heading is None:
            continue
        row = Row(heading[1], heading[2], _fields(heading[1], lines[1:]))
        missing = [label for label in FIELDS if label not in row.fields]
        if missing or row.id in rows:
            raise Unreadable(f"{row.id}: a row must stand once, with {', '.join(FIELDS)}, got {missing or 'it twice'}")
        rows[row.id] = row
        _ = row.status
    return rows


def _fields(row: str, lines: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    label = ""
    for line in lines:
        found = FIELD.match(line)
        if found is not None:
            label = found[1]
            if label in fields:
                raise Unreadable(f"{row}: a field must stand once, got {label!r} twice")
            fields[label] = found[2].strip()
        elif label and line.startswith("  "):
            fields[label] += " " + line.strip()
        else:
            label = ""
    return fields


@dataclass(eq=False)  # pytest keeps its plugins in sets
class Outcomes:
    """A pytest plugin: what became of each marked test, and which rows it names."""

    tests: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called for setup, call and teardown, here and with the reports of xdist's workers."""
        for name, value in report.user_properties:
            if name == "source" and isinstance(value, list):
                self.rows[report.nodeid] = [str(row) for row in value]
        if report.outcome == "failed":
            self.tests[report.nodeid] = "failed"
        elif report.outcome == "skipped" or report.when == "call":
            self.tests.setdefault(report.nodeid, "skipped" if hasattr(report, "wasxfail") else report.outcome)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported hides its tests."""
        if report.failed:
            self.broken.append(report.nodeid)

    def of(self, row: str, outcome: str) -> list[str]:
        """The tests of a row with this outcome."""
        return [test for test, rows in self.rows.items() if row in rows and self.tests.get(test) == outcome]


def judge(row: Row, passed: int, failed: int) -> str:
    """``ok``, or what is wrong with the row, in a few words."""
    if failed:
        return f"{failed} failing"
    if row.status == "open":
        return "ok" if not passed else "has passing tests: say 'shown', or 'open in part' and what is missing"
    return "ok" if passed else "no passing test"


def strangers(outcomes: Outcomes, rows: Mapping[str, Row]) -> list[str]:
    """Marks that name no row, as sentences."""
    rule = "a mark must name a row of docs/source.md"
    bare = [f"{test}: {rule}, got none" for test in outcomes.tests if test not in outcomes.rows]
    pairs = [(test, row) for test, named in outcomes.rows.items() for row in named if row not in rows]
    return bare + [f"{test}: {rule}, got {row!r}" for test, row in pairs]


def records(rows: Mapping[str, Row], outcomes: Outcomes) -> list[dict[str, object]]:
    """What `--json` prints: one record per row."""
    found: list[dict[str, object]] = []
    for row in rows.values():
        by = {outcome: outcomes.of(row.id, outcome) for outcome in ("passed", "failed", "skipped")}
        result = judge(row, len(by["passed"]), len(by["failed"]))
        about = {"row": row.id, "title": row.title, "status": row.status, "reason": row.reason}
        found.append({**about, **by, "result": result})
    return found


def table(found: list[dict[str, object]]) -> str:
    """The records as aligned text: row, tests, result, and what is open."""
    lines = [("row", "title", "tests", "status", "result")]
    for record in found:
        passed, failed, skipped = (len(record[k]) for k in ("passed", "failed", "skipped"))  # type: ignore[arg-type]
        tests = " + ".join(
            f"{count} {word}" for count, word in ((passed, "passed"), (failed, "failed"), (skipped, "skipped")) if count
        )
        lines.append(
            (str(record["row"]), str(record["title"]), tests or "-", str(record["status"]), str(record["result"]))
        )
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    text = ["  ".join([*(line[i].ljust(widths[i]) for i in range(4)), line[4]]) for line in lines]
    reasons = [f"{record['row']} {record['status']}: {record['reason']}" for record in found if record["reason"]]
    return "\n".join([*text, "", *reasons])


def run(tests: Path, arguments: list[str]) -> tuple[Outcomes, int]:
    """Run the marked tests under ``tests``; pytest's own output goes to stderr."""
    outcomes = Outcomes()
    command = ["-m", "source", "--no-header", "-p", "no:cacheprovider", str(tests), *arguments]
    with contextlib.redirect_stdout(sys.stderr):
        code = pytest.main(command, plugins=[outcomes])
    return outcomes, int(code)


def main(arguments: list[str] | None = None) -> int:
    """Run, judge, print; the exit code is described above."""
    parser = argparse.ArgumentParser(prog="source", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="records instead of the table")
    parser.add_argument("--slow", action="store_true", help="with the slow tests")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "source.md", metavar="FILE")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", metavar="DIR")
    parser.add_argument("-n", dest="workers", metavar="N", help="so many processes of pytest-xdist, or 'auto'")
    options = parser.parse_args(arguments)
    try:
        rows = read(options.rows.read_text(encoding="utf-8"))
    except (Unreadable, OSError) as error:
        print(f"source: {error}", file=sys.stderr)
        return 2
    extra = [*(["--slow"] if options.slow else []), *(["-n", options.workers] if options.workers else [])]
    outcomes, code = run(options.tests, extra)
    found = records(rows, outcomes)
    wrong = [*strangers(outcomes, rows), *(f"{name}: cannot be imported" for name in outcomes.broken)]
    wrong += [f"{record['row']}: {record['result']}" for record in found if record["result"] != "ok"]
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not wrong:
        wrong.append(f"pytest: ended with code {code}")
    print(json.dumps({"rows": found, "wrong": wrong}, ensure_ascii=False, indent=1) if options.json else table(found))
    for sentence in wrong:
        print(f"source: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
