"""From rows to effects and to the arm that is chosen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import study_rows
from leanconv import recipe
from leanconv.errors import Error
from leanconv.study.analysis import Wanted, analyse, choose
from leanconv.study.design import Design, design
from leanconv.study.store import Row

DESIGN = design(recipe.load("demo"), "factorial")


def rows(made: Design = DESIGN, seeds: int = 3, noise: float = 0.002) -> list[Row]:
    """A study in which dropout narrows the gap by 4 points, batch norm brings 3 and separable costs 1."""
    rng = np.random.default_rng(0)
    found = []
    for arm in made.every:
        on = {name for name, level in arm.levels.items() if level == "on"}
        for seed in range(seeds):
            test = 0.8 + 0.03 * ("batchnorm" in on) - 0.01 * ("separable" in on) + noise * rng.standard_normal()
            steps = [10, 20, 30, 40]
            curve = {"step": steps, "val": [test - 0.3, test - 0.2, test - 0.05, test]}
            values = {"test": test, "val": test, "gap": 0.2 - 0.04 * ("dropout" in on) + noise * rng.standard_normal(),
                      "params": 1000 if "separable" in on else 9000, "macs": 10, "weight_norm": 4.0, "chance": 0.1,
                      "diverged": 0, "curve": curve}  # fmt: skip
            found.append(Row("run", arm.name, seed, values=values))
        if arm.role == "design":
            found.append(Row("stable", arm.name, 0, values={"rate": 0.5 if "batchnorm" in on else 0.125}))
            found.append(Row("times", arm.name, 0, values={"ms_1": 2.0 if "separable" in on else 3.0}))
    return found


def test_effects_are_those_that_were_put_in() -> None:
    found = analyse(DESIGN, rows())
    test = {e.name: e for e in found.effects["test"]}
    assert test["batchnorm"].low > 0.02
    assert test["batchnorm"].high < 0.04
    assert test["separable"].high < 0
    assert test["batchnorm"].holm < 0.001
    gap = {e.name: e for e in found.effects["gap"]}
    assert gap["dropout"].low < -0.04 < gap["dropout"].high < 0
    assert {"batchnorm x dropout", "separable x l2"} & set(test)
    assert len(test) == 4 + 6
    assert {e.name: e.value for e in found.rate_effects} == pytest.approx(
        {"separable": 0, "batchnorm": 2, "dropout": 0, "l2": 0}
    )
    assert found.arms["plain"]["seeds"] == 3
    assert found.arms["noise-plain"]["role"] == "noise"
    assert 0.71 < found.target < 0.73
    assert all(n is not None and n >= 2 for n in found.needed.values())
    assert any("3 seeds" in note for note in found.notes)


def test_one_seed_is_said_to_prove_nothing() -> None:
    found = analyse(DESIGN, rows(seeds=1))
    assert not any(e.known for e in found.effects["test"])
    assert found.notes[0].startswith("One seed")


def test_a_diverged_training_is_a_result() -> None:
    made = [
        replace(row, status="diverged", values={"test": 0.1, "val": 0.1, "chance": 0.1, "diverged": 1})
        if row.key == ("run", "plain", 1, "")
        else row
        for row in rows()
    ]
    found = analyse(DESIGN, made)
    assert found.arms["plain"]["diverged"] == 1
    assert any("1 of" in note and "diverged (plain)" in note for note in found.notes)
    assert math.isfinite(found.effects["gap"][0].value)


def test_a_study_of_two_arms_and_an_arm_without_a_training() -> None:
    made = design(recipe.only(recipe.load("demo"), ["l2"]), sides=False)
    found = analyse(made, rows(made))
    assert [e.name for e in found.effects["test"]] == ["l2"]
    with pytest.raises(Error, match="got none of l2"):
        analyse(made, [row for row in rows(made) if row.arm != "l2"])


def test_the_choice_keeps_to_the_limits() -> None:
    found = analyse(DESIGN, rows())
    best, why = choose(found, DESIGN, Wanted())
    assert "batchnorm" in DESIGN.arm(best).recipe.techniques
    assert "best on val" in why
    for aim in ("size", "latency"):
        name, _ = choose(found, DESIGN, Wanted(aim, params=2000))
        assert {"separable", "batchnorm"} <= set(DESIGN.arm(name).recipe.techniques)
    with pytest.raises(Error, match=r"got none with params <= 10, val >= 0\.5"):
        choose(found, DESIGN, Wanted(params=10, accuracy=0.5))
    with pytest.raises(Error, match="aim must be accuracy, latency or size"):
        choose(found, DESIGN, Wanted("cheap"))


def test_from_ten_seeds_on_there_are_bootstrap_intervals_too() -> None:
    assert analyse(study_rows.DESIGN, study_rows.rows(seeds=9)).bootstrapped == {}
    given = study_rows.rows(seeds=12)
    found = analyse(study_rows.DESIGN, given)
    assert set(found.bootstrapped) == {"test", "gap"}
    for key, effects in found.bootstrapped.items():
        for own, other in zip(effects, found.effects[key], strict=True):
            assert own.name == other.name
            assert own.value == pytest.approx(other.value, abs=1e-9)
            assert own.low < own.value < own.high
    one_less = [row for row in given if (row.kind, row.seed, row.arm) != ("run", 3, "l2")]
    assert analyse(study_rows.DESIGN, one_less).bootstrapped == {}
