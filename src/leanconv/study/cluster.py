"""The work of a study on a Ray cluster: every piece a task with the cores that it needs; what a lost node had goes on
elsewhere."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import leanconv
from leanconv.errors import Error
from leanconv.recipe import Recipe
from leanconv.study.node import work
from leanconv.study.store import Row
from leanconv.study.task import Task
from leanconv.study.work import Images, pack
from leanconv.training.folder import RUNS

__all__ = ["Ray"]

ATTEMPTS = 10
"""A task is begun anew so many times, should each node that has it be lost."""
AHEAD = 1_000
"""Tasks that the cluster holds at once; the others wait here."""
PATIENCE = 5.0
"""Seconds within which an address must answer."""

Work = Callable[[dict[str, Any], Mapping[str, Any], str], tuple[dict[str, Any], bytes | None]]


class Ray:
    """A Ray cluster, or Ray on this machine alone.

    The nodes need leanconv of the same version and Ray; the images reach them through Ray. A training's folder comes
    back with its result and lies under ``runs`` as if it had been trained here.

    Args:
        images: of the study.
        recipes: all that will be asked for, so that the images are read here, once.
        address: of the cluster, ``host:port``, or ``ray://host:port``; None: one is started on this machine.
        cores: that one task takes.
        do: runs on the nodes, as :func:`leanconv.study.node.work`.

    Raises:
        Error: Ray is missing, nothing answers at the address, or no node has so many cores.
    """

    def __init__(
        self,
        images: Images,
        recipes: Sequence[Recipe],
        address: str | None = None,
        cores: int = 1,
        do: Work = work,
    ) -> None:
        self._ray = _need()
        self._connect(address)
        try:
            nodes = [node["Resources"].get("CPU", 0.0) for node in self._ray.nodes() if node["Alive"]]
            self.workers = sum(int(found // cores) for found in nodes)
            if not self.workers:
                raise Error(f"study: a node of the cluster must have {cores} cores, got {max(nodes, default=0):g}")
            self._images = {name: self._ray.put(held) for name, held in pack(images, recipes).items()}
            self._do = self._ray.remote(num_cpus=cores, max_retries=ATTEMPTS)(do).remote
        except BaseException:
            self._ray.shutdown()
            raise

    def _connect(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            self._ray.init(include_dashboard=False, **quiet)
            return
        _answers(address)
        try:
            self._ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Error(f"study: --address must be that of a Ray cluster, got {address} ({said})") from None

    def run(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """As :meth:`leanconv.study.engine.Engine.run`."""
        todo = iter(tasks)
        held: dict[Any, Task] = {}

        def more() -> None:
            while len(held) < AHEAD:
                task = next(todo, None)
                if task is None:
                    return
                held[self._do(task.to_dict(), self._images, leanconv.__version__)] = task

        try:
            more()
            while held:
                # Those that are there already come in one call, which matters where there are thousands.
                done, _ = self._ray.wait(list(held), num_returns=1)
                more_done, _ = self._ray.wait(list(held), num_returns=len(held), timeout=0)
                for reference in dict.fromkeys([*done, *more_done]):
                    yield self._row(reference, held.pop(reference))
                more()
        finally:
            for reference in held:
                self._ray.cancel(reference, force=True)

    def _row(self, reference: Any, task: Task) -> Row:
        what = f"{task.kind} {task.arm}, seed {task.seed}"
        try:
            row, packed = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Error):
                raise Error(str(cause)) from None
            said = str(error).strip().splitlines()[-1]
            raise Error(f"study: {what} must end, got {said}") from None
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
            raise Error(f"study: {what} must end, got {ATTEMPTS + 1} lost workers ({said})") from None
        if packed is not None:
            _unpack(packed, RUNS / task.name)
        return Row(**row)

    def close(self) -> None:
        """As :meth:`leanconv.study.engine.Engine.close`."""
        self._ray.shutdown()


def _need() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise Error("study: --engine ray needs Ray (pip install 'leanconv[ray]'), got none") from None


def _answers(address: str) -> None:
    """Whether somebody is there, asked before Ray is, which would try for minutes and may end the process."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Error(f"study: --address must be HOST:PORT, ray://HOST:PORT or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise Error(f"study: --address must answer within {PATIENCE:g} s, got {address} ({error})") from None


def _unpack(packed: bytes, folder: Path) -> None:
    """Whole or not at all: beside its place first, then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(Path(beside) / "new", filter="data")
        with suppress(FileNotFoundError):
            folder.rename(Path(beside) / "old")
        (Path(beside) / "new").rename(folder)
