"""A study that is killed again and again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study.made import striped

RECIPE = """\
format_version: 1
model: {name: plain, options: {width: 4}}
training: {epochs: 2, batch: 32, lr: 0.05, momentum: 0.9, threads: 1}
techniques: {batchnorm: {}, l2: {strength: 1.0e-3, form: lambda/2, where: optimizer}}
"""


def rows(database: Path) -> dict[tuple[str, str, int, str], tuple[int, str]]:
    if not database.is_file():
        return {}
    with sqlite3.connect(database) as db:
        found = db.execute("select kind, arm, seed, variant, id, finished from results").fetchall()
    db.close()
    return {(kind, arm, seed, variant): (number, when) for kind, arm, seed, variant, number, when in found}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    images = striped(tmp_path / "images.npz")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "leanconv", "study"]
    new = [*command, str(images), "--recipe", "recipe.yaml", "--seeds", "2", "--name", "s", "--no-sides"]
    database = tmp_path / "runs/s/study.db"
    rng = random.Random(0)
    before: dict[tuple[str, str, int, str], tuple[int, str]] = {}
    kills = 0
    for attempt in range(40):
        words = [*command, "--resume", "s"] if database.is_file() else new
        with (tmp_path / f"{attempt}.log").open("w") as log:
            process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log)
            try:
                # The longer it goes on, the longer it may, so that it ends.
                process.wait(rng.uniform(3, 10 + 3 * attempt))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        after = rows(database)
        assert {key: after.get(key) for key in before} == before, "a row was lost or measured anew"
        before = after
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, (tmp_path / f"{attempt}.log").read_text()
    assert process.returncode == 0
    assert kills >= 3
    runs = sorted((arm, seed) for kind, arm, seed, _ in before if kind == "run")
    assert runs == sorted((arm, seed) for arm in ("plain", "batchnorm", "l2", "all") for seed in (0, 1))
    assert (tmp_path / "runs/s/report.html").is_file()
    time.sleep(1)
    left = subprocess.run(["pgrep", "-f", f"leanconv.study.worker {images}"], capture_output=True, text=True)
    assert left.stdout == "", "workers outlived their driver"
