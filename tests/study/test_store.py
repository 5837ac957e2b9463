"""The database of a study."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanconv.errors import Error
from leanconv.study.store import Row, Store


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    values = {"test": 0.5, "loss": math.inf, "curve": [0.1, math.nan], "inner": {"a": None, "b": [1, "x"]}}
    with Store(tmp_path / "study.db", {"name": "a"}) as store:
        assert store.add(Row("run", "plain", 0, "", "diverged", 1.5, "w1", values))
    with Store(tmp_path / "study.db", {"name": "a"}) as store:
        (row,) = store.rows()
        assert row.key == ("run", "plain", 0, "")
        assert (row.status, row.seconds, row.worker) == ("diverged", 1.5, "w1")
        assert row.values is not None
        assert row.values["loss"] == math.inf
        assert math.isnan(row.values["curve"][1])
        assert row.values["inner"] == values["inner"]
        assert row.finished.endswith("Z")
        assert store.keys() == {row.key}


def test_a_piece_of_work_counts_once_and_the_first_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "study.db") as store:
        assert store.add(Row("run", "plain", 0, values={"test": 1}))
        assert not store.add(Row("run", "plain", 0, values={"test": 2}))
        assert store.add(Row("run", "plain", 1))
        assert store.add(Row("pilot", "plain", 0, "lr=0.1"))
        assert store.add(Row("pilot", "plain", 0, "lr=0.2"))
        assert [row.values for row in store.rows("run")] == [{"test": 1}, {}]
        with pytest.raises(Error, match="kind must be one of pilot, run"):
            store.add(Row("other", "plain", 0))


def test_another_study_version_or_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    Store(path, {"data": "abc", "seeds": 3}).close()
    with pytest.raises(Error, match="another data: 'abc', not 'def'"):
        Store(path, {"data": "def"})
    Store(path, {"seeds": 3, "more": [1]}).close()
    with Store(path) as store:
        assert store.about == {"data": "abc", "seeds": 3, "more": [1]}
        store.tell({"seeds": 5})
        assert store.about["seeds"] == 5
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(Error, match="format_version must be 1, got 99"):
        Store(path)
    assert path.read_bytes() == before
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(Error, match="got another program's"):
        Store(other)
    text = tmp_path / "text.db"
    text.write_text("no database at all, " * 100)
    with pytest.raises(Error, match="got: file is not a database"):
        Store(text)
    with pytest.raises(Error, match="got no such file"):
        Store(tmp_path / "none.db", create=False)
    with pytest.raises(Error, match="got: unable to open"):
        Store(tmp_path / "no" / "folder.db")


def test_export(tmp_path: Path) -> None:
    with Store(tmp_path / "study.db", {"name": "a"}) as store:
        store.add(Row("run", "plain", 0, values={"test": 0.5, "curve": [1]}))
        store.add(Row("run", "a,b", 1, status="diverged", values={"gap": 0.1, "loss": math.nan}))
        rows = list(csv.DictReader(io.StringIO(store.as_csv())))
        assert [row["arm"] for row in rows] == ["plain", "a,b"]
        assert (rows[0]["test"], rows[0]["gap"], rows[1]["gap"], rows[1]["loss"]) == ("0.5", "", "0.1", "nan")
        assert "curve" not in rows[0]
        whole = json.loads(store.as_json())
        assert whole["about"] == {"name": "a"}
        assert whole["results"][1]["values"] == {"gap": 0.1, "loss": "nan"}


_WRITER = """
import sys
from leanconv.study.store import Row, Store
store = Store(sys.argv[1])
for i in range(len(store.keys()), 100_000):
    store.add(Row("run", "plain", i, values={"curve": [i] * 200}))
    print(i, flush=True)
"""


@pytest.mark.parametrize("wait", [0.0, 0.013, 0.05])
def test_a_kill_loses_no_row_and_leaves_no_half_one(tmp_path: Path, wait: float) -> None:
    path = tmp_path / "study.db"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=env) as p:
        assert p.stdout is not None
        p.stdout.readline()
        time.sleep(wait)
        p.send_signal(signal.SIGKILL)
        told = [0, *map(int, p.stdout.read().split("\n")[:-1])]
    with Store(path) as store:
        rows = store.rows()
        assert [row.seed for row in rows] == list(range(len(rows)))
        assert len(rows) > told[-1]
        assert all(row.values == {"curve": [row.seed] * 200} for row in rows)
