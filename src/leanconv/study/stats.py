"""What a table of arms by seeds proves, and what it does not.

The model, for the value of arm a with seed s: ``y_as = mu_a + b_s + e_as``. The seed is a block: arms that share a
seed share the order of the images and whatever else the seed decides, so an arm is compared with another one within
the seeds. The e_as are independent with one variance, which is estimated from what arms and seeds do not explain; the
arms' means are free, so an interaction of any order cannot pass for noise. An effect is a contrast ``sum_a c_a mu_a``
with coefficients that add up to 0, hence free of the b_s; its interval is Student's t.

Source: Montgomery, "Design and Analysis of Experiments", randomised complete block designs and factorial designs;
Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979) 65-70.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from leanconv.errors import Error

__all__ = [
    "BOOTSTRAP",
    "Blocks",
    "Effect",
    "bootstrap",
    "fit",
    "holm",
    "interactions",
    "main_effects",
    "paired",
    "power",
    "seeds_needed",
]

Array = NDArray[np.float64]
Levels = Sequence[Mapping[str, str]]
BOOTSTRAP = 10
"""Seeds from which on a bootstrap says something."""


@dataclass(frozen=True)
class Effect:
    """An estimate with what it is worth.

    Attributes:
        name: ``dropout``, or ``dropout x l2``.
        value: the estimate; ``low`` and ``high`` its interval at ``level``; nan where there is none.
        p: two-sided; that there is no effect.
        holm: p after Holm's correction for all effects that were asked for together; p itself for one alone.
        df: degrees of freedom of the t distribution.
        error: standard error.
        level: of the interval.
    """

    name: str
    value: float
    low: float
    high: float
    p: float
    df: float
    error: float
    level: float = 0.95
    holm: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low)


@dataclass(frozen=True)
class Blocks:
    """The model, fitted.

    Attributes:
        means: of each arm, the seeds' differences taken out.
        covariance: of the means but for the variance: contrasts' variance is ``sigma^2 c' covariance c``.
        sigma: standard deviation of e; nan where nothing is left to estimate it from.
        df: degrees of freedom of sigma.
    """

    means: Array
    covariance: Array
    sigma: float
    df: int

    def effect(self, name: str, contrast: Sequence[float] | Array, level: float = 0.95) -> Effect:
        """A contrast's estimate, interval and p.

        Raises:
            Error: the coefficients do not add up to 0, or are not one per arm.
        """
        c = np.asarray(contrast, dtype=float)
        if c.shape != self.means.shape or abs(c.sum()) > 1e-9:
            raise Error(f"effect {name}: needs a coefficient per arm, adding up to 0, got {c.tolist()}")
        value = float(c @ self.means)
        error = self.sigma * math.sqrt(max(0.0, float(c @ self.covariance @ c)))
        return _effect(name, value, error, self.df, level)


def fit(values: Array) -> Blocks:
    """Fit ``y_as = mu_a + b_s + e_as`` by least squares.

    Args:
        values: (arms, seeds); nan where a run is missing.

    Raises:
        Error: an arm without any value.
    """
    y = np.asarray(values, dtype=float)
    if y.ndim != 2 or not y.size:
        raise Error(f"fit: values must be a table of arms by seeds, got shape {y.shape}")
    there = np.isfinite(y)
    arms, seeds = y.shape
    if not there.any(axis=1).all():
        raise Error(f"fit: every arm must have a value, got none for arm {int(np.argmin(there.any(axis=1)))}")
    if there.all():  # balanced: what least squares comes to, in closed form
        means = y.mean(axis=1)
        rest = y - means[:, None] - y.mean(axis=0)[None, :] + y.mean()
        df = (arms - 1) * (seeds - 1)
        return Blocks(means, np.eye(arms) / seeds, _sigma(float((rest**2).sum()), df), df)
    arm, seed = np.nonzero(there)
    x = np.zeros((len(arm), arms + seeds))
    x[np.arange(len(arm)), arm] = 1
    x[np.arange(len(arm)), arms + seed] = 1
    inverse = np.linalg.pinv(x.T @ x)
    coefficients = inverse @ x.T @ y[arm, seed]
    rest = y[arm, seed] - x @ coefficients
    df = len(arm) - int(np.linalg.matrix_rank(x))
    means = coefficients[:arms] + coefficients[arms:].mean()
    return Blocks(means, inverse[:arms, :arms], _sigma(float((rest**2).sum()), df), df)


def paired(name: str, differences: Sequence[float] | Array, level: float = 0.95) -> Effect:
    """The mean of paired differences with Student's t interval, ``mean +- t s / sqrt(n)``; for one, no interval."""
    d = np.asarray([x for x in differences if math.isfinite(x)], dtype=float)
    if not len(d):
        return Effect(name, math.nan, math.nan, math.nan, math.nan, 0, math.nan, level, math.nan)
    error = float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else math.nan
    return _effect(name, float(d.mean()), error, len(d) - 1, level)


def bootstrap(
    name: str, differences: Sequence[float] | Array, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Effect:
    """The mean of paired differences with a bias-corrected and accelerated bootstrap interval over the seeds.

    Raises:
        Error: fewer than :data:`BOOTSTRAP` differences; resampling so few tells nothing.
    """
    d = np.asarray(differences, dtype=float)
    if len(d) < BOOTSTRAP:
        raise Error(f"bootstrap: needs at least {BOOTSTRAP} seeds, got {len(d)}")
    whole = paired(name, d, level)
    if d.std() == 0:
        return whole
    found = stats.bootstrap(
        (d,), np.mean, confidence_level=level, n_resamples=draws, rng=np.random.default_rng(seed), method="BCa"
    )
    low, high = found.confidence_interval
    return replace(whole, low=float(low), high=float(high))


def main_effects(factors: Mapping[str, Sequence[str]], levels: Levels) -> dict[str, Array]:
    """Contrast per factor: the mean of the arms at its last level minus that of the arms at its first.

    Only arms are used that have a partner which differs from them in nothing else; where there is none, as for a
    factor that never stands apart from another, the factor has no effect of its own and is left out. A factor with
    more than two levels has a contrast for each level against the first, named ``factor=level``.

    Args:
        factors: name -> names of the levels, the first is the baseline.
        levels: of each arm, factor -> level.
    """
    found = {}
    for name, (base, *others) in factors.items():
        for level in others:
            pairs = _pairs(levels, name, base, level)
            if pairs:
                c = np.zeros(len(levels))
                for low, high in pairs:
                    c[low] -= 1 / len(pairs)
                    c[high] += 1 / len(pairs)
                found[name if len(others) == 1 else f"{name}={level}"] = c
    return found


def interactions(factors: Mapping[str, Sequence[str]], levels: Levels) -> dict[str, Array]:
    """Contrast per two factors with two levels each: how much the one's effect changes by the other.

    ``(y_11 - y_01) - (y_10 - y_00)``, the mean over all settings of the other factors at which all four were trained;
    0: the effects add up.
    """
    two = {name: given for name, given in factors.items() if len(given) == 2}
    names, found = list(two), {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            fours = []
            for low, high in _pairs(levels, a, *two[a]):
                if levels[low][b] != two[b][0]:
                    continue
                other = [_index(levels, {**levels[arm], b: two[b][1]}) for arm in (low, high)]
                if None not in other:
                    fours.append((low, high, *other))
            if fours:
                c = np.zeros(len(levels))
                for arms in fours:
                    c[np.asarray(arms, dtype=int)] += np.array([1, -1, -1, 1]) / len(fours)
                found[f"{a} x {b}"] = c
    return found


def holm(effects: Sequence[Effect]) -> list[Effect]:
    """Holm's correction: with m effects, the i-th smallest p becomes ``max_{j <= i} min(1, (m - j + 1) p_j)``.

    The probability that any effect is declared where there is none is then at most the level at which they are judged.
    Effects without p are no part of it.
    """
    order = sorted((i for i, e in enumerate(effects) if math.isfinite(e.p)), key=lambda i: effects[i].p)
    corrected = list(effects)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * effects[i].p))
        corrected[i] = replace(effects[i], holm=highest)
    return corrected


def power(effect: float, sigma: float, seeds: int, arms: int, weight: float, alpha: float = 0.05) -> float:
    """Probability that a two-sided t test at ``alpha`` finds an effect.

    ``P(|T| > t_{1 - alpha/2})`` for T noncentral t with (arms - 1)(seeds - 1) degrees of freedom and noncentrality
    ``effect / (sigma sqrt(weight / seeds))``.

    Args:
        effect: true size.
        sigma: standard deviation of e.
        seeds: from 2.
        arms: of the design.
        weight: sum of the contrast's squared coefficients: 2 for one arm against another, 4 / arms for a main effect of
            a full factorial.
        alpha: level of the test; for Holm's first step, the level divided by the number of effects.
    """
    df = (arms - 1) * (seeds - 1)
    if df < 1 or not sigma > 0:
        return math.nan
    quantile = float(stats.t.ppf(1 - alpha / 2, df))
    shift = abs(effect) / (sigma * math.sqrt(weight / seeds))
    if shift > 35:  # where scipy's noncentral t loses its digits, and the answer is 1 to the last one
        return 1.0
    return float(stats.nct.sf(quantile, df, shift) + stats.nct.cdf(-quantile, df, shift))


def seeds_needed(
    effect: float, sigma: float, arms: int, weight: float, alpha: float = 0.05, wanted: float = 0.8, most: int = 10_000
) -> int | None:
    """Fewest seeds with which an effect is found with the wanted probability; None: more than ``most``."""
    if not sigma > 0:
        return 2 if sigma == 0 else None

    def enough(seeds: int) -> bool:
        return power(effect, sigma, seeds, arms, weight, alpha) >= wanted

    return _first(enough, 2, most)


def _first(enough: Callable[[int], bool], low: int, most: int) -> int | None:
    high = low
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return low if enough(low) else high


def _effect(name: str, value: float, error: float, df: int, level: float) -> Effect:
    if df < 1 or not math.isfinite(error):
        return Effect(name, value, math.nan, math.nan, math.nan, df, math.nan, level, math.nan)
    half = float(special.stdtrit(df, (1 + level) / 2)) * error
    p = 1.0 if value == 0 else 0.0 if error == 0 else 2 * float(special.stdtr(df, -abs(value) / error))
    return Effect(name, value, value - half, value + half, p, df, error, level, p)


def _sigma(squares: float, df: int) -> float:
    return math.sqrt(squares / df) if df > 0 else math.nan


def _pairs(levels: Levels, name: str, base: str, level: str) -> list[tuple[int, int]]:
    """Arms that differ in nothing but this factor."""
    found = []
    for low, given in enumerate(levels):
        if given[name] == base:
            high = _index(levels, {**given, name: level})
            if high is not None:
                found.append((low, high))
    return found


def _index(levels: Levels, wanted: Mapping[str, str]) -> int | None:
    return next((i for i, given in enumerate(levels) if given == wanted), None)
