"""Separable weights fitted to what a dense convolution puts out on data, not to its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.techniques.separable.convert import Fitted, grouped_weight, separate_weights
from leanconv.techniques.separable.layers import one_of, positive
from leanconv.techniques.separable.patches import PatchMoments
from leanconv.techniques.separable.whitened import Problem, best, products

__all__ = ["Bias", "error_curve", "output_error", "separate_outputs"]

Bias = Literal["keep", "add", "norm"]
RIDGE = 1e-4
ROUNDS = 10


def separate_outputs(
    conv: nn.Module,
    rank: int,
    moments: PatchMoments,
    *,
    bias: Bias = "keep",
    importance: Tensor | None = None,
    ridge: float = RIDGE,
    rounds: int = ROUNDS,
) -> Fitted:
    """The separable weights whose outputs on the data are nearest to those of a dense convolution.

    Minimises ``E ||y - P D x - b'||^2 + e ||W - P D||^2`` over depthwise D and pointwise P, y and x as in
    :class:`PatchMoments`: what the layer put out in the original network, and the patches that it sees now (asymmetric
    reconstruction). The free bias takes up the means. e is ``ridge`` times the mean variance of the inputs; where the
    data say nothing (dead channels, fewer patches than inputs) the weights decide, and where no input varies the result
    is that of :func:`decompose`.

    The start is the better of two truncated SVDs per channel, of the weights and of the weights times a root of the
    channel's covariance. Then in turns: P by least squares over all channels, in closed form; D by conjugate gradients
    on its normal equations ``P^T P D S = P^T U`` (S, U: covariance, cross moments), of which only products of C m rows
    are formed. No turn makes it worse, so without ``importance`` the output error never exceeds that of the SVD with
    the same bias.

    Args:
        conv: an ``nn.Conv1d/2d/3d``; each group is fitted on its own.
        rank: m, the depth multiplier; from min(K, Cout / groups) on :func:`decompose` is exact and returned.
        moments: of this layer, with at least one patch.
        bias: ``keep``: the mean is met where the layer has a bias; where it has none, the outputs are fitted as they
            are, about 0. ``add``: the result has a bias in any case. ``norm``: a batch norm follows and will be
            recalibrated, so means are left to it where the layer has no bias.
        importance: (Cout,) weights of the squared errors of the outputs, or (groups, Cout / groups, Cout / groups)
            positive semidefinite; None: all alike.
        ridge: relative, above 0.
        rounds: turns at most; it stops where one gains less than 0.1 %.

    Returns:
        Weights in the layer's dtype; their error is that of :func:`output_error`.

    Raises:
        Error: another kind of layer, moments of another one or without patches, or an argument out of range.

    Source: Zhang et al. 2015, arXiv 1505.06798, section 3.3 (asymmetric reconstruction); Zhang, Zou et al. 2015.
    """
    positive("separate_outputs", rank=rank)
    _in_range(ridge, rounds)
    statistics = _Statistics.of(conv, moments, bias)
    if rank >= statistics.full:
        return statistics.finished(separate_weights(conv, rank))
    parts = [best(problem, rank, rounds) for problem in statistics.problems(importance, ridge)]
    return statistics.finished(statistics.joined(parts))


def error_curve(
    conv: nn.Module,
    moments: PatchMoments,
    ranks: Iterable[int] | None = None,
    *,
    bias: Bias = "keep",
    importance: Tensor | None = None,
    ridge: float = RIDGE,
    rounds: int = 2,
) -> dict[int, float]:
    """Rank -> relative output error of :func:`separate_outputs`, by fewer turns; what is common is done once.

    Args:
        conv, moments, bias, importance, ridge, rounds: as there; the error is by ``importance`` where it is given.
        ranks: None: 1 to min(K, Cout / groups).

    Raises:
        Error: as there.
    """
    _in_range(ridge, rounds)
    statistics = _Statistics.of(conv, moments, bias)
    ranks = list(range(1, statistics.full + 1) if ranks is None else ranks)
    problems = statistics.problems(importance, ridge) if any(rank < statistics.full for rank in ranks) else []
    curve = {}
    for rank in ranks:
        positive("error_curve", rank=rank)
        exact = rank >= statistics.full
        fitted = separate_weights(conv, rank) if exact else statistics.joined([best(p, rank, rounds) for p in problems])
        curve[rank] = statistics.error(fitted, importance)
    return curve


def output_error(
    conv: nn.Module, fitted: Fitted, moments: PatchMoments, *, bias: Bias = "keep", importance: Tensor | None = None
) -> float:
    """Relative error of the outputs on the data, ``sqrt(E ||y - y'||^2 / E ||y||^2)``.

    Both are about their means where the bias or a norm takes up the mean (see ``bias`` of :func:`separate_outputs`),
    else as they are. 0 where y does not vary. Rounding of moments limits it to about 1e-7.

    Args:
        conv: the dense convolution.
        fitted: separable weights for it, from whatever source.
        moments: of the layer.
        bias: as of the fit.
        importance: as of the fit.

    Raises:
        Error: another kind of layer, or moments of another one or without patches.
    """
    return _Statistics.of(conv, moments, bias).error(fitted, importance)


@dataclass(frozen=True, eq=False)
class _Statistics:
    """What a fit needs of a layer and its data; every tensor has a group in front."""

    conv: Any
    weight: Tensor
    second: Tensor
    cross: Tensor
    energy: Tensor
    mean: Tensor
    target: Tensor
    bias: Bias

    @classmethod
    def of(cls, conv: Any, moments: PatchMoments, bias: Bias) -> _Statistics:
        one_of("separate_outputs", "bias", bias, ("keep", "add", "norm"))
        weight = moments.weight
        if grouped_weight(conv).shape != weight.shape:
            got = f"{tuple(grouped_weight(conv).shape)} and {tuple(weight.shape)}"
            raise Error(f"separate_outputs: the moments must be those of the layer, got weights of {got}")
        second, mean, target = moments.covariance, moments.mean, moments.target
        cross = moments.cross(second)
        energy = moments.energy(cross)
        if bias == "keep" and conv.bias is None:  # nothing takes up the means: moments about 0
            second.baddbmm_(mean[:, :, None], mean[:, None])
            cross = cross + target[:, :, None] * mean[:, None]
            energy = energy + target[:, :, None] * target[:, None]
        return cls(conv, weight, second, cross, energy, mean, target, bias)

    @property
    def kernel(self) -> int:
        """K."""
        return prod(self.conv.kernel_size)

    @property
    def full(self) -> int:
        """The rank from which on nothing is lost."""
        return min(self.kernel, self.weight.shape[1])

    def metric(self, importance: Tensor | None) -> list[Tensor | None]:
        """For each group a matrix (Cout / groups, Cout / groups)."""
        groups, outputs, _ = self.weight.shape
        if importance is None:
            return [None] * groups
        if importance.shape == (groups * outputs,):
            importance = torch.diag_embed(importance.view(groups, outputs))
        if importance.shape != (groups, outputs, outputs) or not importance.isfinite().all():
            rule = f"finite and ({groups * outputs},) or ({groups}, {outputs}, {outputs})"
            raise Error(f"separate_outputs: importance must be {rule}, got {tuple(importance.shape)}")
        metric = importance.to(self.weight)
        metric = (metric + metric.transpose(1, 2)) / 2
        least, most = (float(end) for end in torch.linalg.eigvalsh(metric).aminmax())
        if least < -1e-6 * abs(most):
            raise Error(f"separate_outputs: importance must be positive semidefinite, got the eigenvalue {least:.3g}")
        return list(metric)

    def problems(self, importance: Tensor | None, ridge: float) -> list[Problem]:
        """One for each group."""
        metrics = self.metric(importance)
        moments = zip(self.second, self.cross, self.energy, strict=True)
        return [
            Problem.build(weight, parts, self.kernel, ridge, metric)
            for weight, parts, metric in zip(self.weight, moments, metrics, strict=True)
        ]

    def joined(self, parts: list[tuple[Tensor, Tensor]]) -> Fitted:
        """The groups side by side, scale split evenly between the halves, in the layer's dtype; no bias yet."""
        balanced = [_balanced(p, d) for p, d in parts]
        pointwise, depthwise = (torch.cat([pair[i] for pair in balanced]) for i in (0, 1))
        kernel, dtype = self.conv.kernel_size, self.conv.weight.dtype
        ones = [1] * len(kernel)
        return Fitted(
            depthwise.reshape(-1, 1, *kernel).to(dtype),
            pointwise.reshape(len(pointwise), -1, *ones).to(dtype),
            None,
            0.0,
        )

    def finished(self, fitted: Fitted) -> Fitted:
        """With the bias that meets the means, and the error."""
        kept = self.conv.bias
        bias = None
        if kept is not None or self.bias == "add":
            missing = self.target - self._outputs(fitted)
            bias = (
                missing.flatten().to(self.conv.weight.dtype)
                if kept is None
                else kept.detach() + missing.flatten().to(kept)
            )
        return Fitted(fitted.depthwise, fitted.pointwise, bias, self.error(fitted, None))

    def error(self, fitted: Fitted, importance: Tensor | None) -> float:
        """See :func:`output_error`."""
        lost = whole = 0.0
        for group, metric in enumerate(self.metric(importance)):
            pointwise, depthwise = self._halves(fitted)[group]
            second = self.second[group].view(len(depthwise), self.kernel, -1)
            cross = _by_channel(self.cross[group], depthwise)
            left = pointwise @ products(second, depthwise) - 2 * cross
            apart = self.energy[group] + left @ pointwise.T
            lost += float(apart.diagonal().sum() if metric is None else (metric * apart).sum())
            energy = self.energy[group]
            whole += float(energy.diagonal().sum() if metric is None else (metric * energy).sum())
        return sqrt(max(lost, 0.0) / whole) if whole > 0 else 0.0

    def _halves(self, fitted: Fitted) -> list[tuple[Tensor, Tensor]]:
        """For each group P (Cout / groups, C m) and D (C, m, K), float64."""
        groups = len(self.weight)
        channels = self.conv.in_channels // groups
        pointwise = fitted.pointwise.double().reshape(groups, self.weight.shape[1], -1)
        depthwise = fitted.depthwise.double().reshape(groups, channels, -1, self.kernel)
        return list(zip(pointwise, depthwise, strict=True))

    def _outputs(self, fitted: Fitted) -> Tensor:
        """(groups, Cout / groups): E y'."""
        means = self.mean.view(len(self.mean), -1, self.kernel)
        pairs = zip(self._halves(fitted), means, strict=True)
        return torch.stack([p @ (d @ mean[:, :, None]).flatten() for (p, d), mean in pairs])


def _in_range(ridge: float, rounds: int) -> None:
    if not 0 < ridge < float("inf"):
        raise Error(f"separate_outputs: ridge must be above 0 and finite, got ridge={ridge!r}")
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise Error(f"separate_outputs: rounds must be an integer >= 0, got rounds={rounds!r}")


def _by_channel(cross: Tensor, depthwise: Tensor) -> Tensor:
    """U D^T (Cout, C m)."""
    channels, _, kernel = depthwise.shape
    split = cross.view(-1, channels, kernel).transpose(0, 1)
    return (split @ depthwise.transpose(1, 2)).transpose(0, 1).flatten(1)


def _balanced(pointwise: Tensor, depthwise: Tensor) -> tuple[Tensor, Tensor]:
    """P (Cout, C, m) and D (C, m, K) with equal norms of the two factors of each product, where neither is 0."""
    ratio = pointwise.norm(dim=0) / depthwise.norm(dim=2)
    root = torch.where((ratio > 0) & ratio.isfinite(), ratio, 1).sqrt()
    return pointwise / root, depthwise * root[:, :, None]
