"""Verdicts on the source's claims."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from leanconv import recipe
from leanconv.study.analysis import analyse
from leanconv.study.claims import Claim, claims
from leanconv.study.design import design
from leanconv.study.store import Row

DESIGN = design(recipe.load("study"), "factorial")


def rows(seeds: int = 4, sign: float = 1.0) -> list[Row]:
    """Every claim is true (sign 1), false (-1) or nothing is known (0)."""
    rng = np.random.default_rng(1)
    found = []
    for arm in DESIGN.every:
        on = {name for name, level in arm.levels.items() if level == "on"}
        wide = arm.recipe.model.options["width"] / 16
        for seed in range(seeds):

            def e() -> float:
                return 0.003 * float(rng.standard_normal())

            def is_on(name: str, on: set[str] = on) -> float:
                return sign * (name in on)

            test = 0.7 + 0.02 * sum(map(is_on, DESIGN.arms[-1].levels)) + e()
            gap = (
                0.2 - 0.05 * (is_on("dropout") + is_on("l2") + is_on("batchnorm")) + 0.05 * sign * math.log2(wide) + e()
            )
            faster = 0.05 * is_on("batchnorm") + 0.1 * e()
            values = {
                "test": test, "val": test, "gap": gap, "chance": 0.1, "diverged": 0,
                "params": 9 - 6 * ("separable" in on),
                "macs": 9 - 6 * ("separable" in on), "shift": 0.5 - 0.2 * is_on("batchnorm") + e(),
                "shift_deeper": 0.3 - 0.2 * is_on("batchnorm") + e(), "roughness": 0.3 - 0.1 * is_on("batchnorm") + e(),
                "gradients": 1 - 0.5 * is_on("batchnorm") + e(), "weight_norm": 8 * 2 ** (-is_on("l2") + e()),
                "curve": {"step": [10, 20], "val": [0.5 + faster, 0.7 + faster]},
            }  # fmt: skip
            if "dropout" in on:
                values |= {"dropout_single": 0.7, "dropout_average": 0.7 + 0.02 * sign + e()}
            if arm.role == "noise":
                values["memorised"] = 0.5 - 0.2 * is_on("dropout") + e()
            found.append(Row("run", arm.name, seed, values=values))
        if arm.role == "design":
            rate = 0.125 * 2.0 ** (is_on("batchnorm") + 0.1 * e())
            found.append(Row("stable", arm.name, 0, values={"rate": rate}))
            found.append(Row("times", arm.name, 0, values={"ms_1": 3.0 * 2 ** (-is_on("separable") + e())}))
    return found


def verdicts(given: list[Row]) -> dict[str, Claim]:
    return {claim.told: claim for claim in claims(analyse(DESIGN, given), DESIGN, given)}


def test_what_is_true_holds() -> None:
    found = verdicts(rows())
    assert len(found) == 18
    assert {claim.verdict for claim in found.values()} == {"holds"}
    assert {c.source for c in found.values()} >= {"S1", "S5", "S11", "S12", "S13", "S16", "S19", "S20", "S23", "S24"}
    gap = found["dropout narrows the gap between training and test"]
    assert gap.low < -5 < gap.high < 0


def test_what_is_false_does_not() -> None:
    found = verdicts(rows(sign=-1.0))
    counted = {"separable convolution cuts parameters", "separable convolution cuts multiply-adds", "and cheaper"}
    assert {c.verdict for told, c in found.items() if told not in counted} == {"does not"}


def test_where_there_is_nothing_nothing_is_claimed() -> None:
    found = verdicts(rows(sign=0.0))
    sampled = [c for c in found.values() if not math.isnan(c.holm)]
    assert sum(c.verdict == "undecided" for c in sampled) >= len(sampled) - 1


def test_one_seed_decides_nothing_that_is_sampled_over_seeds() -> None:
    found = verdicts(rows(seeds=1))
    gap = found["dropout narrows the gap between training and test"]
    assert gap.verdict == "undecided"
    assert math.isnan(gap.low)


def test_a_study_without_dropout_says_nothing_of_dropout() -> None:
    made = design(recipe.only(recipe.load("study"), ["l2"]), sides=False)
    given = [replace(row, arm=row.arm) for row in rows() if row.arm in ("plain", "l2")]
    told = [claim.told for claim in claims(analyse(made, given), made, given)]
    assert "L2 shrinks the weights" in told
    assert not any("dropout" in t and "ensemble" not in t for t in told)
