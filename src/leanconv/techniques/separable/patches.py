"""Second moments of the patches that a convolution sees: all that a fit of its outputs has to know of the data."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leanconv.errors import Error
from leanconv.techniques.separable.convert import grouped_weight
from leanconv.techniques.separable.layers import positive

__all__ = ["PatchMoments", "Patches", "centred", "enough"]

LEAST = 20_000  # patches that moments are made of, where there are so many
_CHUNK = 1 << 24  # numbers in one chunk of patches: 64 MiB of float32
_BLOCK = 1024  # columns of one block of the products: those below the diagonal are not computed


def enough(conv: nn.Module) -> int:
    """How many patches make the moments of a convolution: max(8 n, 20,000), n = (Cin / groups) K.

    Raises:
        Error: no ``nn.Conv1d/2d/3d``.
    """
    return max(8 * grouped_weight(conv).shape[2], LEAST)


class Patches:
    """Samples what a convolution sees at output positions: n = (Cin / groups) K numbers in the order of the weights.

    Args:
        conv: an ``nn.Conv1d/2d/3d``; its weights are read here, once.
        calls: how many calls of :meth:`chunks` share the patches.
        patches: about how many are wanted in all. A call takes ceil(patches / calls) positions at most, drawn without
            replacement.
        seed: of the positions; the user's generator is left alone.

    Raises:
        Error: another kind of layer, or a number below 1.
    """

    def __init__(self, conv: nn.Module, calls: int, patches: int, seed: int) -> None:
        self.weight = grouped_weight(conv)
        positive("PatchMoments", calls=calls, patches=patches)
        self._conv: Any = conv
        self._limit = ceil(patches / calls)
        self._generator = torch.Generator().manual_seed(seed)
        self.paired: bool | None = None

    def chunks(self, x: Tensor, ref: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Patches (groups, rows, n) of one input of the layer, and those of ``ref`` at the same positions.

        Args:
            x: (N, Cin, *spatial) or (Cin, *spatial), as it comes to the layer.
            ref: the same images at the same layer of the original network; given in every call or in none.

        Raises:
            Error: another shape, a map smaller than the kernel, numbers that are not finite, or ``ref`` in some calls
                only.
        """
        x = self._checked("x", x)
        ref = None if ref is None else self._checked("ref", ref)
        if ref is not None and ref.shape != x.shape:
            raise Error(f"PatchMoments: ref must have x's shape {tuple(x.shape)}, got {tuple(ref.shape)}")
        if self.paired not in (None, ref is not None):
            given = "without" if ref is None else "with it"
            raise Error(f"PatchMoments: ref must come in every call or in none, got a call {given}")
        self.paired = ref is not None
        rows, taps = self._rows(x)
        now, then = self._padded(x), None if ref is None else self._padded(ref)
        groups, _, inputs = self.weight.shape
        for part in torch.split(rows, max(1, _CHUNK // (groups * inputs))):
            yield self._patches(now, part, taps), None if then is None else self._patches(then, part, taps)

    def _checked(self, name: str, x: Tensor) -> Tensor:
        dims, channels = len(self._conv.kernel_size), self._conv.in_channels
        if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels or not x.numel():
            raise Error(f"PatchMoments: {name} must be (N, {channels}, {dims} sides), got {tuple(x.shape)}")
        x = x.detach() if x.dim() == dims + 2 else x.detach()[None]
        return x if x.dtype in (torch.float32, torch.float64) else x.float()

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the chosen patches begin in the flattened padded input, and how far each tap lies from there."""
        conv, pads = self._conv, self._conv._reversed_padding_repeated_twice
        sides = [s + pads[-2 * i - 2] + pads[-2 * i - 1] for i, s in enumerate(x.shape[2:])]
        window = [d * (k - 1) + 1 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        if any(w > s for w, s in zip(window, sides, strict=True)):
            raise Error(f"PatchMoments: the kernel must fit into the padded map, got {window} and {sides}")
        outputs = [(s - w) // t + 1 for s, w, t in zip(sides, window, conv.stride, strict=True)]
        index = self._chosen(len(x) * prod(outputs))
        start, pitch = torch.zeros_like(index), 1
        taps = torch.zeros(1, dtype=torch.long)
        for i in reversed(range(len(sides))):
            start += index % outputs[i] * conv.stride[i] * pitch
            reach = torch.arange(conv.kernel_size[i]) * conv.dilation[i] * pitch
            taps = (reach[:, None] + taps).flatten()
            index, pitch = index // outputs[i], pitch * sides[i]
        return (start + index * pitch).to(x.device), taps.to(x.device)

    def _chosen(self, total: int) -> Tensor:
        if total <= self._limit:
            return torch.arange(total)
        return torch.randperm(total, generator=self._generator)[: self._limit].sort().values

    def _padded(self, x: Tensor) -> Tensor:
        """(positions of all images, Cin): the padded input with the channels last."""
        mode, pads = self._conv.padding_mode, self._conv._reversed_padding_repeated_twice
        if any(pads):
            x = F.pad(x, pads, "constant" if mode == "zeros" else mode)
        return x.movedim(1, -1).flatten(0, -2)

    def _patches(self, padded: Tensor, rows: Tensor, taps: Tensor) -> Tensor:
        """(groups, rows, n)."""
        found = padded[(rows[:, None] + taps).flatten()].view(len(rows), len(taps), -1)
        if not found.isfinite().all():
            raise Error("PatchMoments: the layer's inputs must be finite, got inf or nan")
        by_group = found.transpose(1, 2).reshape(len(rows), self.weight.shape[0], -1)
        return by_group.transpose(0, 1)


class PatchMoments:
    """Means and second moments of a convolution's input patches and of its outputs, gathered call by call.

    A patch x is what one output position sees: n = (Cin / groups) K numbers in the order of the weights, padded as the
    layer pads. y = W x is the output without its bias. Where a second input is given, y = W x_ref is what the layer
    puts out in the network as it was, and x what it sees in the network as it is now.

    ``mean = E x``, ``covariance = E (x - E x)(x - E x)^T``, ``cross = E (y - E y)(x - E x)^T``, and ``energy`` =
    ``E (y - E y)(y - E y)^T``, each of them for every group.

    Chunks are centred about their own mean, multiplied in the precision of the input (float32 at least), summed in
    float64 and merged as by Chan et al. 1983, so a large mean costs no digits. Held besides the (groups, n, n) moments:
    one padded input and one chunk of patches.

    Example::

        moments = PatchMoments(conv, calls=len(batches))
        for x in batches:
            moments.add(x)

    Args:
        conv: an ``nn.Conv1d/2d/3d``; its weights are read here, once.
        calls: how many calls of :meth:`add` share the patches.
        patches: about how many are wanted in all; None: :func:`enough`. A call takes ceil(patches / calls) positions at
            most, drawn without replacement.
        seed: of the positions; the user's generator is left alone.

    Raises:
        Error: another kind of layer, or a number below 1.

    Source: Chan, Golub and LeVeque 1983, Algorithms for computing the sample variance.
    """

    def __init__(self, conv: nn.Module, calls: int = 1, patches: int | None = None, seed: int = 0) -> None:
        self._patches = Patches(conv, calls, enough(conv) if patches is None else patches, seed)
        self.weight = self._patches.weight
        groups, outputs, inputs = self.weight.shape
        self.count = 0
        self.mean = self.weight.new_zeros(groups, inputs)
        self._second = self.weight.new_zeros(groups, inputs, inputs)
        self._target = self.weight.new_zeros(groups, outputs)
        self._cross = self.weight.new_zeros(groups, outputs, inputs)
        self._energy = self.weight.new_zeros(groups, outputs, outputs)

    @torch.no_grad()
    def add(self, x: Tensor, ref: Tensor | None = None) -> None:
        """Take the patches of one input of the layer.

        Args:
            x: (N, Cin, *spatial) or (Cin, *spatial), as it comes to the layer.
            ref: the same images at the same layer of the original network; given in every call or in none.

        Raises:
            Error: another shape, a map smaller than the kernel, numbers that are not finite, or ``ref`` in some calls
                only.
        """
        for seen, then in self._patches.chunks(x, ref):
            self._merge(seen, then)

    @property
    def paired(self) -> bool:
        """Whether the outputs to be met are those of another input."""
        return bool(self._patches.paired)

    @property
    def covariance(self) -> Tensor:
        """(groups, n, n), float64, symmetric."""
        self._some()
        for start in range(0, self._second.shape[1], _BLOCK):
            rows, rest = slice(start, start + _BLOCK), slice(start + _BLOCK, None)
            own = self._second[:, rows, rows]
            self._second[:, rows, rows] = own.triu() + own.triu(1).transpose(1, 2)
            self._second[:, rest, rows] = self._second[:, rows, rest].transpose(1, 2)
        return self._second / self.count

    @property
    def target(self) -> Tensor:
        """(groups, Cout / groups), float64: E y."""
        return self._target if self.paired else torch.einsum("goi,gi->go", self.weight, self.mean)

    def cross(self, covariance: Tensor) -> Tensor:
        """(groups, Cout / groups, n), float64: of y with x; without a second input it is W times ``covariance``."""
        return self._cross / self.count if self.paired else self.weight @ covariance

    def energy(self, cross: Tensor) -> Tensor:
        """(groups, Cout / groups, Cout / groups), float64: of y with y; without a second input ``cross`` times W^T."""
        return self._energy / self.count if self.paired else cross @ self.weight.transpose(1, 2)

    def _some(self) -> None:
        if not self.count:
            raise Error("PatchMoments: at least one patch must be added, got none")

    def _merge(self, x: Tensor, ref: Tensor | None) -> None:
        """Add a chunk's moments: those about its own mean, and the outer product of the difference of the means."""
        share = x.shape[1] / (self.count + x.shape[1])
        between = self.count * share
        self.count += x.shape[1]
        x, moved = centred(x, self.mean)
        for start in range(0, x.shape[2], _BLOCK):
            own = x[:, :, start : start + _BLOCK].transpose(1, 2)
            self._second[:, start : start + _BLOCK, start:] += own @ x[:, :, start:]
        self._second.baddbmm_((between * moved)[:, :, None], moved[:, None])
        self.mean += share * moved
        if ref is None:
            return
        y, shifted = centred(ref @ self.weight.transpose(1, 2).to(ref.dtype), self._target)
        apart = (between * shifted)[:, :, None]
        self._cross += (y.transpose(1, 2) @ x) + apart * moved[:, None]
        self._energy += (y.transpose(1, 2) @ y) + apart * shifted[:, None]
        self._target += share * shifted


def centred(values: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(groups, rows, n) about its own mean, and how far that lies from ``mean``."""
    own = values.mean(1, dtype=torch.float64)
    return values - own[:, None].to(values.dtype), own - mean
