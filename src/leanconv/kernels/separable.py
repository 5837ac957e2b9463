"""Depthwise separable blocks in training as one operation: depthwise, norm, activation, pointwise, norm, activation.

    d = depthwise(x)    a = keep scale act(norm(d))    p = a W^T    y = act(norm(p))

Layer by layer these are sixteen passes over the maps forward and twenty-six backward. Here each convolution makes its
input from the output of the one before, norm and activation in its load, and the statistics of its own output in its
epilogue; backward it makes the gradient of its output in its load, and the sums that the norm before it needs in its
epilogue. So a chain of blocks writes d and p alone, reads each once forward and twice backward, and keeps them; in the
lean mode p alone: d is computed again. Native code for float32 and bfloat16 on the CPU; everywhere else the same layers
one by one.

Sources: Howard et al. 2017, arXiv 1704.04861 (the block); Ioffe and Szegedy 2015, arXiv 1502.03167; Bulo, Porzi and
Kontschieder 2018, arXiv 1712.02616 (activations recomputed).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv.errors import Error
from leanconv.kernels import depthwise as depthwise_kernels
from leanconv.kernels.choice import decide
from leanconv.kernels.depthwise import Padding, Pair, depthwise_conv2d, depthwise_reference
from leanconv.kernels.norm import ACTIVATIONS, Norm, norm_act, norm_act_reference
from leanconv.kernels.ops import eager, register, register_autograd
from leanconv.kernels.stages import FLAT, NO_LEAD, Grads, Kept, Spec, run_backward, run_forward

__all__ = ["BlockInputs", "Norm", "runs_fused", "separable_block", "separable_chain", "separable_reference"]


Moments = tuple[Tensor, Tensor]


class BlockInputs(NamedTuple):
    """One block of a chain: arguments of :func:`separable_block`.

    Attributes:
        depthwise: (C, 1, K_h, K_w).
        pointwise: (Cout, C, 1, 1).
        between: of C channels.
        after: of Cout channels.
        stride: of the depthwise convolution.
        padding: zeros around its input.
        dilation: from 1.
    """

    depthwise: Tensor
    pointwise: Tensor
    between: Norm
    after: Norm
    stride: Pair = 1
    padding: Padding = 0
    dilation: Pair = 1


def separable_block(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    between: Norm,
    after: Norm,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    keep: Tensor | None = None,
    scale: float = 1.0,
    lean: bool = False,
) -> tuple[Tensor, Moments, Moments]:
    """y = after(pointwise(keep scale between(depthwise(x)))); see the module.

    Differentiable in x, both weights and both norms' gamma and beta, twice too.

    Args:
        x: (N, C, H, W).
        depthwise: (C * m, 1, K_h, K_w); above multiplier m = 1 the layers run one by one.
        pointwise: (Cout, C * m, 1, 1).
        between: of C * m channels.
        after: of Cout channels.
        stride: of the depthwise convolution, as the next two: see :func:`leanconv.kernels.depthwise.depthwise_conv2d`.
        padding: zeros around x.
        dilation: from 1.
        keep: bool, (N, C * m, H', W') or what expands to it: what dropout lets through; None: everything.
        scale: of what ``keep`` lets through.
        lean: keep less for the backward pass and compute the depthwise output again.

    Returns:
        y, (N, Cout, H', W') in channels_last; then per norm the mean and the biased variance that were used.

    Raises:
        Error: shapes, dtypes or settings do not fit.
    """
    _check(depthwise, pointwise, between, after)
    seen = eager(x)
    if seen and not runs_fused(x, depthwise, pointwise):
        return _layers(x, depthwise, pointwise, between, after, (stride, padding, dilation), keep, scale)
    x = x.to(_storage(x))
    sizes = depthwise_kernels.geometry(x.shape, depthwise, stride, padding, dilation)
    flat = (depthwise, pointwise, *_flat(between, x.dtype), *_flat(after, x.dtype), *sizes, keep, float(scale))
    if seen:
        y, *moments = _chained(x, lean, (*NO_LEAD, *flat))
    else:  # the operation makes its own choice
        y, _, _, *moments = torch.ops.leanconv.separable_block(x, *flat, bool(lean))
    return y, (moments[0], moments[2]), (moments[3], moments[5])


def separable_chain(
    x: Tensor, blocks: Sequence[BlockInputs], lean: bool = False, lead: Norm | None = None
) -> tuple[Tensor, list[Moments]]:
    """Blocks one after the other, perhaps after a norm; what lies between two of them is never written.

    Args:
        x: (N, C, H, W).
        blocks: at least one; each takes what the one before gives, and :func:`runs_fused` holds for each.
        lean: as of :func:`separable_block`.
        lead: a norm and activation of x before the first block; None: there is none.

    Returns:
        The last block's y; and the moments that the norms used, in order: the leading one's, then two per block.

    Raises:
        Error: shapes, dtypes or settings do not fit.
    """
    x = x.to(_storage(x))
    shape: tuple[int, ...] = tuple(x.shape)
    flat: list[Any] = []
    for block in blocks:
        _check(block.depthwise, block.pointwise, block.between, block.after)
        sizes = depthwise_kernels.geometry(shape, block.depthwise, block.stride, block.padding, block.dilation)
        flat += [block.depthwise, block.pointwise, *_flat(block.between, x.dtype), *_flat(block.after, x.dtype)]
        flat += [*sizes, None, 1.0]
        shape = _out_shape(shape, block.depthwise, block.pointwise, sizes)
    first = NO_LEAD if lead is None else _flat(lead, x.dtype)
    y, *moments = _chained(x, lean, (*first, *flat))
    return y, [(moments[i], moments[i + 2]) for i in range(0, len(moments), 3)]


def separable_reference(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    between: Norm,
    after: Norm,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    keep: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Moments, Moments]:
    """:func:`separable_block` step by step, for reading; torch differentiates it."""
    d = depthwise_reference(x, depthwise, None, stride, padding, dilation)
    a, *first = norm_act_reference(d, *between)
    a = a if keep is None else a * keep * scale
    p = torch.einsum("nchw,oc->nohw", a, pointwise[:, :, 0, 0])
    y, *second = norm_act_reference(p, *after)
    return y, (first[0], first[1]), (second[0], second[1])


def runs_fused(x: Tensor, depthwise: Tensor, pointwise: Tensor, shape: Sequence[int] | None = None) -> bool:
    """Whether a block runs as one operation: native code for this dtype and shape, multiplier 1, and values in x.

    Args:
        x: the input of the block, or of the chain that it belongs to.
        depthwise: weight.
        pointwise: weight.
        shape: of the block's input; None: that of x.
    """
    shape = x.shape if shape is None else shape
    if len(shape) != 4 or 0 in shape or depthwise.shape[0] != shape[1]:
        return False
    if depthwise.dtype not in (torch.float32, _storage(x)):
        return False
    out = (shape[0], pointwise.shape[0], shape[2], shape[3])
    return decide("separable_block", out, _storage(x), x.device.type, (int(shape[1]),)).implementation == "native"


def _check(depthwise: Tensor, pointwise: Tensor, between: Norm, after: Norm) -> None:
    if pointwise.dim() != 4 or pointwise.shape[1:] != (depthwise.shape[0], 1, 1):
        raise Error(
            f"separable_block: pointwise must be (channels out, {depthwise.shape[0]}, 1, 1) for "
            f"{depthwise.shape[0]} channels after the depthwise convolution, got {tuple(pointwise.shape)}"
        )
    for name, norm, channels in (("between", between, depthwise.shape[0]), ("after", after, pointwise.shape[0])):
        if norm.act not in ACTIVATIONS:
            raise Error(f"separable_block: {name}.act must be one of {', '.join(ACTIVATIONS)}, got {norm.act!r}")
        if (norm.mean is None) != (norm.var is None):
            raise Error(f"separable_block: {name}.mean and {name}.var must come together, got one alone")
        for field, vector in zip(("weight", "bias", "mean", "var"), norm[:4], strict=True):
            if isinstance(vector, Tensor) and vector.shape != (channels,):
                raise Error(f"separable_block: {name}.{field} must have shape ({channels},), got {tuple(vector.shape)}")


def _storage(x: Tensor) -> torch.dtype:
    """The dtype of maps: autocast's where it is on."""
    device = x.device.type
    on = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)  # others, such as meta, know no autocast
    return torch.get_autocast_dtype(device) if on else x.dtype


def _flat(norm: Norm, dtype: torch.dtype) -> tuple[Any, ...]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = (None if v is None else v.to(wide).contiguous() for v in norm[:4])  # native code takes addresses
    return *vectors, float(norm.eps), ACTIVATIONS.index(norm.act)


def _norm(flat: tuple[Any, ...]) -> Norm:
    weight, bias, mean, var, eps, act = flat
    return Norm(weight, bias, mean, var, eps, ACTIVATIONS[act])


def _out_shape(
    shape: tuple[int, ...], depthwise: Tensor, pointwise: Tensor, geometry: tuple[Any, ...]
) -> tuple[int, ...]:
    return shape[0], pointwise.shape[0], *depthwise_kernels.out_size(shape, depthwise.shape, *geometry)


def _layers(
    x: Tensor,
    depthwise: Tensor,
    pointwise: Tensor,
    between: Norm,
    after: Norm,
    geometry: tuple[Pair, Padding, Pair],
    keep: Tensor | None,
    scale: float,
) -> tuple[Tensor, Moments, Moments]:
    """Layer by layer, each with its own choice."""
    a, *first = norm_act(depthwise_conv2d(x, depthwise, None, *geometry), *between)
    a = a if keep is None else a * keep * scale
    y, *second = norm_act(F.conv2d(a, pointwise), *after)
    return y, (first[0], first[1]), (second[0], second[1])


# --- torch's operations


def _plain(x: Tensor, lean: bool, spec: Spec) -> tuple[Tensor, Kept]:
    d = depthwise_kernels.forward(x, spec.depthwise.to(x.dtype), None, *spec.geometry)
    a, *first = norm_act_reference(d, *_norm(spec.between))
    a = a if spec.keep is None else a * spec.keep * spec.scale
    p = depthwise_kernels.in_last(F.conv2d(a, spec.pointwise.to(a.dtype)))
    y, *second = norm_act_reference(p, *_norm(spec.after))
    moments = [(mean.clone(), torch.zeros_like(mean), var.clone()) for mean, var in (first, second)]
    return depthwise_kernels.in_last(y), Kept(d.new_empty(0) if lean else d, p, moments[0], moments[1])


def _gradients(
    dy: Tensor, x: Tensor, specs: list[Spec], again: bool, lead: tuple[Any, ...] = NO_LEAD
) -> tuple[Tensor, list[Grads]]:
    """As :func:`run_backward`, through the layers one by one, differentiable where that is asked for (``again``)."""
    sources = [x, *(t for s in specs for t in (s.depthwise, s.pointwise, *s.between[:2], *s.after[:2])), *lead[:2]]
    with torch.enable_grad():
        wide = [None if t is None else t if again and t.requires_grad else t.detach().requires_grad_() for t in sources]
        y = wide[0]
        assert y is not None
        if lead[5] >= 0:
            y = norm_act(y, *_norm((*wide[-2:], *lead[2:])))[0]
        for i, spec in enumerate(specs):
            depthwise, pointwise, *vectors = wide[1 + 6 * i : 7 + 6 * i]
            assert depthwise is not None
            assert pointwise is not None
            between = _norm((*vectors[:2], *spec.between[2:]))
            after = _norm((*vectors[2:], *spec.after[2:]))
            top, bottom, left, right = spec.geometry[1]
            sizes = (tuple(spec.geometry[0]), ((top, bottom), (left, right)), tuple(spec.geometry[2]))
            y = _layers(y, depthwise, pointwise, between, after, sizes, spec.keep, spec.scale)[0]
        found = iter(torch.autograd.grad(y, [t for t in wide if t is not None], dy, create_graph=again))
    grads = [None if t is None else next(found) for t in wide]
    assert grads[0] is not None
    return grads[0], [*(grads[i : i + 6] for i in range(1, len(grads) - 2, 6)), grads[-2:]]


# --- operations


def _arguments(found: Grads) -> Grads:
    """Gradients in the order of a block's arguments."""
    depthwise, pointwise, gamma, beta, outer_gamma, outer_beta = found
    return [depthwise, pointwise, gamma, beta, *(None,) * 4, outer_gamma, outer_beta, *(None,) * 9]


def _chained(x: Tensor, lean: bool, flat: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """y, three vectors of a norm before the blocks, and six per block."""
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (x, *flat)):
        return _Chain.apply(x, lean, *flat)  # type: ignore[no-any-return, no-untyped-call]
    y, kept, leading = run_forward(x, lean, _specs(flat[6:]), flat[:6])
    return y, *leading, *(t for k in kept for t in (*k.first, *k.second))


def _specs(flat: Sequence[Any]) -> list[Spec]:
    return [Spec.of(flat[i : i + FLAT]) for i in range(0, len(flat), FLAT)]


class _Chain(torch.autograd.Function):
    """Blocks without torch's dispatcher on the way, which takes longer than a small layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lean: bool, *flat: Any) -> tuple[Tensor, ...]:
        y, kept, leading = run_forward(x, lean, _specs(flat[6:]), flat[:6])
        moments = [*leading, *(t for k in kept for t in (*k.first, *k.second))]
        ctx.mark_non_differentiable(*moments)
        ctx.set_materialize_grads(False)
        ctx.tensors = [isinstance(t, Tensor) for t in flat]
        ctx.rest = [None if isinstance(t, Tensor) else t for t in flat]
        maps = [t for k in kept for t in (k.d, k.p)]
        ctx.save_for_backward(x, *maps, *moments, *(t for t in flat if isinstance(t, Tensor)))
        return y, *moments

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
        if dy is None:
            return (None,) * (2 + len(ctx.rest))
        x, *saved = ctx.saved_tensors
        count, led = (len(ctx.rest) - 6) // FLAT, 3 * (ctx.rest[5] >= 0)
        tensors = iter(saved[8 * count + led :])
        flat = [next(tensors) if t else rest for t, rest in zip(ctx.tensors, ctx.rest, strict=True)]
        specs, lead = _specs(flat[6:]), tuple(flat[:6])
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            dx, found = _gradients(dy, x, specs, True, lead)
        else:
            maps, vectors = saved[: 2 * count], saved[2 * count : 8 * count + led]
            parts = (vectors[i : i + 6] for i in range(led, len(vectors), 6))
            kept = [Kept(maps[2 * i], maps[2 * i + 1], tuple(v[:3]), tuple(v[3:])) for i, v in enumerate(parts)]
            dx, found = run_backward(dy, x, specs, kept, lead, tuple(vectors[:led]))
        first = [*(found[-1] or (None, None)), None, None, None, None]
        grads = [dx, None, *first, *(g for block in found[:-1] for g in _arguments(block))]
        return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    spec, lean = Spec.of(rest), rest[FLAT]
    if runs_fused(x, spec.depthwise, spec.pointwise):
        y, (kept,), _ = run_forward(x, lean, [spec])
    else:
        y, kept = _plain(x, lean, spec)
    return y, kept.d, kept.p, *kept.first, *kept.second


def _backward(dy: Tensor, d: Tensor, p: Tensor, moments: list[Tensor], x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    spec = Spec.of(rest)
    if runs_fused(x, spec.depthwise, spec.pointwise):
        dx, (found, _) = run_backward(dy, x, [spec], [Kept(d, p, tuple(moments[:3]), tuple(moments[3:]))])
    else:
        dx, (found, _) = _gradients(dy, x, [spec], again=False)
    blank = [spec.depthwise, spec.pointwise, *moments[:2], *moments[3:5]]
    return depthwise_kernels.in_last(dx), *(
        torch.zeros_like(b) if t is None else t for t, b in zip(found, blank, strict=True)
    )


def _fake_forward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    spec = Spec.of(rest)
    d = depthwise_kernels.fake_forward(x, spec.depthwise, None, *spec.geometry)
    p = torch.empty_like(
        d.new_empty((d.shape[0], spec.pointwise.shape[0], *d.shape[2:])), memory_format=torch.channels_last
    )
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    vectors = (x.new_empty(n, dtype=wide) for n in (d.shape[1],) * 3 + (p.shape[1],) * 3)
    return torch.empty_like(p), d.new_empty(0) if rest[FLAT] else d, p, *vectors


def _fake_backward(dy: Tensor, d: Tensor, p: Tensor, moments: Any, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    vectors = (torch.empty_like(moments[i]) for i in (0, 0, 3, 3))
    return dx, torch.empty_like(rest[0]), torch.empty_like(rest[1]), *vectors


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.tensors = [isinstance(t, Tensor) for t in inputs]
    ctx.rest = [None if isinstance(t, Tensor) else t for t in inputs]
    ctx.save_for_backward(*output[1:], *(t for t in inputs if isinstance(t, Tensor)))


def _differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    if dy is None:
        return (None,) * len(ctx.rest)
    d, p, *moments = ctx.saved_tensors[:8]
    tensors = iter(ctx.saved_tensors[8:])
    inputs = [next(tensors) if t else rest for t, rest in zip(ctx.tensors, ctx.rest, strict=True)]
    if torch.is_grad_enabled():  # the gradient is to be differentiated again
        dx, blocks = _gradients(dy, inputs[0], [Spec.of(inputs[1:])], again=True)
        found = blocks[0]
    else:
        dx, *found = torch.ops.leanconv.separable_block_backward(dy, d, p, moments, *inputs)
    grads = [dx, *_arguments(found), None]
    return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


def _norm_schema(name: str) -> str:
    vectors = ", ".join(f"Tensor? {name}_{field}" for field in ("weight", "bias", "mean", "var"))
    return f"{vectors}, float {name}_eps, int {name}_act"


_INPUTS = (
    f"Tensor x, Tensor depthwise, Tensor pointwise, {_norm_schema('between')}, {_norm_schema('after')}, "
    "SymInt[] stride, SymInt[] padding, SymInt[] dilation, Tensor? keep, float scale, bool lean"
)
register(
    f"separable_block({_INPUTS}) -> ({', '.join(['Tensor'] * 9)})",
    {"CompositeExplicitAutograd": _forward},
    _fake_forward,
)
register(
    f"separable_block_backward(Tensor dy, Tensor d, Tensor p, Tensor[] moments, {_INPUTS}) "
    f"-> ({', '.join(['Tensor'] * 7)})",
    {"CompositeExplicitAutograd": _backward},
    _fake_backward,
)
register_autograd("separable_block", _keep, _differentiate)
