"""The one visible choice of an implementation: native code or torch, per operation, shape, dtype and machine.

The choice is a pure function (:func:`choose`), never timed during a run, and can be asked for (:func:`explain`).
``LEANCONV_NATIVE=0`` forces torch; ``LEANCONV_NATIVE=1`` forces native code, and where that cannot be, it is an error:
a forced choice never falls back silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import torch

from leanconv import _native
from leanconv.errors import Error

__all__ = ["Choice", "choose", "decide", "explain"]

# Operation -> dtypes of its result for which there is native code.
NATIVE: dict[str, tuple[torch.dtype, ...]] = {
    "keep_mask": (torch.bool,),
    "keep_exact": (torch.bool,),
    "dropout": (torch.float32, torch.bfloat16),
    "spread": (torch.float32,),
    "gather": (torch.float32,),
    "norm_act": (torch.float32, torch.bfloat16),
    "depthwise_forward": (torch.float32, torch.bfloat16),
    "depthwise_input": (torch.float32, torch.bfloat16),
    "depthwise_weight": (torch.float32, torch.bfloat16),
    "separable_block": (torch.float32, torch.bfloat16),
}

_LANES = {"scalar": 4, "neon": 4, "avx2": 8, "avx512": 16}
_NEVER = 1 << 30
# Least width of an undilated kernel from which native code is faster than torch's, at stride 1 and above; pass and
# instruction set, or pass and "bf16" (AVX-512). Measured by benchmarks/depthwise.py; what is not here is torch's.
_LEAST_WIDTH: dict[tuple[str, str], tuple[int, int]] = {
    ("depthwise_forward", "avx512"): (7, 7),
    ("depthwise_forward", "avx2"): (5, 7),
    ("depthwise_input", "avx512"): (5, 5),
    ("depthwise_input", "avx2"): (5, 7),
    ("depthwise_input", "bf16"): (5, 1),
}
# A separable block as one operation: least input channels, and elements of the output at the input's size.
_BLOCK_INPUTS = 24
_BLOCK_ELEMENTS = 1 << 14
_SEQUENCE = 15  # the same for kernels of one row

# Batch norm in float32, measured by benchmarks/shapes.py.
_NORM_FUSED = 5 << 15  # elements from which native code pays in training, with an activation
_NORM_ALONE = 1 << 19  # and without
_NORM_CHANNEL = 150  # of which so many for each channel do not count
_NORM_GIVEN = 1 << 15  # elements from which it pays where statistics are given and an activation follows
_NORM_RAGGED = 1 << 11  # values per channel from which it pays earlier, where channels are no multiple of a vector


@dataclass(frozen=True)
class Choice:
    """An implementation and the reason for it, one clause."""

    implementation: Literal["native", "torch"]
    why: str


@lru_cache(maxsize=1024)
def choose(
    op: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str = "cpu",
    isa: str | None = None,
    threads: int = 1,
    forced: bool | None = None,
    geometry: tuple[int, ...] = (),
) -> Choice:
    """Which implementation runs; the same arguments always give the same answer.

    Args:
        op: operation, as ``keep_mask``.
        shape: shape of the result; of a convolution, that of its input.
        dtype: dtype of the result.
        device: device type.
        isa: instruction set of the native library, None without one.
        threads: threads that torch may use; no rule depends on them so far.
        forced: True native required, False torch required, None free.
        geometry: of a convolution: kernel height and width, then stride, then dilation, and the channel multiplier; of
            norm_act: 1 or 0 for statistics of the batch, for gradients, and the activation's number; of
            separable_block: its input channels.

    Raises:
        Error: an unknown operation; native code is required and there is none.
    """
    if op not in NATIVE:
        raise Error(f"kernels: op must be one of {', '.join(NATIVE)}, got op={op!r}")
    if forced is False:
        return Choice("torch", "LEANCONV_NATIVE=0")
    lacks = _lacks(op, dtype, device, isa)
    if lacks is None:
        rule = {"norm_act": _slower_norm, "separable_block": _slower_block}.get(op, _slower)
        slower = None if forced or not geometry else rule(op, shape, dtype, isa or "", geometry)
        if slower is not None:
            return Choice("torch", f"faster than native {isa} code: {slower}")
        return Choice("native", f"{isa}, shape {shape}, up to {threads} threads")
    if forced:
        raise Error(f"LEANCONV_NATIVE=1: {op} must run in native code, got none: {lacks}")
    return Choice("torch", lacks)


def _lacks(op: str, dtype: torch.dtype, device: str, isa: str | None) -> str | None:
    if device != "cpu":
        return f"native code runs on the CPU alone, not on {device}"
    if dtype not in NATIVE[op]:
        return f"native {op} has no {dtype}"
    return "there is no native library" if isa is None else None


def _slower_norm(
    op: str, shape: tuple[int, ...], dtype: torch.dtype, isa: str, geometry: tuple[int, ...]
) -> str | None:
    """Why torch's batch norm, and then the activation, is faster than native code, None: it is not."""
    batch, learns, act = geometry
    elements, channels = prod(shape), shape[1]
    if dtype != torch.float32 or (learns and not batch):
        return None
    if not batch:
        if not act:
            return "given statistics and no activation, one pass over memory for either"
        return None if elements >= _NORM_GIVEN else f"{elements} elements with given statistics"
    if channels % _LANES[isa] and elements >= channels * _NORM_RAGGED and elements >= _NORM_GIVEN:
        return None  # torch goes through channels that fill no vector one by one
    if elements - _NORM_CHANNEL * channels >= (_NORM_FUSED if act else _NORM_ALONE):
        return None
    return f"{elements} elements in {channels} channels {'with' if act else 'without'} an activation"


def _slower_block(
    op: str, shape: tuple[int, ...], dtype: torch.dtype, isa: str, geometry: tuple[int, ...]
) -> str | None:
    """Why the layers of a separable block are faster one by one than as one operation, None: they are not."""
    inputs, elements = geometry[0], prod(shape)
    if inputs < _BLOCK_INPUTS:
        return f"sums over {inputs} channels leave the product's units idle"
    return f"{elements} elements are little for the call" if elements < _BLOCK_ELEMENTS else None


def _slower(op: str, shape: tuple[int, ...], dtype: torch.dtype, isa: str, geometry: tuple[int, ...]) -> str | None:
    """Why torch's depthwise convolution is faster than native code, None: it is not. Thread counts do not matter."""
    height, width, multiplier = geometry[0], geometry[1], geometry[6]
    strided, dilated = max(geometry[2:4]) > 1, max(geometry[4:6]) > 1
    if shape[1] < _LANES[isa]:
        return f"{shape[1]} channels are fewer than a vector's {_LANES[isa]}"
    if multiplier > 1:
        return f"input gradient of multiplier {multiplier}" if multiplier > 2 and op == "depthwise_input" else None
    if dtype == torch.bfloat16 and isa in ("scalar", "avx2"):
        return None  # without AVX-512 torch's bfloat16 takes 10 to 150 times as long
    if op != "depthwise_forward" and dilated:
        return None
    if op == "depthwise_weight":
        return None if width > 3 else f"weight gradient of a kernel {width} wide"  # wider ones are torch's hole
    least = _LEAST_WIDTH.get((op, "bf16" if dtype == torch.bfloat16 else isa), (_NEVER, _NEVER))[strided]
    if height == 1:
        least = max(least, _SEQUENCE)
    if width >= least:
        return None
    return f"kernel {height}x{width}, stride {'above 1' if strided else 1}"


def decide(
    op: str, shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", geometry: tuple[int, ...] = ()
) -> Choice:
    """:func:`choose` for this machine as it stands: its library, its environment, torch's threads."""
    return choose(op, shape, dtype, device, _native.isa(), torch.get_num_threads(), _native.forced(), geometry)


def explain(
    op: str,
    shape: tuple[int, ...] = (),
    dtype: torch.dtype = torch.bool,
    device: str = "cpu",
    geometry: tuple[int, ...] = (),
) -> str:
    """One sentence: what runs for an operation here and now, and why; arguments as in :func:`choose`."""
    choice = decide(op, shape, dtype, device, geometry)
    return f"{op} {shape} on {device}: {choice.implementation} ({choice.why}); {_native.explain()}"
