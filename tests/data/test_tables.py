"""Parquet files, npz archives and sets of the hub."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from leanconv import data
from leanconv.errors import Error

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def pixels(n: int, side: int = 8, seed: int = 0, channels: tuple[int, ...] = (3,)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, *channels), dtype=np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def table(
    path: Path, labels: list[Any], names: list[str] | None = None, struct: bool = True, seed: int = 0, **columns: Any
) -> list[NDArray[np.uint8]]:
    """Write a parquet file; returns its pixels."""
    arrays = list(pixels(len(labels), seed=seed))
    images: list[Any] = [png(a) for a in arrays]
    if struct:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": b, "path": None} for b in images], kind)
    else:
        column = pa.array(images, pa.binary())
    made = pa.table({"image": column, "label": pa.array(labels), **columns})
    if names:
        told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(told)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=7)
    return arrays


@pytest.mark.parametrize("struct", [True, False])
def test_one_parquet_file_is_split_by_shares(tmp_path: Path, struct: bool) -> None:
    arrays = table(tmp_path / "all.parquet", [i % 3 for i in range(60)], ["x", "y", "z"], struct)
    loaded = data.load(tmp_path / "all.parquet")
    assert loaded.classes == ("x", "y", "z")
    assert {name: len(split) for name, split in loaded.splits.items()} == {"train": 42, "val": 6, "test": 12}
    seen = set()
    for split in loaded.splits.values():
        for image, label, name in zip(split.images, split.labels.tolist(), split.files, strict=True):
            row = int(name.removeprefix("all.parquet[").removesuffix("]"))
            seen.add(row)
            assert label == row % 3
            assert np.array_equal(image.numpy().transpose(1, 2, 0), arrays[row])
    assert seen == set(range(60))


@pytest.mark.parametrize("layout", ["{}-00000-of-00001.parquet", "data/{}.parquet", "{}/0000.parquet"])
def test_names_of_files_tell_the_splits_and_classes_are_matched_by_name(tmp_path: Path, layout: str) -> None:
    table(tmp_path / layout.format("train"), [0, 1, 1, 0, 1, 0], ["cat", "dog"])
    table(tmp_path / layout.format("validation"), [0, 0, 1], ["dog", "cat"], seed=1)
    table(tmp_path / layout.format("test"), ["dog", "cat"], seed=2)
    loaded = data.load(tmp_path)
    assert loaded.classes == ("cat", "dog")
    assert loaded.counts == {
        "train": {"cat": 3, "dog": 3},
        "val": {"cat": 1, "dog": 2},
        "test": {"cat": 1, "dog": 1},
    }
    assert loaded.val.labels.tolist() == [1, 1, 0]


def test_several_files_of_one_split_are_joined(tmp_path: Path) -> None:
    table(tmp_path / "train-00000-of-00002.parquet", [0, 1, 0, 1], seed=0)
    table(tmp_path / "train-00001-of-00002.parquet", [0, 1, 0, 1], seed=1)
    table(tmp_path / "extra.parquet", [0, 1, 5], seed=2)
    loaded = data.load(tmp_path)
    assert len(loaded.train) + len(loaded.val) == 8
    assert loaded.test is None
    assert any("name no split were passed over: extra.parquet" in note for note in loaded.notes)


def test_numbers_without_names_are_classes_in_their_order(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [2, 10, 3] * 4)
    assert data.load(tmp_path / "a.parquet").classes == ("2", "3", "10")


def test_rows_without_image_or_label_are_skipped_and_named(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", [0, 1] * 8 + [None, -1])
    stored = pq.read_table(tmp_path / "a.parquet")
    images = stored["image"].to_pylist()
    images[3], images[4] = {"bytes": images[3]["bytes"][:60], "path": None}, {"bytes": b"", "path": None}
    pq.write_table(stored.set_column(0, "image", pa.array(images)), tmp_path / "a.parquet")
    loaded = data.load(tmp_path / "a.parquet")
    assert loaded.skipped == ("a.parquet[3]", "a.parquet[4]", "a.parquet[16]", "a.parquet[17]")
    assert [one.kind for one in loaded.facts.unreadable] == ["truncated", "empty", "missing", "missing"]
    assert sum(map(len, loaded.splits.values())) == 14


def test_bad_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"

    def refused(message: str) -> None:
        with pytest.raises(Error) as caught:
            data.load(file)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    file.write_bytes(b"PAR1 no")
    refused("must be a whole parquet file, got ArrowInvalid")
    file.write_bytes(b"")
    refused("must be a whole parquet file")
    pq.write_table(pa.table({"photo": [b"x"], "label": [1]}), file)
    refused("must have a column 'image', got 'photo', 'label'")
    pq.write_table(pa.table({"image": [b"x"], "class": [1]}), file)
    refused("must have a column 'label', got 'image', 'class'")
    pq.write_table(pa.table({"image": ["path.png"], "label": [1]}), file)
    refused("must hold bytes, or structs with bytes, as 'image', got string")
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0.5, 1.0]}), file)
    refused("must be integers or text, got float")
    pq.write_table(pa.table({"image": [b"x", b"y"], "label": [0, 1]}), file)
    refused("must be readable, got 2 that are not (the first is a.parquet[0])")
    table(file, [0, 1, 7], ["x", "y"])
    refused("must be from 0 to 1, got 7")
    table(file, [1, 1, 1])
    refused("must have at least two classes with images, got 1")
    file.unlink()
    table(tmp_path / "train.parquet", ["a", "b"] * 3)
    table(tmp_path / "val.parquet", ["a", "zebra"])
    file = tmp_path
    refused("every class of val must be a class of train, got 'zebra'")


def test_pyarrow_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "a.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(Error, match=r"parquet files need pyarrow \(pip install 'leanconv\[parquet\]'\), got none"):
        data.load(tmp_path / "a.parquet")


@pytest.mark.parametrize("form", ["NHW", "NHWC", "NCHW", "NHW1", "N1HW"])
def test_npz_in_every_layout(tmp_path: Path, form: str) -> None:
    plain = pixels(30, channels=() if "C" not in form else (3,))
    stored = {
        "NHW": plain, "NHWC": plain, "NCHW": np.moveaxis(plain, -1, 1), "NHW1": plain[..., None], "N1HW": plain[:, None]
    }[form]  # fmt: skip
    np.savez(tmp_path / "a.npz", images=stored, labels=np.arange(30)[:, None] % 3, classes=["u", "v", "w"])
    loaded = data.load(tmp_path / "a.npz")
    assert loaded.classes == ("u", "v", "w")
    assert loaded.in_chans == (3 if "C" in form else 1)
    for image, name in zip(loaded.train.images, loaded.train.files, strict=True):
        row = int(name.split("[")[1][:-1])
        assert np.array_equal(image.numpy().transpose(1, 2, 0).squeeze(), plain[row])


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}"])
def test_npz_with_splits(tmp_path: Path, keys: str) -> None:
    arrays = {}
    for split, n in (("train", 20), ("val", 6), ("test", 4)):
        image, label = (key.format(split) for key in keys.split())
        arrays |= {image: pixels(n, 9, n), label: np.arange(n) % 2}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    loaded = data.load(tmp_path / "a.npz", imgsz=5)
    assert {name: len(split) for name, split in loaded.splits.items()} == {"train": 20, "val": 6, "test": 4}
    assert loaded.imgsz == 5


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.array([{"a": 1}, 2], object), "labels": np.arange(2)}, "a pickle, which is never loaded"),
        ({"images": pixels(4), "labels": np.array([None, 1, 0, 1], object)}, "a pickle, which is never loaded"),
        ({"images": pixels(4).astype(np.float32), "labels": np.arange(4) % 2}, "must be uint8 (4, H, W)"),
        ({"images": pixels(4)[:3], "labels": np.arange(4) % 2}, "got uint8 (3, 8, 8, 3)"),
        ({"images": pixels(4, channels=(5,)), "labels": np.arange(4) % 2}, "got uint8 (4, 8, 8, 5)"),
        ({"images": pixels(4, 0), "labels": np.arange(4) % 2}, "got uint8 (4, 0, 0, 3)"),
        ({"images": pixels(4), "labels": np.eye(4)}, "must be integers or text (N,), got float64 (4, 4)"),
        ({"images": pixels(4), "labels": np.zeros(4, np.int64)}, "at least two classes with images, got 0"),
        ({"images": pixels(4), "labels": np.array([0, 1, 2, -5])}, "must be at least 0, got -5"),
        ({"pictures": pixels(4)}, "must hold images and labels, or train_images and train_labels, got pictures"),
        ({"test_images": pixels(4), "test_labels": np.arange(4)}, "must hold images and labels"),
        (
            {
                "train_images": pixels(8), "train_labels": np.arange(8) % 2,
                "test_images": pixels(2), "test_labels": np.array([0, 9]),
            },
            "every class of test must be a class of train, got '9'",
        ),
    ],
)  # fmt: skip
def test_bad_npz(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(Error) as caught:
        data.load(tmp_path / "a.npz")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, images=pixels(20), labels=np.arange(20) % 2)
    whole = file.read_bytes()
    single = io.BytesIO()
    np.save(single, np.arange(3))
    for content in (b"", b"text", whole[: len(whole) // 2], single.getvalue()):
        file.write_bytes(content)
        with pytest.raises(Error, match=r"must be an .npz archive of arrays, got "):
            data.load(file)


class Table:
    """As much of a Hugging Face table as is used."""

    def __init__(self, labels: list[int], seed: int, decoded: bool = True) -> None:
        self.arrays, self.labels, self.decoded = pixels(len(labels), seed=seed), labels, decoded
        Named = type("ClassLabel", (), {"names": ["cat", "dog"]})
        self.features = {"id": type("Value", (), {})(), "img": type("Image", (), {})(), "label": Named()}
        self._fingerprint = f"f{seed}"

    def cast_column(self, name: str, kind: Any) -> Table:
        assert (name, kind.decode) == ("img", False)
        self.decoded = False
        return self

    def __getitem__(self, key: Any) -> Any:
        assert not self.decoded
        if key == "label":
            return self.labels
        return {"img": {"bytes": png(self.arrays[key]), "path": None}, "label": self.labels[key]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for the package ``datasets``; the list tells what was asked for."""
    asked: list[str] = []

    def load_dataset(name: str) -> dict[str, Table]:
        asked.append(name)
        if name == "a/gone":
            raise FileNotFoundError("no such\n set")
        return {"train": Table([0, 1] * 10, 0), "validation": Table([1, 0], 1), "unsupervised": Table([-1, -1], 2)}

    module = ModuleType("datasets")
    vars(module).update(load_dataset=load_dataset, Image=lambda decode: type("I", (), {"decode": decode})())
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_set_of_the_hub(hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path))
    loaded = data.load("hf:a/b")
    assert hub == ["a/b"]
    assert loaded.classes == ("cat", "dog")
    assert loaded.counts == {"train": {"cat": 10, "dog": 10}, "val": {"cat": 1, "dog": 1}}
    assert np.array_equal(loaded.train.images[3].numpy().transpose(1, 2, 0), Table([0, 1] * 10, 0).arrays[3])
    again = data.load("hf:a/b")
    assert again.fingerprint == loaded.fingerprint
    assert torch.equal(again.train.images, loaded.train.images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:gone", "must be named hf:owner/name, got 'hf:gone'"),
        ("hf:", "must be named hf:owner/name"),
        ("hf:a/b/c", "must be named hf:owner/name"),
        ("hf:../../etc", "must be named hf:owner/name"),
        ("hf:a/gone", "must be a set that the hub gives, got FileNotFoundError: no such set"),
    ],
)
def test_bad_names_of_the_hub(hub: list[str], name: str, message: str) -> None:
    with pytest.raises(Error) as caught:
        data.load(name)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["uoft-cs/cifar10", "owner/name", "imges", "HF:a/b", " hf:a/b", "./hf:a/b"])
def test_a_mistyped_path_never_fetches(hub: list[str], name: str) -> None:
    with pytest.raises(Error, match="got nothing at"):
        data.load(name)
    assert hub == []


def test_datasets_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(Error, match=r"hf:a/b needs datasets \(pip install 'leanconv\[hub\]'\), got none"):
        data.load("hf:a/b")
