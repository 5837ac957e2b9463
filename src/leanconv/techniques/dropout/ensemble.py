"""Each training step trains another sub-network, "naturally an ensemble" (row S5): its mean, spread and exact case."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import comb, prod

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from leanconv.errors import Error
from leanconv.kernels.keys import keyed, mix
from leanconv.kernels.philox import threshold
from leanconv.techniques.dropout.layers import DropBlock2d, Dropout, StochasticDepth

__all__ = [
    "Ensemble",
    "MonteCarlo",
    "enumerate_ensemble",
    "geometric_mean",
    "monte_carlo",
    "weight_scaling",
]

_DROPPING = (Dropout, DropBlock2d, StochasticDepth, _DropoutNd)
_MOST_UNITS = 16


@dataclass(frozen=True)
class MonteCarlo:
    """Predictions of sub-networks drawn at random.

    Attributes:
        passes: probabilities of each pass, (passes, N, K, ...).
    """

    passes: Tensor

    @property
    def mean(self) -> Tensor:
        """Probabilities averaged over the passes, (N, K, ...)."""
        return self.passes.mean(0)

    @property
    def spread(self) -> Tensor:
        """Their standard deviation over the passes, (N, K, ...), with passes - 1 in the denominator."""
        return self.passes.std(0)


@torch.no_grad()
def monte_carlo(model: nn.Module, x: Tensor, passes: int = 30, seed: int = 0) -> MonteCarlo:
    """Average the softmax of several passes, each with another dropout mask, and tell their spread.

    Only dropout layers run in training mode, ours and torch's; everything else, batch norm above all, is in eval mode.
    Functional dropout (``F.dropout(x, training=self.training)``) therefore stays off. Pass t runs inside
    ``keyed(seed, t)``, so the same seed gives the same answer. Training flags and generators are put back.

    Args:
        model: gives logits (N, K, ...).
        x: inputs (N, ...).
        passes: how many sub-networks, at least 2.
        seed: of the masks.

    Raises:
        Error: fewer than 2 passes; a network without a dropout layer; an output that is no (N, K, ...) tensor.

    Source: Srivastava et al. 2014, section 7.5; Gal and Ghahramani 2016, arXiv 1506.02142.
    """
    if not isinstance(passes, int) or passes < 2:
        raise Error(f"monte_carlo: passes must be an int of at least 2, got passes={passes!r}")
    if not any(isinstance(m, _DROPPING) for m in model.modules()):
        raise Error(f"monte_carlo: the network must have a dropout layer, got {type(model).__name__} without one")
    devices = [x.device] if x.device.type == "cuda" else []
    each: list[Tensor] = []
    with _modes(model, _DROPPING), torch.random.fork_rng(devices=devices):
        for t in range(passes):
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(mix(seed, t))
            with keyed(seed, t):
                each.append(_probabilities(model, x))
    return MonteCarlo(torch.stack(each))


@torch.no_grad()
def weight_scaling(model: nn.Module, x: Tensor) -> Tensor:
    """The ordinary evaluation: softmax of the network in eval mode, every unit present, weights as trained.

    With the scale applied in training, this is the weight scaling rule of Srivastava et al. 2014: one pass that stands
    for the mean over all sub-networks.

    Args:
        model: gives logits (N, K, ...).
        x: inputs (N, ...).

    Returns:
        Probabilities (N, K, ...).

    Source: Srivastava et al. 2014, section 10 (row S5 of the source).
    """
    with _modes(model, ()):
        return _probabilities(model, x)


@dataclass(frozen=True)
class Ensemble:
    """Every sub-network of one dropout layer.

    Attributes:
        masks: (2^n, n) bool, True: the unit is kept; row i has the binary digits of i.
        weights: (2^n,) float64, the probability with which the layer draws each mask; they sum to 1.
        log_predictions: (2^n, N, K), log-probabilities of each sub-network.
    """

    masks: Tensor
    weights: Tensor
    log_predictions: Tensor


@torch.no_grad()
def enumerate_ensemble(model: nn.Module, x: Tensor) -> Ensemble:
    """Run all 2^n sub-networks of a network's single dropout layer.

    The layer itself runs, with each mask in turn and the scale it uses in training; everything else is in eval mode.

    Args:
        model: gives logits (N, K); one dropout layer, a :class:`Dropout` (or channel form) of n <= 16 units.
        x: inputs (N, ...).

    Raises:
        Error: no or several dropout layers, p = 0, or more than 16 units.

    Source: Srivastava et al. 2014, section 1; Baldi and Sadowski 2013.
    """
    layer = _single(model)
    units, form = _units(model, layer, x)
    if units > _MOST_UNITS:
        raise Error(f"enumerate_ensemble: a layer must have at most {_MOST_UNITS} units, got {units}")
    masks = torch.tensor(list(product((False, True), repeat=units)))
    logs = []
    with _modes(model, (type(layer),)):
        for mask in masks:
            with _forced(layer, mask.to(x.device).view(form)):
                logs.append(torch.log_softmax(model(x), 1))
    return Ensemble(masks, _probability(layer, masks), torch.stack(logs))


def geometric_mean(ensemble: Ensemble) -> Tensor:
    """The normalised geometric mean of all sub-networks: prod_i p_i(k)^w_i, divided by its sum over the classes k.

    Where only affine maps and the softmax follow the dropout layer, this EQUALS :func:`weight_scaling`: the logits are
    affine in the scaled mask, whose mean is 1.

    Args:
        ensemble: of :func:`enumerate_ensemble`.

    Returns:
        Probabilities (N, K).

    Source: Srivastava et al. 2014, section 1; Baldi and Sadowski 2013.
    """
    logs = ensemble.log_predictions
    weights = ensemble.weights.to(logs).view(-1, *(1,) * (logs.ndim - 1))
    return torch.softmax((weights * logs).sum(0), 1)


# --- helpers --------------------------------------------------------------------------------------------------------


def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise Error(f"monte_carlo: the network must give logits of shape (N, K, ...), got {what}")
    return torch.softmax(logits, 1)


@contextmanager
def _modes(model: nn.Module, active: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Only layers of these classes in training mode; flags are put back, and no module's own ``train`` runs."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = isinstance(module, active)
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _single(model: nn.Module) -> Dropout:
    found = [m for m in model.modules() if isinstance(m, _DROPPING)]
    if len(found) != 1 or not isinstance(found[0], Dropout) or found[0].p == 0:
        kinds = ", ".join(str(m) for m in found) or "none"
        raise Error(f"enumerate_ensemble: a network must have one dropout layer of leanconv with p > 0, got {kinds}")
    return found[0]


def _units(model: nn.Module, layer: Dropout, x: Tensor) -> tuple[int, tuple[int, ...]]:
    """How many units one mask of the layer has on this input, and the shape of such a mask, batch dimension 1."""
    shapes: list[tuple[int, ...]] = []
    handle = layer.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    try:
        with _modes(model, ()):
            model(x)
    finally:
        handle.remove()
    if len(shapes) != 1:
        raise Error(f"enumerate_ensemble: the dropout layer must run once in a forward, got {len(shapes)} calls")
    form = layer._split(shapes[0])[1]
    return prod(form), (1, *form, *(1,) * (len(shapes[0]) - 1 - len(form)))


@contextmanager
def _forced(layer: Dropout, keep: Tensor) -> Iterator[None]:
    """The layer's next forwards take this mask instead of drawing one."""
    before = layer._given
    layer.__dict__["_given"] = keep
    try:
        yield
    finally:
        layer.__dict__["_given"] = before


def _probability(layer: Dropout, masks: Tensor) -> Tensor:
    """The probability of each mask, as the layer draws it: independent units, never all stopped; or exact counts."""
    units = masks.shape[1]
    kept = masks.sum(1)
    if layer.count == "exact":
        stopped = max(0, min(round(layer.p * units), units - 1))
        return (kept == units - stopped).double() / comb(units, stopped)
    q = threshold(layer.p) / 65536
    weights = (1 - q) ** kept.double() * q ** (units - kept).double()
    # Where every unit would stop, one of them, each equally likely, is kept.
    return (kept > 0) * (weights + (kept == 1).double() * (q**units / units))
