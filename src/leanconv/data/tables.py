"""Images from parquet files and from ``.npz`` archives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.data.found import SPLITS, Found, Part, Rows, joined, split_of
from leanconv.data.images import Picture
from leanconv.errors import Error

__all__ = ["named", "npz", "parquet", "parquet_files"]

_BATCH = 64
_IMAGE, _LABEL = ("image", "img"), ("label", "labels", "fine_label")


def parquet_files(root: Path) -> list[Path]:
    """The parquet files of a folder, of its ``data`` folder, or of its split folders, sorted."""
    places = [root, root / "data", *(root / name for names in SPLITS.values() for name in names)]
    return sorted(p for place in places if place.is_dir() for p in place.glob("*.parquet") if p.is_file())


def parquet(root: Path, known: tuple[str, ...] | None = None) -> Found:
    """Parquet files with a column of images (bytes, or structs that hold ``bytes``) and one of labels.

    One file is split by shares; of several the names tell the split: ``train-00000-of-00002.parquet``. Names of
    classes come from Hugging Face's metadata where it is there, else they are the labels themselves.

    Args:
        root: a file or a folder of them.
        known: the classes, where they are known already: then no training images are needed.

    Raises:
        Error: pyarrow is missing, a file is damaged, or a column is missing or of another type.
    """
    try:
        pq = import_module("pyarrow.parquet")
    except ImportError:
        raise Error("data: parquet files need pyarrow (pip install 'leanconv[parquet]'), got none") from None
    files = [root] if root.is_file() else parquet_files(root)
    splits = _splits(root, files)
    rows = [_rows(pq, path, split, path.name) for path, split in splits.items()]
    first = np.cumsum([0, *(r.part.count for r in rows)])

    def pictures(places: Sequence[int]) -> Iterator[Picture]:
        wanted = np.asarray(places, np.int64)
        for i, path in enumerate(splits):
            here = wanted[(first[i] <= wanted) & (wanted < first[i + 1])] - first[i]
            yield from _images(pq, path, here, rows[i].labels)

    found = joined(rows, pictures, f"parquet {root}", str(root.resolve()), known)
    passed = [path.name for path in files if path not in splits]
    told = (f"files that name no split were passed over: {', '.join(passed)}",) if passed else ()
    return Found(**{**vars(found), "notes": told})


def _splits(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    if root.is_file() or len(files) == 1:
        return {files[0]: "all"}
    named = {p: split_of(p.name) or (split_of(p.parent.name) if p.parent != root else None) for p in files}
    known = {path: split for path, split in named.items() if split}
    return known or dict.fromkeys(files, "all")


def _rows(pq: Any, path: Path, split: str, file: str) -> Rows:
    try:
        with pq.ParquetFile(path) as opened:
            schema = opened.schema_arrow
            image, label = _column(path, schema, _IMAGE), _column(path, schema, _LABEL)
            _need_bytes(path, schema.field(image))
            values = opened.read(columns=[label]).column(label).to_pylist()
    except Error:
        raise
    except Exception as error:  # pyarrow's own kinds
        raise Error(f"data: {path} must be a whole parquet file, got {_said(error)}") from None
    features = _features(schema.metadata or {})
    known = features.get(label, {})
    labels, names = named(values, known.get("names") if isinstance(known, dict) else None, str(path))
    return Rows(split, labels, names, file, Part(len(labels), path))


def _column(path: Path, schema: Any, names: Sequence[str]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise Error(f"data: {path} must have a column {names[0]!r}, got {', '.join(map(repr, schema.names)) or 'none'}")


def _need_bytes(path: Path, field: Any) -> None:
    kind = str(field.type)
    inner = {f.name: str(f.type) for f in field.type} if kind.startswith("struct") else {"bytes": kind}
    if inner.get("bytes") not in ("binary", "large_binary"):
        raise Error(f"data: {path} must hold bytes, or structs with bytes, as {field.name!r}, got {kind[:80]}")


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (KeyError, ValueError, TypeError):
        return {}


def _images(pq: Any, path: Path, places: NDArray[np.int64], labels: Sequence[str | None]) -> Iterator[Picture]:
    """In batches of 64 rows: a group of rows is never in memory as a whole, decoded."""
    if not len(places):
        return
    wanted, start = set(places.tolist()), 0
    with pq.ParquetFile(path) as opened:
        column = _column(path, opened.schema_arrow, _IMAGE)
        for batch in opened.iter_batches(_BATCH, columns=[column], use_threads=False):
            values = batch.column(0)
            for i in range(len(values)):
                if start + i in wanted:
                    value = values[i].as_py() if labels[start + i] is not None else None
                    yield value.get("bytes") if isinstance(value, dict) else value
            start += len(values)


def named(values: Sequence[Any], names: Sequence[str] | None, where: str) -> tuple[list[str | None], list[str]]:
    """Labels to class names, and all names in order. None and -1, by which tables hide labels, become None.

    Raises:
        Error: labels that are neither integers nor text, or out of the names' range.
    """
    kinds = {type(v) for v in values if v is not None}
    if kinds <= {str}:
        found = sorted({v for v in values if v is not None})
        return list(values), list(names) if names and set(found) <= set(names) else found
    if kinds != {int}:
        got = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise Error(f"data: labels of {where} must be integers or text, got {got}")
    numbers = sorted({v for v in values if v is not None and v != -1})
    top = len(names) if names else None
    wrong = [v for v in numbers if v < 0 or (top is not None and v >= top)]
    if wrong:
        rule = f"from 0 to {top - 1}" if top else "at least 0"
        raise Error(f"data: labels of {where} must be {rule}, got {wrong[0]}")
    told = {v: str(names[v]) if names else str(v) for v in numbers}
    every = [str(name) for name in names] if names else list(told.values())
    return [told.get(v) for v in values], every


def npz(path: Path, known: tuple[str, ...] | None = None) -> Found:
    """An archive with ``images`` and ``labels``, or ``train_images``, ``train_labels`` and the same of val and test.

    Images are uint8 (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W); labels (N,) or (N, 1), integers or text;
    ``classes`` may hold names. ``x_train``, ``y_train`` and so on are understood too. Pickles are never loaded.

    Args:
        path: the file.
        known: the classes, where they are known already: then no training images are needed.

    Raises:
        Error: not such an archive, arrays missing, or of other shapes or types.
    """
    arrays = _archive(path)
    keys = _keys(path, arrays, known is not None)
    names = [str(name) for name in arrays["classes"]().reshape(-1)] if "classes" in arrays else None
    rows, counts = [], [0]
    for split, (image, label) in keys.items():
        values = _labels(path, label, arrays[label]())
        texts, every = named(values, names, f"{path.name}:{label}")
        rows.append(Rows(split, texts, every, f"{path.name}:{image}", Part(len(texts), path, image)))
        counts.append(counts[-1] + len(texts))

    def pictures(places: Sequence[int]) -> Iterator[Picture]:
        wanted = np.asarray(places, np.int64)
        for i, (image, _) in enumerate(keys.values()):
            here = wanted[(counts[i] <= wanted) & (wanted < counts[i + 1])] - counts[i]
            if len(here):
                stored = _upright(path, image, arrays[image](), rows[i].part.count)
                yield from (stored[j] if rows[i].labels[j] is not None else None for j in here)

    return joined(rows, pictures, f"npz {path}", str(path.resolve()), known)


def _archive(path: Path) -> dict[str, Callable[[], NDArray[Any]]]:
    """Key -> a call that reads that array."""

    def read(key: str) -> NDArray[Any]:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
                array: NDArray[Any] = opened[key]
                return array
        except Exception as error:  # zipfile's, zlib's, numpy's
            why = "a pickle, which is never loaded" if "allow_pickle" in str(error) else _said(error)
            raise Error(f"data: {key} of {path} must be a plain array, got {why}") from None

    try:
        with path.open("rb") as file:  # np.load leaves a file open that it cannot read
            opened = np.load(file, allow_pickle=False)
            if isinstance(opened, np.ndarray):
                raise ValueError("a single array")
            with opened:
                keys = list(opened.files)
    except Exception as error:
        why = "a pickle, which is never loaded" if "allow_pickle" in str(error) else _said(error)
        raise Error(f"data: {path} must be an .npz archive of arrays, got {why}") from None
    return {key: lambda key=key: read(key) for key in keys}  # type: ignore[misc]


def _keys(path: Path, arrays: Mapping[str, Any], any_form: bool) -> dict[str, tuple[str, str]]:
    """Split -> its keys of images and labels."""
    if "images" in arrays and "labels" in arrays:
        return {"all": ("images", "labels")}
    found = {}
    for split, names in SPLITS.items():
        pairs = [(f"{n}_images", f"{n}_labels") for n in names] + [(f"x_{n}", f"y_{n}") for n in names]
        present = [pair for pair in pairs if pair[0] in arrays and pair[1] in arrays]
        if present:
            found[split] = present[0]
    if "train" not in found and not (found and any_form):
        got = ", ".join(arrays) or "nothing"
        raise Error(f"data: {path} must hold images and labels, or train_images and train_labels, got {got}")
    return found


def _labels(path: Path, key: str, array: NDArray[Any]) -> list[Any]:
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "iuU":
        raise Error(f"data: {key} of {path} must be integers or text (N,), got {array.dtype} {array.shape}")
    values: list[Any] = flat.tolist()
    return values


def _upright(path: Path, key: str, array: NDArray[Any], count: int) -> NDArray[np.uint8]:
    """(N, H, W) or (N, H, W, 3)."""
    shape = array.shape
    if array.dtype == np.uint8 and len(shape) in (3, 4) and shape[0] == count and 0 not in shape:
        if len(shape) == 3:
            return array
        if shape[3] in (1, 3):
            return array[..., 0] if shape[3] == 1 else array
        if shape[1] in (1, 3):
            return array[:, 0] if shape[1] == 1 else array.transpose(0, 2, 3, 1)
    rule = f"uint8 ({count}, H, W), ({count}, H, W, 1 or 3) or ({count}, 1 or 3, H, W)"
    raise Error(f"data: {key} of {path} must be {rule}, got {array.dtype} {shape}")


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
