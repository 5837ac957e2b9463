"""Who does a study's work: processes of this machine, each for many tasks."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from leanconv.errors import Error
from leanconv.study.store import Row, read
from leanconv.study.task import Task

__all__ = ["Engine", "Local", "Slot"]

ATTEMPTS = 3
"""A task is given to so many workers, should each of them die over it."""


class Engine(Protocol):
    """Does tasks in any order, several at once.

    Attributes:
        workers: how many at once.
    """

    workers: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """Each task's row, as soon as it is done.

        Raises:
            Error: a task cannot be done.
        """

    def close(self) -> None:
        """Let the workers go. A training that one of them is at is written down."""


class Local:
    """Processes of this machine. They stay between calls, so torch and the images are loaded once for each.

    Args:
        source: of the images.
        workers: processes at once.
    """

    def __init__(self, source: str | Path, workers: int) -> None:
        if workers < 1:
            raise Error(f"study: at least one worker is needed, got {workers}")
        self.workers = workers
        self._slots = [Slot(str(source)) for _ in range(workers)]

    def run(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """As :meth:`Engine.run`; what was begun when the caller stops asking is left where it stands."""
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        done: queue.SimpleQueue[Row | BaseException] = queue.SimpleQueue()
        ended = threading.Event()
        for task in tasks:
            todo.put(task)

        def serve(slot: Slot) -> None:
            with suppress(queue.Empty):
                while not ended.is_set():
                    task = todo.get_nowait()
                    try:
                        done.put(slot.do(task))
                    except BaseException as error:
                        done.put(error)
                        return

        threads = [threading.Thread(target=serve, args=(slot,), daemon=True) for slot in self._slots]
        for thread in threads:
            thread.start()
        try:
            for _ in tasks:
                result = done.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            ended.set()

    def close(self) -> None:
        """As :meth:`Engine.close`."""
        for slot in self._slots:
            slot.end()


class Slot:
    """The place of one process; one that dies is replaced.

    Args:
        source: of the images.
        more: words for its command line.
    """

    def __init__(self, source: str, *more: str) -> None:
        self.source, self.more = source, more
        self.process: subprocess.Popen[str] | None = None
        self.ended = False

    def do(self, task: Task) -> Row:
        """Have a task done.

        Raises:
            Error: it cannot be done, or every worker died over it.
        """
        code: int | None = None
        for _ in range(ATTEMPTS):
            line = self._ask(task)
            if line:
                answer = json.loads(line)
                if "error" in answer:
                    raise Error(answer["error"])
                return Row(**read(answer["row"]))
            process, self.process = self.process, None
            if process is not None:
                code = process.wait()
                _shut(process)
            if self.ended or code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
                raise KeyboardInterrupt
        raise Error(f"study: {task.kind} {task.arm}, seed {task.seed} must end, got {ATTEMPTS} dead workers ({code})")

    def _ask(self, task: Task) -> str:
        if self.process is None:
            command = [sys.executable, "-m", "leanconv.study.worker", self.source, *self.more]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None  # pipes were asked for
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(task.to_dict()) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self.process.stdout.readline()

    def end(self) -> None:
        """Tell the process to write its place down and leave."""
        self.ended = True
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        if process.poll() is None:
            process.kill()
            process.wait()
        _shut(process)


def _shut(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
