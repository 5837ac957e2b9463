"""Steps on unsigned bytes: what exactly they compute.

A byte q of a value with :class:`~leanconv.runtime.plan.Quant` (s, z) is s (q - z). Sums of a conv, depthwise or linear
are whole numbers,

    a = bias[c] + sum w[c, k] (q[k] - z_x),

exact in 32 bits, which :func:`check` makes sure of. Everything after them is float32, each operation rounded once: t =
a m[c] with m[c] = s_x scale[c], computed in float64 and rounded once; a second input is added as s_2 (q_2 - z_2);
then the activation; and a byte is clamp(rint(t / s) + z, 0, 255), ties to even. Where the activation only bounds
(:data:`~leanconv.runtime.plan.BOUNDED`), 1 / s is part of the factors, m[c] = s_x scale[c] / s, and the bounds are
bytes, so that a step has one multiplication. As no other order of operations is allowed, all executors give the same
bits; but for the exponential function in SiLU and sigmoid, where a byte may differ by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from leanconv.errors import Error
from leanconv.runtime.operations import RUNS, Array, Tensors, activate, window_counts
from leanconv.runtime.plan import BOUNDED, Plan, Quant, Step

__all__ = ["check", "run"]

_SUM, _SCALED, _FACTOR = 2.0**31, 2.0**30, 2.0**20


def run(step: Step, inputs: Sequence[Array], own: Tensors, quants: Sequence[Quant | None], made: Quant | None) -> Array:
    """What a step that reads or makes bytes gives.

    Args:
        step: the step; no block.
        inputs: (N, H, W, C), uint8 where the input has a quant, else floating point.
        own: role -> tensor.
        quants: of the inputs.
        made: of the output; None: it is float32.
    """
    if step.op == "quantize":
        assert made is not None
        return _byte(inputs[0].astype(np.float32), made)
    if step.op == "max_pool":
        # As whole numbers: the padding is minus infinity.
        return _bounded(step.act, RUNS[step.op](step, [inputs[0].astype(np.float32)], own), quants[0])
    whole = [_whole(x, quant) for x, quant in zip(inputs, quants, strict=True)]
    bounded = step.act in BOUNDED and made is not None
    t = _SUMS[step.op](step, whole, own, quants, made.scale if bounded and made else 1.0)
    if bounded and made is not None:
        low, high = _bounds(step.act, made)
        return np.asarray(np.clip(np.rint(t).astype(np.int64) + made.zero, low, high), np.uint8)
    y = activate(step.act, t)
    return y if made is None else _byte(y, made)


def check(plan: Plan, tensors: Mapping[str, Array]) -> None:
    """Refuse steps whose sums could leave 32 bits, or whose factors are out of all proportion.

    255 sum |w| + |bias| must be below 2^31 for every channel, and below 2^30 after the factor; factors between two
    scales must be below 2^20.

    Args:
        plan: one that :func:`leanconv.runtime.checking.check` lets pass.
        tensors: name -> values.

    Raises:
        Error: the first step for which that does not hold.
    """
    for i, step in enumerate(plan.steps):
        for part in step.parts or (step,):
            quants = [plan.values[number].quant for number in part.inputs]
            if any(quants):
                own = {role: tensors[name] for role, name in part.tensors.items()}
                try:
                    with np.errstate(over="ignore"):
                        _check(plan, part, own, quants, plan.values[part.output].quant)
                except Error as error:
                    raise Error(f"step {i} ({part.layer or part.op}): {error}") from None


def _check(plan: Plan, step: Step, own: Tensors, quants: Sequence[Quant | None], made: Quant | None) -> None:
    real = made is None or step.act not in BOUNDED
    unit = 1.0 if made is None or real else made.scale
    factors = [_float(quant.scale / unit) for quant in quants if quant is not None]
    if "weight" in own:
        scale, largest = own["scale"].astype(np.float64), _largest(step.op, own)
        if not ((scale >= 0) & (scale <= 1e30)).all():
            raise Error(f"scales of weights must be 0 to 1e30, got {scale.min()} to {scale.max()}")
        if largest.max() >= _SUM:
            raise Error(f"sums must stay below 2^31, got up to {largest.max()}")
        _below(float((largest * _float(_scale(quants) * scale / unit).astype(np.float64)).max()))
    height, width, _ = plan.values[step.inputs[0]].shape
    area = {"mean": height * width, "avg_pool": step.window.size[0] * step.window.size[1]}.get(step.op, 1)
    if 255 * area >= _SUM:
        raise Error(f"sums must stay below 2^31, got {area} bytes")
    pooled = step.op in ("mean", "avg_pool")
    if step.op == "concat":
        checked = factors
    elif real or pooled or step.op == "multiply":
        checked = []
    else:
        checked = factors[1:] if "weight" in own else factors
    if checked and not max(checked) < _FACTOR:
        raise Error(f"scales must be within a factor of 2^20, got {max(checked):.3g}")
    if pooled and not real:
        _below(255 * float(factors[0]))
    if step.op == "multiply" and not real:
        _below(255 * 255 * float(_float(_scale(quants) * _scale(quants, 1) / unit)))


def _largest(op: str, own: Tensors) -> Array:
    """The largest magnitude that each channel's sum, and every part of it, can have."""
    weight = np.abs(own["weight"].astype(np.int64))
    axes = (0, 1) if op == "depthwise" else tuple(range(1, weight.ndim))
    return np.asarray(255 * weight.sum(axes) + np.abs(own["bias"].astype(np.int64)))


def _below(value: float) -> None:
    if not value < _SCALED:
        raise Error(f"sums by their factors must stay below 2^30, got up to {value:.3g}")


def _whole(x: Array, quant: Quant | None) -> Array:
    """q - z in float64, which holds all sums exactly; floats as they are."""
    return x if quant is None else np.asarray(x.astype(np.float64) - quant.zero)


def _float(value: Any) -> Array:
    return np.asarray(value, np.float64).astype(np.float32)


def _byte(v: Array, quant: Quant) -> Array:
    t = v * _float(1 / quant.scale)
    t = np.where(np.isnan(t), np.float32(-512), np.clip(t, -512, 512))
    return np.asarray(np.clip(np.rint(t).astype(np.int64) + quant.zero, 0, 255), np.uint8)


def _bounds(act: str, quant: Quant) -> tuple[int, int]:
    low = 0 if act == "none" else quant.zero
    return low, min(255, quant.zero + int(np.rint(min(6 / quant.scale, 512)))) if act == "relu6" else 255


def _bounded(act: str, q: Array, quant: Quant | None) -> Array:
    assert quant is not None
    return np.clip(q, *_bounds(act, quant)).astype(np.uint8)


_Quants = Sequence[Quant | None]


def _scale(quants: _Quants, place: int = 0) -> float:
    quant = quants[place]
    return 1.0 if quant is None else quant.scale


def _product(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    # Sums below 2^24 are exact in float32 too, in half the time.
    kind = np.float32 if _largest(step.op, own).max() < 2**24 else np.float64
    exact = {role: own[role].astype(kind) for role in ("weight", "bias")}
    a = RUNS[step.op](replace(step, inputs=step.inputs[:1]), [inputs[0].astype(kind)], exact)
    t = _float(a) * _float(_scale(quants) * own["scale"].astype(np.float64) / scale)
    if len(inputs) > 1:
        second = inputs[1] if quants[1] is None else _float(inputs[1]) * _float(_scale(quants, 1) / scale)
        t = t + second.astype(np.float32)
    return t


def _mean(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    area = inputs[0].shape[1] * inputs[0].shape[2]
    return _float(inputs[0].sum((1, 2), keepdims=True)) * _float(_scale(quants) / area / scale)


def _avg_pool(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    count = window_counts(step, inputs[0])
    total = np.rint(RUNS["avg_pool"](step, inputs, own) * count)
    return _float(total) * _float(_scale(quants) / count / scale)


def _add(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    a, b = (_float(x) * _float(_scale(quants, i) / scale) for i, x in enumerate(inputs))
    return np.asarray(a + b)


def _multiply(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    return _float(inputs[0] * inputs[1]) * _float(_scale(quants) * _scale(quants, 1) / scale)


def _concat(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    return np.concatenate([_float(x) * _float(_scale(quants, i) / scale) for i, x in enumerate(inputs)], -1)


def _alone(step: Step, inputs: Sequence[Array], own: Tensors, quants: _Quants, scale: float) -> Array:
    return _float(inputs[0]) * _float(_scale(quants) / scale)


_SUMS: Mapping[str, Callable[[Step, Sequence[Array], Tensors, _Quants, float], Array]] = {
    "conv": _product,
    "depthwise": _product,
    "linear": _product,
    "mean": _mean,
    "avg_pool": _avg_pool,
    "add": _add,
    "multiply": _multiply,
    "concat": _concat,
    "activation": _alone,
    "dequantize": _alone,
}
