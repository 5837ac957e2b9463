"""Depthwise, pointwise and separable convolution in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv._native import environment
from leanconv.errors import Error
from leanconv.kernels.depthwise import depthwise_conv1d, depthwise_conv2d, pays, run
from leanconv.kernels.ops import eager

__all__ = [
    "DepthwiseConv1d",
    "DepthwiseConv2d",
    "DepthwiseConv3d",
    "PointwiseConv1d",
    "PointwiseConv2d",
    "PointwiseConv3d",
]

Size = int | tuple[int, ...]
PLANS = 64  # shapes that a layer remembers
_compiling, _autocasts = torch.compiler.is_compiling, torch._C._is_any_autocast_enabled
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_NATIVE: dict[int, Callable[..., Tensor]] = {1: depthwise_conv1d, 2: depthwise_conv2d}
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class _Conv(nn.modules.conv._ConvNd):
    """What both halves share: checked arguments, padding in one place, channels_last inside."""

    dims: ClassVar[int]

    def _pad(self, x: Tensor) -> tuple[Tensor, Size]:
        """The input, padded where the convolution cannot do it, and the padding that is left for it to do."""
        pads = self._reversed_padding_repeated_twice
        symmetric = pads[::2] == pads[1::2]
        if self.padding_mode == "zeros" and symmetric:
            return x, tuple(pads[::-2])
        return F.pad(x, pads, "constant" if self.padding_mode == "zeros" else self.padding_mode), 0

    def _channels_last(self, x: Tensor) -> Tensor:
        batched = x.dim() == self.dims + 2 and self.dims > 1
        return x.contiguous(memory_format=_LAST[x.dim()]) if batched else x

    def _check(self, x: Tensor) -> None:
        if x.dim() not in (self.dims + 1, self.dims + 2) or x.shape[-self.dims - 1] != self.in_channels:
            shape = f"(N, {self.in_channels}, {', '.join('LHWD'[:1] if self.dims == 1 else 'DHW'[-self.dims :])})"
            raise Error(f"{type(self).__name__}: the input must have shape {shape}, got {tuple(x.shape)}")


class _Depthwise(_Conv):
    """See :class:`DepthwiseConv2d`."""

    def __init__(
        self,
        in_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        depth_multiplier: int = 1,
    ) -> None:
        name = type(self).__name__
        positive(name, in_channels=in_channels, depth_multiplier=depth_multiplier)
        kernel, strides, dilations = (
            per_dimension(name, key, value, self.dims, 1)
            for key, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
        )
        pad = checked_padding(name, padding, self.dims, strides)
        one_of(name, "padding_mode", padding_mode, PADDING_MODES)
        self.depth_multiplier = int(depth_multiplier)
        arguments: Any = [
            in_channels,
            in_channels * self.depth_multiplier,
            kernel,
            strides,
            pad,
            dilations,
            in_channels,
        ]
        super().__init__(*arguments, bias, padding_mode, device, dtype)  # type: ignore[call-arg]  # those of nn.Conv*d
        self._plans: dict[Any, tuple[()] | tuple[bool, tuple[int, ...]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles decide for themselves."""
        return {**self.__dict__, "_plans": {}}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if "_plans" in self.__dict__:
            self._plans.clear()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, C m, *spatial'); channel c makes outputs c m to c m + m - 1."""
        weight = self._parameters.get("weight")
        if type(x) is not Tensor or weight is None or _compiling():
            return self._forward(x)
        # To decide takes 50 microseconds, as long as a small convolution; to find again what was decided takes two.
        learns = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        key = (x.shape, x.dtype, weight.dtype, learns, environment())
        plan = self._plans.get(key)
        if not plan or not x.is_contiguous(memory_format=torch.channels_last) or _autocasts():
            y = self._forward(x)
            if plan is None:
                self._remember(key, x)
            return y
        native, pad = plan
        if native:
            return run(x, weight, self._parameters["bias"], self.stride, pad, self.dilation)
        return torch.conv2d(x, weight, self._parameters["bias"], self.stride, pad, self.dilation, self.groups)

    def _remember(self, key: Any, x: Tensor) -> None:
        """Keep what :meth:`_forward` does with channels_last images of this shape: one call, or nothing to keep."""
        if not eager(x) or _autocasts() or self.dims != 2 or x.dim() != 4 or not x.numel() or not x.is_cpu:
            return
        padded, pad = self._pad(x)
        native = pays(x, self.weight, self.stride, self.dilation, key[3])
        split = not native and runs_split(self.depth_multiplier, self.kernel_size, key[3])
        if len(self._plans) >= PLANS:
            self._plans.clear()
        if padded is not x or isinstance(pad, int) or split or "bias" not in self._parameters:
            self._plans[key] = ()
        else:
            self._plans[key] = (native, (pad[0], pad[0], pad[1], pad[1]) if native else pad)

    def _forward(self, x: Tensor) -> Tensor:
        self._check(x)
        x, pad = self._pad(self._channels_last(x))
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        batched = x.dim() == self.dims + 2
        native = batched and self.dims in _NATIVE and x.numel() and eager(x)
        if native and pays(x, self.weight, self.stride, self.dilation, learns):
            sizes: Any = (self.stride, pad, self.dilation)
            if self.dims == 1:
                sizes = (size if isinstance(size, int) else size[0] for size in sizes)
            return _NATIVE[self.dims](x, self.weight, self.bias, *sizes)
        if batched and runs_split(self.depth_multiplier, self.kernel_size, learns):
            return self._split(x, pad)
        y: Tensor = _CONVOLVE[self.dims](x, self.weight, self.bias, self.stride, pad, self.dilation, self.groups)
        return self._channels_last(y)  # torch's 3-D convolution on one thread gives its own order back

    def _split(self, x: Tensor, pad: Size) -> Tensor:
        """Multiplier m as m convolutions of multiplier 1, interleaved: torch has no fast path for m > 1."""
        m = self.depth_multiplier
        biases = [None] * m if self.bias is None else list(self.bias.view(-1, m).unbind(1))
        maps = [
            _CONVOLVE[self.dims](x, self.weight[j::m], biases[j], self.stride, pad, self.dilation, self.groups)
            for j in range(m)
        ]
        if self.dims == 1:
            return torch.stack(maps, 2).flatten(1, 2)
        return torch.stack([y.movedim(1, -1) for y in maps], -1).flatten(-2).movedim(-1, 1)

    def extra_repr(self) -> str:
        """Arguments, the multiplier among them."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return text if self.depth_multiplier == 1 else f"{text}, depth_multiplier={self.depth_multiplier}"


def runs_split(multiplier: int, kernel: tuple[int, ...], learns: bool) -> bool:
    """Whether multiplier m runs as m convolutions: where that is faster (torch 2.13, CPU, one thread, channels_last).

    Measured, split against torch's grouped convolution, m = 2 to 4: 1-D 0.6 to 0.9 of the time throughout; 2-D 3x3
    forward 1.2 to 1.7, forward and backward 0.7 to 0.95; 5x5 and 7x7 0.4 to 0.9 and 0.6 to 0.85; 3-D forward 0.2 to
    0.4, forward and backward 1.4 to 2.4. From m = 9 on the split loses.
    """
    if not 2 <= multiplier <= 4:
        return False
    if len(kernel) == 2:
        return learns or max(kernel) > 3
    return len(kernel) == 1 or not learns


class _Pointwise(_Conv):
    """See :class:`PointwiseConv2d`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        name = type(self).__name__
        positive(name, in_channels=in_channels, out_channels=out_channels, groups=groups)
        if in_channels % groups or out_channels % groups:
            got = f"in_channels={in_channels}, out_channels={out_channels}, groups={groups}"
            raise Error(f"{name}: groups must divide in_channels and out_channels, got {got}")
        arguments: Any = [in_channels, out_channels, 1, 1, 0, 1, groups]
        super().__init__(*arguments, bias, "zeros", device, dtype)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, *spatial) -> (N, Cout, *spatial): at each position a weighted sum over channels."""
        self._check(x)
        y: Tensor = _CONVOLVE[self.dims](self._channels_last(x), self.weight, self.bias, groups=self.groups)
        return self._channels_last(y)


class DepthwiseConv1d(_Depthwise, nn.Conv1d):
    """Each channel convolved on its own in 1-D, (N, C, L) -> (N, C m, ...).

    Formula, arguments, errors and source as of :class:`DepthwiseConv2d`.
    """

    dims = 1


class DepthwiseConv2d(_Depthwise, nn.Conv2d):
    """Each channel is convolved on its own with m kernels of its own.

    ``y[c m + j, p] = bias[c m + j] + sum over taps t of weight[c m + j, 0, t] x[c, stride p + dilation t - padding]``

    The same as ``nn.Conv2d(C, C m, ..., groups=C)``, with the same ``weight`` (C m, 1, kH, kW), ``bias`` (C m,), order
    of outputs and initialisation; it runs channels_last, and m = 2 to 4 as m convolutions where that is faster.

    Args:
        in_channels: C.
        kernel_size: an integer or one per dimension.
        stride: likewise.
        padding: likewise, or ``"same"`` (stride 1 only) or ``"valid"``.
        dilation: likewise.
        bias: learn one number per output channel.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: where the parameters are.
        dtype: their type.
        depth_multiplier: m, kernels per input channel.

    Shape: (N, C, H, W) or (C, H, W) -> (N, C m, H', W'), H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1.

    Raises:
        Error: an argument out of range; an input with another number of channels or dimensions.

    Source: S18; Howard et al. 2017, section 3.1.
    """

    dims = 2


class DepthwiseConv3d(_Depthwise, nn.Conv3d):
    """Each channel convolved on its own in 3-D, (N, C, D, H, W) -> (N, C m, ...).

    Formula, arguments, errors and source as of :class:`DepthwiseConv2d`.
    """

    dims = 3


class PointwiseConv1d(_Pointwise, nn.Conv1d):
    """A weighted sum over the channels for each output in 1-D, (N, Cin, L) -> (N, Cout, L).

    Formula, arguments, errors and source as of :class:`PointwiseConv2d`.
    """

    dims = 1


class PointwiseConv2d(_Pointwise, nn.Conv2d):
    """At each position a weighted sum over channels: a convolution with a kernel of one.

    ``y[o] = bias[o] + sum over i of weight[o, i] * x[i]``

    Args:
        in_channels: Cin.
        out_channels: Cout.
        groups: outputs of one group see the inputs of that group alone.
        bias: learn one number per output channel.
        device: where the parameters are.
        dtype: their type.

    Shape: (N, Cin, H, W) or (Cin, H, W) -> the same with Cout. Parameters: Cin Cout / groups, bias apart.

    Raises:
        Error: an argument out of range; an input with another number of channels or dimensions.

    Source: S18; Howard et al. 2017, section 3.1.
    """

    dims = 2


class PointwiseConv3d(_Pointwise, nn.Conv3d):
    """A weighted sum over the channels for each output in 3-D, (N, Cin, D, H, W) -> (N, Cout, D, H, W).

    Formula, arguments, errors and source as of :class:`PointwiseConv2d`.
    """

    dims = 3


def positive(subject: str, **values: int) -> None:
    """Refuse anything but integers >= 1.

    Raises:
        Error: one sentence with the argument's name and value.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Error(f"{subject}: {name} must be an integer >= 1, got {name}={value!r}")


def per_dimension(subject: str, name: str, value: Size, dims: int, least: int) -> tuple[int, ...]:
    """One integer per spatial dimension, each at least ``least``.

    Raises:
        Error: another count, no integers, or one below ``least``.
    """
    values = (value,) * dims if isinstance(value, int) else tuple(value) if isinstance(value, tuple | list) else ()
    if len(values) != dims or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in values):
        raise Error(f"{subject}: {name} must be an integer >= {least} or {dims} of them, got {name}={value!r}")
    return values


def checked_padding(subject: str, padding: Size | str, dims: int, stride: tuple[int, ...]) -> tuple[int, ...] | str:
    """``"same"``, ``"valid"`` or integers >= 0.

    Raises:
        Error: anything else, or ``"same"`` with a stride.
    """
    if not isinstance(padding, str):
        return per_dimension(subject, "padding", padding, dims, 0)
    one_of(subject, "padding", padding, ("same", "valid"))
    if padding == "same" and max(stride) > 1:
        raise Error(f'{subject}: padding="same" needs stride 1, got stride={stride}')
    return padding


def one_of(subject: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not in the list.

    Raises:
        Error: one sentence with the list and the value.
    """
    if value not in allowed:
        raise Error(f"{subject}: {name} must be one of {', '.join(allowed)}, got {name}={value!r}")
