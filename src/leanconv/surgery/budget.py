"""Which rank each layer gets, so that the network keeps a budget and loses least."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv import accounting, measure
from leanconv.contract import Context, Refusal
from leanconv.errors import Error
from leanconv.surgery import separating
from leanconv.techniques import separable
from leanconv.techniques.separable import Fitted, Option

__all__ = ["UNITS", "Budget", "Chosen", "choose"]

UNITS = ("macs", "params", "latency")
TURNS = 9
NESTED = 3
"""Ranks of a layer with large patches that are tried; between them and full rank errors are interpolated."""
_IMAGES, _FEWEST, _AT_ONCE = 256, 16, 64


@dataclass(frozen=True)
class Budget:
    """What the whole network may cost.

    Attributes:
        unit: one of :data:`UNITS`: multiply-adds or parameters of one image, or milliseconds of the example here.
        amount: at most 1: a share of what it costs now; above: an amount.
    """

    unit: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """``macs=0.33``, ``params=200000``, ``latency=0.5``, ``latency=2ms``.

        Raises:
            Error: another form.
        """
        unit, _, amount = text.partition("=")
        milliseconds = unit == "latency" and amount.endswith("ms")
        try:
            value = float(amount.removesuffix("ms") if milliseconds else amount)
        except ValueError:
            value = math.nan
        if unit not in UNITS or not value > 0 or not math.isfinite(value):
            raise Error(f"separate: the budget must be such as macs=0.33, params=200000 or latency=2ms, got {text!r}")
        return cls(unit, -value if milliseconds and value <= 1 else value)

    def limit(self, whole: float) -> float:
        """In units of ``whole``, what the network costs now."""
        if self.amount < 0:  # milliseconds below one
            return -self.amount
        return self.amount * whole if self.amount <= 1 else self.amount

    def told(self, cost: float, whole: float) -> str:
        """A cost as the budget would be given."""
        return f"{self.unit}={cost / whole:.3f}" if 0 < self.amount <= 1 else f"{self.unit}={cost:.4g}"


@dataclass(frozen=True)
class Chosen:
    """Ranks under a budget.

    Attributes:
        ranks: path -> depth multiplier, of the layers that become separable.
        curves: path -> rank -> relative error of the layer, as predicted.
        refusals: layers that stay, and why.
        cost: of the network, as predicted, in the budget's unit.
        limit: that was to be kept.
    """

    ranks: dict[str, int]
    curves: dict[str, dict[int, float]]
    refusals: tuple[Refusal, ...]
    cost: float
    limit: float


def choose(
    ctx: Context, budget: Budget, calibrated: bool, method: str, told: Callable[[str], None] | None = None
) -> Chosen:
    """Ranks that keep the budget with the least predicted damage to the network's outputs.

    The damage of a layer at a rank is its squared relative error, times how far a conversion of this layer alone
    moves the outputs of the network, measured once for each layer.

    Args:
        ctx: with graph, batches and probe.
        budget: of the whole network.
        calibrated: the batches are real images; else errors are those of the weights, and all layers count alike.
        method: one of ``separating.METHODS``.
        told: called with a word for each layer.

    Raises:
        Error: the budget cannot be kept; the nearest possible one is named.
    """
    assert ctx.graph is not None
    assert ctx.probe is not None
    found, refusals = separable.candidates(ctx.model, separating.ANY)
    paths = separating.order(ctx.graph, list(found))
    refusals += [Refusal(path, "it did not run on the example") for path in found if path not in paths]
    whole, costs = _costs(ctx, budget.unit, paths)
    limit = budget.limit(whole)
    if limit >= whole or not paths:
        return Chosen({}, {}, tuple(refusals), whole, limit)
    other = whole - sum(costs[path][None] for path in paths)
    least = other + sum(min(costs[path].values()) for path in paths)
    if limit < least:
        nearest = budget.told(math.ceil(1e3 * least / whole) / 1e3 * whole, whole)
        got = budget.told(limit, whole)
        raise Error(f"separate: the budget must be at least {nearest}, every layer at its cheapest, got {got}")
    curves, options = {}, {}
    aware = calibrated and method == "outputs"
    seen = separating.Seen(ctx, paths) if aware else None
    reached = _Reached(ctx) if aware else None
    for number, path in enumerate(paths, 1):
        if told is not None:
            told(f"{number} of {len(paths)}: {path}")
        curves[path], weight = _curve(ctx, path, found[path], seen, reached)
        options[path] = [Option(None, costs[path][None], 0.0)] + [
            Option(rank, costs[path][rank], weight * error**2) for rank, error in curves[path].items()
        ]
        if min(costs[path], key=lambda rank: costs[path][rank]) is None:
            what = "slower here" if budget.unit == "latency" else "no cheaper"
            refusals.append(Refusal(path, f"a separable layer in its place is {what}"))
    picked = separable.choose(options, limit - other)
    ranks = {path: rank for path, rank in picked.items() if rank is not None}
    return Chosen(ranks, curves, tuple(refusals), other + sum(costs[path][picked[path]] for path in paths), limit)


def _costs(ctx: Context, unit: str, paths: list[str]) -> tuple[float, dict[str, dict[int | None, float]]]:
    """Of the whole network, and of each layer dense (None) and at each rank."""
    if unit == "latency":
        return _latencies(ctx, paths)
    assert ctx.graph is not None
    total = accounting.cost(ctx.model, ctx.probe[:1]).total  # type: ignore[index]
    found: dict[str, dict[int | None, float]] = {}
    for path in paths:
        conv: Any = ctx.model.get_submodule(path)
        kernel, group = math.prod(conv.kernel_size), conv.out_channels // conv.groups
        calls = ctx.graph.calls(path)
        positions = sum(math.prod(ctx.graph.shape(call.outputs[0])[2:]) for call in calls) if unit == "macs" else 1
        found[path] = {None: float(conv.weight.numel() * positions)}
        for rank in range(1, separating.full(conv) + 1):
            found[path][rank] = float(conv.in_channels * rank * (kernel + group) * positions)
    return float(total.macs if unit == "macs" else total.params), found


def _latencies(ctx: Context, paths: list[str]) -> tuple[float, dict[str, dict[int | None, float]]]:
    """Milliseconds of the network, and of each layer alone on what it sees, dense and at each rank in turns."""
    assert ctx.graph is not None
    assert ctx.probe is not None
    whole = measure.latency(ctx.model, ctx.probe).median
    found: dict[str, dict[int | None, float]] = {}
    for path in paths:
        conv: Any = ctx.model.get_submodule(path)
        seen = separating.inputs(ctx.model, path, ctx.probe, len(ctx.graph.calls(path)))
        most = separating.full(conv)
        contenders: dict[str, tuple[nn.Module, Any]] = {"dense": (conv, seen[0])}
        for rank in range(1, most + 1):
            layer = separable.fitted_separable(conv, separable.separate_weights(conv, rank))
            contenders[str(rank)] = (layer, seen[0])
        times = measure.compare_latency(contenders, runs=TURNS, warmup=2).latencies
        found[path] = {None: times["dense"].median * len(seen)}
        found[path] |= {rank: times[str(rank)].median * len(seen) for rank in range(1, most + 1)}
    return whole, found


def _curve(
    ctx: Context, path: str, paths: list[str], seen: separating.Seen | None, reached: _Reached | None
) -> tuple[dict[int, float], float]:
    """Rank -> relative error, and how much of it reaches the outputs of the network."""
    conv: Any = ctx.model.get_submodule(path)
    if seen is None or reached is None:
        return separable.weight_curve(conv), 1.0
    most = separating.full(conv)
    weights = separating.importance(ctx, path)
    if separating.large(conv):
        features = seen.features(path, min(NESTED, most))
        errors = {rank: features.fitted(rank, bias=True, importance=weights)[1] for rank in range(1, most)[:NESTED]}

        def fit(rank: int) -> Fitted:
            return features.fitted(rank, bias=True)[0]

    else:
        moments = seen.moments(path)
        errors = separable.error_curve(conv, moments, bias="add", importance=weights, rounds=2)

        def fit(rank: int) -> Fitted:
            return separable.separate_outputs(conv, rank, moments, bias="add", importance=weights, rounds=2)

    curve = _filled({**errors, most: 0.0} if most not in errors else errors, most)
    lossy = [rank for rank in errors if curve[rank] > 1e-6]
    if not lossy:
        return curve, 0.0
    rank = min(lossy, key=lambda r: abs(curve[r] - 0.3))
    layer = separable.fitted_separable(conv, fit(rank))
    layer.keeps_order = True  # whatever the network does with it
    return curve, reached.by(paths, layer) / curve[rank] ** 2


def _filled(curve: dict[int, float], most: int) -> dict[int, float]:
    """The ranks between those that were tried, their errors geometrically between the two."""
    known = sorted(curve)
    filled = {}
    for low, high in itertools.pairwise([*known, known[-1]]):
        for rank in range(low, max(high, low + 1)):
            share = (rank - low) / max(high - low, 1)
            ends = (max(curve[low], 1e-7), max(curve[high], 1e-7))
            filled[rank] = curve[rank] if rank in curve else ends[0] ** (1 - share) * ends[1] ** share
    return {rank: filled[rank] for rank in range(1, most + 1)}


class _Reached:
    """How far a change of a layer moves the outputs of the network, on some of the calibration images."""

    def __init__(self, ctx: Context) -> None:
        batches = list(ctx.batches or ())
        wanted = min(_IMAGES, max(_FEWEST, sum(map(len, batches)) // 4))
        self._model = ctx.model
        self._x = torch.cat([batch[:wanted] for batch in batches])[:wanted]
        self._before = self._outputs(ctx.model)
        self._spread = float((self._before - self._before.mean(0)).square().sum())

    def by(self, paths: list[str], layer: nn.Module) -> float:
        """Squared relative difference of the outputs with another layer at these paths."""
        apart = float((self._outputs(_with(self._model, paths, layer)) - self._before).square().sum())
        return apart / self._spread if self._spread > 0 else 0.0

    def _outputs(self, model: nn.Module) -> Tensor:
        parts = [measure.outputs(model, x) for x in torch.split(self._x, _AT_ONCE)]
        return torch.cat([torch.cat([t.double().flatten(1) for t in part], 1) for part in parts])


def _with(model: nn.Module, paths: list[str], layer: nn.Module) -> nn.Module:
    """A shallow copy of the network, sharing all weights, with another layer at these paths."""
    new = _shallow(model)
    for path in paths:
        parent = new
        *names, leaf = path.split(".")
        for name in names:
            parent._modules[name] = _shallow(parent._modules[name])
            parent = parent._modules[name]  # type: ignore[assignment]
        parent._modules[leaf] = layer
    return new


def _shallow(module: nn.Module | None) -> nn.Module:
    assert module is not None
    made = copy.copy(module)
    made.__dict__["_modules"] = dict(module._modules)
    return made
