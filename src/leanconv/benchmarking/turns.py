"""Contenders in processes of their own that stay alive and take turns.

What belongs to a process, such as its allocator or another framework's Python, is then each contender's own, and yet
they are interleaved: one takes its steps while the others wait for a line of input. Only the standard library and plain
modules of leanconv are imported, since a contender may run in an environment without torch and numpy: give it
this package's parent folder as PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanconv.errors import Error

__all__ = ["Answers", "Contender", "in_turns", "ratios", "serve", "status", "summary"]

Answers = dict[str, list[dict[str, Any]]]
_UNWANTED = ("MALLOC_", "GLIBC_", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_", "KMP_")


class Contender:
    """A process whose code calls :func:`serve`; it is warm when this returns."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            name: for messages.
            command: program and arguments.
            environment: added to that of this process, from which glibc's own variables, and those that change how
                threads of OpenMP wait or where they run, are taken away first.

        Raises:
            Error: it ended before it was ready.
        """
        env = {key: value for key, value in os.environ.items() if not key.startswith(_UNWANTED)}
        self.name = name
        self._process = subprocess.Popen(
            command, env=env | dict(environment or {}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        try:
            self.about = self._answer()
        except BaseException:
            self.end()
            raise

    def take(self, steps: int) -> dict[str, Any]:
        """Have it do so many steps; what :func:`serve` says about them."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # a library may print what it likes
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise Error(f"{self.name}: its process must answer, got its end with code {self._process.wait()}")


def in_turns(contenders: Mapping[str, Contender], rounds: int, steps: Mapping[str, int]) -> Answers:
    """So many rounds, each beginning with another contender, steps per turn by name; they are ended, come what may.

    Returns:
        What each said in every round, and as ``others`` the seconds of processor time that went elsewhere meanwhile.
    """
    names = list(contenders)
    answers: Answers = {name: [] for name in names}
    try:
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                time.sleep(0.05)  # until the threads of the one before have stopped looking for work
                before = _elsewhere(contenders[name].pid)
                answers[name].append(contenders[name].take(steps[name]))
                answers[name][-1]["others"] = _elsewhere(contenders[name].pid) - before
    finally:
        for contender in contenders.values():
            contender.end()
    return answers


def serve(
    step: Callable[[], object],
    about: Mapping[str, Any],
    warmup: int = 3,
    more: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """In the contender: warm up, then take steps as told until the input ends.

    Answers hold, in lists over the steps, ``wall`` and ``cpu`` seconds; ``faults`` of pages per step; and ``peak`` and
    ``now``, bytes of this process in memory at most and at present (0 where the system does not tell); and what
    ``more`` says after the steps.
    """
    import resource

    for _ in range(warmup):
        step()
    print(json.dumps(dict(about)), flush=True)
    for line in sys.stdin:
        before, times = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, []
        for _ in range(int(line)):
            start, cpu = time.perf_counter(), time.process_time()
            step()
            times.append((time.perf_counter() - start, time.process_time() - cpu))
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / len(times)
        wall, busy = zip(*times, strict=True)
        memory = {"peak": status("VmHWM"), "now": status("VmRSS")}
        print(
            json.dumps({"wall": wall, "cpu": busy, "faults": faults, **memory, **(more() if more else {})}), flush=True
        )


def _elsewhere(pid: int) -> float:
    """Seconds of processor time that the machine has given to all but this process; 0 where it cannot be told."""
    if not Path("/proc/stat").exists():
        return 0.0
    ticks = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    busy = sum(ticks) - ticks[3] - ticks[4]  # neither idle nor waiting for disks
    return (busy - int(fields[11]) - int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status; 0 where there is none."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def summary(given: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, memory after the last; ``others``: cores that other processes had during its turns."""
    wall, cpu = (statistics.median(statistics.median(a[clock]) for a in given) for clock in ("wall", "cpu"))
    others = sum(a["others"] for a in given) / sum(sum(a["wall"]) for a in given)
    return {
        "others": round(max(0.0, others), 2),
        "wall_ms": round(1e3 * wall, 1),
        "cpu_ms": round(1e3 * cpu, 1),
        "faults_per_step": round(statistics.median(a["faults"] for a in given)),
        "peak_mb": round(given[-1]["peak"] / 1e6),
        "resident_mb": round(given[-1]["now"] / 1e6),
    }


def ratios(given: list[dict[str, Any]], base: list[dict[str, Any]], clock: str = "wall") -> list[float]:
    """One contender's time by the base's, round by round."""
    ours, theirs = ([statistics.median(a[clock]) for a in answers] for answers in (given, base))
    return [a / b for a, b in zip(ours, theirs, strict=True)]
