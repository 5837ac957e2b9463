"""The native passes over a chain of separable blocks: what ``kernels/separable.py`` makes operations of.

Forward, each convolution makes its input from the raw output of the one before and takes the statistics of its own;
backward, it makes the gradient of its output likewise and takes the sums that the norm before it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from leanconv import _native
from leanconv.kernels import arena
from leanconv.kernels import depthwise as depthwise_kernels
from leanconv.kernels.norm import apply as norm_apply
from leanconv.kernels.norm import statistics as norm_statistics
from leanconv.kernels.threads import parallel_for

__all__ = ["FLAT", "NO_LEAD", "Grads", "Kept", "Spec", "run_backward", "run_forward"]

Grads = list[Tensor | None]


class Spec(NamedTuple):
    """A block as plain arguments of an operation; the norms as ``separable._flat`` gives them."""

    depthwise: Tensor
    pointwise: Tensor
    between: tuple[Any, ...]
    after: tuple[Any, ...]
    geometry: tuple[Any, ...]
    keep: Tensor | None
    scale: float

    @classmethod
    def of(cls, flat: Sequence[Any]) -> Self:
        """From the first :data:`FLAT` of an operation's arguments."""
        return cls(flat[0], flat[1], tuple(flat[2:8]), tuple(flat[8:14]), tuple(flat[14:17]), flat[17], flat[18])


FLAT = 19
"""Arguments of a block."""
NO_LEAD = (None, None, None, None, 0.0, -1)
"""In the place of a norm before the first block."""


class Kept(NamedTuple):
    """What a block leaves for its backward pass; ``d`` is empty in the lean mode."""

    d: Tensor
    p: Tensor
    first: tuple[Tensor, ...]
    second: tuple[Tensor, ...]


def _fields(norm: tuple[Any, ...], moments: tuple[Tensor, ...], *grads: Tensor) -> dict[str, Any]:
    """Of ``lc_norm``: the vectors must live until the call is over."""
    weight, bias, mean, _, eps, act = norm
    names = ("mean", "rest", "var", "dgamma", "dbeta")
    at = {name: t.data_ptr() for name, t in zip(names, (*moments, *grads), strict=False)}
    at |= {name: t.data_ptr() for name, t in (("gamma", weight), ("beta", bias)) if t is not None}
    return at | {"act": act, "eps": eps, "given": int(mean is not None)}


@lru_cache(maxsize=1024)
def _scratch(isa: str, kind: str, sizes: tuple[int, ...], backward: bool, threads: int) -> int:
    library = _native.load()
    assert library is not None
    return library.scratch(getattr(library, kind)(sizes, {}, threads=threads, isa=isa), backward)


def _stage(kind: str, backward: bool, sizes: tuple[int, ...], tensors: dict[str, Tensor], **settings: Any) -> None:
    """One convolution between two norms: ``pointwise`` or ``channelwise``."""
    library = _native.load()
    assert library is not None  # the choice said so
    threads = min(torch.get_num_threads(), 64)
    size = _scratch(library.isa, kind, sizes, backward, threads)
    scratch = arena.empty((size + 64,), torch.uint8)
    at = {name: t.data_ptr() for name, t in tensors.items()}
    call = getattr(library, kind)(sizes, at, threads=threads, parallel_for=parallel_for(), **settings)
    call.scratch, call.scratch_size = (scratch.data_ptr() + 63) // 64 * 64, size
    library.run(call, backward)


def _depthwise_stage(
    backward: bool,
    x: Tensor,
    d: Tensor,
    spec: Spec,
    before: Any,
    measured: int,
    after: Any,
    raw: bool = True,
    **tensors: Tensor,
) -> None:
    stride, padding, dilation = spec.geometry
    sizes = (int(x.dtype == torch.bfloat16), x.shape[0], x.shape[2], x.shape[3], x.shape[1], 1, *d.shape[2:])
    sizes += (*spec.depthwise.shape[2:], *stride, padding[0], padding[2], *dilation)
    weight = spec.depthwise.float().contiguous()
    read = {"x": x, "y": d, "weight": weight} | tensors
    _stage("channelwise", backward, sizes, read, before=before, after=after, measured=measured, raw=raw)


def _pointwise_stage(
    backward: bool, d: Tensor, p: Tensor, spec: Spec, before: Any, measured: int, after: Any, **tensors: Tensor
) -> None:
    sizes = (d.numel() // d.shape[1], d.shape[1], p.shape[1])
    read = {"x": d, "y": p, "weight": spec.pointwise.float().contiguous()} | tensors
    if spec.keep is not None:
        read["keep"] = spec.keep.expand(d.shape).contiguous(memory_format=torch.channels_last)
    _stage(
        "pointwise", backward, sizes, read, before=before, after=after, measured=measured, raw=True,
        dtype=int(d.dtype == torch.bfloat16), scale=spec.scale,
    )  # fmt: skip


def _moments(norm: tuple[Any, ...], channels: int) -> tuple[Tensor, ...]:
    """Mean, what rounding left of it, variance: the given ones, or room for the batch's."""
    if norm[2] is not None:
        return norm[2].clone(), torch.zeros(channels), norm[3].clone()
    return tuple(torch.empty(channels) for _ in range(3))


def _filtered(x: Tensor, spec: Spec, before: Any, after: Any = None) -> Tensor:
    """The depthwise output, with its statistics where ``after`` says where to put them."""
    height, width = depthwise_kernels.out_size(x.shape, spec.depthwise.shape, *spec.geometry)
    d = arena.empty((x.shape[0], x.shape[1], height, width), x.dtype)
    _depthwise_stage(False, x, d, spec, before, int(after is not None), after)
    return d


def run_forward(
    x: Tensor, lean: bool, specs: list[Spec], lead: tuple[Any, ...] = NO_LEAD
) -> tuple[Tensor, list[Kept], tuple[Tensor, ...]]:
    """y, what each block leaves, and the moments of the norm before the first."""
    source, before, kept = depthwise_kernels.in_last(x), None, []
    leading: tuple[Tensor, ...] = ()
    if lead[5] >= 0:
        leading = norm_statistics(source) if lead[2] is None else _moments(lead, source.shape[1])
        before = _fields(lead, leading)
    for spec in specs:
        first = _moments(spec.between, spec.depthwise.shape[0])
        second = _moments(spec.after, spec.pointwise.shape[0])
        between, after = _fields(spec.between, first), _fields(spec.after, second)
        d = _filtered(source, spec, before, between if spec.between[2] is None else None)
        p = arena.empty((d.shape[0], spec.pointwise.shape[0], *d.shape[2:]), d.dtype)
        _pointwise_stage(False, d, p, spec, between, int(spec.after[2] is None), after)
        kept.append(Kept(d.new_empty(0) if lean else d, p, first, second))
        source, before = p, after
    weight, bias, _, _, eps, act = specs[-1].after
    return norm_apply(source, weight, bias, kept[-1].second, eps, act), kept, leading  # type: ignore[arg-type]


def run_backward(
    dy: Tensor,
    x: Tensor,
    specs: list[Spec],
    kept: list[Kept],
    lead: tuple[Any, ...] = NO_LEAD,
    leading: tuple[Tensor, ...] = (),
) -> tuple[Tensor, list[Grads]]:
    """The gradient of x; per block those of both weights, gamma and beta between, gamma and beta after; of the lead."""
    norms = [(lead, leading), *((s.after, k.second) for s, k in zip(specs, kept, strict=True))]
    found: list[Grads] = []
    grad = depthwise_kernels.in_last(dy.to(x.dtype))
    del dy
    sources = [depthwise_kernels.in_last(x), *(k.p for k in kept[:-1])]
    outer = [torch.empty(specs[-1].pointwise.shape[0]) for _ in range(2)]  # of gamma and beta after the block
    for i in range(len(specs) - 1, -1, -1):
        spec, (d, p, first, second) = specs[i], kept[i]
        inner = [torch.empty(spec.depthwise.shape[0]) for _ in range(2)]
        nearer = [torch.empty(sources[i].shape[1]) for _ in range(2)] if norms[i][1] else []
        before = _fields(*norms[i], *nearer) if norms[i][1] else None
        between, after = _fields(spec.between, first, *inner), _fields(spec.after, second, *outer)
        if not d.numel():
            d = _filtered(sources[i], spec, before)
        dd, dpointwise = arena.empty_like(d), torch.empty(spec.pointwise.shape)
        last = i == len(specs) - 1
        _pointwise_stage(True, d, p, spec, between, 1 if last else 2, after, dy=grad, dx=dd, dweight=dpointwise)
        grad = dd  # lets go of what is as large as what comes next
        dx, ddepthwise = arena.empty_like(sources[i]), torch.empty(spec.depthwise.shape)
        read = {"dy": grad, "dx": dx, "dweight": ddepthwise}
        _depthwise_stage(True, sources[i], d, spec, before, 2, between, raw=i > 0, **read)
        weights = (ddepthwise.to(spec.depthwise.dtype), dpointwise.to(spec.pointwise.dtype))
        found.append([*weights, *inner, *outer])
        grad, outer = dx, nearer
    return grad, [*found[::-1], list(outer)]
