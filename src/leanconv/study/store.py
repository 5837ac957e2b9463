"""The results of a study: one SQLite file, one row per finished piece of work, written whole or not at all.

Only the process that drives a study writes. Rows are never changed: what was measured once stays, so a study that was
killed goes on with what is missing and repeats nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from leanconv.errors import Error

__all__ = ["FORMAT_VERSION", "KINDS", "Row", "Store", "plain", "read"]

FORMAT_VERSION = 1
_APPLICATION = 0x6C63_7374  # "lcst": tells our files from other programs' databases
KINDS = ("pilot", "run", "stable", "times")
"""What a row can be: a short training that chooses a learning rate, a training, the largest stable rate, the times."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    arm TEXT NOT NULL,
    seed INTEGER NOT NULL,
    variant TEXT NOT NULL,
    status TEXT NOT NULL,
    seconds REAL NOT NULL,
    worker TEXT NOT NULL,
    finished TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
    "values" TEXT NOT NULL,
    UNIQUE (kind, arm, seed, variant)
);
"""


@dataclass(frozen=True)
class Row:
    """One finished piece of work.

    Attributes:
        kind: one of :data:`KINDS`.
        arm: its name.
        seed: of the training.
        variant: tells pieces of one kind, arm and seed apart, such as the learning rate of a pilot; else empty.
        status: ``done``, or ``diverged``, which is a result too.
        seconds: that it took, on the worker that did it.
        worker: which one that was.
        values: what was measured, plain values.
        finished: when, ISO 8601, UTC; set by the database.
    """

    kind: str
    arm: str
    seed: int
    variant: str = ""
    status: str = "done"
    seconds: float = 0.0
    worker: str = ""
    values: Mapping[str, Any] | None = None
    finished: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes it the one it is."""
        return self.kind, self.arm, self.seed, self.variant


class Store:
    """The file of one study.

    Args:
        path: of the file.
        about: what the study is, plain values by name; a file that exists must say the same of those that it has.
        create: a file that does not exist is made; else that is an error.

    Raises:
        Error: a file of another program, another version or another study, or one that cannot be read or written.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any] | None = None, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise Error(f"{self.path}: must be the database of a study, got no such file")
        with self._told():
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            try:
                self._open(dict(about or {}))
            except BaseException:
                self._db.close()
                raise

    def _open(self, about: dict[str, Any]) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != _APPLICATION:
            raise Error(f"{self.path}: must be the database of a study, got another program's")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables and version != FORMAT_VERSION:
            raise Error(f"{self.path}: format_version must be {FORMAT_VERSION}, got {version}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        if not tables:
            self._db.execute(f"PRAGMA application_id={_APPLICATION}")
            self._db.execute(f"PRAGMA user_version={FORMAT_VERSION}")
            self._db.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
        have = self.about
        for key, value in about.items():
            if key in have and have[key] != value:
                raise Error(f"{self.path}: must be of this study, got another {key}: {have[key]!r}, not {value!r}")
        self.tell({key: value for key, value in about.items() if key not in have})

    @property
    def about(self) -> dict[str, Any]:
        """What the study is."""
        with self._told():
            return {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM about")}

    def tell(self, about: Mapping[str, Any]) -> None:
        """Write what the study is, by name; what was said of a name before is replaced."""
        rows = [(key, json.dumps(plain(value))) for key, value in about.items()]
        with self._told(), self._whole():
            self._db.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)

    def add(self, row: Row) -> bool:
        """Write one row, whole.

        Returns:
            False where that piece of work is there already: nothing is changed then, and it counts once.
        """
        if row.kind not in KINDS:
            raise Error(f"Row: kind must be one of {', '.join(KINDS)}, got {row.kind!r}")
        values = json.dumps(plain(row.values or {}), separators=(",", ":"))
        with self._told():
            done = self._db.execute(
                'INSERT OR IGNORE INTO results (kind, arm, seed, variant, status, seconds, worker, "values") '
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row.key, row.status, row.seconds, row.worker, values),
            )
        return done.rowcount == 1

    def rows(self, kind: str | None = None) -> list[Row]:
        """All rows, or those of one kind, in the order in which they were written."""
        query = 'SELECT kind, arm, seed, variant, status, seconds, worker, "values", finished FROM results'
        where, given = (" WHERE kind = ?", (kind,)) if kind else ("", ())
        with self._told():
            found = self._db.execute(query + where + " ORDER BY id", given).fetchall()
        return [Row(k, a, s, v, st, t, w, read(json.loads(values)), f) for k, a, s, v, st, t, w, values, f in found]

    def keys(self) -> set[tuple[str, str, int, str]]:
        """What is there already."""
        with self._told():
            return {tuple(row) for row in self._db.execute("SELECT kind, arm, seed, variant FROM results")}

    def as_json(self) -> str:
        """Everything, as one JSON text."""
        rows = [{**vars(row), "values": plain(row.values)} for row in self.rows()]
        return json.dumps({"format_version": FORMAT_VERSION, "about": self.about, "results": rows}, indent=1)

    def as_csv(self) -> str:
        """The trainings, a line each; a column for every number that any of them has."""
        rows = self.rows("run")
        numbers: dict[str, None] = {}
        for row in rows:
            numbers |= dict.fromkeys(k for k, v in (row.values or {}).items() if isinstance(v, int | float | str))
        file = io.StringIO()
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["arm", "seed", "status", "seconds", *numbers])
        for row in rows:
            values = row.values or {}
            out.writerow([row.arm, row.seed, row.status, f"{row.seconds:.3f}", *(values.get(k, "") for k in numbers)])
        return file.getvalue()

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise Error(f"{self.path}: must be a database that can be read and written, got: {reason}") from None


def plain(value: Any) -> Any:
    """Values as JSON has them; numbers that are not finite as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def read(value: Any) -> Any:
    """The inverse of :func:`plain`."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if isinstance(value, dict):
        return {key: read(inner) for key, inner in value.items()}
    return [read(inner) for inner in value] if isinstance(value, list) else value
