"""How many parameters and multiply-adds a convolution has, counted as the text counts: bias and norm apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from leanconv.errors import Error
from leanconv.techniques.separable.layers import positive

__all__ = [
    "Growth",
    "Rung",
    "growth",
    "ladder",
    "ratio",
    "separable_macs",
    "separable_parameters",
    "standard_macs",
    "standard_parameters",
]

Kernel = int | Sequence[int]


def standard_parameters(in_channels: int, out_channels: int, kernel: Kernel) -> int:
    """Parameters of a standard convolution: Cin * K * Cout.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel: the sides of the kernel, such as (3, 3), or its area K as one integer, such as 9.

    Raises:
        Error: a number below 1.

    Source: S17.
    """
    positive("standard_parameters", in_channels=in_channels, out_channels=out_channels)
    return in_channels * area(kernel) * out_channels


def separable_parameters(in_channels: int, out_channels: int, kernel: Kernel, depth_multiplier: int = 1) -> int:
    """Parameters of a depthwise separable convolution: Cin * m * K + Cin * m * Cout; the text has m = 1.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel: the sides of the kernel, or its area K as one integer.
        depth_multiplier: m.

    Raises:
        Error: a number below 1.

    Source: S18.
    """
    positive(
        "separable_parameters",
        in_channels=in_channels,
        out_channels=out_channels,
        depth_multiplier=depth_multiplier,
    )
    return in_channels * depth_multiplier * (area(kernel) + out_channels)


def ratio(out_channels: int, kernel: Kernel, depth_multiplier: int = 1) -> float:
    """Separable over standard: m (1 / Cout + 1 / K), in parameters and in multiply-adds alike.

    It does not depend on Cin; what is saved in absolute terms, Cin (K Cout - m K - m Cout), grows with it. Above 1 the
    separable layer loses: always with K = 1 or Cout = 1.

    Args:
        out_channels: Cout.
        kernel: the sides of the kernel, or its area K as one integer.
        depth_multiplier: m.

    Raises:
        Error: a number below 1.

    Source: S19; Howard et al. 2017, section 3.1.
    """
    positive("ratio", out_channels=out_channels, depth_multiplier=depth_multiplier)
    return depth_multiplier * (1 / out_channels + 1 / area(kernel))


def standard_macs(in_channels: int, out_channels: int, kernel: Kernel, output: Sequence[int]) -> int:
    """Multiply-adds of a standard convolution on one sample: its parameters times the positions of an output map.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel: the sides of the kernel, or its area K as one integer.
        output: sides of an output map.

    Raises:
        Error: a number below 1.

    Source: S19; Howard et al. 2017, equation 2.
    """
    return standard_parameters(in_channels, out_channels, kernel) * area(output)


def separable_macs(
    in_channels: int, out_channels: int, kernel: Kernel, output: Sequence[int], depth_multiplier: int = 1
) -> int:
    """Multiply-adds of a separable convolution on one sample: its parameters times the positions of an output map.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel: the sides of the kernel, or its area K as one integer.
        output: sides of an output map.
        depth_multiplier: m.

    Raises:
        Error: a number below 1.

    Source: S19; Howard et al. 2017, equation 5.
    """
    return separable_parameters(in_channels, out_channels, kernel, depth_multiplier) * area(output)


@dataclass(frozen=True)
class Rung:
    """One way to map Cin maps to Cout maps.

    Attributes:
        name: ``fully connected``, ``unshared``, ``standard`` or ``separable``.
        parameters: bias apart.
        macs: multiply-adds for one sample.
        macs_per_map: multiply-adds for one of its Cout output maps; the separable layer's first half serves all of
            them, so each bears its share of it, and this may be a fraction.
    """

    name: str
    parameters: int
    macs: int
    macs_per_map: float


def ladder(
    in_channels: int,
    out_channels: int,
    kernel: Sequence[int],
    spatial: Sequence[int],
    stride: int = 1,
    padding: int = 0,
) -> tuple[Rung, ...]:
    """Four ways from Cin to Cout maps, each sharing more than the one before; S is the positions of a map.

    ====================  =========================  ================================
    rung                  parameters                 multiply-adds
    ====================  =========================  ================================
    fully connected       Cin S_in * Cout S_out      the same
    unshared              Cin K Cout S_out           the same
    standard              Cin K Cout                 parameters * S_out
    separable             Cin K + Cin Cout           parameters * S_out
    ====================  =========================  ================================

    Fully connected: each output sees every input. Unshared (locally connected): each output sees a window, with weights
    of its own. Standard: the windows share one kernel per pair of maps. Separable: one kernel per input map.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel: sides of the window, one to three.
        spatial: sides of an input map, as many.
        stride: of the window.
        padding: zeros on either side; multiply-adds with them are counted, as they are executed.

    Raises:
        Error: a number below 1, sides that do not belong together, a kernel that does not fit into the map.

    Source: S26.
    """
    positive("ladder", in_channels=in_channels, out_channels=out_channels, stride=stride)
    if len(kernel) != len(spatial) or not 1 <= len(kernel) <= 3:
        got = f"kernel={tuple(kernel)}, spatial={tuple(spatial)}"
        raise Error(f"ladder: kernel and spatial must have the same one to three sides, got {got}")
    output = [(n + 2 * padding - k) // stride + 1 for n, k in zip(spatial, kernel, strict=True)]
    if min(output) < 1:
        raise Error(f"ladder: the kernel must fit into the map, got kernel={tuple(kernel)}, spatial={tuple(spatial)}")
    here, there, k = area(spatial), area(output), area(kernel)
    shared = standard_parameters(in_channels, out_channels, k)
    apart = separable_parameters(in_channels, out_channels, k)
    full = in_channels * here * out_channels * there
    counted = (
        ("fully connected", full, full),
        ("unshared", shared * there, shared * there),
        ("standard", shared, shared * there),
        ("separable", apart, apart * there),
    )
    return tuple(Rung(name, parameters, macs, macs / out_channels) for name, parameters, macs in counted)


@dataclass(frozen=True)
class Growth:
    """Parameters of a network of ``depth`` equal layers, standard and separable, bias and norm apart."""

    depth: int
    standard: int
    separable: int


def growth(channels: int, kernel: Kernel, depths: Sequence[int]) -> tuple[Growth, ...]:
    """How parameters add up where convolution is used many times: depth * C K C against depth * C (K + C).

    Args:
        channels: C, the same in and out.
        kernel: its sides, such as (3, 3, 3), or its area K as one integer.
        depths: numbers of layers.

    Raises:
        Error: a number below 1.

    Source: S21.
    """
    standard = standard_parameters(channels, channels, kernel)
    separable = separable_parameters(channels, channels, kernel)
    for depth in depths:
        positive("growth", depth=depth)
    return tuple(Growth(depth, depth * standard, depth * separable) for depth in depths)


def area(sides: Kernel) -> int:
    """Product of sides; an integer is an area already.

    Raises:
        Error: a side below 1.
    """
    for side in (sides,) if isinstance(sides, int) else sides:
        positive("separable", side=side)
    return sides if isinstance(sides, int) else prod(sides)
