"""Measures a ``.lean`` file, alone or beside other programs."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leanconv.benchmarking import turns
from leanconv.benchmarking.records import Layer, Measured, Measurement, Report
from leanconv.errors import Error
from leanconv.results.medians import median_interval
from leanconv.runtime.file import read
from leanconv.runtime.plan import Plan, Step
from leanconv.runtime.work import macs

__all__ = ["AGAINST", "command", "measure"]

AGAINST = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "torch": ("torch", "torch.compile")}
"""What can be named -> the contenders that it stands for."""

_PEAKS = ("peak", "int8 peak")
_TURN = 0.04  # seconds that a contender has at a time
Progress = Callable[[str], None]
Commands = Mapping[str, Sequence[str]]


def measure(
    file: str | os.PathLike[str],
    against: Sequence[str] = (),
    *,
    batch: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    onnx: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    python: str = sys.executable,
    commands: Callable[[Mapping[str, Any]], Commands] | None = None,
    reference: Callable[[Mapping[str, Any]], Sequence[float]] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Time of a network, with its steps, its share of the processor's peak and others in the same rounds.

    Every contender is a process of its own; in each round each of them has one turn of 1 to 20 passes, and a burst of
    multiply-adds has one too. A round's figure is the median of its turn.

    Args:
        file: a ``.lean`` file.
        against: of :data:`AGAINST`; one whose package is missing is left out and named in the report.
        batch: images in a batch, each from 1.
        threads: each from 1 to 64; all contenders get as many.
        rounds: from 1; fewer than 6 give no interval of 95 %.
        onnx: the same network for onnxruntime and openvino; None: beside ``file``, with the ending ``.onnx``.
        run: the folder of a run, for torch.
        python: runs onnxruntime and openvino: one that has them, and numpy.
        commands: from a setup (``batch``, ``shape``, ``threads``) to further contenders: name -> words of a command
            whose process calls :func:`leanconv.benchmarking.turns.serve` with ``version`` and ``answers``.
        reference: from a setup to the answers that ``difference`` is from; None: those of the ``.lean`` file.
        progress: called with a few words before each measurement.

    Raises:
        Error: an argument out of range; a file is missing or refused; a contender failed.
    """
    _check(file, against, batch, threads, rounds, run)
    plan, _ = read(file)
    kinds = [kind for name in dict.fromkeys(against) for kind in AGAINST[name]]
    files = _files(Path(file), kinds, onnx, run)
    if any(map(_on_bytes(plan), plan.steps)):
        files["int8 peak"] = ""
    height, width, channels = plan.values[plan.input].shape
    shape = (channels, height, width)
    missing: dict[str, str] = {}
    executor, isa, path, made = "numpy", None, None, []
    for images in dict.fromkeys(batch):
        for count in dict.fromkeys(threads):
            if progress:
                progress(f"batch {images}, {count} thread{'s' if count > 1 else ''}")
            setup = {"batch": images, "shape": shape, "threads": count}
            wanted = {
                kind: command(kind, setup | {"file": each}, python if kind in ("onnxruntime", "openvino") else None)
                for kind, each in files.items()
                if kind not in missing
            }
            with _started(wanted | dict(commands(setup) if commands else {}), count, missing) as contenders:
                executor = contenders["leanconv"].about["executor"]
                if "peak" in contenders:
                    isa = contenders["peak"].about["isa"]
                if "int8 peak" in contenders:
                    path = contenders["int8 peak"].about["path"]
                made.append(_measured(plan, contenders, setup, rounds, reference(setup) if reference else None))
    for name in _PEAKS:
        missing.pop(name, None)
    name = os.path.basename(file)
    return Report(name, shape, macs(plan), executor, isa, path, missing, tuple(made))


def command(kind: str, setup: Mapping[str, Any], python: str | None = None) -> list[str]:
    """The words that start a contender of :data:`leanconv.benchmarking.contenders.KINDS`.

    Args:
        kind: which.
        setup: ``file``, ``batch``, ``shape`` and ``threads``.
        python: runs it; None: this one.
    """
    return [python or sys.executable, "-m", "leanconv.benchmarking.contenders", json.dumps({**setup, "kind": kind})]


def _check(
    file: str | os.PathLike[str],
    against: Sequence[str],
    batch: Sequence[int],
    threads: Sequence[int],
    rounds: int,
    run: str | os.PathLike[str] | None,
) -> None:
    for name in against:
        if name not in AGAINST:
            raise Error(f"bench: --against must be among {', '.join(AGAINST)}, got {name!r}")
    if not batch or min(batch) < 1:
        raise Error(f"bench: --batch must be at least 1, got {' '.join(map(str, batch)) or 'none'}")
    if not threads or min(threads) < 1 or max(threads) > 64:
        raise Error(f"bench: --threads must be 1 to 64, got {' '.join(map(str, threads)) or 'none'}")
    if rounds < 1:
        raise Error(f"bench: --rounds must be at least 1, got {rounds}")
    if "torch" in against and run is None:
        raise Error(f"bench: torch needs the run that {os.path.basename(file)} was made of, --run RUN, got none")


def _files(
    file: Path, kinds: Sequence[str], onnx: str | os.PathLike[str] | None, run: str | os.PathLike[str] | None
) -> dict[str, str]:
    """Contender -> the file that it runs."""
    found = {"peak": "", "leanconv": str(file)}
    for kind in kinds:
        if kind.startswith("torch"):
            found[kind] = str(run)
            continue
        path = Path(onnx) if onnx is not None else file.with_suffix(".onnx")
        if not path.is_file():
            raise Error(
                f"bench: {kind} needs an ONNX file of the same network "
                f"(leanconv export RUN --format onnx --output {path}), got none at {path}"
            )
        found[kind] = str(path)
    return found


@contextmanager
def _started(commands: Commands, threads: int, missing: dict[str, str]) -> Iterator[dict[str, turns.Contender]]:
    """All that have their packages, ready; ended on leaving."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(paths)}
    contenders: dict[str, turns.Contender] = {}
    try:
        for name, words in commands.items():
            one = turns.Contender(name, words, environment)
            if "missing" in one.about:
                missing[name] = one.about["missing"]
                one.end()
            else:
                contenders[name] = one
        yield contenders
    finally:
        for one in contenders.values():
            one.end()


def _measured(
    plan: Plan,
    contenders: Mapping[str, turns.Contender],
    setup: Mapping[str, Any],
    rounds: int,
    reference: Sequence[float] | None,
) -> Measurement:
    steps = {}
    for name, one in contenders.items():
        first = statistics.median(one.take(2)["wall"])
        steps[name] = max(1, min(20, round(_TURN / max(first, 1e-6))))
    found = turns.in_turns(contenders, rounds, steps)
    seconds = {name: [statistics.median(a["wall"]) for a in given] for name, given in found.items()}
    # The fastest: whatever interrupts a burst makes it slower than the processor is, never faster.
    peak, int8_peak = (
        contenders[name].about["macs"] / min(min(a["wall"]) for a in found[name]) if name in seconds else None
        for name in _PEAKS
    )
    for name in _PEAKS:
        seconds.pop(name, None)
    least = setup["batch"] * sum(_least(plan, step, peak, int8_peak) for step in plan.steps)
    right = contenders["leanconv"].about["answers"] if reference is None else reference
    rows = {}
    for name, times in seconds.items():
        median, low, high = median_interval(times)
        ratios = [a / b for a, b in zip(times, seconds["leanconv"], strict=True)]
        about = contenders[name].about
        rows[name] = Measured(
            1e3 * median,
            1e3 * low,
            1e3 * high,
            setup["batch"] / median,
            least / median if peak else None,
            *median_interval(ratios),
            _difference(about["answers"], right),
            about.get("version", ""),
            sum(sum(a["cpu"]) for a in found[name]) / sum(sum(a["wall"]) for a in found[name]),
        )
    busy = sum(max(0.0, a["others"]) for given in found.values() for a in given)
    wall = sum(sum(a["wall"]) for given in found.values() for a in given)
    layers = _layers(plan, [a["layers"] for a in found["leanconv"]], setup["batch"], peak, int8_peak)
    return Measurement(setup["batch"], setup["threads"], rounds, peak, int8_peak, rows, layers, busy / wall)


def _on_bytes(plan: Plan) -> Callable[[Step], bool]:
    """Whether a step's multiply-adds are of bytes."""
    return lambda step: plan.values[step.inputs[0]].quant is not None and macs(plan, step) > 0


def _least(plan: Plan, step: Step, peak: float | None, int8_peak: float | None) -> float:
    """Seconds that a burst takes for the multiply-adds of a step, for one image; 0 without a peak."""
    rate = int8_peak if _on_bytes(plan)(step) else peak
    return macs(plan, step) / rate if rate else 0.0


def _difference(given: Sequence[float], right: Sequence[float]) -> float:
    largest = max(max(map(abs, right)), 1e-30)
    return max(abs(a - b) for a, b in zip(given, right, strict=True)) / largest


def _layers(
    plan: Plan, times: Sequence[list[float] | None], batch: int, peak: float | None, int8_peak: float | None
) -> tuple[Layer, ...]:
    known = [t for t in times if t is not None]
    medians = [statistics.median(column) for column in zip(*known, strict=True)] if known else []
    total = sum(medians)
    made = []
    for place, step in enumerate(plan.steps):
        count, seconds = macs(plan, step), medians[place] if medians else None
        least = _least(plan, step, peak, int8_peak)
        of_peak = least * batch / seconds if least and seconds else None
        share = None if seconds is None else seconds / total if total else 0.0
        shape = plan.values[step.output].shape
        made.append(
            Layer(step.layer, step.op, shape, count, None if seconds is None else 1e6 * seconds, of_peak, share)
        )
    return tuple(made)
