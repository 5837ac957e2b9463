"""Verdicts on the source's claims."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from leanconv import recipe
from leanconv.study.analysis import analyse
from leanconv.study.claims import Claim, claims
from leanconv.study.design import design
from leanconv.study.store import Row
from study_rows import DESIGN, rows


def verdicts(given: list[Row]) -> dict[str, Claim]:
    return {claim.told: claim for claim in claims(analyse(DESIGN, given), DESIGN, given)}


@pytest.mark.source("S13")
@pytest.mark.source("S24")
@pytest.mark.source("S28")
def test_what_is_true_holds() -> None:
    found = verdicts(rows())
    assert len(found) == 19
    assert {claim.verdict for claim in found.values()} == {"holds"}
    assert {c.source for c in found.values()} >= {"S1", "S5", "S11", "S12", "S13", "S16", "S19", "S20", "S23", "S24"}
    gap = found["dropout narrows the gap between training and test"]
    assert gap.low < -5 < gap.high < 0


def test_what_is_false_does_not() -> None:
    found = verdicts(rows(sign=-1.0))
    counted = {"separable convolution cuts parameters", "separable convolution cuts multiply-adds", "and cheaper",
               "it saves more with more input channels"}  # fmt: skip
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
