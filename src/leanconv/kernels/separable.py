"""A separable block in training as one operation: depthwise, norm, activation, pointwise, norm, activation.

    d = depthwise(x)    a = keep scale act(norm(d))    p = a W^T    y = act(norm(p))

Layer by layer these are sixteen passes over the maps forward and twenty-six backward. Here the first norm and
activation happen in the load of the pointwise product, and the statistics of p in its epilogue; backward, the gradient
of p is made in the load, and the sums that the first norm's gradient needs in the epilogue. Kept are x, d and p, in the
lean mode x and p alone: d is computed again. Native code for float32 and bfloat16 on the CPU; everywhere else the same
layers one by one.

Sources: Howard et al. 2017, arXiv 1704.04861 (the block); Ioffe and Szegedy 2015, arXiv 1502.03167; Bulo, Porzi and
Kontschieder 2018, arXiv 1712.02616 (activations recomputed).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels import depthwise as depthwise_kernels
from leanconv.kernels.choice import decide
from leanconv.kernels.depthwise import Padding, Pair, depthwise_conv2d, depthwise_reference
from leanconv.kernels.norm import ACTIVATIONS, Norm, norm_act, norm_act_reference
from leanconv.kernels.norm import apply as norm_apply
from leanconv.kernels.norm import statistics as norm_statistics
from leanconv.kernels.ops import eager, register, register_autograd
from leanconv.kernels.threads import parallel_for

__all__ = ["Norm", "runs_fused", "separable_block", "separable_reference"]


Moments = tuple[Tensor, Tensor]


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
        depthwise: (C * m, 1, K_h, K_w).
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
    seen = eager(x)
    if seen and not runs_fused(x, depthwise, pointwise):
        return _layers(x, depthwise, pointwise, between, after, (stride, padding, dilation), keep, scale)
    geometry = depthwise_kernels.geometry(x, depthwise, stride, padding, dilation)
    x = x.to(_storage(x))
    norms = (*_flat(between, x.dtype), *_flat(after, x.dtype))
    arguments = (x, depthwise, pointwise, *norms, *geometry, keep, float(scale), bool(lean))
    learned = (x, depthwise, pointwise, between.weight, between.bias, after.weight, after.bias)
    if not seen:  # the operation makes its own choice
        out = torch.ops.leanconv.separable_block(*arguments)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in learned):
        out = _Separable.apply(*arguments)  # type: ignore[no-untyped-call]
    else:
        out = _forward(*arguments)
    return out[0], (out[3], out[5]), (out[6], out[8])


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


def runs_fused(x: Tensor, depthwise: Tensor, pointwise: Tensor) -> bool:
    """Whether :func:`separable_block` runs as one operation: native code for this dtype and shape, and values in x."""
    if x.dim() != 4 or not x.numel() or depthwise.dtype not in (torch.float32, _storage(x)):
        return False
    shape = (x.shape[0], pointwise.shape[0], *x.shape[2:])
    return decide("separable_block", shape, _storage(x), x.device.type).implementation == "native"


def _storage(x: Tensor) -> torch.dtype:
    """The dtype of maps: autocast's where it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _flat(norm: Norm, dtype: torch.dtype) -> tuple[Any, ...]:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = (None if v is None else v.to(wide) for v in norm[:4])
    return *vectors, float(norm.eps), ACTIVATIONS.index(norm.act)


def _norm(flat: tuple[Any, ...]) -> Norm:
    weight, bias, mean, var, eps, act = flat
    return Norm(weight, bias, mean, var, eps, ACTIVATIONS[act])


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


# --- native code


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[1]


def _fields(norm: tuple[Any, ...], moments: tuple[Tensor, ...], *grads: Tensor) -> dict[str, Any]:
    """Of ``lc_norm``: the vectors must live until the call is over."""
    weight, bias, mean, _, eps, act = norm
    names = ("mean", "rest", "var", "dgamma", "dbeta")
    at = {name: t.data_ptr() for name, t in zip(names, (*moments, *grads), strict=False)}
    at |= {name: t.data_ptr() for name, t in (("gamma", weight), ("beta", bias)) if t is not None}
    return at | {"act": act, "eps": eps, "given": int(mean is not None)}


@lru_cache(maxsize=1024)
def _scratch(isa: str, sizes: tuple[int, int, int], backward: bool, threads: int) -> int:
    library = _native.load()
    assert library is not None
    return library.pointwise_scratch(library.pointwise(sizes, {}, threads=threads, isa=isa), backward)


def _call(backward: bool, d: Tensor, p: Tensor, before: Any, after: Any, scale: float, **tensors: Tensor) -> None:
    library = _native.load()
    assert library is not None  # the choice said so
    sizes, threads = (_rows(d), d.shape[1], p.shape[1]), min(torch.get_num_threads(), 64)
    size = _scratch(library.isa, sizes, backward, threads)
    scratch = torch.empty(size + 64, dtype=torch.uint8)
    at = {name: t.data_ptr() for name, t in tensors.items()} | {"x": d.data_ptr(), "y": p.data_ptr()}
    call = library.pointwise(
        sizes, at, before=before, after=after, dtype=int(d.dtype == torch.bfloat16), scale=scale, threads=threads,
        parallel_for=parallel_for(),
    )  # fmt: skip
    call.scratch, call.scratch_size = (scratch.data_ptr() + 63) // 64 * 64, size
    library.pointwise_run(call, backward)


def _kept(keep: Tensor | None, d: Tensor) -> dict[str, Tensor]:
    return {} if keep is None else {"keep": keep.expand(d.shape).contiguous(memory_format=torch.channels_last)}


Arguments = tuple[Any, ...]


def _depthwise(x: Tensor, weight: Tensor, geometry: tuple[Any, ...]) -> Tensor:
    return depthwise_kernels.forward(x, weight.to(x.dtype), None, *geometry)


def _forward(x: Tensor, depthwise: Tensor, pointwise: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    between, after, geometry, keep, scale, lean = _parts(rest)
    d = _depthwise(x, depthwise, geometry)
    if not runs_fused(x, depthwise, pointwise):
        return _plain(d, pointwise, between, after, keep, scale, lean)
    first = norm_statistics(d, between[2], between[3])
    p = torch.empty((d.shape[0], pointwise.shape[0], *d.shape[2:]), dtype=d.dtype, memory_format=torch.channels_last)
    second = norm_statistics(p, after[2], after[3], empty=True)
    weight = pointwise.float().contiguous()
    measured = None if after[2] is not None else _fields(after, second)
    _call(False, d, p, _fields(between, first), measured, scale, weight=weight, **_kept(keep, d))
    y = norm_apply(p, after[0], after[1], second, after[4], after[5])
    return y, d.new_empty(0) if lean else d, p, *first, *second


def _plain(
    d: Tensor, pointwise: Tensor, between: Any, after: Any, keep: Tensor | None, scale: float, lean: bool
) -> tuple[Tensor, ...]:
    """The rest of the forward pass in torch's operations."""
    a, *first = norm_act_reference(d, *_norm(between))
    a = a if keep is None else a * keep * scale
    p = depthwise_kernels.in_last(F.conv2d(a, pointwise.to(a.dtype)))
    y, *second = norm_act_reference(p, *_norm(after))
    moments = (t.clone() for mean, var in (first, second) for t in (mean, torch.zeros_like(mean), var))
    return depthwise_kernels.in_last(y), d.new_empty(0) if lean else d, p, *moments


def _parts(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """between, after: (weight, bias, mean, var, eps, act) each; (stride, padding, dilation); keep, scale, lean."""
    return rest[:6], rest[6:12], rest[12:15], *rest[15:]


def _backward(dy: Tensor, d: Tensor, p: Tensor, moments: list[Tensor], x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    depthwise, pointwise, *rest = inputs
    between, after, geometry, keep, scale, lean = _parts(tuple(rest))
    if not runs_fused(x, depthwise, pointwise):
        found = _gradients(dy, (x, *inputs), again=False)
        blank = [x, depthwise, pointwise, *moments[:2], *moments[3:5]]
        return tuple(torch.zeros_like(b) if t is None else t for t, b in zip(found, blank, strict=True))
    if lean:
        d = _depthwise(x, depthwise, geometry)
    dy = depthwise_kernels.in_last(dy.to(d.dtype))
    dd, weight, dweight = torch.empty_like(d), pointwise.float().contiguous(), torch.empty(pointwise.shape)
    grads = [torch.empty(n) for n in (d.shape[1], d.shape[1], p.shape[1], p.shape[1])]
    before = _fields(between, tuple(moments[:3]), *grads[:2])
    behind = _fields(after, tuple(moments[3:]), *grads[2:])
    tensors = {"dy": dy, "dx": dd, "weight": weight, "dweight": dweight}
    _call(True, d, p, before, behind, scale, **tensors, **_kept(keep, d))
    dx = depthwise_kernels.input_grad(dd, depthwise.to(d.dtype), list(x.shape), *geometry)
    stride, padding, dilation = geometry
    dw, _ = depthwise_kernels.weight_grad(dd, x, list(depthwise.shape[2:]), stride, padding, dilation, bias=False)
    return dx, dw.to(depthwise.dtype), dweight.to(pointwise.dtype), *grads


def _gradients(dy: Tensor, inputs: tuple[Any, ...], again: bool) -> tuple[Tensor | None, ...]:
    """Through the layers one by one, differentiable where that is asked for (``again``)."""
    x, depthwise, pointwise, *rest = inputs
    between, after, geometry, keep, scale, _ = _parts(tuple(rest))
    sources = (x, depthwise, pointwise, between[0], between[1], after[0], after[1])
    with torch.enable_grad():
        wide = [None if t is None else t if again and t.requires_grad else t.detach().requires_grad_() for t in sources]
        norms = [_norm((*vectors, *norm[2:])) for norm, vectors in ((between, wide[3:5]), (after, wide[5:7]))]
        top, bottom, left, right = geometry[1]
        sizes = (tuple(geometry[0]), ((top, bottom), (left, right)), tuple(geometry[2]))
        known = (t for t in wide[:3] if t is not None)
        y = _layers(*known, norms[0], norms[1], sizes, keep, scale)[0]  # type: ignore[call-arg]
        found = torch.autograd.grad(y, [t for t in wide if t is not None], dy, create_graph=again)
    grads = iter(found)
    return tuple(None if t is None else next(grads) for t in wide)


# --- operations


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.tensors = [isinstance(t, Tensor) for t in inputs]
    ctx.rest = [None if isinstance(t, Tensor) else t for t in inputs]
    ctx.save_for_backward(*output[1:], *(t for t in inputs if isinstance(t, Tensor)))


def _differentiate(backward: Callable[..., tuple[Tensor, ...]], ctx: Any, dy: Tensor | None, *_: Any) -> Any:
    if dy is None:
        return (None,) * len(ctx.rest)
    saved = ctx.saved_tensors
    d, p, *moments = saved[:8]
    tensors = iter(saved[8:])
    inputs = tuple(next(tensors) if there else rest for there, rest in zip(ctx.tensors, ctx.rest, strict=True))
    if torch.is_grad_enabled():  # the gradient is to be differentiated again
        dx, dw, dp, dgamma1, dbeta1, dgamma2, dbeta2 = _gradients(dy, inputs, again=True)
    else:
        dx, dw, dp, dgamma1, dbeta1, dgamma2, dbeta2 = backward(dy, d, p, moments, *inputs)
    grads = [dx, dw, dp, dgamma1, dbeta1, *(None,) * 4, dgamma2, dbeta2, *(None,) * 10]
    return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


class _Separable(torch.autograd.Function):
    """The same gradient without torch's dispatcher on the way."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _differentiate(_backward, ctx, *grads)


def _fake_forward(x: Tensor, depthwise: Tensor, pointwise: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, _, geometry, _, _, lean = _parts(rest)
    d = depthwise_kernels.fake_forward(x, depthwise, None, *geometry)
    p = torch.empty_like(d.new_empty((d.shape[0], pointwise.shape[0], *d.shape[2:])), memory_format=torch.channels_last)
    vectors = (x.new_empty(n, dtype=torch.float32) for n in (d.shape[1],) * 3 + (p.shape[1],) * 3)
    return torch.empty_like(p), d.new_empty(0) if lean else d, p, *vectors


def _fake_backward(dy: Tensor, d: Tensor, p: Tensor, moments: Any, x: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    depthwise, pointwise, *_ = inputs
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    vectors = (x.new_empty(n, dtype=torch.float32) for n in (depthwise.shape[0],) * 2 + (pointwise.shape[0],) * 2)
    return dx, torch.empty_like(depthwise), torch.empty_like(pointwise), *vectors


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
register_autograd("separable_block", _keep, partial(_differentiate, torch.ops.leanconv.separable_block_backward))
