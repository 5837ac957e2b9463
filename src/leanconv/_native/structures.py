"""The argument structs of native/leanconv.h, as ctypes has them: one packed struct per call."""

from __future__ import annotations

import ctypes

__all__ = [
    "DEPTHWISE_SIZES",
    "Batch",
    "Burst",
    "Channelwise",
    "Depthwise",
    "Dropout",
    "Mask",
    "Norm",
    "Plan",
    "Pointwise",
    "Spread",
    "Step",
    "Value",
]

_NORM_ADDRESSES = (
    "x", "dy", "y", "dx", "gamma", "beta", "mean", "rest", "var", "dgamma", "dbeta", "scratch", "parallel_for",
)  # fmt: skip


class Mask(ctypes.Structure):
    """``lc_mask`` of native/leanconv.h: one packed struct per call."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("key", ctypes.c_uint64),
        ("sample", ctypes.c_uint64),
        ("rows", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("limit", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
    )


class Dropout(ctypes.Structure):
    """``lc_dropout`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("exact", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("key", ctypes.c_uint64),
        ("sample", ctypes.c_uint64),
        ("samples", ctypes.c_int64),
        ("elements", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("limit", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("cuts", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
    )


class Spread(ctypes.Structure):
    """``lc_spread`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("by_rows", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("kept", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("keep", ctypes.c_void_p),
        ("full", ctypes.c_void_p),
        ("part", ctypes.c_void_p),
        ("parallel_for", ctypes.c_void_p),
    )


class Norm(ctypes.Structure):
    """``lc_norm`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("act", ctypes.c_int32),
        ("given", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in _NORM_ADDRESSES),
        ("plan", ctypes.c_int64 * 10),
    )


class Depthwise(ctypes.Structure):
    """``lc_depthwise`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("bf16", ctypes.c_int64),
        ("images", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("multiplier", ctypes.c_int64),
        ("out_height", ctypes.c_int64),
        ("out_width", ctypes.c_int64),
        ("kernel_height", ctypes.c_int64),
        ("kernel_width", ctypes.c_int64),
        ("stride_height", ctypes.c_int64),
        ("stride_width", ctypes.c_int64),
        ("pad_height", ctypes.c_int64),
        ("pad_width", ctypes.c_int64),
        ("dilation_height", ctypes.c_int64),
        ("dilation_width", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("scratch_size", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
    )


class Pointwise(ctypes.Structure):
    """``lc_pointwise`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("normed", ctypes.c_int32),
        ("measured", ctypes.c_int32),
        ("raw", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("rows", ctypes.c_int64),
        ("in_channels", ctypes.c_int64),
        ("out_channels", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("x", "keep", "y", "dy", "dx", "weight", "dweight", "scratch")),
        ("scratch_size", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
        ("before", Norm),
        ("after", Norm),
        ("plan", ctypes.c_int64 * 11),
    )


class Channelwise(ctypes.Structure):
    """``lc_channelwise`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("normed", ctypes.c_int32),
        ("measured", ctypes.c_int32),
        ("raw", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("conv", Depthwise),
        *((name, ctypes.c_void_p) for name in ("dy", "dx", "dweight", "scratch")),
        ("scratch_size", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
        ("before", Norm),
        ("after", Norm),
        ("plan", ctypes.c_int64 * 12),
    )


DEPTHWISE_SIZES = 16
"""Fields of :class:`Depthwise` between isa and x."""


class Value(ctypes.Structure):
    """``lc_value`` of native/leanconv.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("height", "width", "channels", "offset")),
        ("scale", ctypes.c_float),
        ("zero", ctypes.c_int32),
    )


class Step(ctypes.Structure):
    """``lc_step`` of native/leanconv.h."""

    _fields_ = (
        ("op", ctypes.c_int32),
        ("act", ctypes.c_int32),
        ("count_padding", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("inputs", ctypes.c_void_p),
        ("inputs_count", ctypes.c_int64),
        ("output", ctypes.c_int64),
        ("parts", ctypes.c_void_p),
        ("parts_count", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("weight_size", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("bias_size", ctypes.c_int64),
        ("bytes", ctypes.c_void_p),
        ("bytes_size", ctypes.c_int64),
        ("sums", ctypes.c_void_p),
        ("sums_size", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("scales_size", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("kernel_height", ctypes.c_int64),
        ("kernel_width", ctypes.c_int64),
        ("stride_height", ctypes.c_int64),
        ("stride_width", ctypes.c_int64),
        ("pad_top", ctypes.c_int64),
        ("pad_left", ctypes.c_int64),
        ("pad_bottom", ctypes.c_int64),
        ("pad_right", ctypes.c_int64),
        ("dilation_height", ctypes.c_int64),
        ("dilation_width", ctypes.c_int64),
    )


class Plan(ctypes.Structure):
    """``lc_plan`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("values_count", ctypes.c_int64),
        ("steps", ctypes.c_void_p),
        ("steps_count", ctypes.c_int64),
        ("input", ctypes.c_int64),
        ("output", ctypes.c_int64),
        ("memory", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("refused", ctypes.c_int64),
        ("path", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


class Batch(ctypes.Structure):
    """``lc_batch`` of native/leanconv.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("reserved", ctypes.c_int32),
        ("engine", ctypes.c_void_p),
        ("images", ctypes.c_int64),
        ("in_size", ctypes.c_int64),
        ("out_size", ctypes.c_int64),
        ("in", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    )


class Burst(ctypes.Structure):
    """``lc_burst``."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("isa", ctypes.c_int32),
        ("turns", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("out", ctypes.c_void_p),
        ("path", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )
