"""Statistics for evaluation, three kinds by three names.

- *running*: an exponential average over training batches, kept by the layers themselves while they train. It mixes
  batches of different weights: old ones under old weights.
- *precise* (:func:`precise_statistics`): the final weights over all batches, pooled exactly; the batch norms upstream
  normalise with each batch's own statistics, as in training.
- *exact* (:func:`exact_statistics`): as precise, but the batch norms upstream normalise with their final statistics,
  as in evaluation. What a layer then sees is what it will see in use, and its output has the moments of row S9b.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as TorchBatchNorm

from leanconv.errors import Error
from leanconv.graph import evaluating
from leanconv.techniques.batchnorm.layers import BatchNorm, frozen

__all__ = ["Moments", "exact_statistics", "norms", "precise_statistics"]


class Moments:
    """Mean and variance per channel over any number of batches, merged exactly (Chan et al.) in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Pool one more batch (N, C, ...): the law of total variance, no E[x^2] - E[x]^2."""
        rows = x.detach().movedim(1, -1).reshape(-1, x.shape[1]).double()
        if not len(rows):
            return
        mean = rows.mean(0)
        squares = (rows - mean).square_().sum(0)
        if self.mean is None or self._squares is None:
            self.count, self.mean, self._squares = len(rows), mean, squares
            return
        total = self.count + len(rows)
        apart = mean - self.mean
        self.mean = self.mean + apart * (len(rows) / total)
        self._squares = self._squares + squares + apart.square() * (self.count * len(rows) / total)
        self.count = total

    @property
    def var(self) -> Tensor:
        """s^2 with 1/m over everything pooled, (C,), float64."""
        assert self._squares is not None
        return self._squares / self.count


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Batch norms with running statistics, ours and torch's, that are not frozen: path -> layer."""
    kinds = (BatchNorm, TorchBatchNorm)
    found = {p: m for p, m in model.named_modules() if isinstance(m, kinds)}
    return {p: m for p, m in found.items() if m.running_mean is not None and not frozen(m)}


def precise_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Precise statistics (Wu & Johnson 2021): one pass, upstream batch norms in training mode, dropout off.

    Each layer's running mean and variance become those of its inputs over all batches together, with the exact pooled
    variance, 1/M over all M values: the batches are the population. Frozen layers stay as they are and normalise with
    what they have. Training flags, other buffers and random numbers are put back; ranks are not joined.

    Args:
        model: any network with our batch norms or torch's; changed in place.
        batches: inputs (N, C, ...), or pairs whose first entry is one; of the size that training used.

    Returns:
        How many layers were settled.

    Raises:
        Error: batches is empty.

    Source:
        Wu & Johnson 2021, arXiv 2105.07576, section 3.
    """
    layers = norms(model)
    seen: dict[nn.Module, Moments] = {m: Moments() for m in layers.values()}
    with _quiet(model), _watching(layers.values(), lambda layer, x: seen[layer].add(x)):
        with _batch_mode(layers.values()):
            _run_all(model, batches, "precise_statistics")
        settled = {layer: moments for layer, moments in seen.items() if moments.count}
    for layer, moments in settled.items():
        _write(layer, moments)
    return len(settled)


def exact_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Exact statistics: layer by layer in order of execution, upstream in eval with statistics that are already exact.

    Afterwards, over these very batches in eval, the output of every batch norm (before its activation) has mean beta
    and deviation abs(gamma) sqrt(s^2 / (s^2 + eps)): gamma and beta stand for the mean and variance of all training
    samples (row S9b). Costs one pass per layer, each up to that layer. Frozen layers, flags and random numbers as in
    :func:`precise_statistics`.

    Args:
        model: any network with our batch norms or torch's; changed in place.
        batches: inputs (N, C, ...), or pairs whose first entry is one, the same in each pass; an iterator is listed.

    Returns:
        How many layers were settled.

    Raises:
        Error: batches is empty; a layer is called more than once in a forward pass, so that no order exists.

    Source:
        Row S9b; Ioffe & Szegedy 2015, section 3.1 (population statistics).
    """
    batches = batches if isinstance(batches, Sequence) or iter(batches) is not batches else list(batches)
    layers = norms(model)
    with _quiet(model):
        order = _order(model, layers, batches)
    for layer in order:
        moments = Moments()
        with _quiet(model), _watching([layer], _stop_after(moments)):
            _run_all(model, batches, "exact_statistics")
        _write(layer, moments)
    return len(order)


class _Enough(Exception):
    """The layer that is settled has seen its input: the rest of the pass is not needed."""


def _stop_after(moments: Moments) -> Any:
    def see(layer: nn.Module, x: Tensor) -> None:
        moments.add(x)
        raise _Enough

    return see


def _order(model: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Any]) -> list[nn.Module]:
    calls: list[nn.Module] = []
    with _watching(layers.values(), lambda layer, x: calls.append(layer)):
        for batch in batches:
            model(_input(model, batch))
            break
        else:
            raise Error("exact_statistics: batches must hold at least one batch, got none")
    for path, layer in layers.items():
        if calls.count(layer) > 1:
            raise Error(
                f"exact_statistics: {path} must be called once per forward pass, got {calls.count(layer)} calls"
            )
    return calls


def _run_all(model: nn.Module, batches: Iterable[Any], name: str) -> None:
    count = 0
    for batch in batches:
        count += 1
        with contextlib.suppress(_Enough):
            model(_input(model, batch))
    if not count:
        raise Error(f"{name}: batches must hold at least one batch, got none")


def _input(model: nn.Module, batch: Any) -> Tensor:
    x: Tensor = batch[0] if isinstance(batch, tuple | list) else batch
    parameter = next(model.parameters(), None)
    return x if parameter is None else x.to(parameter.device)


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; flags, buffers and the generators of CPU and accelerators are put back after."""
    accelerators = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=accelerators), evaluating(model):
        yield


@contextlib.contextmanager
def _batch_mode(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Only these layers in training mode; :func:`evaluating` puts the flags and the buffers back."""
    for layer in layers:
        layer.training = True
    yield


@contextlib.contextmanager
def _watching(layers: Iterable[nn.Module], see: Any) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(lambda m, args: see(m, args[0])) for m in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _write(layer: nn.Module, moments: Moments) -> None:
    assert moments.mean is not None
    layer.running_mean.copy_(moments.mean)  # type: ignore[operator]
    layer.running_var.copy_(moments.var)  # type: ignore[operator]
