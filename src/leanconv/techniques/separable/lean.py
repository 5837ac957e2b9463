"""The fit of outputs for layers whose patches are too long for their full moments."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.techniques.separable.aware import RIDGE
from leanconv.techniques.separable.convert import Fitted, grouped_weight
from leanconv.techniques.separable.layers import positive
from leanconv.techniques.separable.patches import LEAST, Patches, centred

__all__ = ["ChannelMoments", "FeatureMoments", "leading"]


class ChannelMoments:
    """Covariance of each channel's K numbers alone, (Cin, K, K): the diagonal blocks of ``PatchMoments.covariance``.

    Args:
        conv: an ``nn.Conv1d/2d/3d``.
        calls: how many calls of :meth:`add` share the patches.
        seed: of the positions.
        ridge: of :attr:`level`.

    Raises:
        Error: another kind of layer, or a number below 1.
    """

    def __init__(self, conv: Any, calls: int = 1, seed: int = 0, ridge: float = RIDGE) -> None:
        self._patches = Patches(conv, calls, LEAST, seed)
        self.kernel = prod(conv.kernel_size)
        self._count, self._ridge = 0, ridge
        self._mean = self._patches.weight.new_zeros(conv.in_channels, self.kernel)
        self._second = self._patches.weight.new_zeros(conv.in_channels, self.kernel, self.kernel)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take the patches of one input of the layer; shapes and errors as of :meth:`PatchMoments.add`."""
        for seen, _ in self._patches.chunks(x):
            rows = seen.shape[1]
            split = seen.reshape(len(seen), rows, -1, self.kernel).transpose(1, 2).flatten(0, 1)
            share = rows / (self._count + rows)
            split, moved = centred(split, self._mean)
            self._second += split.transpose(1, 2) @ split
            self._second += self._count * share * moved[:, :, None] * moved[:, None]
            self._mean += share * moved
            self._count += rows

    @property
    def covariance(self) -> Tensor:
        """(Cin, K, K), float64.

        Raises:
            Error: no patch was added.
        """
        if not self._count:
            raise Error("ChannelMoments: at least one patch must be added, got none")
        return self._second / self._count

    @property
    def level(self) -> float:
        """e in ``|W - P D|^2``: the ridge times the mean variance of the inputs; 1 where none varies."""
        level = float(self.covariance.diagonal(dim1=1, dim2=2).mean()) * self._ridge
        return level if level > 0 else 1.0


def leading(conv: nn.Module, moments: ChannelMoments, rank: int, importance: Tensor | None = None) -> Tensor:
    """Depthwise kernels that are best for each channel alone, the best first: those of a lower rank are the first ones.

    The truncated SVD of the channel's weights times a root of its covariance, outputs weighted by ``importance``.

    Args:
        conv: an ``nn.Conv1d/2d/3d``.
        moments: of this layer.
        rank: m, at most K.
        importance: (Cout,) weights of the squared errors of the outputs; None: all alike.

    Returns:
        (Cin, m, K), float64; the features that they make of the data have unit variance.

    Raises:
        Error: no patch was added.
    """
    weight = grouped_weight(conv)
    groups, outputs, _ = weight.shape
    split = weight.view(groups, outputs, -1, moments.kernel).transpose(1, 2).flatten(0, 1)
    if importance is not None:
        roots = importance.to(weight).sqrt().view(groups, 1, outputs, 1)
        split = split * roots.expand(groups, len(split) // groups, outputs, 1).reshape(-1, outputs, 1)
    root = torch.linalg.cholesky(moments.covariance + moments.level * torch.eye(moments.kernel).to(weight))
    white = split @ root
    vectors = torch.linalg.eigh(white.transpose(1, 2) @ white).eigenvectors
    chosen = vectors[:, :, -rank:].flip(2)
    kernels: Tensor = torch.linalg.solve_triangular(root.transpose(1, 2), chosen, upper=True)
    return kernels.transpose(1, 2)


class FeatureMoments:
    """Moments of what given depthwise kernels put out, and of the dense layer's outputs with it.

    z = D x has Cin m numbers where a patch has Cin K. As in :class:`PatchMoments`, y = W x, or W x_ref where a second
    input is given. From these the best pointwise weights for D, or for its first kernels, follow in closed form.

    Args:
        conv: an ``nn.Conv1d/2d/3d``; its weights are read here, once.
        depthwise: (Cin, m, K), as :func:`leading` gives.
        level: as :class:`ChannelMoments` has it.
        calls: how many calls of :meth:`add` share the patches.
        seed: of the positions.

    Raises:
        Error: another kind of layer, or a number below 1.
    """

    def __init__(self, conv: Any, depthwise: Tensor, level: float, calls: int = 1, seed: int = 0) -> None:
        channels, rank, _ = depthwise.shape
        groups = conv.groups
        length = channels // groups * rank
        self._patches = Patches(conv, calls, max(8 * length, LEAST), seed)
        self._conv, self.depthwise, self._level = conv, depthwise, level
        self.weight = self._patches.weight
        outputs = self.weight.shape[1]
        self._count = 0
        self._mean, self._target = self.weight.new_zeros(groups, length), self.weight.new_zeros(groups, outputs)
        self._second = self.weight.new_zeros(groups, length, length)
        self._cross = self.weight.new_zeros(groups, outputs, length)
        self._energy = self.weight.new_zeros(groups, outputs)

    @torch.no_grad()
    def add(self, x: Tensor, ref: Tensor | None = None) -> None:
        """Take the patches of one input of the layer; shapes and errors as of :meth:`PatchMoments.add`."""
        for seen, then in self._patches.chunks(x, ref):
            rows = seen.shape[1]
            y = (seen if then is None else then) @ self.weight.transpose(1, 2).to(seen.dtype)
            z, moved = centred(self._features(seen), self._mean)
            y, shifted = centred(y, self._target)
            share = rows / (self._count + rows)
            between = self._count * share
            self._second += z.transpose(1, 2) @ z + between * moved[:, :, None] * moved[:, None]
            self._cross += y.transpose(1, 2) @ z + between * shifted[:, :, None] * moved[:, None]
            self._energy += y.square().sum(1, dtype=torch.float64) + between * shifted.square()
            self._mean += share * moved
            self._target += share * shifted
            self._count += rows

    def _features(self, patches: Tensor) -> Tensor:
        """(groups, rows, n) to (groups, rows, Cin / groups m), channel by channel."""
        groups, rows, _ = patches.shape
        channels, rank, kernel = self.depthwise.shape
        split = patches.reshape(groups, rows, -1, kernel).permute(0, 2, 1, 3).reshape(channels, rows, kernel)
        made = split @ self.depthwise.transpose(1, 2).to(patches.dtype)
        return made.view(groups, -1, rows, rank).transpose(1, 2).reshape(groups, rows, -1)

    def fitted(self, rank: int, *, bias: bool = False, importance: Tensor | None = None) -> tuple[Fitted, float]:
        """The layer with the first ``rank`` kernels of each channel and the best pointwise weights for them.

        Minimises ``E |y - P z - b'|^2 + e |W - P D|^2`` over P, e the level.

        Args:
            rank: at most that of the kernels.
            bias: the result has a bias that takes up the means, even where the layer has none; where neither, the
                outputs are fitted as they are, about 0.
            importance: (Cout,), for the second number alone: P is the same with any.

        Returns:
            The weights with their relative output error, and that error weighted by ``importance``.

        Raises:
            Error: no patch was added, or a rank out of range.
        """
        positive("FeatureMoments", rank=rank)
        channels, most, kernel = self.depthwise.shape
        if rank > most or not self._count:
            raise Error(
                f"FeatureMoments: needs patches and a rank up to {most}, got rank={rank} and {self._count} patches"
            )
        sums = self._sums(rank, about_zero=not bias and self._conv.bias is None)
        depthwise = self.depthwise[:, :rank]
        groups, outputs, _ = self.weight.shape
        # D D^T and W D^T, block by block.
        own = (depthwise @ depthwise.transpose(1, 2)).view(groups, -1, rank, rank)
        inner = sums.second.new_zeros(groups, own.shape[1], rank, own.shape[1], rank)
        inner.diagonal(dim1=1, dim2=3).copy_(own.permute(0, 2, 3, 1))
        inner = inner.view_as(sums.second)
        split = self.weight.view(groups, outputs, -1, kernel).permute(0, 2, 1, 3).reshape(channels, outputs, kernel)
        crossed = (split @ depthwise.transpose(1, 2)).view(groups, -1, outputs, rank)
        crossed = crossed.permute(0, 2, 1, 3).reshape(groups, outputs, -1)
        gram = sums.second + self._level * inner
        root = torch.linalg.cholesky(gram)
        pointwise = torch.cholesky_solve((sums.cross + self._level * crossed).transpose(1, 2), root).transpose(1, 2)
        lost = sums.energy - 2 * (pointwise * sums.cross).sum(2) + ((pointwise @ sums.second) * pointwise).sum(2)
        kept = self._conv.bias
        shift = None
        if bias or kept is not None:
            shift = (self._target - (pointwise @ sums.mean[:, :, None])[:, :, 0]).flatten()
            shift = shift if kept is None else shift + kept.detach().double()
        dtype, ones = self._conv.weight.dtype, [1] * len(self._conv.kernel_size)
        weights = None if importance is None else importance.to(self.weight).view(groups, outputs)
        error = _relative(lost, sums.energy, None)
        made = Fitted(
            depthwise.reshape(-1, 1, *self._conv.kernel_size).to(dtype),
            pointwise.reshape(groups * outputs, -1, *ones).to(dtype),
            None if shift is None else shift.to(dtype),
            error,
        )
        return made, error if weights is None else _relative(lost, sums.energy, weights)

    def _sums(self, rank: int, about_zero: bool) -> _Sums:
        """Of the first ``rank`` features of each channel."""
        most = self.depthwise.shape[1]
        chosen = (torch.arange(self._mean.shape[1]) % most < rank).nonzero().flatten()
        mean = self._mean[:, chosen]
        second = self._second[:, chosen[:, None], chosen] / self._count
        cross, energy = self._cross[:, :, chosen] / self._count, self._energy / self._count
        if about_zero:
            second = second + mean[:, :, None] * mean[:, None]
            cross = cross + self._target[:, :, None] * mean[:, None]
            energy = energy + self._target.square()
        return _Sums(mean, second, cross, energy)


@dataclass(frozen=True, eq=False)
class _Sums:
    mean: Tensor
    second: Tensor
    cross: Tensor
    energy: Tensor


def _relative(lost: Tensor, energy: Tensor, weights: Tensor | None) -> float:
    part, whole = (float((t if weights is None else t * weights).sum()) for t in (lost, energy))
    return sqrt(max(part, 0.0) / whole) if whole > 0 else 0.0
