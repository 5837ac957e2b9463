"""Batch normalisation and the activation after it in one operation: y = act(gamma (x - mean) / sqrt(var + eps) + beta).

Eager operations read and write the maps ten times, forward and backward, and keep two tensors of their size; this one
reads x twice and writes y, reads x and dy twice and writes dx, and keeps x alone: the activation is computed again from
it. Statistics are sums about the mean of a few rows, merged in float64 in an order that depends on the shape alone, and
the mean is a float32 with what rounding left of it (``rest``), so that neither a mean of 1e4 nor the number of threads
shows in the results.

Sources: Ioffe and Szegedy 2015, arXiv 1502.03167 (the gradients); Chan, Golub and LeVeque 1983 (merging of moments);
Bulo, Porzi and Kontschieder 2018, arXiv 1712.02616 (activations recomputed).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels.choice import decide
from leanconv.kernels.ops import eager, register, register_autograd
from leanconv.kernels.threads import parallel_for

__all__ = [
    "ACTIVATIONS",
    "Norm",
    "Normalises",
    "apply",
    "in_rows",
    "infer",
    "norm_act",
    "norm_act_reference",
    "run",
    "statistics",
    "train",
]

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu")
_FUNCTIONS = (lambda z: z, F.relu, F.relu6, F.hardswish, F.silu)
_PACKED = (("vectors", "mean", "rest", "var"), ("both", "dgamma", "dbeta"))  # rows of one tensor of float32
_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class Norm(NamedTuple):
    """A batch norm and the activation after it, as of :func:`norm_act`.

    Attributes:
        weight: gamma, (C,); None: 1.
        bias: beta, (C,); None: 0.
        mean: (C,); None: the batch's.
        var: (C,); with ``mean`` or not at all.
        eps: added to the variance.
        act: one of :data:`ACTIVATIONS`.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None
    eps: float = 1e-5
    act: str = "none"


@runtime_checkable
class Normalises(Protocol):
    """A layer whose work an operation of several layers can take over."""

    num_features: int

    def prepared(self, shape: tuple[int, ...]) -> Norm | None:
        """What it would do to an input of this shape now; None: something that no :class:`Norm` tells.

        Raises:
            Error: as its forward.
        """

    def observe(self, shape: tuple[int, ...], mean: Tensor, var: Tensor) -> None:
        """Told of the moments that were used in its place, of an input of this shape."""


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """y = act(gamma (x - mean) / sqrt(var + eps) + beta), with the batch's statistics where none are given.

    Half precision is a type of storage: it is computed in float32. Differentiable in x, weight and bias, twice too.

    Args:
        x: (N, C) or (N, C, ...), with elements.
        weight: gamma, (C,); None: 1.
        bias: beta, (C,); None: 0.
        mean: (C,), taken as a constant; with ``var`` or not at all.
        var: (C,), likewise.
        eps: added to the variance.
        act: one of :data:`ACTIVATIONS`.

    Returns:
        y in the shape, dtype and memory format of x; the mean and the biased variance that were used, (C,), without
        gradient.

    Raises:
        Error: no elements, vectors that do not fit, one of mean and var alone, or no such activation.
    """
    if act not in ACTIVATIONS:
        raise Error(f"norm_act: act must be one of {', '.join(ACTIVATIONS)}, got act={act!r}")
    if x.dim() < 2 or not x.numel():
        raise Error(f"norm_act: x must be (N, C, ...) with elements, got shape {tuple(x.shape)}")
    if (mean is None) != (var is None):
        raise Error(f"norm_act: mean and var must come together, got mean={mean is not None} and var={var is not None}")
    for name, vector in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
        if vector is not None and vector.shape != (x.shape[1],):
            raise Error(f"norm_act: {name} must have shape ({x.shape[1]},), got {tuple(vector.shape)}")
    gamma, beta, mean, var = (None if v is None else v.to(_wide(x)) for v in (weight, bias, mean, var))
    number = ACTIVATIONS.index(act)
    if eager(x):
        return run(x, gamma, beta, mean, var, eps, number)
    y, used, _, spread = torch.ops.leanconv.norm_act(x, gamma, beta, mean, var, eps, number)
    return y, used, spread


def run(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    act: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`norm_act` in eager mode of arguments that are known to fit, vectors in the dtype of the statistics."""
    if torch.is_grad_enabled() and (
        x.requires_grad or (gamma is not None and gamma.requires_grad) or (beta is not None and beta.requires_grad)
    ):
        y, used, _, spread = _NormAct.apply(x, gamma, beta, mean, var, eps, act)  # type: ignore[no-untyped-call]
    else:
        y, used, _, spread = _forward(x, gamma, beta, mean, var, eps, act)
    return y, used, spread


def train(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, act: int) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`run` with the batch's statistics in native code; x is as :func:`in_rows` says, vectors are float32."""
    y, vectors = _Native.apply(x, gamma, beta, eps, act)  # type: ignore[no-untyped-call]
    mean, _, var = vectors.unbind()
    return y, mean, var


def infer(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float, act: int
) -> Tensor:
    """y of :func:`run` for given statistics in native code, without gradient; x is as :func:`in_rows` says."""
    y = torch.empty_like(x)
    read = _present(gamma=gamma, beta=beta, mean=mean, var=var)
    _call(False, x, act, True, eps, y=y, rest=_zeros(x.shape[1]), **read)
    return y


def norm_act_reference(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    act: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`norm_act` step by step, for reading; torch differentiates it."""
    z = x.to(_wide(x))
    over = [d for d in range(x.dim()) if d != 1]
    spread = [1, -1] + [1] * (x.dim() - 2)
    if mean is None or var is None:
        mean = z.mean(over)
        z = z - mean.view(spread)
        z = z - z.mean(over).view(spread)  # what rounding left of the mean: few values, close together, would show it
        var = z.square().mean(over)
    else:
        z = z - mean.to(z.dtype).view(spread)
    z = z * (var.to(z.dtype) + eps).rsqrt().view(spread)
    z = z if weight is None else z * weight.to(z.dtype).view(spread)
    z = z if bias is None else z + bias.to(z.dtype).view(spread)
    return _FUNCTIONS[ACTIVATIONS.index(act)](z).to(x.dtype), mean.detach(), var.detach()


def in_rows(x: Tensor) -> bool:
    """Whether the channels of each pixel lie side by side, as the native code needs them: channels_last, or (N, C)."""
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, what rounding left of it, and biased variance of each channel in native code; x must be :func:`in_rows`."""
    used, rest, spread = (torch.empty(x.shape[1]) for _ in range(3))
    _call(False, x, 0, False, 0.0, mean=used, rest=rest, var=spread)
    return used, rest, spread


def apply(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, moments: tuple[Tensor, Tensor, Tensor], eps: float, act: int
) -> Tensor:
    """y = act(norm(x)) in native code; x must be :func:`in_rows`.

    ``moments`` are the mean, what rounding left of it, and the biased variance.
    """
    y = torch.empty_like(x)
    vectors = dict(zip(("mean", "rest", "var"), moments, strict=True))
    _call(False, x, act, True, eps, y=y, **vectors, **_present(gamma=weight, beta=bias))
    return y


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def _forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float, act: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if decide("norm_act", tuple(x.shape), x.dtype, x.device.type).implementation == "native":
        y, *vectors = _native_forward(_rows(x), weight, bias, mean, var, eps, act)
        return _as(y, x), vectors[0], vectors[1], vectors[2]
    y, used, spread = norm_act_reference(x.detach(), weight, bias, mean, var, eps, ACTIVATIONS[act])
    return y, used.to(_wide(x)).clone(), torch.zeros_like(used, dtype=_wide(x)), spread.to(_wide(x)).clone()


def _native_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, eps: float, act: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    y = torch.empty_like(x)
    if mean is None or var is None:
        used, rest, spread = (torch.empty(channels) for _ in range(3))
    else:
        used, rest, spread = mean.clone(), torch.zeros(channels), var.clone()
    read = _present(gamma=weight, beta=bias)
    _call(False, x, act, mean is not None, eps, y=y, mean=used, rest=rest, var=spread, **read)
    return y, used, rest, spread


def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rest: Tensor,
    var: Tensor,
    eps: float,
    act: int,
    given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if decide("norm_act", tuple(x.shape), x.dtype, x.device.type).implementation != "native":
        return _gradients(dy, x, weight, bias, (mean, var) if given else None, eps, act)
    like, x, dy = x, _rows(x), _rows(dy.to(x.dtype))
    dx = torch.empty_like(x)
    dgamma, dbeta = torch.empty_like(mean), torch.empty_like(mean)
    read = _present(gamma=weight, beta=bias)
    written = {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    _call(True, x, act, given, eps, dy=dy, mean=mean, rest=rest, var=var, **written, **read)
    return _as(dx, like), dgamma, dbeta


def _gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: tuple[Tensor, Tensor] | None,
    eps: float,
    act: int,
    again: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Through the reference, differentiable where that is asked for (``again``)."""
    ones = torch.ones(x.shape[1], device=x.device, dtype=_wide(x))
    sources = (x, ones if weight is None else weight, ones - 1 if bias is None else bias)
    mean, var = given or (None, None)
    with torch.enable_grad():
        inputs = [t if again and t.requires_grad else t.detach().requires_grad_() for t in sources]
        y = norm_act_reference(inputs[0], inputs[1], inputs[2], mean, var, eps, ACTIVATIONS[act])[0]
        found = torch.autograd.grad(y, inputs, dy, create_graph=again)
    return found[0], found[1], found[2]


def _rows(x: Tensor) -> Tensor:
    """The same values with the channels of each pixel side by side."""
    return x if in_rows(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def _as(y: Tensor, x: Tensor) -> Tensor:
    """The same values laid out as x is."""
    return y if y.stride() == x.stride() else torch.empty_like(x).copy_(y)


def _present(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: t if t.is_contiguous() else t.contiguous() for name, t in tensors.items() if t is not None}


def _call(backward: bool, x: Tensor, act: int, given: bool, eps: float, **tensors: Tensor) -> None:
    library = _native.load()
    assert library is not None  # the choice said so
    rows, channels = x.numel() // x.shape[1], x.shape[1]
    scratch = torch.empty(_scratch(rows, channels) + 64, dtype=torch.uint8)
    address = (scratch.data_ptr() + 63) // 64 * 64
    addresses = {name: t.data_ptr() for name, t in tensors.items()}
    addresses["x"], addresses["scratch"] = x.data_ptr(), address
    for names in _PACKED:
        if names[0] in addresses:
            first = addresses.pop(names[0])
            for i, name in enumerate(names[1:]):
                addresses[name] = first + 4 * channels * i
    library.norm(
        backward, (rows, channels), addresses, dtype=_DTYPES[x.dtype], act=act, given=given, eps=eps,
        parallel_for=parallel_for(),
    )  # fmt: skip


@lru_cache(maxsize=64)
def _zeros(channels: int) -> Tensor:
    return torch.zeros(channels)  # only ever read


@lru_cache(maxsize=1024)
def _scratch(rows: int, channels: int) -> int:
    library = _native.load()
    assert library is not None
    return library.norm_scratch(rows, channels)


def _fake_forward(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, eps: float, act: int) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(x.new_empty(x.shape[1], dtype=_wide(x)) for _ in range(3))


def _fake_backward(dy: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), *(x.new_empty(x.shape[1], dtype=_wide(x)) for _ in range(2))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, mean, _, ctx.eps, ctx.act = inputs
    ctx.given = mean is not None
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _differentiate(
    backward: Callable[..., tuple[Tensor, ...]], ctx: Any, dy: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    x, weight, bias, mean, rest, var = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated again
        given = (mean, var) if ctx.given else None
        dx, dgamma, dbeta = _gradients(dy, x, weight, bias, given, ctx.eps, ctx.act, again=True)
    else:
        dx, dgamma, dbeta = backward(dy, x, weight, bias, mean, rest, var, ctx.eps, ctx.act, ctx.given)
    return dx, None if weight is None else dgamma, None if bias is None else dbeta, None, None, None, None


class _NormAct(torch.autograd.Function):
    """The same gradient without torch's dispatcher on the way, which takes longer than a small layer."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        return _differentiate(_backward, ctx, *grads)


class _Native(torch.autograd.Function):
    """Native code alone, for arguments that fit: gives y and (mean, rest, variance)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Any, beta: Any, eps: float, act: int) -> tuple[Tensor, Tensor]:
        y, vectors = torch.empty_like(x), torch.empty(3, x.shape[1])
        _call(False, x, act, False, eps, y=y, vectors=vectors, **_present(gamma=gamma, beta=beta))
        ctx.eps, ctx.act = eps, act
        ctx.mark_non_differentiable(vectors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, gamma, beta, vectors)
        return y, vectors

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 5
        x, gamma, beta, vectors = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            dx, dgamma, dbeta = _gradients(dy, x, gamma, beta, None, ctx.eps, ctx.act, again=True)
        else:
            dx, both = torch.empty_like(x), torch.empty(2, x.shape[1])
            read = _present(gamma=gamma, beta=beta)
            _call(True, x, ctx.act, False, ctx.eps, dy=_rows(dy), dx=dx, vectors=vectors, both=both, **read)
            dgamma, dbeta = both.unbind()
        return dx, None if gamma is None else dgamma, None if beta is None else dbeta, None, None


_VECTORS = "Tensor? weight, Tensor? bias"
register(
    f"norm_act(Tensor x, {_VECTORS}, Tensor? mean, Tensor? var, float eps, int act) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    {"CompositeExplicitAutograd": _forward},
    _fake_forward,
)
register(
    f"norm_act_backward(Tensor dy, Tensor x, {_VECTORS}, Tensor mean, Tensor rest, Tensor var, float eps, int act, "
    "bool given) -> (Tensor, Tensor, Tensor)",
    {"CompositeExplicitAutograd": _backward},
    _fake_backward,
)
register_autograd("norm_act", _keep, partial(_differentiate, torch.ops.leanconv.norm_act_backward))
