"""The separable layer: depthwise, then pointwise, with room for a norm and an activation between and after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from leanconv.errors import Error
from leanconv.techniques.separable.fused import Block, ready, run
from leanconv.techniques.separable.layers import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DepthwiseConv3d,
    PointwiseConv1d,
    PointwiseConv2d,
    PointwiseConv3d,
    Size,
    one_of,
)

__all__ = ["SeparableConv1d", "SeparableConv2d", "SeparableConv3d"]

WHERE = ("both", "between", "after")
_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class _Separable(nn.Module):
    """See :class:`SeparableConv2d`."""

    dims: ClassVar[int]
    depthwise_class: ClassVar[Any]
    pointwise_class: ClassVar[Any]

    keeps_order: bool = False
    """Outputs lie in memory as the inputs do, for networks that ``view`` them; else always channels_last."""

    lean: bool = False
    """In training, where the layer runs as one operation: compute the depthwise output again instead of keeping it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        depth_multiplier: int = 1,
        norm_layer: Callable[[int], nn.Module] | None = None,
        act_layer: Callable[[], nn.Module] | None = None,
        where: str = "both",
    ) -> None:
        super().__init__()
        one_of(type(self).__name__, "where", where, WHERE)
        self.where = where
        self.conv_dw = self.depthwise_class(
            in_channels, kernel_size, stride, padding, dilation, False, padding_mode, device, dtype, depth_multiplier
        )
        if where != "after":
            self._add("dw", self.conv_dw.out_channels, norm_layer, act_layer)
        self.conv_pw = self.pointwise_class(self.conv_dw.out_channels, out_channels, groups, bias, device, dtype)
        if where != "between":
            self._add("pw", out_channels, norm_layer, act_layer)

    def _add(
        self,
        suffix: str,
        channels: int,
        norm_layer: Callable[[int], nn.Module] | None,
        act_layer: Callable[[], nn.Module] | None,
    ) -> None:
        """A norm before an activation, each only where it is asked for."""
        like = self.conv_dw.weight
        if norm_layer is not None:
            self.add_module(f"norm_{suffix}", norm_layer(channels).to(device=like.device, dtype=like.dtype))
        if act_layer is not None:
            self.add_module(f"act_{suffix}", act_layer())

    @property
    def depthwise(self) -> Any:
        """The depthwise convolution, also where surgery has wrapped it."""
        return self._halves()[0]

    @property
    def pointwise(self) -> Any:
        """The pointwise convolution, also where surgery has wrapped it."""
        return self._halves()[1]

    @property
    def in_channels(self) -> int:
        """Cin."""
        return int(self.depthwise.in_channels)

    @property
    def out_channels(self) -> int:
        """Cout."""
        return int(self.pointwise.out_channels)

    @property
    def kernel_size(self) -> Any:
        """Of the depthwise half, as the next three are: networks ask a convolution for them."""
        return self.depthwise.kernel_size

    @property
    def stride(self) -> Any:
        """See :attr:`kernel_size`."""
        return self.depthwise.stride

    @property
    def padding(self) -> Any:
        """See :attr:`kernel_size`."""
        return self.depthwise.padding

    @property
    def dilation(self) -> Any:
        """See :attr:`kernel_size`."""
        return self.depthwise.dilation

    @property
    def depth_multiplier(self) -> int:
        """Kernels per input channel."""
        return int(self.depthwise.out_channels // self.depthwise.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, *spatial) -> (N, Cout, *spatial')."""
        plain = self.keeps_order and x.is_contiguous()
        block = Block.of(list(self.children())) if self.dims == 2 else None
        found = None if block is None else ready([block], x)
        if block is not None and found is not None:
            x = run([block], x, found, self.lean)
        else:
            for layer in self.children():  # in the order in which they were added
                x = layer(x)
        return x.contiguous() if plain else x

    def flat(self) -> list[nn.Module]:
        """What runs, in order; sequences are opened, identities left out."""
        return [part for child in self.children() for part in _opened(child)]

    def _halves(self) -> list[_ConvNd]:
        found = [part for part in self.flat() if isinstance(part, _ConvNd)]
        if len(found) != 2:
            kinds = ", ".join(type(part).__name__ for part in self.flat())
            raise Error(f"{type(self).__name__}: it must hold a depthwise and a pointwise convolution, got {kinds}")
        return found

    def between(self) -> list[nn.Module]:
        """What stands before the pointwise convolution besides the depthwise one, such as a norm and an activation."""
        parts = self.flat()
        return [part for part in parts[: parts.index(self.pointwise)] if part is not self.depthwise]

    def after(self) -> list[nn.Module]:
        """What stands after the pointwise convolution."""
        parts = self.flat()
        return parts[parts.index(self.pointwise) + 1 :]

    def dense(self) -> nn.Module:
        """The dense convolution that computes the same.

        ``weight[o, c] = sum over j of pointwise[o, c m + j] depthwise[c m + j]``

        Returns:
            An ``nn.Conv*d`` with its bias; where a norm or an activation follows, an ``nn.Sequential`` of it and them.

        Raises:
            Error: a norm or an activation stands between the two, so that no single convolution computes the same.
        """
        if self.between():
            got = ", ".join(type(part).__name__ for part in self.between())
            raise Error(f"{type(self).__name__}: dense() needs nothing between depthwise and pointwise, got {got}")
        conv = self._dense_convolution()
        after = [copy.deepcopy(part) for part in self.after()]
        return _in_mode(nn.Sequential(conv, *after), self.training) if after else conv

    def _dense_convolution(self) -> nn.Module:
        dw, pw = self.depthwise, self.pointwise
        conv = self.dense_shell()
        with torch.no_grad():
            conv.weight.copy_(_own_group(_product(dw, pw), conv.groups))
            if dw.bias is not None:  # a fold has put it there; it passes through the pointwise half alone
                conv.bias.copy_(_mix(dw, pw) @ dw.bias)
            elif conv.bias is not None:
                conv.bias.zero_()
            if pw.bias is not None:
                conv.bias.add_(pw.bias)
        return conv  # type: ignore[no-any-return]

    def dense_shell(self) -> Any:
        """A dense convolution with these arguments and weights to be filled in."""
        dw, pw = self.depthwise, self.pointwise
        groups = pw.groups if dw.in_channels % pw.groups == 0 else 1  # else groups cut through a channel's m kernels
        bias = pw.bias is not None or dw.bias is not None
        with torch.random.fork_rng(devices=[]):
            conv = _CONV[self.dims](
                dw.in_channels, pw.out_channels, dw.kernel_size, dw.stride, dw.padding, dw.dilation, groups,
                bias, dw.padding_mode, dw.weight.device, dw.weight.dtype,
            )  # fmt: skip
        return conv.train(self.training)


def _opened(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _opened(child)
    elif not isinstance(module, nn.Identity):
        yield module


def _in_mode(sequence: nn.Sequential, training: bool) -> nn.Sequential:
    """The flag on the sequence alone: its parts keep theirs (a frozen norm stays so)."""
    sequence.training = training
    return sequence


def _mix(dw: Any, pw: Any) -> Tensor:
    """(Cout, Cin m): the pointwise weights, zeros where a group does not look."""
    inputs, outputs = pw.in_channels // pw.groups, pw.out_channels // pw.groups
    mix: Tensor = pw.weight.new_zeros(pw.out_channels, pw.in_channels)
    for g in range(pw.groups):
        rows = slice(g * outputs, (g + 1) * outputs)
        mix[rows, g * inputs : (g + 1) * inputs] = pw.weight[rows].flatten(1)
    return mix


def _product(dw: Any, pw: Any) -> Tensor:
    """(Cout, Cin, *kernel): pointwise times depthwise."""
    mix = _mix(dw, pw).view(pw.out_channels, dw.in_channels, -1)
    kernels = dw.weight.flatten(1).view(dw.in_channels, mix.shape[2], -1)
    return torch.einsum("ocj,cjk->ock", mix, kernels).reshape(pw.out_channels, dw.in_channels, *dw.kernel_size)


def _own_group(weight: Tensor, groups: int) -> Tensor:
    """(Cout, Cin, ...) -> (Cout, Cin / groups, ...): each output's own group of inputs."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1] // groups
    own = [weight[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] for g in range(groups)]
    return torch.cat(own)


class SeparableConv1d(_Separable):
    """Depthwise separable convolution in 1-D, (N, Cin, L) -> (N, Cout, ...).

    Formula, arguments, errors and source as of :class:`SeparableConv2d`; K is the product of the kernel's one side.
    """

    dims, depthwise_class, pointwise_class = 1, DepthwiseConv1d, PointwiseConv1d


class SeparableConv2d(_Separable):
    """Depthwise separable convolution: each channel on its own, then a weighted sum over channels per output.

    ``z[c m + j] = depthwise[c m + j] * x[c]`` (a convolution), ``y[o] = bias[o] + sum over i of pointwise[o, i] z[i]``

    Parameters, bias and norm apart: ``Cin m K + Cin m Cout / groups`` with K the area of the kernel, where a standard
    convolution has ``Cin K Cout``. Arguments are torch.nn's; ``groups`` and ``bias`` belong to the pointwise half.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: of the depthwise half: an integer or one per dimension.
        stride: of the depthwise half.
        padding: of the depthwise half: integers, ``"same"`` (stride 1 only) or ``"valid"``.
        dilation: of the depthwise half.
        groups: of the pointwise half; divides Cin m and Cout.
        bias: of the pointwise half.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: where the parameters are.
        dtype: their type.
        depth_multiplier: m, depthwise kernels per input channel.
        norm_layer: called with a number of channels, gives a norm; None for none.
        act_layer: called without arguments, gives an activation; None for none.
        where: ``"both"`` (MobileNet), ``"between"`` or ``"after"``: where norm and activation stand.

    Submodules: ``conv_dw`` [``norm_dw``, ``act_dw``] ``conv_pw`` [``norm_pw``, ``act_pw``].

    Shape: (N, Cin, H, W) -> (N, Cout, H', W'), H' = (H + 2 padding - dilation (kH - 1) - 1) // stride + 1.

    Raises:
        Error: an argument out of range; an input with another number of channels or dimensions.

    Source: S18; Howard et al. 2017, section 3.1.
    """

    dims, depthwise_class, pointwise_class = 2, DepthwiseConv2d, PointwiseConv2d


class SeparableConv3d(_Separable):
    """Depthwise separable convolution in 3-D, (N, Cin, D, H, W) -> (N, Cout, ...).

    Formula, arguments, errors and source as of :class:`SeparableConv2d`; K is the product of the kernel's sides.
    """

    dims, depthwise_class, pointwise_class = 3, DepthwiseConv3d, PointwiseConv3d
