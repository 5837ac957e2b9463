"""The three forms of the penalty and the weight decay each is worth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanconv.errors import Error
from leanconv.techniques.l2 import Options, weight_decay
from leanconv.techniques.l2.forms import decays


@pytest.mark.source("S14")
@settings(deadline=None, max_examples=50)
@given(strength=st.floats(0, 10), n=st.integers(1, 10**7))
def test_one_strength_in_three_forms(strength: float, n: int) -> None:
    assert weight_decay(strength, "lambda/2n", n) == strength / n
    assert weight_decay(strength, "lambda/2", n) == weight_decay(strength, "lambda/2") == strength
    assert weight_decay(strength, "lambda") == 2 * strength


@pytest.mark.source("S14")
def test_lambda_over_2n_without_n_says_so() -> None:
    with pytest.raises(Error, match=r"lambda/2n.*number of training images.*got n=None"):
        weight_decay(5e-4, "lambda/2n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-1e-4,), "strength must be a finite number >= 0, got strength=-0.0001"),
        ((float("nan"),), "got strength=nan"),
        ((float("inf"),), "got strength=inf"),
        ((True,), "got strength=True"),
        ((1.0, "lambda/3"), "form must be one of lambda/2n, lambda/2, lambda, got form='lambda/3'"),
        ((1.0, "lambda/2n", 0), "n must be a whole number >= 1, got n=0"),
        ((1.0, "lambda/2n", 2.5), "got n=2.5"),
        ((1.0, "lambda/2n", True), "got n=True"),
    ],
)
def test_bad_arguments_are_echoed(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(Error, match=words):
        weight_decay(*arguments)


@pytest.mark.source("S15")
def test_weights_are_decayed_and_nothing_else() -> None:
    assert decays("weight")
    assert decays("depthwise")
    assert not decays("depthwise", depthwise=False)
    assert not any(decays(role) for role in ("bias", "norm", "a technique's own"))


@pytest.mark.parametrize(
    ("name", "value"), [("strength", -3), ("strength", "much"), ("form", -3), ("where", "here"), ("depthwise", -3)]
)
def test_options_echo_what_they_refuse(name: str, value: object) -> None:
    with pytest.raises(Error, match=rf"^l2: {name} .*got {name}={value!r}$"):
        Options(**{name: value})  # type: ignore[arg-type]
