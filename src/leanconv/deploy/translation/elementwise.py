"""What goes over single numbers: activations, sums and products, with numbers, weights or other maps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from leanconv.deploy.translation.calls import Call, Ref, Rule, Unsupported
from leanconv.deploy.translation.convolutions import affine
from leanconv.deploy.translation.layout import Layout, Shape, letters, restrided

__all__ = ["RULES"]


def _same(call: Call) -> Ref:
    """One of the activations that a plan knows by this name; `inplace` is of no matter."""
    return call.like(call.ref(), "activation", act=call.kind)


def _clamp(call: Call) -> Ref:
    return _clipped(call, call.get("min"), call.get("max"))


def _hardtanh(call: Call) -> Ref:
    return _clipped(call, call.get("min_val", -1.0), call.get("max_val", 1.0))


def _clipped(call: Call, lowest: Any, highest: Any) -> Ref:
    """Between two numbers, by relu6 of what is scaled to [0, 6]; above one number, by relu of what is shifted to 0."""
    numbers = int | float
    if not isinstance(lowest, numbers) or not isinstance(highest, numbers | None) or lowest >= (highest or math.inf):
        raise Unsupported(f"{call.kind} to [{lowest}, {highest}]")
    if highest is None:
        shifted = _scaled(call, call.ref(), 1.0, -lowest)
        return _scaled(call, call.like(shifted, "activation", act="relu"), 1.0, lowest)
    unit = 6 / (highest - lowest)
    inside = _scaled(call, call.ref(), unit, -lowest * unit)
    return _scaled(call, call.like(inside, "activation", act="relu6"), 1 / unit, lowest)


def _scaled(call: Call, ref: Ref, scale: float, shift: float) -> Ref:
    return ref if (scale, shift) == (1, 0) else affine(call, ref, scale, shift)


def _leaky(call: Call) -> Ref:
    """s x + (1 - s) relu(x), s one number or one per channel."""
    ref, slope = call.ref(), call.get("negative_slope", 0.01)
    if isinstance(slope, Tensor):
        slope = slope.detach().double().cpu().numpy()
        ref, place = (call.channelled(ref), 0) if slope.size > 1 else (ref, None)
    else:
        place = None
    positive = call.like(ref, "activation", act="relu")
    return _joined(call, "add", affine(call, ref, slope, 0.0, place), affine(call, positive, 1 - slope, 0.0, place))


def _tanh(call: Call) -> Ref:
    """2 sigmoid(2 x) - 1."""
    return affine(call, call.like(affine(call, call.ref(), 2.0, 0.0), "activation", act="sigmoid"), 2.0, -1.0)


def _dropout(call: Call) -> Ref:
    if call.get("training", False):
        raise Unsupported(f"{call.kind} that is random in eval mode")
    return call.ref()


def _softmax(call: Call) -> Ref:
    ref, dim = call.ref(), call.get("dim")
    if dim is None:
        raise Unsupported(f"{call.kind} without a dimension")
    place = dim % (len(ref.layout) + 1) - 1
    if place < 0:
        raise Unsupported(f"{call.kind} over the batch")
    return call.like(call.channelled(ref, place), "softmax")


def _add(call: Call) -> Ref:
    a, b = _operands(call)
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _joined(call, "add", a, b)
    ref, value = (a, b) if isinstance(a, Ref) else (b, a)
    return _with_constant(call, ref, value, 1.0, None)


def _sub(call: Call) -> Ref:
    a, b = _operands(call)
    if call.kind == "rsub":
        a, b = b, a
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _joined(call, "add", a, affine(call, b, -1.0, 0.0))
    if isinstance(a, Ref):
        return _with_constant(call, a, -b, 1.0, None)
    return _with_constant(call, b, a, -1.0, None)


def _mul(call: Call) -> Ref:
    a, b = _operands(call)
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _joined(call, "multiply", a, b)
    ref, value = (a, b) if isinstance(a, Ref) else (b, a)
    return _with_constant(call, ref, value, None, 0.0)


def _div(call: Call) -> Ref:
    a, b = _operands(call)
    if isinstance(b, Ref) or call.get("rounding_mode") is not None:
        raise Unsupported(f"{call.kind} by a map")
    inverse = 1 / b.double() if isinstance(b, Tensor) else 1 / b
    return _with_constant(call, a, inverse, None, 0.0)


def _neg(call: Call) -> Ref:
    return affine(call, call.ref(), -1.0, 0.0)


def _filled(call: Call) -> Ref:
    """zeros_like, ones_like: finite numbers times 0."""
    return affine(call, call.ref(), 0.0, 1.0 if call.kind == "ones_like" else 0.0)


def _operands(call: Call) -> tuple[Any, Any]:
    if call.get("alpha", 1) != 1:
        raise Unsupported(f"{call.kind} with alpha={call.get('alpha')}")
    a, b = call.get("input"), call.get("other")
    if not isinstance(a, Ref) and not isinstance(b, Ref):
        raise Unsupported(f"{call.kind} of what is no tensor")
    return a, b


def _with_constant(call: Call, ref: Ref, value: Any, scale: float | None, shift: float | None) -> Ref:
    """An affine map with a number, or with a tensor that has one number per channel; None: the constant goes there."""
    place = None
    if isinstance(value, Tensor):
        rank, shape = len(ref.layout) + 1, tuple(value.shape)
        if len(shape) > rank:
            raise Unsupported(f"{call.kind} with a tensor of more dimensions")
        spread = (1,) * (rank - len(shape)) + shape
        long = [i for i, size in enumerate(spread) if size > 1]
        if len(long) > 1 or 0 in long:
            raise Unsupported(f"{call.kind} with a tensor that is not one number per channel")
        place = long[0] - 1 if long else None
        value = value.detach().double().cpu().numpy().reshape(-1)
        if not long:
            value = value[0]
    return affine(call, ref, value if scale is None else scale, value if shift is None else shift, place)


def _joined(call: Call, op: str, a: Ref, b: Ref) -> Ref:
    """The sum or product of two maps, one of which may be spread over the other."""
    shapes = call.shape(a), call.shape(b)
    if len(a.layout) != len(b.layout):
        raise Unsupported(f"{call.kind} of maps with different numbers of dimensions")
    one, two = _unspread(a.layout), _unspread(b.layout)
    if shapes[0] == shapes[1] and one == two:
        return Ref(call.node(op, (a.value, b.value), shapes[0]), one)
    a, b = Ref(a.value, one), Ref(b.value, two)
    if shapes[0] == shapes[1]:  # the channels of one of them are in another order
        a, b = call.channelled(a), call.channelled(b)
        if a.layout == b.layout:
            return Ref(call.node(op, (a.value, b.value), shapes[0]), a.layout)
    names = letters(a.layout, shapes[0]), letters(b.layout, shapes[1])
    out = tuple(max(x, y) for x, y in zip(*shapes, strict=True))
    if "?" not in "".join((*names[0], *names[1])) and {shapes[0][2], shapes[1][2]} == {1, out[2]} and out not in shapes:
        thin, flat = (a, b) if shapes[0][2] == 1 else (b, a)
        if call.shape(thin)[:2] == out[:2] and call.shape(flat) == (1, 1, out[2]):
            return _joined(call, op, _over_channels(call, thin, flat), flat)
    whole, other = (a, b) if shapes[0] == out else (b, a)
    full, part = names if whole is a else names[::-1]
    fits = all(p in ("", f) for f, p in zip(full, part, strict=True)) and "?" not in "".join(full)
    if call.shape(whole) != out or not fits or not _spreads(call.shape(other), out):
        raise Unsupported(f"{call.kind} of maps of {_told(shapes[0])} and {_told(shapes[1])}")
    return Ref(call.node(op, (whole.value, other.value), (out[0], out[1], out[2])), whole.layout)


def _over_channels(call: Call, thin: Ref, flat: Ref) -> Ref:
    """A map of one channel with as many channels as a vector has, all of them equal."""
    (height, width, _), channels = call.shape(thin), call.shape(flat)[2]
    place = call.names(flat).index("c")
    arrays = {"weight": np.ones((channels, 1, 1, 1), np.float32), "bias": np.zeros(channels, np.float32)}
    value = call.node("conv", (thin.value,), (height, width, channels), arrays=arrays)
    return Ref(value, restrided(thin.layout, place, 1, channels))


def _unspread(layout: Layout) -> Layout:
    return tuple(() if all(stride == 0 for _, stride in dim) else dim for dim in layout)


def _spreads(shape: Shape, over: tuple[int, ...]) -> bool:
    return shape in ((1, 1, over[2]), (over[0], over[1], 1), (1, 1, 1))


def _told(shape: Shape) -> str:
    return "x".join(map(str, shape))


_TWO = "input other"
_ADD, _SUB = (_add, f"{_TWO} alpha"), (_sub, f"{_TWO} alpha")
_MUL, _DIV = (_mul, _TWO), (_div, _TWO)
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
_DROP = (_dropout, "input p training inplace")
RULES: dict[str, tuple[Rule, str]] = {
    **dict.fromkeys(("relu", "relu6", "hardswish", "silu", "sigmoid", "hardsigmoid"), (_same, "input inplace")),
    "clamp": (_clamp, "input min max"),
    "clip": (_clamp, "input min max"),
    "clamp_min": (_clamp, "input min"),
    "hardtanh": (_hardtanh, "input min_val max_val inplace"),
    **dict.fromkeys(_DROPOUTS, _DROP),
    "leaky_relu": (_leaky, "input negative_slope inplace"),
    "prelu": (_leaky, "input negative_slope"),
    "tanh": (_tanh, "input"),
    "softmax": (_softmax, "input dim _stacklevel"),
    **dict.fromkeys(("add", "iadd", "radd"), _ADD),
    **dict.fromkeys(("sub", "isub", "rsub", "subtract"), _SUB),
    **dict.fromkeys(("mul", "imul", "rmul", "multiply"), _MUL),
    **dict.fromkeys(("div", "true_divide", "truediv", "itruediv", "idiv", "divide"), _DIV),
    "neg": (_neg, "input"),
    "zeros_like": (_filled, "input *"),
    "ones_like": (_filled, "input *"),
}
