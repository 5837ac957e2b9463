"""Plans for the tests of int8: float plans in bytes, and channels of unequal sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from leanconv.deploy.quantisation.equalisation import links
from leanconv.deploy.quantisation.lowering import Lowered, lower, pointed
from leanconv.deploy.quantisation.observing import observe
from leanconv.deploy.quantisation.rules import quant, within
from leanconv.deploy.quantisation.weights import spread
from leanconv.runtime.checking import check
from leanconv.runtime.plan import Plan, Step

TYPES = {np.dtype(np.float32): "F32", np.dtype(np.int32): "I32", np.dtype(np.int8): "I8"}


def holds_together(plan: Plan, tensors: Any) -> None:
    types = {name: TYPES[values.dtype] for name, values in tensors.items()}
    check(plan, {name: values.shape for name, values in tensors.items()}, types)


def noise(plan: Plan, count: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, *plan.values[plan.input].shape)).astype(np.float32)


def lowered(plan: Plan, tensors: Any, x: Any, kept: Any = ()) -> tuple[Plan, Any, Lowered]:
    plan, tensors = pointed(plan, tensors)
    seen = observe(plan, tensors, [x])
    quants = {number: quant(*within("minmax", one.counted, 99)) for number, one in seen.items()}
    made = lower(plan, tensors, quants, kept)
    holds_together(made.plan, made.tensors)
    return plan, tensors, made


def unequal(plan: Plan, tensors: Any, powers: int, seed: int = 0) -> tuple[Plan, dict[str, Any]]:
    """The same function, relu6 taken for relu, with channels between layers multiplied by random powers of two."""
    random = np.random.default_rng(seed)

    def plain(step: Step) -> Step:
        return replace(step, act=step.act.replace("relu6", "relu"), parts=tuple(map(plain, step.parts)))

    plan, made = replace(plan, steps=tuple(map(plain, plan.steps))), dict(tensors)
    for link in links(plan):
        first, second = link.first.tensors, link.second.tensors
        bias, weight = made[first["bias"]], made[first["weight"]]
        f = (2.0 ** random.integers(-powers, powers + 1, len(bias))).astype(np.float32)
        made[first["weight"]] = weight * (
            f if link.first.op == "depthwise" else f.reshape(-1, *(1,) * (weight.ndim - 1))
        )
        made[first["bias"]] = bias * f
        made[second["weight"]] = made[second["weight"]] / spread(link.second, f, made[second["weight"]])
    return plan, made
