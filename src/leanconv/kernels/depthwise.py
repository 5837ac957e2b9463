"""Depthwise convolution: each input channel has its own filters, ``torch.nn.functional.conv2d`` with groups = channels.

With multiplier m, output channel c * m + j is input channel c filtered with ``weight[c * m + j, 0]``:

    y[n, cm + j, h, w] = bias[cm + j]
                         + sum over p, q of weight[cm + j, 0, p, q] * x[n, c, sh - top + dp, sw - left + dq]

with stride s, dilation d, and zeros outside of x. Images are channels_last in memory: an input that is not is converted
once, the output always is. Three implementations: :func:`depthwise_reference` (a loop over taps, to read; any dtype),
torch's convolution, and native code for float32 and bfloat16 on the CPU; :mod:`leanconv.kernels.choice` picks one for
each of the three passes. The derivatives are operations of the same kind, so they can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv import _native
from leanconv.errors import Error
from leanconv.kernels.choice import decide
from leanconv.kernels.ops import autocast, eager, register, register_autograd
from leanconv.kernels.threads import parallel_for

__all__ = [
    "depthwise_conv1d",
    "depthwise_conv2d",
    "depthwise_reference",
    "fake_forward",
    "forward",
    "geometry",
    "in_last",
    "input_grad",
    "out_size",
    "pays",
    "run",
    "weight_grad",
]

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | Literal["same", "valid"]
Ints = list[int]


def depthwise_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
) -> Tensor:
    """:func:`depthwise_conv2d` as a sum over taps in plain torch operations: what everything here is tested against."""
    _check(x, weight, bias)
    (sh, sw), (dh, dw) = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    top, bottom, left, right = _sides(padding, (weight.shape[2], weight.shape[3]), (sh, sw), (dh, dw))
    height, width = out_size(x.shape, weight.shape, [sh, sw], [top, bottom, left, right], [dh, dw])
    wide = F.pad(x, (left, right, top, bottom)).repeat_interleave(weight.shape[0] // x.shape[1], 1)
    y = x.new_zeros(()) if bias is None else bias[:, None, None]
    for p in range(weight.shape[2]):
        for q in range(weight.shape[3]):
            rows = slice(p * dh, p * dh + sh * (height - 1) + 1, sh)
            columns = slice(q * dw, q * dw + sw * (width - 1) + 1, sw)
            y = y + wide[:, :, rows, columns] * weight[:, 0, p, q, None, None]
    return y


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
) -> Tensor:
    """Depthwise convolution of images; see the module's formula.

    Under autocast it runs in the lower precision, as torch's convolution does. In bfloat16, sums are float32.

    Args:
        x: (N, C, H, W), or (C, H, W).
        weight: (C * m, 1, K_h, K_w), dtype of x.
        bias: (C * m,), dtype of x.
        stride: int or (height, width), from 1.
        padding: zeros around x: int, (height, width), ((top, bottom), (left, right)), ``"valid"`` (none) or ``"same"``
            (output as large as the input; stride 1 only; an odd rest goes to the bottom and to the right).
        dilation: int or (height, width), from 1.

    Returns:
        (N, C * m, H', W') in channels_last, H' = (H + top + bottom - dilation * (K_h - 1) - 1) // stride + 1.

    Raises:
        Error: shapes, dtypes or settings do not fit; LEANCONV_NATIVE=1 and there is no native code for it.
    """
    if x.dim() == 3:
        return depthwise_conv2d(x.unsqueeze(0), weight, bias, stride, padding, dilation).squeeze(0)
    _check(x, weight, bias)
    sizes = geometry(x.shape, weight, stride, padding, dilation)
    return run(x, weight, bias, *sizes)


def geometry(
    shape: Sequence[int], weight: Tensor, stride: Pair, padding: Padding, dilation: Pair
) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """Strides, zeros at the top, bottom, left, right, and dilations, from what :func:`depthwise_conv2d` takes.

    Raises:
        Error: they do not fit.
    """
    strides, dilations = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    sides = _sides(padding, (weight.shape[2], weight.shape[3]), strides, dilations)
    out_size(shape, weight.shape, strides, sides, dilations)
    return strides, sides, dilations


def run(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor:
    """:func:`depthwise_conv2d` of arguments that fit: a batch, pairs, and padding as top, bottom, left, right."""
    if not eager(x) or torch._C._is_any_autocast_enabled():
        y: Tensor = torch.ops.leanconv.depthwise_conv2d(x, weight, bias, stride, padding, dilation)
        return y
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _Depthwise.apply(x, weight, bias, stride, padding, dilation)  # type: ignore[no-any-return, no-untyped-call]
    return forward(x, weight, bias, stride, padding, dilation)


def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int | tuple[int, int] | Literal["same", "valid"] = 0,
    dilation: int = 1,
) -> Tensor:
    """Depthwise convolution of sequences: :func:`depthwise_conv2d` on images of height 1.

    Args:
        x: (N, C, L), or (C, L).
        weight: (C * m, 1, K), dtype of x.
        bias: (C * m,), dtype of x.
        stride: from 1.
        padding: zeros on both sides, (before, after), ``"valid"`` or ``"same"``.
        dilation: from 1.

    Returns:
        (N, C * m, L'), channels contiguous in memory.

    Raises:
        Error: as :func:`depthwise_conv2d`.
    """
    if weight.dim() != 3:
        raise Error(f"depthwise_conv1d: weight must be (channels * multiplier, 1, K), got {tuple(weight.shape)}")
    sides = padding if isinstance(padding, str) else ((0, 0), _pair("padding", padding, 0))
    y = depthwise_conv2d(x.unsqueeze(-2), weight.unsqueeze(-2), bias, (1, stride), sides, (1, dilation))
    return y.squeeze(-2)


def pays(x: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...], learns: bool) -> bool:
    """Whether native code runs in the forward pass, or in one of the backward passes where the layer learns.

    Args:
        x: (N, C, L) or (N, C, H, W).
        weight: (C * m, 1, *kernel).
        stride: one or two numbers.
        dilation: likewise.
        learns: gradients will be asked for.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if x.device.type != "cpu" or (dtype == x.dtype and weight.dtype != dtype):
        return False
    flat = weight.dim() == 3
    both = ((1, *sides) if flat else tuple(sides) for sides in (weight.shape[2:], stride, dilation))
    geometry = (*(int(n) for sides in both for n in sides), weight.shape[0] // x.shape[1])
    shape = (x.shape[0], x.shape[1], 1, x.shape[2]) if flat else tuple(x.shape)
    passes = ("depthwise_forward", "depthwise_input", "depthwise_weight") if learns else ("depthwise_forward",)
    return any(decide(one, shape, dtype, "cpu", geometry).implementation == "native" for one in passes)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 4 or x.shape[1] == 0:
        raise Error(f"depthwise convolution: x must be (N, C, H, W) with C > 0, got {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[0] == 0 or weight.shape[0] % x.shape[1]:
        raise Error(
            f"depthwise convolution: weight must be (channels * multiplier, 1, K_h, K_w) for {x.shape[1]} channels, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise Error(f"depthwise convolution: bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    _check_dtypes(x, weight, bias)


def _check_dtypes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if torch.is_autocast_enabled(x.device.type):  # brings them to one dtype
        return
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        got = f"{x.dtype}, {weight.dtype}" + ("" if bias is None else f", {bias.dtype}")
        raise Error(f"depthwise convolution: x, weight and bias must have one dtype, got {got}")


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise Error(f"depthwise convolution: {name} must be ints from {least}, one or two, got {name}={value!r}")
    return pair


def _sides(
    padding: Padding, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Zeros at the top, bottom, left, right."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        if stride != (1, 1):
            raise Error(f"depthwise convolution: padding='same' needs stride 1, got stride={stride}")
        h, w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return h // 2, h - h // 2, w // 2, w - w // 2
    if isinstance(padding, str):
        raise Error(f"depthwise convolution: padding must be ints, 'same' or 'valid', got padding={padding!r}")
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    return *_pair("padding", rows, 0), *_pair("padding", columns, 0)


def out_size(
    x: Sequence[int], weight: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int]:
    """H' and W' from the shapes of x and weight.

    Raises:
        Error: the kernel does not fit into the padded input.
    """
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight[-2:], strict=True)]
    padded = [x[-2] + padding[0] + padding[1], x[-1] + padding[2] + padding[3]]
    if padded[0] < reach[0] or padded[1] < reach[1]:
        raise Error(f"depthwise convolution: the kernel must fit into the padded input, got {reach} against {padded}")
    return (padded[0] - reach[0]) // stride[0] + 1, (padded[1] - reach[1]) // stride[1] + 1


# --- torch's convolution


def _padded(x: Tensor, padding: Ints) -> tuple[Tensor, list[int]]:
    """An input and the symmetric padding that is left to do: torch's convolution knows no other."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return x, [top, left]
    return in_last(F.pad(x, (left, right, top, bottom))), [0, 0]


def _torch_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    x, pads = _padded(x, padding)
    return F.conv2d(x, weight, bias, stride, pads, dilation, x.shape[1])


def _torch_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: tuple[Ints, Ints, Ints], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    stride, padding, dilation = geometry
    wide, pads = _padded(x, padding)
    groups, sizes = x.shape[1], [weight.shape[0]]
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad, wide, weight, sizes, stride, pads, dilation, False, [0, 0], groups, mask
    )
    if mask[0] and wide is not x:
        dx = dx[:, :, padding[0] : padding[0] + x.shape[2], padding[2] : padding[2] + x.shape[3]]
    return dx, dw, db


# --- native code


def in_last(x: Tensor) -> Tensor:
    """The same values in channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def _empty_last(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


@lru_cache(maxsize=1024)
def _scratch(isa: str, sizes: tuple[int, ...]) -> int:
    library = _native.load()
    assert library is not None
    return library.depthwise_scratch(sizes, isa)


def _native_pass(
    step: str, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Ints, Ints, Ints]
) -> None:
    """One pass in native code. x and y are channels_last; weight and bias float32 and contiguous."""
    library = _native.load()
    assert library is not None  # the choice said so
    stride, padding, dilation = geometry
    n, c, h, w = x.shape
    sizes = (int(x.dtype == torch.bfloat16), n, h, w, c, weight.shape[0] // c, *y.shape[2:], *weight.shape[2:])
    sizes += (*stride, padding[0], padding[2], *dilation)
    floats = _scratch(library.isa, sizes)
    scratch = torch.empty(floats)
    at = (x.data_ptr(), y.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), scratch.data_ptr())
    library.depthwise(step, sizes, at, floats, parallel_for())


def _uses_native(op: str, x: Tensor, weight_shape: Ints, stride: Ints, dilation: Ints) -> bool:
    sizes = (*weight_shape[-2:], *stride, *dilation, weight_shape[0] // x.shape[1])
    return decide(op, tuple(x.shape), x.dtype, x.device.type, sizes).implementation == "native"


# --- operations


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The forward pass, as its choice has it."""
    x = in_last(x)
    height, width = out_size(x.shape, weight.shape, stride, padding, dilation)
    if not _uses_native("depthwise_forward", x, list(weight.shape), stride, dilation):
        return in_last(_torch_forward(x, weight, bias, stride, padding, dilation))
    y = _empty_last(x, x.shape[0], weight.shape[0], height, width)
    plain = None if bias is None else bias.contiguous().float()
    _native_pass("forward", x, y, weight.contiguous().float(), plain, (stride, padding, dilation))
    return y


def input_grad(grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The gradient of an input of this size, as its choice has it."""
    grad = in_last(grad)
    dx = _empty_last(grad, *size)
    geometry = (stride, padding, dilation)
    if not _uses_native("depthwise_input", dx, list(weight.shape), stride, dilation):
        return in_last(_torch_backward(grad, dx, weight, geometry, [True, False, False])[0])
    _native_pass("backward_input", dx, grad, weight.contiguous().float(), None, geometry)
    return dx


def weight_grad(
    grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, bias: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias (empty: not wanted), as their choice has it."""
    grad, x = in_last(grad), in_last(x)
    geometry, shape = (stride, padding, dilation), [grad.shape[1], 1, *kernel]
    if not _uses_native("depthwise_weight", x, shape, stride, dilation):
        _, dw, db = _torch_backward(grad, x, x.new_empty(shape), geometry, [False, True, bias])
        return dw.contiguous(), db if bias else x.new_empty(0)
    weight, sums = torch.empty(shape), torch.empty(shape[0] if bias else 0)
    _native_pass("backward_weight", x, grad, weight, sums if bias else None, geometry)
    return weight.to(x.dtype), sums.to(x.dtype)


def fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """An empty result of :func:`forward`."""
    return _empty_last(x, x.shape[0], weight.shape[0], *out_size(x.shape, weight.shape, stride, padding, dilation))


def _fake_input_grad(grad: Tensor, weight: Tensor, size: Ints, *geometry: Ints) -> Tensor:
    return _empty_last(grad, *size)


def _fake_weight_grad(grad: Tensor, x: Tensor, kernel: Ints, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty((grad.shape[1], 1, *kernel)), x.new_empty(grad.shape[1] if rest[-1] else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """What the derivatives need: the two tensors that are multiplied, and the settings."""
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.bias = len(inputs) == 6 and isinstance(inputs[2], Tensor)
    ctx.geometry = tuple(inputs[3:6])


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    ops = torch.ops.leanconv
    return _gradients(ctx, grad, ops.depthwise_conv2d_input, ops.depthwise_conv2d_weight)


def _gradients(ctx: Any, grad: Tensor, of_input: Any, of_weight: Any) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    needs, dx, dw, db = ctx.needs_input_grad, None, None, None
    if needs[0]:
        dx = of_input(grad, weight, x.shape, *ctx.geometry)
    if needs[1] or needs[2]:
        dw, db = of_weight(grad, x, weight.shape[2:], *ctx.geometry, needs[2])
    return dx, dw, db if needs[2] else None, None, None, None


class _Depthwise(torch.autograd.Function):
    """The same derivatives without torch's dispatcher on the way, which takes longer than a small layer."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = forward(*inputs)
        _keep(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if torch.is_grad_enabled() or not eager(grads[0]):
            return _forward_backward(ctx, grads[0])
        return _gradients(ctx, grads[0], input_grad, weight_grad)


def _input_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The input gradient is linear in the output's gradient and in the weight."""
    y, weight = ctx.saved_tensors
    ops, dy, dw = torch.ops.leanconv, None, None
    if ctx.needs_input_grad[0]:
        dy = ops.depthwise_conv2d(grad, weight, None, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        dw, _ = ops.depthwise_conv2d_weight(y, grad, weight.shape[2:], *ctx.geometry, False)
    return dy, dw, None, None, None, None


def _weight_backward(ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Any, ...]:
    """The weight gradient is linear in the output's gradient and in the input; the bias's in the former."""
    y, x = ctx.saved_tensors
    ops, dy, dx = torch.ops.leanconv, None, None
    if ctx.needs_input_grad[0]:
        dy = ops.depthwise_conv2d(x, grad, grad_bias if grad_bias.numel() else None, *ctx.geometry)
    if ctx.needs_input_grad[1]:
        dx = ops.depthwise_conv2d_input(y, grad, x.shape, *ctx.geometry)
    return dy, dx, None, None, None, None, None


_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
_ANY = "CompositeExplicitAutograd"
register(
    f"depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, {_GEOMETRY}) -> Tensor", {_ANY: forward}, fake_forward
)
register(
    f"depthwise_conv2d_input(Tensor grad, Tensor weight, SymInt[] size, {_GEOMETRY}) -> Tensor",
    {_ANY: input_grad},
    _fake_input_grad,
)
register(
    f"depthwise_conv2d_weight(Tensor grad, Tensor x, SymInt[] kernel, {_GEOMETRY}, bool bias) -> (Tensor, Tensor)",
    {_ANY: weight_grad},
    _fake_weight_grad,
)
register_autograd("depthwise_conv2d", _keep, _forward_backward)
register_autograd("depthwise_conv2d_input", _keep, _input_backward)
register_autograd("depthwise_conv2d_weight", _keep, _weight_backward)
autocast("depthwise_conv2d")
