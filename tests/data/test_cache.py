"""Decoded squares on the disk: used, rebuilt, given up."""

from __future__ import annotations

import builtins
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv import data
from leanconv.data import cache, reading
from leanconv.errors import Error
from leanconv.runtime import images


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, used for sets of any size."""
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "_SMALL_FILES", -1)
    return tmp_path / "cache" / "images"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
        os.utime(path, (1e9, 1e9))
    return tmp_path / "set"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was decoded, and what was opened for its header or hash."""
    seen: list[Any] = []
    real = images.pixels
    monkeypatch.setattr(images, "pixels", lambda picture, *form: (seen.append(picture), real(picture, *form))[1])
    return seen


def same(a: data.DataSet, b: data.DataSet) -> bool:
    return (
        a.fingerprint == b.fingerprint
        and (a.mean, a.std, a.classes, a.skipped, a.facts) == (b.mean, b.std, b.classes, b.skipped, b.facts)
        and list(a.splits) == list(b.splits)
        and all(torch.equal(a.splits[s].images, b.splits[s].images) for s in a.splits)
        and all(torch.equal(a.splits[s].labels, b.splits[s].labels) for s in a.splits)
        and all(a.splits[s].files == b.splits[s].files for s in a.splits)
    )


def test_a_cached_set_equals_the_decoded_one_and_is_mapped(root: Path, place: Path, decoded: list[Any]) -> None:
    plain = data.load(root, imgsz=8, cache=False)
    assert not place.exists()
    assert len(decoded) == 40
    first = data.load(root, imgsz=8)
    assert len(decoded) == 80
    second = data.load(root, imgsz=8)
    assert len(decoded) == 80
    assert same(plain, first)
    assert same(plain, second)
    assert [p.stat().st_size for p in place.glob("*.u8")] == [40 * 3 * 8 * 8]
    assert not list(place.glob("*.part"))


def test_an_unchanged_folder_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = data.load(root, imgsz=8)
    opened: list[str] = []
    real = builtins.open

    def spy(file: Any, *rest: Any, **more: Any) -> Any:
        opened.append(str(file))
        return real(file, *rest, **more)

    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(Path, "open", lambda self, *rest, **more: spy(self, *rest, **more))
    monkeypatch.setattr(Image, "open", lambda file, *rest: spy(file))
    assert same(data.load(root, imgsz=8), first)
    assert not [name for name in opened if name.startswith(str(root))]


def test_a_changed_file_is_noticed(root: Path, decoded: list[Any]) -> None:
    first = data.load(root, imgsz=8)
    path = root / "a" / "00.png"
    array = np.asarray(Image.open(path)).copy()
    array[4:8, 4:8] ^= 255
    Image.fromarray(array).save(path)
    del decoded[:]
    second = data.load(root, imgsz=8)
    assert len(decoded) == 40
    assert second.fingerprint != first.fingerprint


def test_a_file_of_this_moment_is_not_trusted_by_its_time(root: Path) -> None:
    """Written twice within the clock's resolution: size and time equal, content not."""
    for path in root.rglob("*.png"):
        os.utime(path)
    before = data.load(root, imgsz=8)
    path = root / "a" / "00.png"
    stamp = path.stat().st_mtime_ns
    content = bytearray((root / "a" / "02.png").read_bytes())
    path.write_bytes(content + b"\0" * max(0, path.stat().st_size - len(content)))
    os.utime(path, ns=(stamp, stamp))
    assert data.load(root, imgsz=8).fingerprint != before.fingerprint


def test_another_size_form_or_seed(root: Path, decoded: list[Any], place: Path) -> None:
    data.load(root, imgsz=8)
    data.load(root, imgsz=9)
    data.load(root, imgsz=8, in_chans=1)
    assert len(decoded) == 120
    other = data.load(root, imgsz=8, seed=1, val=0.3, test=0.4)
    assert len(decoded) == 120, "another split arranges the same squares anew"
    assert same(other, data.load(root, imgsz=8, seed=1, val=0.3, test=0.4, cache=False))
    assert len(list(place.glob("*.u8"))) == 3
    moved = root.rename(root.with_name("elsewhere"))
    del decoded[:]
    data.load(moved, imgsz=8)
    assert not decoded, "keyed by content, not by name"


def test_unreadable_images_are_remembered_too(root: Path, decoded: list[Any]) -> None:
    whole = (root / "a" / "00.png").read_bytes()
    (root / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "empty.png").write_bytes(b"")
    for path in (root / "b").iterdir():
        os.utime(path, (1e9, 1e9))
    plain = data.load(root, imgsz=8, cache=False)
    assert {one.name: one.kind for one in plain.facts.unreadable} == {"b/cut.png": "truncated", "b/empty.png": "empty"}
    assert same(plain, data.load(root, imgsz=8))
    del decoded[:]
    assert same(plain, data.load(root, imgsz=8))
    assert not decoded
    with pytest.raises(Error, match=r"every image must be readable, got b/(cut|empty).png \((truncated|zero bytes)\)"):
        data.load(root, imgsz=8, strict=True)
    (root / "b" / "empty.png").unlink()
    for cached in (True, False):
        with pytest.raises(Error, match=r"every image must be readable, got b/cut.png \(truncated\)"):
            data.load(root, imgsz=8, strict=True, cache=cached)


@pytest.mark.parametrize("damage", ["cut", "flipped", "longer", "gone", "json", "json cut", "json wrong", "order"])
def test_damaged_files_are_rebuilt(root: Path, place: Path, decoded: list[Any], damage: str) -> None:
    first = data.load(root, imgsz=8, cache=False)
    data.load(root, imgsz=8)
    (pixels,) = place.glob("*.u8")
    told = next(p for p in place.glob("*.json") if not p.name.startswith("seen-"))
    content = bytearray(pixels.read_bytes())
    match damage:
        case "cut":
            pixels.write_bytes(content[:-1])
        case "flipped":
            content[1234] ^= 1
            pixels.write_bytes(content)
        case "longer":
            pixels.write_bytes(content + b"\0")
        case "gone":
            pixels.unlink()
        case "json":
            told.write_bytes(b"\xff\x00")
        case "json cut":
            told.write_bytes(told.read_bytes()[:-9])
        case "json wrong":
            told.write_text("[1, 2]")
        case "order":
            values = json.loads(told.read_text())
            values["order"] = values["order"][:-1]
            told.write_text(json.dumps(values))
    del decoded[:]
    assert same(data.load(root, imgsz=8), first)
    assert len(decoded) == 40
    assert same(data.load(root, imgsz=8), first)
    assert len(decoded) == 40


def test_a_touched_file_of_the_same_content_is_used(root: Path, place: Path, decoded: list[Any]) -> None:
    data.load(root, imgsz=8)
    (pixels,) = place.glob("*.u8")
    os.utime(pixels)
    del decoded[:]
    data.load(root, imgsz=8)
    assert not decoded


def test_a_damaged_memo_is_read_anew(root: Path, place: Path) -> None:
    first = data.load(root, imgsz=8)
    (memo,) = place.glob("seen-*.json")
    for text in (
        "",
        "{",
        "[]",
        '{"decoder": 1, "files": []}',
        json.dumps({"decoder": cache.decoder(), "files": {"x": 1}}),
    ):
        memo.write_text(text)
        assert same(data.load(root, imgsz=8), first)
    values = json.loads(memo.read_text())
    for entry in values["files"].values():
        entry[2] = [["?"]]
    memo.write_text(json.dumps(values))
    assert same(data.load(root, imgsz=8), first)


def test_writing_into_a_batch_of_mapped_images_reaches_no_file_and_warns_of_nothing(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = data.load(root, imgsz=8)
    first.train.images.zero_()
    again = data.load(root, imgsz=8)
    assert again.train.images.any()
    assert not first.train.images.any()


def test_clearing_removes_ours_alone(root: Path, place: Path, decoded: list[Any]) -> None:
    loaded = data.load(root, imgsz=8)
    (place / "letter.txt").write_text("mine")
    (place.parent / "other.json").write_text("mine")
    kept = loaded.train.images.clone()
    assert data.clear_cache() >= 40 * 192
    assert sorted(p.name for p in place.parent.rglob("*") if p.is_file()) == ["letter.txt", "other.json"]
    assert torch.equal(loaded.train.images, kept), "a mapped file lives on until it is let go"
    assert data.clear_cache() == 0
    del decoded[:]
    data.load(root, imgsz=8)
    assert len(decoded) == 40


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert data.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LEANCONV_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data.cache_folder() == tmp_path / "xdg" / "leanconv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / ".cache" / "leanconv"


def test_small_sets_are_held_in_memory(root: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SMALL_FILES", 1 << 20)
    small = data.load(root, imgsz=8)
    assert not place.exists()
    monkeypatch.setattr(reading, "_SMALL_SQUARES", 100)
    assert same(data.load(root, imgsz=8), small)
    assert list(place.glob("*.u8")), "few bytes of files can be many of squares"


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX's")
def test_a_full_disk_falls_back_to_memory(root: Path, tmp_path: Path, place: Path) -> None:
    plain = data.load(root, imgsz=8, cache=False)
    code = f"""
import resource, signal
from leanconv import data
from leanconv.data import reading
reading._SMALL_FILES = -1
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
loaded = data.load({str(root)!r}, imgsz=8)
print(loaded.fingerprint)
print(loaded.notes[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stamp, note = done.stdout.splitlines()
    assert stamp == plain.fingerprint
    assert note.endswith("could not be written (File too large): images are held in memory")
    assert not list(place.glob("*.u8"))
    assert not list(place.glob("*.part"))


def test_several_processes_at_once(root: Path) -> None:
    """Each decodes or maps, whatever the others do meanwhile; an image that is truncated makes all rearrange."""
    whole = (root / "a" / "00.png").read_bytes()
    (root / "b" / "cut.png").write_bytes(whole[: len(whole) // 2])
    plain = [data.load(root, imgsz=8, seed=seed, cache=False).fingerprint for seed in (0, 1)]
    code = f"""
from leanconv import data
from leanconv.data import reading
reading._SMALL_FILES = -1
for turn in range(20):
    loaded = data.load({str(root)!r}, imgsz=8, seed=turn % 2)
    assert loaded.fingerprint == {plain!r}[turn % 2]
    assert loaded.train.images.any()
    if turn % 5 == 4:
        data.clear_cache()
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [process.communicate()[1] for process in running]
    assert told == ["", "", ""]


def test_a_cache_that_is_a_file_falls_back_to_memory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "file"))
    loaded = data.load(root, imgsz=8)
    assert "could not be written (Not a directory): images are held in memory" in loaded.notes[0]
    assert same(loaded, data.load(root, imgsz=8, cache=False))


def test_what_killed_processes_left_is_swept(root: Path, place: Path) -> None:
    place.mkdir(parents=True)
    for name, age in (("old.part", 1e9), ("new.part", None)):
        (place / name).write_bytes(b"x")
        if age:
            os.utime(place / name, (age, age))
    data.load(root, imgsz=8)
    assert [p.name for p in place.glob("*.part")] == ["new.part"]
