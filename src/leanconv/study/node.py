"""What a Ray process does with a piece of work: it hands it to a worker of its own, as the driver does on one machine.

Knows no torch: within a Ray process its import may never end (Ray 2.60, torch 2.13).
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import leanconv
from leanconv.errors import Error
from leanconv.study.engine import Slot
from leanconv.study.task import Task

__all__ = ["work"]

RUNS = Path("runs")
_slots: dict[tuple[str, ...], Slot] = {}
_home = Path()


def work(task: dict[str, Any], images: Mapping[str, Any], version: str) -> tuple[dict[str, Any], bytes | None]:
    """Do it on this node, in a folder of its own.

    Args:
        task: as :meth:`leanconv.study.task.Task.to_dict` gives it.
        images: file name -> Ray's reference to the bytes, as of :func:`leanconv.study.work.pack`.
        version: of leanconv that the driver has.

    Returns:
        The row's values by name, and the training's folder as a tar archive where it leaves one.

    Raises:
        Error: the task cannot be done, or this node has another version.
    """
    if leanconv.__version__ != version:
        raise Error(f"study: nodes must have leanconv {version}, got {leanconv.__version__} on {socket.gethostname()}")
    what = Task(**task)
    slot = _slot(images)
    row = slot.do(what)
    folder = _home / RUNS / what.name
    packed = None
    if what.name and folder.is_dir():
        packed = _pack(folder)
        shutil.rmtree(folder)
    return vars(row), packed


def _slot(images: Mapping[str, Any]) -> Slot:
    """The worker of this process for these images; one process serves one study."""
    global _home
    key = tuple(f"{name} {reference}" for name, reference in sorted(images.items()))
    if key not in _slots:
        for slot in _slots.values():
            slot.end()
        _slots.clear()
        _home = Path(tempfile.mkdtemp(prefix="leanconv-"))
        ray = import_module("ray")
        sent = _home / "images"
        sent.mkdir()
        for name, reference in images.items():
            (sent / name).write_bytes(ray.get(reference))
        # Ray's processes are the worker's parent and no more; the folder is where `runs` will lie.
        os.chdir(_home)
        _slots[key] = Slot(str(sent), "--sent")
    return _slots[key]


def _pack(folder: Path) -> bytes:
    into = io.BytesIO()
    with tarfile.open(fileobj=into, mode="w") as archive:
        archive.add(folder, arcname=".")
    return into.getvalue()
