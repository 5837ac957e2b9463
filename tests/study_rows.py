"""Rows of a study that never ran, with known effects."""

from __future__ import annotations

import math

import numpy as np

from leanconv import recipe
from leanconv.study.design import design
from leanconv.study.store import Row

__all__ = ["DESIGN", "rows"]

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
            held = [{"in": c, "params": c * (c if is_on("separable") else 9 * c)} for c in (3, 8, 16)]
            times = {"ms_1": 3.0 * 2 ** (-is_on("separable") + e()), "ms_step": 9.0, "convolutions": held}
            found.append(Row("times", arm.name, 0, values=times))
    return found
