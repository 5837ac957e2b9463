"""From the name of data to a :class:`DataSet`."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch

from leanconv.data.dataset import DataSet, Facts, Split
from leanconv.data.folder import folder
from leanconv.data.found import Found
from leanconv.data.hub import PREFIX, hub
from leanconv.data.images import Progress
from leanconv.data.noise import noisy
from leanconv.data.reading import Form, read
from leanconv.data.splitting import stratified
from leanconv.data.tables import npz, parquet, parquet_files
from leanconv.errors import Error

__all__ = ["found", "load"]


def load(
    data: str | Path,
    *,
    imgsz: int | None = None,
    in_chans: int | None = None,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    label_noise: float = 0.0,
    cache: bool = True,
    strict: bool = False,
    progress: Progress | None = None,
) -> DataSet:
    """Read a set of images.

    Args:
        data: ``demo`` (5,000 + 1,000 images of Fashion-MNIST, in the package; ``./demo`` is a folder of that name),
            a folder of images: ``train/<class>/*`` with ``val`` (``valid``, ``validation``) and ``test`` where they
            exist, or flat ``<class>/*``; a parquet file or a folder of them (:func:`leanconv.data.tables.parquet`); an
            ``.npz`` (:func:`leanconv.data.tables.npz`); or ``hf:owner/name``, a set of the Hugging Face hub, which
            alone is ever fetched.
        imgsz: side in pixels; None: the images' own where all are equal, square and at most 96, else 64.
        in_chans: 1 grey, 3 colour; None: 1 where every image is grey, else 3.
        val: share of the training images that selects, where there is no ``val`` folder.
        test: share of a flat folder's images that is held out; 0: none. With a ``train`` folder it is not used.
        seed: of both shares, which are stratified, and of the noise.
        label_noise: share of the training labels that are replaced by another class; 0 <= label_noise < 1.
        cache: keep decoded squares in :func:`leanconv.data.cache_folder` and map them; False: decode into memory. Sets
            of at most 8 MiB of files and 64 MiB of squares are held in memory in any case.
        strict: an unreadable image is an error.
        progress: called with (images done, images in all) while images are decoded.

    Returns:
        The set; unreadable files are named in ``notes`` and ``skipped``, with reasons in ``facts``.

    Raises:
        Error: no such data, an empty one, fewer than two classes, no readable image (or, ``strict``, one that is not),
            a class too small to be split, a class that training does not know, a missing package, or a value out of
            range.
    """
    _ranges(imgsz, in_chans, val, test, label_noise)
    form = Form(imgsz, in_chans, val, test, seed, label_noise, cache, strict)
    if str(data) == "demo" and not isinstance(data, Path):
        return _demo(form)
    if not str(data).strip():
        raise Error("data: must be the name demo, a file or a folder, got an empty name")
    return read(found(data), form, progress)


def found(data: str | Path, known: tuple[str, ...] | None = None) -> Found:
    """What a source other than ``demo`` holds, no image decoded.

    Args:
        data: as for :func:`load`.
        known: the classes, where they are known already: then no training images are needed.

    Raises:
        Error: as :func:`load`.
    """
    if isinstance(data, str) and data.startswith(PREFIX):
        return hub(data, known)
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() == ".parquet":
        return parquet(path, known)
    if path.is_file() and path.suffix.lower() == ".npz":
        return npz(path, known)
    return parquet(path, known) if path.is_dir() and parquet_files(path) else folder(path, known)


def _demo(form: Form) -> DataSet:
    imgsz, in_chans = form.imgsz, form.in_chans
    if imgsz not in (None, 28):
        raise Error(f"data: the images of demo are 28 pixels wide, got imgsz={imgsz}")
    if in_chans not in (None, 1):
        raise Error(f"data: the images of demo are grey (in_chans=1), got in_chans={in_chans}")
    with as_file(files("leanconv.data").joinpath("fashion", "fashion.npz")) as path, np.load(path) as packed:
        images, labels = torch.from_numpy(packed["images"])[:, None], packed["labels"].astype(np.int64)
        classes, n = tuple(str(name) for name in packed["classes"]), int(packed["train"])
    parts = stratified(labels[:n], {"val": form.val}, classes, form.seed)
    chosen = {**parts, "test": np.arange(n, len(labels))}
    splits = {name: Split(images[torch.from_numpy(i)], torch.from_numpy(labels[i])) for name, i in chosen.items()}
    source = "demo: 5,000 + 1,000 images of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT)"
    splits["train"], noise = noisy(splits["train"], len(classes), form.label_noise, form.seed)
    told = (f"val is {form.val:.0%} of the 5,000, stratified, seed {form.seed}", *noise)
    made = DataSet.build(splits, classes, source, told)
    return replace(made, facts=Facts(len(labels), {"L": len(labels)}, {"28x28": len(labels)}, (28, 28)))


def _ranges(imgsz: int | None, in_chans: int | None, val: float, test: float, label_noise: float) -> None:
    if imgsz is not None and imgsz < 1:
        raise Error(f"data: imgsz must be at least 1, got imgsz={imgsz}")
    if in_chans not in (None, 1, 3):
        raise Error(f"data: in_chans must be 1 or 3, got in_chans={in_chans}")
    if not 0 < val < 1:
        raise Error(f"data: val must satisfy 0 < val < 1, got val={val}")
    if not 0 <= test < 1:
        raise Error(f"data: test must satisfy 0 <= test < 1, got test={test}")
    if not 0 <= label_noise < 1:
        raise Error(f"data: label_noise must satisfy 0 <= label_noise < 1, got label_noise={label_noise}")
