"""Mean, variance, skew and kurtosis of hidden outputs, and how they move."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from leanconv.errors import Error
from leanconv.graph import evaluating, is_leaf

__all__ = ["Moments", "Shift", "moments", "moments_of", "shift"]


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's outputs, over samples and positions.

    Attributes:
        count: elements in all.
        mean, variance: over all elements; variance with 1/N.
        skew: m3 / m2^1.5, 0 for a normal distribution; nan where the variance is 0.
        kurtosis: m4 / m2^2 - 3, the excess, 0 for a normal distribution; nan where the variance is 0.
        channel_mean, channel_variance: the same per channel, which is dimension 1.
    """

    count: int
    mean: float
    variance: float
    skew: float
    kurtosis: float
    channel_mean: tuple[float, ...]
    channel_variance: tuple[float, ...]


@dataclass(frozen=True)
class Shift:
    """How far a layer's outputs moved between two snapshots.

    Attributes:
        mean: root mean square over channels of (mean after - mean before) / deviation before.
        variance: geometric mean over channels of max(v1/v0, v0/v1): 1 where nothing changed.
    """

    mean: float
    variance: float


def moments(
    model: nn.Module,
    inputs: Iterable[Tensor],
    *,
    layers: Iterable[str] | None = None,
    training: bool = False,
) -> dict[str, Moments]:
    """Moments of what each layer puts out, in order of first execution.

    Computed in float64, batch by batch, merged by the formulas of Chan and Pébay: no E[x^2] - E[x]^2.

    Args:
        model: any module.
        inputs: batches (N, C, ...).
        layers: paths of modules; None: every leaf module. Several calls of one are taken together.
        training: on a copy in training mode, as while learning: batch statistics, dropout active. Otherwise eval.

    Returns:
        Path -> moments. Layers that do not run, or put out no floating tensor, are missing.

    Raises:
        Error: no such layer, or no batch.

    Source: rows S11 and S25; Pébay, "Formulas for robust, one-pass parallel computation of covariances and
        arbitrary-order statistical moments", SAND2008-6212.
    """
    subject = copy.deepcopy(model).train() if training else model
    named = dict(subject.named_modules())
    chosen = [path for path, module in named.items() if is_leaf(module)] if layers is None else list(layers)
    for path in chosen:
        if path not in named:
            raise Error(f"moments: layers must be modules of the network, got {path!r}")
    sums: dict[str, _Sums] = {}
    handles = [named[path].register_forward_hook(_gather(sums, path)) for path in chosen]
    try:
        count = _run(subject, inputs, training)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise Error("moments: at least one batch must be given, got none")
    return {path: found.moments() for path, found in sums.items()}


def moments_of(outputs: Tensor) -> Moments:
    """The moments of one tensor (N, C, ...), per channel and of all elements, in float64.

    Formulas and source: :func:`moments`.
    """
    return _Sums.of(outputs).moments()


def shift(before: Mapping[str, Moments], after: Mapping[str, Moments]) -> dict[str, Shift]:
    """How far the outputs of each layer moved between two snapshots of :func:`moments` on the same inputs.

    Channels whose variance is 0 in a snapshot say nothing of a ratio and are left out; nan where all are.

    Raises:
        Error: the snapshots are of different layers or widths.

    Source: row S11; the variance ratio is that of Li et al. 2018, arXiv:1801.05134.
    """
    widths = [{path: len(found.channel_mean) for path, found in side.items()} for side in (before, after)]
    if widths[0] != widths[1]:
        apart = sorted(set(widths[0].items()) ^ set(widths[1].items()))
        raise Error(f"shift: both snapshots must be of the same layers, got a difference at {apart[0][0]!r}")
    return {path: _shift(before[path], after[path]) for path in before}


@dataclass(frozen=True)
class _Sums:
    """Per channel: count, mean, and the sums of (x - mean)^2, ^3, ^4; float64 (C,)."""

    n: int
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Sums:
        """Of outputs (N, C, ...)."""
        wide = x.detach().double()
        flat = wide.transpose(0, 1).reshape(wide.shape[1], -1) if wide.dim() > 1 else wide.reshape(1, -1)
        mean = flat.mean(1)
        d = flat - mean[:, None]
        return cls(flat.shape[1], mean, (d**2).sum(1), (d**3).sum(1), (d**4).sum(1))

    def merged(self, other: _Sums) -> _Sums:
        """Both together (Pébay 2008, equations 2.1 to 2.5)."""
        a, b, n, d = self.n, other.n, self.n + other.n, other.mean - self.mean
        m2 = self.m2 + other.m2 + d**2 * (a * b / n)
        m3 = self.m3 + other.m3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n
        m4 = self.m4 + other.m4 + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
        m4 = m4 + 6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2 + 4 * d * (a * other.m3 - b * self.m3) / n
        return _Sums(n, self.mean + d * (b / n), m2, m3, m4)

    def moments(self) -> Moments:
        """The moments per channel and, the channels moved to their common mean, of all elements."""
        count, mean = self.n * len(self.mean), self.mean.mean()
        d = self.mean - mean
        m2 = float((self.m2 + self.n * d**2).sum()) / count
        m3 = float((self.m3 + 3 * d * self.m2 + self.n * d**3).sum()) / count
        m4 = float((self.m4 + 4 * d * self.m3 + 6 * d**2 * self.m2 + self.n * d**4).sum()) / count
        skew, kurtosis = (m3 / m2**1.5, m4 / m2**2 - 3) if m2 > 0 else (math.nan, math.nan)
        channels = tuple(self.mean.tolist()), tuple((self.m2 / self.n).tolist())
        return Moments(count, float(mean), m2, skew, kurtosis, *channels)


def _gather(sums: dict[str, _Sums], path: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
        if tensors:
            found = _Sums.of(tensors[0])
            sums[path] = sums[path].merged(found) if path in sums else found

    return hook


def _run(model: nn.Module, inputs: Iterable[Tensor], training: bool) -> int:
    """Run all batches, leaving no trace; how many there were."""
    count = 0
    with nullcontext() if training else evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for x in inputs:
            model(x)
            count += 1
    return count


def _shift(before: Moments, after: Moments) -> Shift:
    pairs = zip(before.channel_mean, after.channel_mean, before.channel_variance, after.channel_variance, strict=True)
    moved = [((m1 - m0) ** 2 / v0, abs(math.log(v1 / v0))) for m0, m1, v0, v1 in pairs if v0 > 0 and v1 > 0]
    if not moved:
        return Shift(math.nan, math.nan)
    means, logs = zip(*moved, strict=True)
    return Shift(math.sqrt(sum(means) / len(means)), math.exp(sum(logs) / len(logs)))
