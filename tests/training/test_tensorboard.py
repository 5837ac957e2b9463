"""TensorBoard files hold what ``metrics.jsonl`` holds, each epoch once, however often the training was interrupted."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interrupting import Interrupting
from leanconv import training
from leanconv.cli import main
from leanconv.errors import Error
from leanconv.results import read_metrics
from leanconv.training import Job, Stopped, tensorboard
from pictures import flat, quick

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def events(folder: Path) -> Iterator[tuple[str, int, float]]:
    """Name, step and value of every scalar: records of (length, checksum, event, checksum)."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        left = path.read_bytes()
        while left:
            (length,) = struct.unpack("<Q", left[:8])
            event = event_pb2.Event.FromString(left[12 : 12 + length])
            left = left[16 + length :]
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value


def test_every_epoch_once_also_when_interrupted() -> None:
    flat(Path("pics"))
    settings = quick(epochs=4)
    with pytest.raises(Stopped):
        training.run.run("pics", settings, Job("a", tensorboard=True), Interrupting(7))
    training.run.run("pics", settings, Job("a", resume=Path("runs/a"), tensorboard=True))
    found = list(events(Path("runs/a/tensorboard")))
    rows = read_metrics("runs/a")
    assert len(rows) == 4
    expected = {(name, row.epoch): value for row in rows for name, value in tensorboard.scalars(row)}
    assert len(found) == len(expected)
    for name, step, value in found:
        assert value == pytest.approx(expected[name, step], rel=1e-6)
    names = {name for name, _, _ in found}
    assert {"loss/C0", "accuracy/gap", "accuracy/val_balanced", "training/lr"} <= names
    assert any(name.startswith("layers/grad_norm/") for name in names)
    assert any(name.startswith("layers/std/") for name in names)


def test_without_the_package_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    flat(Path("pics"))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Error, match=r"need tensorboardX \(pip install 'leanconv\[tensorboard\]'\), got none"):
        training.run.run("pics", quick(), Job("a", tensorboard=True))
    assert not Path("runs").exists()


def test_the_command_writes_them() -> None:
    flat(Path("pics"))
    words = ["train", "pics", "--epochs", "1", "--batch", "7", "--imgsz", "28", "--name", "a", "--no-tune-allocator"]
    assert main([*words, "--model", "plain", "--tensorboard"]) == 0
    assert {step for _, step, _ in events(Path("runs/a/tensorboard"))} == {1}
    assert main([*words, "--model", "plain", "--overwrite"]) == 0
    assert not list(events(Path("runs/a/tensorboard")))
