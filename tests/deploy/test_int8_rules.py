"""Histograms, the ranges that rules choose, and weights as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from leanconv.deploy.quantisation.histogram import BINS, Histogram
from leanconv.deploy.quantisation.rules import RULES, quant, within
from leanconv.deploy.quantisation.weights import corrected, quantised, rows, spread
from leanconv.errors import Error
from leanconv.runtime.plan import Quant, Step

NUMBERS = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**40), 2.0**40, width=32))


def counted(*parts: Any) -> Histogram:
    made = Histogram()
    for part in parts:
        assert made.add(np.asarray(part, np.float32))
    return made


def real(bytes_: Any, of: Quant) -> Any:
    return of.scale * (bytes_.astype(np.float64) - of.zero)


def error(of: Histogram, bytes_: Quant) -> float:
    """Squared differences of the bins' middles from what their bytes stand for."""
    off = real(rounded(of.centres, bytes_), bytes_) - of.centres
    return float((off**2 * of.counts).sum())


def rounded(x: Any, of: Quant) -> Any:
    return np.clip(np.rint(x.astype(np.float64) / of.scale) + of.zero, 0, 255)


# --- histograms ------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS)
def test_counts_do_not_depend_on_order_or_portions(a: Any, b: Any, c: Any) -> None:
    one, other = counted(a, b, c), counted(np.concatenate([c, a]), b)
    assert (one.low, one.high, one.width) == (other.low, other.high, other.width)
    assert np.array_equal(one.counts, other.counts)
    whole = np.concatenate([a, b, c])
    assert one.counts.sum() == whole.size
    assert (one.low, one.high) == (whole.min(), whole.max())


@settings(deadline=None)
@given(NUMBERS)
def test_each_number_is_in_its_bin(x: Any) -> None:
    made = counted(x)
    assert np.abs(x).max() <= BINS * made.width
    if np.abs(x).max() > 0:
        assert np.abs(x).max() >= BINS * made.width / 2  # no wider than it must be
    index = np.floor(x.astype(np.float64) / made.width).astype(int).clip(-BINS, BINS - 1)
    assert np.array_equal(np.bincount(index + BINS, minlength=2 * BINS), made.counts)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_counted(bad: float) -> None:
    made = Histogram()
    assert not made.add(np.array([1.0, bad], np.float32))
    assert not made.counts.any()
    assert made.add(np.zeros((0, 3), np.float32))
    assert made.add(np.zeros(3, np.float32))
    assert (made.low, made.high, made.width) == (0, 0, 1)


# --- ranges ----------------------------------------------------------------------------------------------------------

ENDS = st.floats(-1e20, 1e20).filter(lambda x: x == 0 or abs(x) > 1e-20)


@settings(deadline=None)
@given(ENDS, ENDS)
def test_bytes_hold_zero_and_the_range(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    made = quant(low, high)
    assert float(np.float32(made.scale)) == made.scale
    assert 1e-30 <= made.scale <= 1e30
    assert 0 <= made.zero <= 255
    if low >= 0:
        assert made.zero == 0
    if high <= 0 > low:
        assert made.zero == 255
    ends = np.array([min(low, 0), max(high, 0)])
    assert (np.abs(real(rounded(ends, made), made) - ends) <= 0.502 * made.scale).all()


def test_an_empty_range_has_a_scale() -> None:
    assert quant(0.0, 0.0) == Quant(2.0**-10, 0)
    assert quant(0.0, 1e-35).scale >= 1e-30


@settings(deadline=None)
@given(NUMBERS, st.sampled_from(sorted(RULES)))
def test_no_rule_leaves_what_was_seen(x: Any, rule: str) -> None:
    made = counted(x)
    low, high = within(rule, made, 99.0)
    assert min(made.low, 0) - 1e-6 * abs(made.low) <= low <= high <= max(made.high, 0) + 1e-6 * abs(made.high)


def test_minmax_and_percentile() -> None:
    x = np.concatenate([np.linspace(0, 1, 9_999), [1000.0]])
    assert within("minmax", counted(x), 99) == (0.0, 1000.0)
    low, high = within("percentile", counted(x), 99.9)
    assert low == 0
    assert high <= 1.0
    both = np.concatenate([np.linspace(-1, 1, 99_998), [-50, 50]])
    low, high = within("percentile", counted(both), 99.99)
    assert -1.1 < low < -0.9
    assert 0.9 < high < 1.1
    assert within("percentile", counted(both), 100) == (-50, 50)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 3), st.booleans())
def test_mse_is_never_worse_than_minmax(seed: int, tail: float, one_sided: bool) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal(3000) * np.exp(tail * random.standard_normal(3000))
    made = counted(np.maximum(x, 0) if one_sided else x)
    best = quant(*within("mse", made, 99))
    assert error(made, best) <= error(made, quant(*within("minmax", made, 99)))
    if one_sided:
        assert best.zero == 0


def test_mse_cuts_an_outlier_off() -> None:
    x = np.concatenate([np.random.default_rng(0).standard_normal(1_000_000), [40.0]])
    low, high = within("mse", counted(x), 99)
    assert high < 15
    assert low < -3


def test_bad_rules() -> None:
    with pytest.raises(Error, match="rule must be one of mse, percentile, minmax, got 'max'"):
        within("max", counted([1.0]), 99)
    with pytest.raises(Error, match="above 50 and at most 100, got 50"):
        within("percentile", counted([1.0]), 50)


# --- weights ---------------------------------------------------------------------------------------------------------

SHAPES = {"conv": (4, 3, 2, 5), "depthwise": (3, 2, 4), "linear": (4, 30)}


@settings(deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 2**31), st.floats(-6, 6))
def test_weights_and_biases_come_back(op: str, seed: int, power: float) -> None:
    random = np.random.default_rng(seed)
    weight = (random.standard_normal(SHAPES[op]) * 10**power).astype(np.float32)
    bias = random.standard_normal(4).astype(np.float32)
    made = quantised(op, weight, bias, 0.02)
    assert made.weight.dtype == np.int8
    assert made.bias.dtype == np.int32
    assert made.weight.shape == weight.shape
    assert made.weight.min() >= -127
    assert made.fits
    scale = made.scale.astype(np.float64)
    off = np.abs(rows(op, made.weight) * scale[:, None] - rows(op, weight))
    assert (off <= 0.501 * scale[:, None]).all()
    assert (np.abs(made.bias * 0.02 * scale - bias) <= 0.501 * 0.02 * scale).all()


def test_a_tiny_channel_keeps_its_bias() -> None:
    weight = np.array([[1e-12, -1e-12], [1.0, 0.5], [0.0, 0.0], [0.0, 0.0]], np.float32)
    bias = np.array([3.0, 3.0, -2.0, 0.0], np.float32)
    made = quantised("linear", weight, bias, 0.01)
    assert made.fits
    assert np.abs(made.bias.astype(np.int64)).max() <= 2**30
    assert np.allclose(made.bias * 0.01 * made.scale.astype(np.float64), bias, rtol=1e-6)
    assert made.scale[3] == 1


def test_sums_that_leave_32_bits_do_not_fit() -> None:
    assert not quantised("linear", np.ones((1, 70_000), np.float32), np.zeros(1, np.float32), 1.0).fits
    assert quantised("linear", np.ones((1, 60_000), np.float32), np.zeros(1, np.float32), 1.0).fits


@pytest.mark.parametrize(("op", "groups"), [("conv", 1), ("conv", 2), ("depthwise", 1), ("linear", 1)])
def test_the_corrected_bias_takes_the_mean_back(op: str, groups: int) -> None:
    random = np.random.default_rng(0)
    shape = {"conv": (4, 3, 3, 6 // groups), "depthwise": (3, 3, 12), "linear": (4, 24)}[op]
    weight = random.standard_normal(shape).astype(np.float32)
    bias = random.standard_normal(12 if op == "depthwise" else 4).astype(np.float32)
    mean = random.uniform(1, 2, 6)
    step = Step(op, (0,), 1, groups=groups)
    each = rows(op, np.broadcast_to(spread(step, mean, weight), weight.shape))
    made = quantised(op, weight, bias, 0.01)
    stood = (rows(op, made.weight) * made.scale[:, None].astype(np.float64) * each).sum(1)
    wanted = (rows(op, weight) * each).sum(1) + bias
    new = corrected(step, weight, bias, mean, 0.01)
    assert np.allclose(stood + new, wanted, atol=1e-5)
    assert not np.allclose(stood + bias, wanted, atol=1e-3)
