"""Time of forward passes: medians with intervals, contenders in turns."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.results import Difference
from leanconv.results.medians import median_interval

__all__ = ["Comparison", "Latency", "compare_latency", "compare_training", "latency", "median_interval"]

Example = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass in eval mode, in milliseconds for the whole batch.

    Attributes:
        median, low, high: the median and its interval at ``level``.
        level: the interval's coverage; 1 - 2^(1 - runs) at most.
        runs: number of timed passes.
        threads, batch, dtype, memory_format, device: under which it holds.
    """

    median: float
    low: float
    high: float
    level: float
    runs: int
    threads: int
    batch: int
    dtype: str
    memory_format: str
    device: str

    @property
    def per_image(self) -> float:
        """Milliseconds an image: median / batch."""
        return self.median / self.batch

    def __str__(self) -> str:
        where = f"batch {self.batch}, {self.threads} threads, {self.dtype}, {self.memory_format}, {self.device}"
        return f"{self.median:.3g} ms ({self.low:.3g} to {self.high:.3g}; {where})"


@dataclass(frozen=True)
class Comparison:
    """Contenders that were timed in turns.

    Attributes:
        latencies: name -> its latency.
        rounds: name -> its milliseconds, round by round; the same place is the same round.
    """

    latencies: Mapping[str, Latency]
    rounds: Mapping[str, tuple[float, ...]]

    def ratio(self, a: str, b: str, level: float = 0.95) -> Difference:
        """Median over the rounds of time(a) / time(b), with its interval; below 1 where a is faster.

        Raises:
            Error: no such contender.
        """
        for name in (a, b):
            if name not in self.rounds:
                raise Error(f"ratio: names must be among {', '.join(self.rounds)}, got {name!r}")
        return Difference(*median_interval([x / y for x, y in zip(self.rounds[a], self.rounds[b], strict=True)], level))


def latency(
    model: nn.Module,
    example: Example,
    *,
    runs: int = 30,
    warmup: int = 5,
    threads: int | None = None,
    level: float = 0.95,
) -> Latency:
    """Time forward passes in eval mode.

    Args:
        model: any module.
        example: its input, (N, C, ...), or a tuple of inputs; N counts as the batch.
        runs: timed passes, from 1.
        warmup: passes before, not counted.
        threads: of torch; None: as it stands.
        level: of the median's interval.

    Raises:
        Error: an argument is out of range.
    """
    found = compare_latency({"model": (model, example)}, runs=runs, warmup=warmup, threads=threads, level=level)
    return found.latencies["model"]


def compare_latency(
    contenders: Mapping[str, tuple[nn.Module, Example]],
    *,
    runs: int = 30,
    warmup: int = 5,
    threads: int | None = None,
    level: float = 0.95,
) -> Comparison:
    """Time several networks in turns, so that whatever else the machine does falls on all of them.

    Every round runs each contender once and the next round begins with another one.

    Args:
        contenders: name -> (model, example).
        runs: rounds, from 1.
        warmup: rounds before, not counted.
        threads: of torch; None: as it stands.
        level: of the medians' intervals.

    Raises:
        Error: no contender, or an argument is out of range.
    """
    with _evaluating([model for model, _ in contenders.values()]), torch.inference_mode():
        calls = {name: _pass(model, example) for name, (model, example) in contenders.items()}
        examples = {name: example for name, (_, example) in contenders.items()}
        return _in_turns(calls, examples, runs, warmup, threads, level)


def compare_training(
    contenders: Mapping[str, tuple[nn.Module, Example]],
    *,
    runs: int = 15,
    warmup: int = 3,
    threads: int | None = None,
    level: float = 0.95,
) -> Comparison:
    """Time forward and backward passes in training mode in turns, as :func:`compare_latency` does.

    What is differentiated is the sum of the outputs; the optimizer's step, the same for all, is not in it. Copies are
    run, so parameters, gradients and statistics stay as they are.

    Args:
        contenders: name -> (model, example).
        runs: rounds, from 1.
        warmup: rounds before, not counted.
        threads: of torch; None: as it stands.
        level: of the medians' intervals.

    Raises:
        Error: no contender, or an argument is out of range.
    """
    copies = {name: (copy.deepcopy(model).train(), example) for name, (model, example) in contenders.items()}
    calls = {name: _step(model, example) for name, (model, example) in copies.items()}
    examples = {name: example for name, (_, example) in contenders.items()}
    with torch.enable_grad(), torch.random.fork_rng():
        return _in_turns(calls, examples, runs, warmup, threads, level)


def _pass(model: nn.Module, example: Example) -> Callable[[], object]:
    inputs = example if isinstance(example, tuple) else (example,)
    return lambda: model(*inputs)


def _step(model: nn.Module, example: Example) -> Callable[[], object]:
    inputs = example if isinstance(example, tuple) else (example,)

    def once() -> None:
        model.zero_grad(set_to_none=True)
        model(*inputs).sum().backward()

    return once


def _in_turns(
    calls: Mapping[str, Callable[[], object]],
    examples: Mapping[str, Example],
    runs: int,
    warmup: int,
    threads: int | None,
    level: float,
) -> Comparison:
    if not calls:
        raise Error("latency: at least one contender must be given, got none")
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0), ("threads", threads, 1)):
        if value is not None and value < least:
            raise Error(f"latency: {name} must be at least {least}, got {name}={value}")
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    with _threads(threads):
        used = torch.get_num_threads()
        for turn in range(warmup + runs):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                elapsed = _once(calls[name], examples[name])
                if turn >= warmup:
                    taken[name].append(elapsed)
    described = {name: _latency(taken[name], examples[name], used, level) for name in names}
    return Comparison(described, {name: tuple(times) for name, times in taken.items()})


def _once(call: Callable[[], object], example: Example) -> float:
    """Milliseconds of one pass."""
    first = example[0] if isinstance(example, tuple) else example
    if first.is_cuda:
        torch.cuda.synchronize(first.device)
    start = time.perf_counter()
    call()
    if first.is_cuda:
        torch.cuda.synchronize(first.device)
    return (time.perf_counter() - start) * 1e3


def _latency(times: Sequence[float], example: Example, threads: int, level: float) -> Latency:
    first = example[0] if isinstance(example, tuple) else example
    dtype, device = str(first.dtype).removeprefix("torch."), str(first.device)
    batch = first.shape[0] if first.dim() else 1
    return Latency(*median_interval(times, level), level, len(times), threads, batch, dtype, _format(first), device)


def _format(x: Tensor) -> str:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = x.dim() in formats and x.is_contiguous(memory_format=formats[x.dim()])
    return "channels_last" if last else "contiguous" if x.is_contiguous() else "strided"


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        yield


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)
