"""Folders to data sets: what is read, how it is split, and what is refused."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv import data
from leanconv.errors import Error

Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Write ``{"train/cat": 5, ...}`` as small distinct images; returns the root."""

    def make(counts: dict[str, int], size: tuple[int, int] = (12, 12), mode: str = "RGB", ending: str = "png") -> Path:
        rng = np.random.default_rng(0)
        root = tmp_path / "images"
        for where, count in counts.items():
            (root / where).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(root / where / f"{i:03}.{ending}")
        return root

    return make


def test_a_flat_folder_is_split_stratified_and_seeded(folder: Make) -> None:
    root = folder({"cat": 50, "dog": 20, "emu": 3})
    loaded = data.load(root)
    assert loaded.classes == ("cat", "dog", "emu")
    assert loaded.counts == {
        "train": {"cat": 36, "dog": 14, "emu": 1},
        "val": {"cat": 4, "dog": 2, "emu": 1},
        "test": {"cat": 10, "dog": 4, "emu": 1},
    }
    files = [name for split in loaded.splits.values() for name in split.files]
    assert len(files) == len(set(files)) == 73
    for split in loaded.splits.values():
        assert all(
            loaded.classes[y] == f.split("/")[0] for f, y in zip(split.files, split.labels.tolist(), strict=True)
        )
    assert data.load(root).fingerprint == loaded.fingerprint
    other = data.load(root, seed=1)
    assert other.counts == loaded.counts
    assert set(other.test.files) != set(loaded.test.files)
    assert any("test is 20%" in note for note in loaded.notes)


def test_pixels_and_labels_are_those_of_the_files(folder: Make) -> None:
    root = folder({"cat": 6, "dog": 6})
    for split in data.load(root).splits.values():
        for image, name in zip(split.images, split.files, strict=True):
            assert np.array_equal(image.numpy().transpose(1, 2, 0), np.asarray(Image.open(root / name)))


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_are_taken_as_they_are(folder: Make, val: str) -> None:
    root = folder({"train/b": 4, "train/a": 3, f"{val}/a": 2, f"{val}/b": 1, "test/b": 2})
    loaded = data.load(root)
    assert loaded.classes == ("a", "b")
    assert loaded.counts == {"train": {"a": 3, "b": 4}, "val": {"a": 2, "b": 1}, "test": {"a": 0, "b": 2}}
    assert loaded.notes == ("test has no image of a",)
    assert set(loaded.test.labels.tolist()) == {1}


def test_without_a_val_folder_the_training_images_give_it_and_test_stays(folder: Make) -> None:
    loaded = data.load(folder({"train/a": 20, "train/b": 20, "test/a": 2, "test/b": 2}))
    assert loaded.counts["val"] == {"a": 2, "b": 2}
    assert loaded.counts["train"] == {"a": 18, "b": 18}
    assert all(f.startswith("train/") for f in (*loaded.val.files, *loaded.train.files))
    assert all(f.startswith("test/") for f in loaded.test.files)


def test_without_a_test_folder_there_is_no_test(folder: Make) -> None:
    loaded = data.load(folder({"train/a": 5, "train/b": 5}))
    assert loaded.test is None
    assert list(loaded.splits) == ["train", "val"]
    assert data.load(folder({"train/a": 5}), test=0.5).test is None


def test_test_zero_keeps_every_image_of_a_flat_folder(folder: Make) -> None:
    loaded = data.load(folder({"a": 2, "b": 10}), test=0.0)
    assert loaded.test is None
    assert loaded.counts == {"train": {"a": 1, "b": 9}, "val": {"a": 1, "b": 1}}


def test_a_class_may_be_called_train(folder: Make) -> None:
    assert data.load(folder({"train": 5, "plane": 5})).classes == ("plane", "train")


def test_statistics_are_those_of_the_training_images(folder: Make) -> None:
    loaded = data.load(folder({"a": 10, "b": 10}))
    x = loaded.train.images.double() / 255
    for c in range(3):
        assert loaded.mean[c] == pytest.approx(x[:, c].mean().item(), rel=1e-12)
        assert loaded.std[c] == pytest.approx(x[:, c].std(unbiased=False).item(), rel=1e-12)


def test_constant_images_have_a_deviation_that_can_be_divided_by(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 0)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("L", (8, 8), value).save(tmp_path / name / f"{i}.png")
    assert data.load(tmp_path).std == (1 / 255,)


def test_the_fingerprint_knows_pixels_labels_and_classes(folder: Make) -> None:
    root = folder({"train/a": 4, "train/b": 4, "val/a": 1})
    first = data.load(root).fingerprint
    (root / "train/b").rename(root / "train/c")
    renamed = data.load(root).fingerprint
    Image.new("RGB", (12, 12)).save(root / "train/a/000.png")
    changed = data.load(root).fingerprint
    (root / "train/a/000.png").rename(root / "train/c/999.png")
    moved = data.load(root).fingerprint
    assert len({first, renamed, changed, moved}) == 4


@pytest.mark.parametrize(("sizes", "expected"), [([28, 28], 28), ([96, 96], 96), ([97, 97], 64), ([28, 30], 64)])
def test_the_size_is_the_images_own_where_they_agree_and_are_small(
    tmp_path: Path, sizes: list[int], expected: int
) -> None:
    for name, side in zip("ab", sizes, strict=True):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (side, side)).save(tmp_path / name / f"{i}.png")
    assert data.load(tmp_path).imgsz == expected
    assert data.load(tmp_path, imgsz=16).imgsz == 16


def test_oblong_images_of_one_size_are_64(folder: Make) -> None:
    assert data.load(folder({"a": 3, "b": 3}, size=(30, 20))).imgsz == 64


def test_grey_or_colour(folder: Make) -> None:
    root = folder({"a": 3, "b": 3}, mode="L")
    assert data.load(root).in_chans == 1
    colour = data.load(root, in_chans=3)
    assert torch.equal(colour.train.images[:, 0], colour.train.images[:, 2])
    Image.new("RGB", (12, 12), "red").save(root / "a" / "red.png")
    assert data.load(root).in_chans == 3
    assert data.load(root, in_chans=1).in_chans == 1


def test_unreadable_files_are_named_skipped_and_counted(folder: Make) -> None:
    root = folder({"a": 8, "b": 8}, ending="JPG")
    (root / "a" / "empty.jpeg").write_bytes(b"")
    whole = (root / "b" / "000.JPG").read_bytes()
    (root / "b" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "text.png").write_text("no image")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    loaded = data.load(root)
    assert set(loaded.skipped) == {"a/empty.jpeg", "b/cut.jpg", "b/text.png", "b/gone.png"}
    assert loaded.notes[0].startswith("4 of 20 images could not be read and were skipped: a/empty.jpeg, b/cut.jpg")
    assert sum(len(split) for split in loaded.splits.values()) == 16


def test_a_decompression_bomb_counts_as_unreadable(folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder({"a": 4, "b": 4})
    Image.new("RGB", (40, 40)).save(root / "a" / "big.png")  # more than the limit: a warning of Pillow's
    Image.new("RGB", (60, 60)).save(root / "a" / "huge.png")  # more than twice the limit: an error of Pillow's
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(data.load(root).skipped) == {"a/big.png", "a/huge.png"}


def test_hidden_and_other_files_are_passed_over(folder: Make) -> None:
    root = folder({"a": 4, "b": 4, ".cache": 2, "a/.thumbs": 3})
    (root / "a" / "._000.png").write_bytes(b"")
    (root / "a" / "labels.txt").write_text("")
    (root / "loose.png").write_bytes(b"")
    (root / "empty").mkdir()
    loaded = data.load(root, test=0)
    assert loaded.classes == ("a", "b")
    assert loaded.skipped == ()
    assert sum(len(split) for split in loaded.splits.values()) == 8
    told = " | ".join(loaded.notes)
    assert "1 files of images are no images by their ending" in told
    assert "1 images of images stand in no class folder" in told
    assert "empty has no images and is no class" in told


def test_nested_files_and_links_that_loop(folder: Make) -> None:
    root = folder({"a/x/y": 3, "a": 2, "b": 4})
    (root / "a" / "x" / "loop").symlink_to(root / "a", target_is_directory=True)
    (root / "b" / "up").symlink_to(root / "b", target_is_directory=True)
    (root / "c").symlink_to(root / "b", target_is_directory=True)
    loaded = data.load(root, test=0)
    assert loaded.classes == ("a", "b", "c")
    assert sum(len(split) for split in loaded.splits.values()) == 5 + 4 + 4


def test_progress_ends_at_all_files(folder: Make) -> None:
    calls: list[tuple[int, int]] = []
    data.load(folder({"a": 70, "b": 5}), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(64, 75), (75, 75)]


def test_names_in_any_script(folder: Make) -> None:
    assert data.load(folder({"猫": 3, "chien d'été": 3})).classes == ("chien d'été", "猫")


def build(root: Path, case: str) -> None:
    """The bad folders; each is refused."""
    (root / "d").mkdir()

    def images(where: str, count: int) -> None:
        (root / "d" / where).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("L", (8, 8), i).save(root / "d" / where / f"{i}.png")

    match case:
        case "one class":
            images("a", 5)
        case "one class over all":
            images("all/a", 5)
            images("all/b", 5)
        case "zero bytes":
            for name in "ab":
                (root / "d" / name).mkdir()
                for i in range(3):
                    (root / "d" / name / f"{i}.png").write_bytes(b"")
        case "no images":
            for name in "ab":
                (root / "d" / name).mkdir()
                (root / "d" / name / "x.png").write_text("text")
        case "loose":
            Image.new("L", (8, 8)).save(root / "d" / "x.png")
        case "no endings":
            (root / "d" / "a").mkdir()
            (root / "d" / "a" / "readme.txt").write_text("")
        case "too few":
            images("a", 5)
            images("b", 2)
        case "too few readable":
            images("train/a", 5)
            images("train/b", 1)
            (root / "d/train/b/broken.png").write_bytes(b"")
        case "no train":
            images("val/a", 2)
            images("test/a", 2)
        case "two vals":
            images("train/a", 2)
            images("val/a", 2)
            images("valid/a", 2)
        case "new class":
            images("train/a", 3)
            images("train/b", 3)
            images("test/zebra", 1)


REFUSED = {
    "empty": "must have a folder per class with images in it, got an empty folder",
    "one class": "must have at least two classes with images, got only 'a'",
    "one class over all": "got only 'all' (its 2 folders may be the classes: try ",
    "zero bytes": "must be readable, got 6 files of zero bytes (the first is a/0.png)",
    "no images": "must be readable, got 2 that are not (the first is a/x.png)",
    "loose": "must have a folder per class with images in it, got 1 images outside any class folder",
    "no endings": "must have a folder per class with images in it, got no image",
    "too few": "class 'b' must have at least 3 readable images (train and test and val get one each), got 2",
    "too few readable": "class 'b' must have at least 2 readable images (train and val get one each), got 1",
    "no train": "must have a folder train with a folder per class, got only val, test",
    "two vals": "must have one folder for val, got val and valid",
    "new class": "every class of test must be a class of train, got 'zebra'",
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_folders_are_refused_in_one_sentence_and_left_alone(tmp_path: Path, case: str) -> None:
    build(tmp_path, case)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(Error) as caught:
        data.load(tmp_path / "d")
    assert REFUSED[case] in str(caught.value)
    assert str(caught.value).startswith("data: ")
    assert "\n" not in str(caught.value)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "/no/such/place",
            {},
            "a .parquet or .npz file, or a folder that exists, got nothing at '/no/such/place'",
        ),
        ("", {}, "got an empty name"),
        (__file__, {}, "got a file at"),
        ("demo", {"imgsz": 32}, "28 pixels wide, got imgsz=32"),
        ("demo", {"in_chans": 3}, "got in_chans=3"),
        ("demo", {"val": 0.0}, "0 < val < 1, got val=0.0"),
        ("demo", {"val": 1.0}, "0 < val < 1, got val=1.0"),
        ("demo", {"test": -0.1}, "0 <= test < 1, got test=-0.1"),
        ("demo", {"imgsz": 0}, "imgsz must be at least 1, got imgsz=0"),
        ("demo", {"in_chans": 2}, "in_chans must be 1 or 3, got in_chans=2"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(Error) as caught:
        data.load(name, **options)
    assert message in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(folder: Make) -> None:
    root = folder({"a": 3})
    root.chmod(0)
    try:
        with pytest.raises(Error, match="must be readable, got Permission denied"):
            data.load(root)
    finally:
        root.chmod(0o755)


def test_demo_is_the_embedded_set() -> None:
    demo = data.load("demo")
    assert (len(demo.train), len(demo.val), len(demo.test)) == (4500, 500, 1000)
    assert (demo.imgsz, demo.in_chans, len(demo.classes)) == (28, 1, 10)
    assert set(demo.counts["test"].values()) == {100}
    assert set(demo.counts["train"].values()) == {450}
    assert demo.classes[0] == "T-shirt/top"
    assert demo.fingerprint == "983e8a40a43a3dd7ed88a8646933517c9cdef46343d41cd2a54b477e199c62bc"
    assert data.load("demo", seed=1).fingerprint != demo.fingerprint


def test_demo_has_no_test_image_among_the_training_images() -> None:
    demo = data.load("demo")
    seen = [{image.numpy().tobytes() for image in split.images} for split in demo.splits.values()]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_a_folder_called_demo_is_reached_by_a_path(folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder({"a": 3, "b": 3})
    root.rename(root.parent / "demo")
    monkeypatch.chdir(root.parent)
    assert len(data.load("demo").train) == 4500
    assert len(data.load("./demo").classes) == 2
    assert len(data.load(Path("demo")).classes) == 2


def test_the_licence_travels_with_the_embedded_images() -> None:
    place = Path(data.__file__).parent / "fashion"
    assert "The MIT License" in (place / "LICENSE").read_text()
    assert "Zalando" in (place / "README.md").read_text()
    assert (place / "fashion.npz").stat().st_size < 3_000_000
