"""Whether two sets of images come from one distribution (row S22)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["Shares", "TwoSample", "channel_effects", "class_shares", "two_sample"]

_PERMUTATIONS = 999
_SAMPLED = 400
_STATISTICS = 2_000
_GRID = 8


@dataclass(frozen=True)
class Shares:
    """Class shares of two sets, compared.

    Attributes:
        chi2: Pearson's statistic of the 2 x K table of counts.
        df: K - 1, over the classes that have images.
        p: of a statistic at least as large where shares are equal; from permutations where a count of fewer than 5 is
            expected, else from the chi-square distribution.
        distance: total variation, half the sum of the shares' absolute differences: 0 equal, 1 disjoint.
    """

    chi2: float
    df: int
    p: float
    distance: float


@dataclass(frozen=True)
class TwoSample:
    """Energy distance between two samples of images, tested by permutations.

    Attributes:
        statistic: 2 E|X - Y| - E|X - X'| - E|Y - Y'|, at least 0.
        p: (1 + permutations with at least this statistic) / (1 + permutations).
        sampled: images taken of each set.
        permutations: how many.
    """

    statistic: float
    p: float
    sampled: tuple[int, int]
    permutations: int


def class_shares(first: NDArray[np.int64], second: NDArray[np.int64], seed: int = 0) -> Shares:
    """Chi-square test that two rows of counts have the same shares.

    Args:
        first, second: counts per class, (K,).
        seed: of the permutations, where they are needed.

    Returns:
        Statistic, degrees of freedom, p and the distance between the shares.

    Source: row S22; Pearson 1900.
    """
    present = (first + second) > 0
    table = np.stack((first, second)).astype(np.float64)[:, present]
    totals = table.sum(1, keepdims=True)
    distance = float(np.abs(table / totals.clip(min=1)).max()) if 0 in totals else 0.0
    if 0 in totals or table.shape[1] < 2:
        return Shares(0.0, max(0, table.shape[1] - 1), 1.0, distance)
    shares = table / totals
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    expected = totals * table.sum(0) / table.sum()
    chi2, df = _chi2(table[0], expected), table.shape[1] - 1
    if expected.min() >= 5:
        # Survival function of the chi-square distribution: the regularised upper incomplete gamma function.
        half = torch.tensor([df / 2, chi2 / 2], dtype=torch.float64)
        return Shares(chi2, df, float(torch.special.gammaincc(half[0], half[1])), distance)
    drawn = np.random.Generator(np.random.PCG64(seed)).multivariate_hypergeometric(
        table.sum(0).astype(np.int64), int(totals[0, 0]), _PERMUTATIONS
    )
    several = np.array([_chi2(row.astype(np.float64), expected) for row in drawn])
    return Shares(chi2, df, float((1 + (several >= chi2 - 1e-9).sum()) / (1 + _PERMUTATIONS)), distance)


def _chi2(first: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Of a 2 x K table with given margins, of which the first row is enough."""
    apart = (first - expected[0]) ** 2
    return float((apart / expected[0] + apart / expected[1]).sum())


def two_sample(first: Tensor, second: Tensor, seed: int = 0) -> TwoSample:
    """Energy distance between images averaged down to 8 x 8, with permutations of who belongs to which set.

    Args:
        first, second: uint8 (N, C, H, W) and (M, C, H, W); of each at most 400, drawn by the seed, are compared.
        seed: of the draws and of 999 permutations.

    Returns:
        The statistic with its p.

    Source: row S22; Szekely and Rizzo 2004, "Testing for equal distributions in high dimension".
    """
    random = np.random.Generator(np.random.PCG64(seed))
    x, y = (_small(images, _drawn(random, len(images), _SAMPLED)) for images in (first, second))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return TwoSample(0.0, 1.0, (n, m), 0)
    both = torch.cat([x, y])
    distances = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist").double()
    members = np.zeros((1 + _PERMUTATIONS, n + m))
    members[:, :n] = 1
    members[1:] = random.permuted(members[1:], axis=1)
    inside = torch.from_numpy(members)
    outside = 1 - inside
    to_inside = inside @ distances
    within = (to_inside * inside).sum(1) / n**2
    across = (to_inside * outside).sum(1) / (n * m)
    beyond = ((outside @ distances) * outside).sum(1) / m**2
    energy = 2 * across - within - beyond
    least = float(energy[0]) * (1 - 1e-9)
    reached = int((energy[1:] >= least).sum())
    return TwoSample(max(0.0, float(energy[0])), (1 + reached) / (1 + _PERMUTATIONS), (n, m), _PERMUTATIONS)


def channel_effects(first: Tensor, second: Tensor, seed: int = 0) -> Mapping[str, tuple[float, float]]:
    """How far apart the images' own means and deviations are, channel by channel.

    Args:
        first, second: uint8 (N, C, H, W) and (M, C, H, W); at most 2,000 of each are looked at.
        seed: of the draw.

    Returns:
        ``mean 0``, ``deviation 0``, ``mean 1``, ... -> (effect d, z): the difference of the averages in units of the
        pooled deviation between images, and in units of its standard error.

    Source: row S22; Cohen 1988.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    x, y = (_moments(images, _drawn(random, len(images), _STATISTICS)) for images in (first, second))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        return {}
    pooled = (((n - 1) * x.var(0) + (m - 1) * y.var(0)) / (n + m - 2)).sqrt()
    effect = (y.mean(0) - x.mean(0)) / pooled.clamp(min=1e-3)
    z = effect / (1 / n + 1 / m) ** 0.5
    channels = first.shape[1]
    names = [f"{what} {c}" for what in ("mean", "deviation") for c in range(channels)]
    return {name: (float(d), float(v)) for name, d, v in zip(names, effect, z, strict=True)}


def _drawn(random: np.random.Generator, n: int, most: int) -> Tensor:
    return torch.from_numpy(np.sort(random.permutation(n)[:most]))


def _small(images: Tensor, index: Tensor) -> Tensor:
    """float32 (n, C * 64), on the scale 0..1."""
    parts = [adaptive_avg_pool2d(images[i].float() / 255, _GRID).flatten(1) for i in torch.split(index, 8)]
    return torch.cat(parts) if parts else torch.zeros(0, images.shape[1] * _GRID**2)


def _moments(images: Tensor, index: Tensor) -> Tensor:
    """float64 (n, 2 C): mean and deviation of each channel of each image, on the scale 0..255."""
    parts, pixels = [], images.shape[2] * images.shape[3]
    for i in torch.split(index, 8):
        # Sums of whole numbers are exact, and numpy's over 8 and 16 bits take a tenth of float64's time.
        values = images[i].numpy()
        mean = values.sum((2, 3), dtype=np.uint64) / pixels
        squares = np.square(values, dtype=np.uint16).sum((2, 3), dtype=np.uint64) / pixels
        std = np.sqrt((squares - mean**2).clip(min=0))
        parts.append(torch.from_numpy(np.concatenate([mean, std], 1)))
    return torch.cat(parts) if parts else torch.zeros(0, 2 * images.shape[1], dtype=torch.float64)
