"""The study's statistics: against plain references, and against what they promise, in simulated studies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from leanconv.errors import Error
from leanconv.study import stats

NAMES = ("separable", "batchnorm", "dropout", "l2")
FACTORS = dict.fromkeys(NAMES, ("off", "on"))
LEVELS = [dict(zip(NAMES, point, strict=True)) for point in itertools.product(("off", "on"), repeat=4)]


def contrasts() -> dict[str, stats.Array]:
    return {**stats.main_effects(FACTORS, LEVELS), **stats.interactions(FACTORS, LEVELS)}


def effects(values: stats.Array) -> list[stats.Effect]:
    model = stats.fit(values)
    return stats.holm([model.effect(name, c) for name, c in contrasts().items()])


def simulated(rng: np.random.Generator, seeds: int) -> stats.Array:
    """Arms that differ in nothing, seeds that do."""
    return 0.6 + 0.05 * rng.standard_normal((1, seeds)) + 0.01 * rng.standard_normal((16, seeds))


def test_a_full_factorial_gives_the_textbook_effects() -> None:
    y = np.random.default_rng(0).standard_normal((16, 3))
    for name, c in stats.main_effects(FACTORS, LEVELS).items():
        on = np.array([level[name] == "on" for level in LEVELS])
        assert math.isclose(c @ y.mean(1), y[on].mean() - y[~on].mean(), abs_tol=1e-12)
        assert math.isclose(c @ c, 4 / 16)
    both = stats.interactions(FACTORS, LEVELS)["dropout x l2"]
    cell = {
        (a, b): np.mean([y[i].mean() for i, v in enumerate(LEVELS) if (v["dropout"], v["l2"]) == (a, b)])
        for a, b in itertools.product(("off", "on"), repeat=2)
    }
    expected = cell["on", "on"] - cell["off", "on"] - cell["on", "off"] + cell["off", "off"]
    assert math.isclose(both @ y.mean(1), expected, abs_tol=1e-12)


def test_two_arms_are_the_paired_t_test() -> None:
    y = np.random.default_rng(1).standard_normal((2, 7))
    found = stats.fit(y).effect("b - a", [-1, 1])
    reference = scipy_stats.ttest_rel(y[1], y[0])
    interval = reference.confidence_interval()
    assert math.isclose(found.p, reference.pvalue, rel_tol=1e-10)
    assert np.allclose([found.low, found.high], [interval.low, interval.high], rtol=1e-10)
    alone = stats.paired("b - a", y[1] - y[0])
    assert np.allclose([alone.value, alone.low, alone.high, alone.p], [found.value, found.low, found.high, found.p])


def test_missing_runs_are_fitted_by_least_squares() -> None:
    y = np.random.default_rng(2).standard_normal((4, 5))
    whole = stats.fit(y)
    y[1, 2] = y[3, 0] = np.nan
    found = stats.fit(y)
    rows, cells = [], []
    for a, s in itertools.product(range(4), range(5)):
        if np.isfinite(y[a, s]):
            rows.append([float(a == k) for k in range(4)] + [float(s == k) for k in range(1, 5)])
            cells.append(y[a, s])
    x, target = np.array(rows), np.array(cells)
    solution = np.linalg.lstsq(x, target, rcond=None)[0]
    c = np.array([-1.0, 0, 0, 1])
    effect = found.effect("d - a", c)
    rest = target - x @ solution
    variance = rest @ rest / (len(target) - 8)
    covariance = variance * np.linalg.inv(x.T @ x)[:4, :4]
    assert found.df == len(target) - 8 == whole.df - 2
    assert math.isclose(effect.value, c @ solution[:4], abs_tol=1e-10)
    assert math.isclose(effect.error, math.sqrt(c @ covariance @ c), rel_tol=1e-9)


def test_balanced_and_general_fits_agree() -> None:
    y = np.random.default_rng(3).standard_normal((5, 4))
    padded = np.hstack([y, np.full((5, 1), np.nan)])  # a seed without any run changes nothing
    a, b = stats.fit(y), stats.fit(padded)
    assert a.df == b.df
    c = [1, -1, 0, 0.5, -0.5]
    left, right = a.effect("c", c), b.effect("c", c)
    assert np.allclose([left.value, left.low, left.high], [right.value, right.low, right.high])


def test_holm_by_hand() -> None:
    def effect(p: float) -> stats.Effect:
        return stats.Effect("x", 0, 0, 0, p, 1, 1)

    found = [e.holm for e in stats.holm([effect(p) for p in (0.01, 0.04, 0.03, 0.005)])]
    assert np.allclose(found, [0.03, 0.06, 0.06, 0.02])
    assert math.isnan(stats.holm([effect(math.nan)])[0].holm)


def test_family_wise_error_of_2000_studies_without_any_effect() -> None:
    rng = np.random.default_rng(4)
    wrong = sum(min(e.holm for e in effects(simulated(rng, 3))) < 0.05 for _ in range(2_000))
    assert wrong / 2_000 <= 0.06, wrong


def test_intervals_cover_at_their_level() -> None:
    rng = np.random.default_rng(5)
    c = contrasts()["dropout"]
    true = 0.02 * np.array([level["dropout"] == "on" for level in LEVELS])[:, None]
    found = [stats.fit(simulated(rng, 3) + true).effect("dropout", c) for _ in range(4_000)]
    covered = np.mean([e.low <= 0.02 <= e.high for e in found])
    assert abs(covered - 0.95) <= 0.02, covered


@pytest.mark.parametrize("size", [0.008, 0.011])
def test_an_effect_is_found_at_the_stated_power(size: float) -> None:
    """After Holm's correction: for the one effect there is, its first step, the level divided by their number."""
    rng = np.random.default_rng(6)
    all_of_them = contrasts()
    stated = stats.power(size, 0.01, 3, 16, 4 / 16, alpha=0.05 / len(all_of_them))
    true = size * np.array([level["dropout"] == "on" for level in LEVELS])[:, None]
    place = list(all_of_them).index("dropout")
    found = np.mean([effects(simulated(rng, 3) + true)[place].holm < 0.05 for _ in range(2_000)])
    assert 0.2 < stated < 0.95
    assert abs(found - stated) <= 0.03, (found, stated)


def test_seeds_needed_is_the_fewest() -> None:
    for size in (0.002, 0.005, 0.02):
        seeds = stats.seeds_needed(size, 0.01, 16, 0.25)
        assert seeds is not None
        assert stats.power(size, 0.01, seeds, 16, 0.25) >= 0.8
        assert seeds == 2 or stats.power(size, 0.01, seeds - 1, 16, 0.25) < 0.8
    assert stats.seeds_needed(1e-9, 1.0, 2, 2.0, most=100) is None
    assert stats.seeds_needed(0.1, math.nan, 2, 2.0) is None


def test_what_one_seed_cannot_tell_is_nan() -> None:
    found = stats.fit(np.ones((4, 1))).effect("x", [-1, 1, 0, 0])
    assert not found.known
    assert math.isnan(found.p)
    assert math.isnan(stats.paired("x", [1.0]).low)
    assert math.isnan(stats.paired("x", []).value)


def test_factors_that_never_stand_apart_have_no_effect_of_their_own() -> None:
    add_one = [LEVELS[0], *(dict(LEVELS[0], **{n: "on"}) for n in NAMES), LEVELS[-1]]
    assert set(stats.main_effects(FACTORS, add_one)) == set(NAMES)
    assert stats.interactions(FACTORS, add_one) == {}
    assert stats.main_effects(FACTORS, [LEVELS[0], LEVELS[-1]]) == {}


def test_three_levels_are_each_held_against_the_first() -> None:
    levels = [{"p": p} for p in ("0", "0.2", "0.5")]
    found = stats.main_effects({"p": ("0", "0.2", "0.5")}, levels)
    assert {name: c.tolist() for name, c in found.items()} == {"p=0.2": [-1, 1, 0], "p=0.5": [-1, 0, 1]}


def test_bootstrap_needs_ten_seeds() -> None:
    with pytest.raises(Error, match="at least 10 seeds, got 9"):
        stats.bootstrap("x", np.arange(9.0))
    d = np.random.default_rng(7).standard_normal(40) + 1
    found, t = stats.bootstrap("x", d), stats.paired("x", d)
    assert found.value == t.value
    assert abs(found.low - t.low) < 0.1
    assert abs(found.high - t.high) < 0.1


@pytest.mark.parametrize("contrast", [[1, 0], [1, -1, 0], [1.0, 1.0]])
def test_a_contrast_adds_up_to_zero(contrast: list[float]) -> None:
    with pytest.raises(Error, match="effect x: needs a coefficient per arm"):
        stats.fit(np.ones((2, 2))).effect("x", contrast)


def test_an_arm_without_a_run_is_said() -> None:
    with pytest.raises(Error, match="got none for arm 1"):
        stats.fit(np.array([[1.0, 2.0], [np.nan, np.nan]]))
