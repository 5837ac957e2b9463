"""The work of a study on a real Ray cluster; Ray takes over its process, so each is a program of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from leanconv.errors import Error
from leanconv.study import cluster
from leanconv.study.cluster import Ray
from leanconv.study.work import Images
from study.made import striped

pytest.importorskip("ray")
DRIVER = Path(__file__).parent / "ray_driver.py"


def drive(place: Path, *words: str) -> dict[str, Any]:
    paths = [str(Path(__file__).parents[2] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(DRIVER), *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_node_is_lost_in_the_middle_and_no_result_is_lost_or_counted_twice(tmp_path: Path) -> None:
    found = drive(tmp_path, "killed")
    assert found["workers"] == 3
    assert [seed for seed, _ in found["rows"]] == list(range(40))
    begun_there = {int(seed) for node, seed in found["begun"] if node == found["lost"]}
    done_there = {seed for seed, node in found["rows"] if node == found["lost"]}
    elsewhere = {int(seed) for node, seed in found["begun"] if node != found["lost"]}
    assert begun_there, "the node that was lost was to have work"
    assert begun_there - done_there <= elsewhere
    assert len(begun_there) < 40 // 2


@pytest.mark.slow
def test_many_tasks_and_each_once(tmp_path: Path) -> None:
    assert drive(tmp_path, "noops", "300")["seeds"] == list(range(300))


@pytest.mark.slow
def test_what_cannot_be_done_is_told_in_a_sentence(tmp_path: Path) -> None:
    assert drive(tmp_path, "refused") == {"error": "study: arm must not be asked for, got it"}
    assert "must end, got 11 lost workers" in drive(tmp_path, "dies")["error"]


@pytest.mark.slow
def test_a_study_on_what_is_left_of_a_cluster(tmp_path: Path) -> None:
    images = striped(tmp_path / "images.npz")
    found = drive(tmp_path, "trained", str(images))["study"]
    runs = [(arm, seed) for kind, arm, seed, _ in found["rows"] if kind == "run"]
    assert sorted(runs) == sorted({(arm, seed) for arm, _ in runs for seed in range(2)})
    done = [(arm, seed) for kind, arm, seed, status in found["rows"] if kind == "run" and status == "done"]
    assert found["models"] == sorted(f"runs/s/{arm}/{seed}/model.safetensors" for arm, seed in done)
    assert not any(path.name.startswith(".") for path in (tmp_path / "runs/s").rglob("*"))


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that nobody answers."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{one.getsockname()[1]}"


def test_an_address_that_does_not_answer(silent: str) -> None:
    with pytest.raises(Error, match=f"--address must answer within 5 s, got {silent}"):
        Ray(Images("demo"), [], silent)


@pytest.mark.parametrize("address", ["here", "here:port", ":6379", "ray://", "a:0", "a:99999"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(Error, match=r"--address must be HOST:PORT, ray://HOST:PORT or auto, got '"):
        Ray(Images("demo"), [], address)


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cluster, "import_module", missing)
    with pytest.raises(Error, match=r"--engine ray needs Ray \(pip install 'leanconv\[ray\]'\), got none"):
        Ray(Images("demo"), [])
