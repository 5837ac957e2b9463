"""Pooling, and means over positions."""

from __future__ import annotations

import numpy as np

from leanconv.deploy.translation.calls import Call, Ref, Rule, Unsupported
from leanconv.deploy.translation.convolutions import numbers
from leanconv.deploy.translation.draft import slid
from leanconv.deploy.translation.layout import Shape, restrided
from leanconv.runtime.plan import Window

__all__ = ["RULES", "pooled"]


def _max(call: Call) -> Ref:
    if call.get("return_indices"):
        raise Unsupported(f"{call.kind} with indices")
    window, ref, order = _window(call)
    return pooled(call, "max_pool", ref, order, window)


def _avg(call: Call) -> Ref:
    if call.get("divisor_override") is not None:
        raise Unsupported(f"{call.kind} with a divisor of its own")
    window, ref, order = _window(call)
    count = bool(call.get("count_include_pad", True))
    if window.padding != _even(window.padding) and count:
        # torch never counts what ceil_mode adds behind the padding.
        if any(_even(window.padding)):
            raise Unsupported(f"{call.kind} that counts its padding, with ceil_mode")
        count = False
    return pooled(call, "avg_pool", ref, order, window, count or not any(window.padding))


def _even(padding: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The padding without what ceil_mode added."""
    return (padding[0], padding[1], padding[0], padding[1])


def _window(call: Call) -> tuple[Window, Ref, str]:
    ref, order = call.mapped(call.ref())
    dims = len(order) - 1
    size = numbers(call.get("kernel_size"), dims)
    given = call.get("stride")
    stride = numbers(given, dims) if given not in (None, (), []) else size
    padding, dilation = numbers(call.get("padding", 0), dims), numbers(call.get("dilation", 1), dims)
    size, stride, dilation = (_two(v, order, 1) for v in (size, stride, dilation))
    top, left = _two(padding, order, 0)
    window = Window(size, stride, (top, left, top, left), dilation)
    shape = call.shape(ref)
    if call.get("ceil_mode"):
        down, right = (_overhang(shape, window, axis) for axis in (0, 1))
        window = Window(size, stride, (top, left, top + down, left + right), dilation)
    return window, ref, order


def _two(values: tuple[int, ...], order: str, other: int) -> tuple[int, int]:
    if order == "chw":
        return values[0], values[1]
    return (values[0], other) if order == "ch" else (other, values[0])


def _overhang(shape: Shape, window: Window, axis: int) -> int:
    """How far the last window of ceil_mode reaches over the padded map; no window starts in the padding behind it."""
    size, stride, pad = shape[axis], window.stride[axis], window.padding[axis]
    reach = window.dilation[axis] * (window.size[axis] - 1) + 1
    steps = -(-(size + 2 * pad - reach) // stride)
    if steps * stride >= size + pad:
        steps -= 1
    return max(0, steps * stride + reach - (size + 2 * pad))


def pooled(call: Call, op: str, ref: Ref, order: str, window: Window, count: bool = True) -> Ref:
    """A pooling over a window; a window that does nothing is none, an average over the whole map is a mean."""
    shape = call.shape(ref)
    if window == Window():
        return ref
    if window.size == shape[:2] and not any(window.padding) and op == "avg_pool" and window.dilation == (1, 1):
        return call.made(call.node("mean", (ref.value,), (1, 1, shape[2])), order)
    new = (*slid(shape, window), shape[2])
    return call.made(call.node(op, (ref.value,), new, window=window, count_padding=count), order)


def _adaptive(call: Call) -> Ref:
    if call.get("return_indices"):
        raise Unsupported(f"{call.kind} with indices")
    ref, order = call.mapped(call.ref())
    shape, given = call.shape(ref), call.get("output_size")
    axes = ["hw".index(letter) for letter in order[1:]]
    wanted = (given,) * len(axes) if given is None or isinstance(given, int) else tuple(given)
    wanted = wanted * len(axes) if len(wanted) == 1 else wanted
    size = [1, 1]
    for axis, count in zip(axes, wanted, strict=True):
        if count is not None and shape[axis] % count:
            raise Unsupported(f"{call.kind} from {shape[axis]} to {count} positions, which does not divide")
        size[axis] = 1 if count is None else shape[axis] // count
    window = Window((size[0], size[1]), (size[0], size[1]))
    return pooled(call, "avg_pool" if "avg" in call.kind else "max_pool", ref, order, window)


def _over(call: Call) -> Ref:
    """Mean or maximum over dimensions."""
    ref, dims, keep = call.ref(), call.get("dim"), bool(call.get("keepdim", False))
    rank = len(ref.layout) + 1
    if dims is None or dims == ():
        raise Unsupported(f"{call.kind} over everything")
    places = sorted(d % rank for d in numbers(dims, 1))
    names, shape = call.names(ref), call.shape(ref)
    told = "".join(names[p - 1] for p in places if p)
    if told == "c" and call.kind == "mean" and len(places) == 1 and "?" not in "".join(names):
        return _over_channels(call, ref, places[0] - 1, keep)
    if 0 in places or "c" in told or "?" in "".join(names):
        raise Unsupported(f"{call.kind} over a dimension that is not height or width")
    size = (shape[0] if "h" in told else 1, shape[1] if "w" in told else 1)
    order = tuple("" if i + 1 in places else name for i, name in enumerate(names))
    op = "max_pool" if call.kind in ("amax", "max") else "avg_pool"
    found = pooled(call, op, ref, "", Window(size, size)) if size != (1, 1) else ref
    new = call.shape(found)
    if any(len(name) > 1 for name in order):
        raise Unsupported(f"{call.kind} of a map whose dimensions were joined")
    layout = [call.made(found.value, name).layout[0] if name else () for name in order]
    if not keep:
        layout = [dim for i, dim in enumerate(layout) if i + 1 not in places]
    assert new[2] == shape[2]
    return Ref(found.value, tuple(layout))


def _over_channels(call: Call, ref: Ref, place: int, keep: bool) -> Ref:
    height, width, channels = call.shape(ref)
    weight = np.full((1, 1, 1, channels), 1 / channels, np.float32)
    arrays = {"weight": weight, "bias": np.zeros(1, np.float32)}
    value = call.node("conv", (ref.value,), (height, width, 1), arrays=arrays)
    layout = restrided(ref.layout, place, channels, 1)
    return Ref(value, layout if keep else layout[:place] + layout[place + 1 :])


_POOL = "input kernel_size stride padding"
_MAX = (_max, f"{_POOL} dilation ceil_mode return_indices")
_ADAPTIVE: tuple[Rule, str] = (_adaptive, "input output_size return_indices")
_OVER: tuple[Rule, str] = (_over, "input dim keepdim")
RULES: dict[str, tuple[Rule, str]] = {
    "max_pool1d": _MAX,
    "max_pool2d": _MAX,
    "avg_pool1d": (_avg, f"{_POOL} ceil_mode count_include_pad"),
    "avg_pool2d": (_avg, f"{_POOL} ceil_mode count_include_pad divisor_override"),
    "adaptive_avg_pool1d": _ADAPTIVE,
    "adaptive_avg_pool2d": _ADAPTIVE,
    "adaptive_max_pool1d": _ADAPTIVE,
    "adaptive_max_pool2d": _ADAPTIVE,
    "mean": _OVER,
    "amax": _OVER,
}
