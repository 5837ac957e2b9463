"""Dropout layers: units, channels, blocks and residual branches that stop for one training forward pass.

Everywhere ``p`` is the probability to DROP, as in torch (Srivastava 2014 writes p for the probability to keep). Kept
values are scaled while training, so that the layer is the identity in eval mode.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from leanconv.errors import Error
from leanconv.kernels import philox
from leanconv.kernels.dropout import dropout, mask_of, masked

__all__ = ["DropBlock2d", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth", "dropout_reference"]

Mask = Literal["sample", "batch"]
Count = Literal["bernoulli", "exact"]
Mode = Literal["row", "batch"]
Shape = tuple[int, ...]
_Drawn = tuple[Shape, Tensor, int, bool, bool]  # what mask_of makes a mask from

_FEW = 4096  # beyond so many units q**units is 0 in float64 for every q that a 16-bit threshold can hold, or nearly
_ROW = 64  # numbers drawn per residual branch, of which the first decides


def dropout_reference(x: Tensor, keep: Tensor, scale: float | Tensor) -> Tensor:
    """Dropout with a given mask, to read: y = x * scale where ``keep`` is True, 0 elsewhere.

    Args:
        x: any shape.
        keep: bool, broadcastable to x.
        scale: one over the probability to keep a unit; a number, or a tensor broadcastable to x.

    Source: Srivastava et al. 2014, section 4, with the scale moved from test to training.
    """
    return torch.where(keep, x * scale, torch.zeros_like(x))


class _Stopping(nn.Module):
    """What the layers share: active in training with p > 0, else the identity; the last mask; copies without it."""

    p: float
    _last: Tensor | _Drawn | None

    def __init__(self, p: float) -> None:
        super().__init__()
        _check(type(self).__name__, "p", "satisfy 0 <= p < 1", p, _is_number(p) and 0 <= p < 1)
        self.p = p
        self._last = None

    @property
    def last_mask(self) -> Tensor | None:
        """The mask of the last training forward, bool (True: kept), broadcastable to its input; None in eval mode.

        Not part of the state_dict; copies and pickles start without one. Where none was stored it is made again.
        """
        if self._last is not None and not isinstance(self._last, Tensor):
            self._last = mask_of(*self._last)
        return self._last if self.training else None

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; eval mode lets go of the last mask."""
        if not mode:
            self._last = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def forward(self, x: Tensor) -> Tensor:
        """The input with units stopped (training), or the input itself (eval, or p = 0)."""
        if not self.training:
            return x
        if self.p == 0:
            self._last = None
            return x
        self._check_input(x)
        return self._stop(x)

    def _stop(self, x: Tensor) -> Tensor:
        keep = self._draw(tuple(x.shape), x.device)
        self._last = keep
        scale = self._scale(tuple(x.shape), keep)
        return x * keep * scale.to(x.dtype) if isinstance(scale, Tensor) else masked(x, keep, scale)

    def _check_input(self, x: Tensor) -> None:
        if not (x.is_floating_point() or x.is_complex()):
            raise Error(f"{type(self).__name__}: the input must be of a floating dtype, got {x.dtype}")
        if x.ndim == 0:
            raise Error(f"{type(self).__name__}: the input must have at least one dimension, got a scalar")

    def _draw(self, shape: Shape, device: torch.device) -> Tensor:
        """Draw the mask for an input of this shape: bool, broadcastable to it. The next forward calls this once."""
        raise NotImplementedError

    def _scale(self, shape: Shape, keep: Tensor) -> float | Tensor:
        """What kept values are multiplied with: one over the realised probability to keep."""
        raise NotImplementedError


class Dropout(_Stopping):
    r"""Stop every unit with probability p while training; scale what is kept.

    y = x * keep / P(keep) in training, y = x in eval. A unit is one element of a sample.

    - ``mask="sample"``: every sample draws a mask of its own; ``"batch"``: the whole batch shares one, so that one and
      the same smaller network sees the batch, as row S2 of the source has it.
    - ``count="bernoulli"``: units stop independently; ``"exact"``: of the n units of a mask exactly round(p n) stop,
      at least 0 and at most n - 1 (Python's round: halves go to the even number).
    - Never do all units of a mask stop. Where independent draws would stop all n, one of them, each equally likely,
      is kept; a single unit therefore always is.
    - The scale is one over the REALISED probability, so the mean is preserved exactly: with q = round(65536 p) / 65536
      and n units it is 1 / (1 - q + q^n / n), or n / (n - stopped) with exact counts.

    Masks come from :mod:`leanconv.kernels.philox`: one key per training forward from torch's default CPU generator,
    inside :func:`keyed` a function of (seed, step, position of the layer, sample) alone. They hold under
    ``torch.compile``, autocast and activation checkpoints, and no state_dict key appears. In float32 and
    bfloat16 on the CPU the mask is never stored but made again for the backward pass (:mod:`leanconv.kernels.dropout`);
    elsewhere, and without native code, backward keeps the bool mask (one byte an element).

    Args:
        p: probability to DROP a unit, 0 <= p < 1. All units at once (p = 1) is an error.
        mask: ``sample`` or ``batch``.
        count: ``bernoulli`` or ``exact``.

    Shape:
        (N, ...), or (F,) for one sample without a batch; the output has the input's shape, dtype and memory format.

    Raises:
        Error: a bad argument; in training, an input that is no floating tensor or has no dimension.

    Source: Srivastava et al. 2014 (rows S2 to S5 of the source).
    """

    _given: Tensor | None = None  # a mask that forwards take instead of drawing one

    def __init__(self, p: float = 0.5, mask: Mask = "sample", count: Count = "bernoulli") -> None:
        super().__init__(p)
        name = type(self).__name__
        _check(name, "mask", "be 'sample' or 'batch'", mask, mask in ("sample", "batch"))
        _check(name, "count", "be 'bernoulli' or 'exact'", count, count in ("bernoulli", "exact"))
        self.mask, self.count = mask, count

    def extra_repr(self) -> str:
        """p, mask and count, as given."""
        return f"p={self.p}, mask={self.mask!r}, count={self.count!r}"

    def _stop(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape)
        if self._given is not None or x.numel() == 0:
            return super()._stop(x)
        key, limit, exact, batch = self._key(shape, x.device)
        self._last = shape, key, limit, exact, batch
        return dropout(x, key, limit, self._scale(shape), exact, batch)

    def _key(self, shape: Shape, device: torch.device) -> tuple[Tensor, int, bool, bool]:
        """Draw the key, and all that belongs to it: the limit, whether counts are exact, whether samples share."""
        samples, form = self._split(shape)
        batch, exact = self.mask == "batch", self.count == "exact"
        limit = _stopped(self.p, prod(form)) if exact else philox.threshold(self.p)
        return philox.dropout_key(1 if batch else samples).to(device), limit, exact, batch

    def _split(self, shape: Shape) -> tuple[int, Shape]:
        """How many samples, and the shape of one sample's units; without a batch, one sample."""
        return (1, shape) if len(shape) == 1 else (shape[0], shape[1:])

    def _draw(self, shape: Shape, device: torch.device) -> Tensor:
        if self._given is not None:
            return self._given
        drawn = self._key(shape, device)
        if prod(self._split(shape)[1]) == 0:
            return torch.ones((1,) * len(shape), dtype=torch.bool, device=device)
        return self._form(shape, *drawn)

    def _form(self, shape: Shape, key: Tensor, limit: int, exact: bool, batch: bool) -> Tensor:
        return mask_of(shape, key, limit, exact, batch)

    def _scale(self, shape: Shape, keep: Tensor | None = None) -> float:
        units = prod(self._split(shape)[1])
        if units == 0:
            return 1.0
        if self.count == "exact":
            return units / (units - _stopped(self.p, units))
        q = philox.threshold(self.p) / 65536
        return 1 / (1 - q + (q**units / units if units <= _FEW else 0.0))


class _Channels(Dropout):
    """Units are channels: a stopped channel is 0 at every position."""

    _dims = 0  # dimensions of one sample, its channels included

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.ndim not in (self._dims, self._dims + 1):
            raise Error(
                f"{type(self).__name__}: the input must have {self._dims} (one sample) or {self._dims + 1} dimensions, "
                f"got shape {tuple(x.shape)}"
            )

    def _split(self, shape: Shape) -> tuple[int, Shape]:
        return (1, shape[:1]) if len(shape) == self._dims else (shape[0], shape[1:2])

    def _stop(self, x: Tensor) -> Tensor:
        return _Stopping._stop(self, x)  # a mask of channels is small

    def _form(self, shape: Shape, key: Tensor, limit: int, exact: bool, batch: bool) -> Tensor:
        keep = mask_of(shape[: len(shape) - self._dims + 1], key, limit, exact, batch)
        return keep.view(*keep.shape, *(1,) * (self._dims - 1))


class Dropout1d(_Channels):
    """:class:`Dropout` whose units are the channels of a sequence: a stopped channel is 0 at every position.

    Neighbouring positions of a feature map hold much the same, so stopping single ones takes little away; whole
    channels are the units of a convolution.

    Args:
        p: probability to DROP a channel, 0 <= p < 1.
        mask: ``sample`` or ``batch``.
        count: ``bernoulli`` or ``exact``.

    Shape:
        (N, C, L), or (C, L) for one sample.

    Raises:
        Error: as :class:`Dropout`, and an input of other dimensions.

    Source: Tompson et al. 2015, arXiv 1411.4280.
    """

    _dims = 2


class Dropout2d(_Channels):
    """:class:`Dropout` whose units are the channels of a map: a stopped channel is 0 at every pixel.

    Args:
        p: probability to DROP a channel, 0 <= p < 1.
        mask: ``sample`` or ``batch``.
        count: ``bernoulli`` or ``exact``.

    Shape:
        (N, C, H, W), or (C, H, W) for one sample. (torch's Dropout2d takes three dimensions as (N, C, L).)

    Raises:
        Error: as :class:`Dropout`, and an input of other dimensions.

    Source: Tompson et al. 2015, arXiv 1411.4280.
    """

    _dims = 3


class Dropout3d(_Channels):
    """:class:`Dropout` whose units are the channels of a volume: a stopped channel is 0 at every voxel.

    Args:
        p: probability to DROP a channel, 0 <= p < 1.
        mask: ``sample`` or ``batch``.
        count: ``bernoulli`` or ``exact``.

    Shape:
        (N, C, D, H, W), or (C, D, H, W) for one sample.

    Raises:
        Error: as :class:`Dropout`, and an input of other dimensions.

    Source: Tompson et al. 2015, arXiv 1411.4280.
    """

    _dims = 4


class DropBlock2d(_Stopping):
    r"""Stop square blocks of a map while training: neighbours go together, so their information does too.

    Block corners are drawn, independently per channel, wherever a whole block fits, with probability
    gamma = p / b^2 * H W / ((H - b + 1) (W - b + 1)), where b = min(block_size, H, W). Where blocks overlap, a little
    less than p is stopped. What is kept is scaled by (positions / kept positions) of its own sample, so the result for
    a sample depends on no other (the paper counts over the whole batch). A sample that would lose every position is
    left whole.

    Args:
        p: share of positions to DROP, 0 <= p < 1. The paper raises it from 0 to 0.1 over the training.
        block_size: side of a block in pixels, at least 1; 1 stops single positions.
        mask: ``sample`` or ``batch``.

    Shape:
        (N, C, H, W), or (C, H, W) for one sample; the output as the input.

    Raises:
        Error: a bad argument; in training, an input of other dimensions or no floating dtype.

    Source: Ghiasi, Lin and Le 2018, arXiv 1810.12890.
    """

    def __init__(self, p: float = 0.1, block_size: int = 7, mask: Mask = "sample") -> None:
        super().__init__(p)
        whole = isinstance(block_size, int) and not isinstance(block_size, bool)
        _check("DropBlock2d", "block_size", "be an int of at least 1", block_size, whole and block_size >= 1)
        _check("DropBlock2d", "mask", "be 'sample' or 'batch'", mask, mask in ("sample", "batch"))
        self.block_size, self.mask = block_size, mask

    def extra_repr(self) -> str:
        """p, block_size and mask, as given."""
        return f"p={self.p}, block_size={self.block_size}, mask={self.mask!r}"

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.ndim not in (3, 4):
            raise Error(f"DropBlock2d: the input must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}")

    def gamma(self, height: int, width: int) -> float:
        """Probability that a block starts at a place, for maps of this size in pixels; at most 1."""
        side = min(self.block_size, height, width)
        return min(1.0, self.p / side**2 * height * width / ((height - side + 1) * (width - side + 1)))

    def _draw(self, shape: Shape, device: torch.device) -> Tensor:
        channels, height, width = shape[-3:]
        batch, samples = self.mask == "batch", 1 if len(shape) == 3 else shape[0]
        key = philox.dropout_key(1 if batch else samples).to(device)
        if channels * height * width == 0:
            return torch.ones((1,) * len(shape), dtype=torch.bool, device=device)
        side = min(self.block_size, height, width)
        rows, columns = height - side + 1, width - side + 1
        threshold = min(round(self.gamma(height, width) * 65536), 65535)
        places = philox.keep_mask(key, samples, channels * rows * columns, threshold, batch)
        # Channels last, as the masks of Dropout; as bytes, since inductor's code for a cat of bools does not compile.
        starts = (~places).view(-1, rows, columns, channels).to(torch.uint8)
        stopped = _spread(_spread(starts, side, 1), side, 2) != 0
        keep = ~(stopped & ~stopped.flatten(1).all(1).view(-1, 1, 1, 1)).movedim(-1, 1)
        return keep[0] if len(shape) == 3 else keep

    def _scale(self, shape: Shape, keep: Tensor) -> Tensor:
        return prod(keep.shape[-3:]) / keep.sum((-3, -2, -1), keepdim=True).double()


class StochasticDepth(_Stopping):
    r"""Drop a whole residual branch while training: y = x * keep / P(keep), keep one number per sample or per batch.

    Stands at the end of a branch, before the sum: ``x + depth(branch(x))``. ``mode="row"`` drops the branch of each
    sample on its own; ``"batch"`` for the whole batch at once, as the paper does. Here all samples may lose their
    branch: the shortcut still carries them. P(keep) is 1 - q + q^64 / 64 with q = round(65536 p) / 65536: the first
    of 64 numbers decides, since the mask kernel never stops all of a row. The scale is one over it, so the mean is
    preserved exactly.

    Args:
        p: probability to DROP the branch, 0 <= p < 1. The paper lets it grow linearly with depth, to 0.5.
        mode: ``row`` or ``batch`` (the names of torchvision).

    Shape:
        (N, ...); the output as the input.

    Raises:
        Error: a bad argument; in training, an input that is no floating tensor or has no dimension.

    Source: Huang et al. 2016, arXiv 1603.09382; scaled in training where the paper scales at test time.
    """

    def __init__(self, p: float, mode: Mode = "row") -> None:
        super().__init__(p)
        _check("StochasticDepth", "mode", "be 'row' or 'batch'", mode, mode in ("row", "batch"))
        self.mode = mode

    def extra_repr(self) -> str:
        """p and mode, as given."""
        return f"p={self.p}, mode={self.mode!r}"

    def _draw(self, shape: Shape, device: torch.device) -> Tensor:
        batch = self.mode == "batch"
        key = philox.dropout_key(1 if batch else shape[0]).to(device)
        keep = philox.keep_mask(key, shape[0], _ROW, philox.threshold(self.p), batch)
        return keep[:, 0].reshape(-1, *(1,) * (len(shape) - 1))

    def _scale(self, shape: Shape, keep: Tensor) -> float:
        q = philox.threshold(self.p) / 65536
        return 1 / (1 - q + q**_ROW / _ROW)


def _spread(starts: Tensor, side: int, dim: int) -> Tensor:
    """Each 1 reaches over ``side`` entries of a dimension, which grows by side - 1; in log2(side) steps."""
    zeros = list(starts.shape)
    zeros[dim] = side - 1
    reached = torch.cat([starts, starts.new_zeros(zeros)], dim)
    width, length = 1, reached.shape[dim]
    while width < side:
        step = min(width, side - width)
        longer = reached.clone()
        longer.narrow(dim, step, length - step).bitwise_or_(reached.narrow(dim, 0, length - step))
        reached, width = longer, width + step
    return reached


def _stopped(p: float, units: int) -> int:
    return max(0, min(round(p * units), units - 1))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(layer: str, name: str, rule: str, value: object, holds: bool) -> None:
    if not holds:
        raise Error(f"{layer}: {name} must {rule}, got {name}={value!r}")
