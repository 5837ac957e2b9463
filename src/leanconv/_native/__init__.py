"""The native library: found, checked and called through ctypes. No torch here, so that engine files can run without it.

Two environment variables, read when a function is called, never at import:

- ``LEANCONV_NATIVE``: ``0`` turns native code off, ``1`` requires it (an error where there is none); unset: used where
  there is one.
- ``LEANCONV_ISA``: forces one instruction set (``scalar``, ``avx2``, ``avx512``, ``neon``); one that this library or
  this processor lacks is an error, never another one silently.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import Any, NoReturn

from leanconv.errors import Error

__all__ = [
    "ABI",
    "DROPOUT_CHANNELS",
    "DROPOUT_ROW",
    "ISAS",
    "Channelwise",
    "Depthwise",
    "Dropout",
    "Library",
    "Mask",
    "Norm",
    "Pointwise",
    "Spread",
    "available",
    "environment",
    "explain",
    "forced",
    "isa",
    "load",
]

ABI = 3
DROPOUT_ROW = 4096  # LC_DROPOUT_ROW
DROPOUT_CHANNELS = 4096  # the most channels that lc_dropout counts last
ISAS = ("scalar", "avx2", "avx512", "neon")
_FILES = ("libleanconv.so", "libleanconv.dylib")
_CALLS = (
    "lc_keep_mask",
    "lc_keep_exact",
    "lc_dropout_apply",
    "lc_spread_out",
    "lc_depthwise_scratch",
    "lc_depthwise_forward",
    "lc_depthwise_backward_input",
    "lc_depthwise_backward_weight",
    "lc_norm_scratch",
    "lc_norm_forward",
    "lc_norm_backward",
    "lc_pointwise_scratch",
    "lc_pointwise_forward",
    "lc_pointwise_backward",
    "lc_channelwise_scratch",
    "lc_channelwise_forward",
    "lc_channelwise_backward",
)
_FAILURES = {
    1: "the argument struct has another size",
    2: "this processor lacks the instruction set",
    3: "an argument is out of range",
    4: "the thread pool failed",
}


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


_SIZE = ctypes.sizeof(Mask)
_CHANNELWISE_SIZE = ctypes.sizeof(Channelwise)
_POINTWISE_SIZE = ctypes.sizeof(Pointwise)
_DROPOUT_SIZE = ctypes.sizeof(Dropout)
_SPREAD_SIZE = ctypes.sizeof(Spread)
_NORM_SIZE = ctypes.sizeof(Norm)
_DEPTHWISE_SIZE = ctypes.sizeof(Depthwise)
_SIZES = 16  # fields of Depthwise between isa and x


@dataclass(frozen=True)
class Library:
    """A loaded library and the instruction set in use.

    Attributes:
        path: the file.
        isa: name of the instruction set in use.
        isas: those that both the library and this processor have, the plainest first.
    """

    path: str
    isa: str
    isas: tuple[str, ...]
    _handle: ctypes.CDLL
    _numbers: dict[str, int]

    def keep_mask(
        self,
        key: int,
        sample: int,
        rows: int,
        elements: int,
        limit: int,
        out: int,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Fill ``out``: 1 where the element's 16-bit number is at least the threshold ``limit``, at least one per row.

        Args:
            key: 64 bits.
            sample: index of the first row's sample.
            rows: rows of the mask.
            elements: elements per row.
            limit: the threshold, 0 to 65535.
            out: address of rows x elements bytes.
            parallel_for: address of a function with the signature of ``torch_parallel_for``; None: this thread alone.
            isa: instruction set; None: the one in use.

        Raises:
            Error: the library refused.
        """
        self._mask(self._handle.lc_keep_mask, isa, (key, sample, rows, elements, limit, out, parallel_for))

    def keep_exact(
        self,
        key: int,
        sample: int,
        rows: int,
        elements: int,
        limit: int,
        out: int,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Fill ``out``: 0 for the ``limit`` smallest 32-bit words of each row, else 1; see :meth:`keep_mask`."""
        self._mask(self._handle.lc_keep_exact, isa, (key, sample, rows, elements, limit, out, parallel_for))

    def dropout(
        self,
        sizes: tuple[int, int, int],
        mask: tuple[int, int, int],
        scale: float,
        addresses: tuple[int, int, int | None],
        *,
        dtype: int = 0,
        exact: bool = False,
        batch: bool = False,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """y = x * (keep ? scale : 0) with the mask of :meth:`keep_mask` or :meth:`keep_exact`, made on the way.

        Args:
            sizes: samples, elements of a sample, channels. Above 1 channel, at most :data:`DROPOUT_CHANNELS`, memory
                holds a sample as (channels, positions) and its elements are counted channels last.
            mask: key (64 bits), index of the first sample, limit.
            scale: of what is kept.
            addresses: of x and y, (samples, elements), and of (rows of the mask, 2) int64 scratch, which exact counts
                of more than :data:`DROPOUT_ROW` elements need.
            dtype: 0 float32, 1 bfloat16.
            exact: exact counts.
            batch: one row of the mask for all samples, sample index 0.
            parallel_for: as of :meth:`keep_mask`.
            isa: as of :meth:`keep_mask`.

        Raises:
            Error: the library refused.
        """
        samples, elements, channels = sizes
        key, sample, limit = mask
        number = self._numbers.get(isa or self.isa, -1)
        given = Dropout(
            _DROPOUT_SIZE, number, dtype, exact, batch, 0, key, sample, samples, elements, channels, limit, scale,
            *addresses, parallel_for,
        )  # fmt: skip
        failure = self._handle.lc_dropout_apply(ctypes.byref(given))
        if failure:
            why = _FAILURES.get(failure, f"failure {failure}")
            raise Error(
                f"native dropout: {why}, got isa={isa or self.isa}, (samples, elements, channels) = {sizes}, "
                f"limit={limit}, dtype={dtype}"
            )

    def spread(
        self,
        by_rows: bool,
        sizes: tuple[int, int, int],
        addresses: tuple[int, int, int],
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Rows or columns of a float32 matrix, spread out between zeros.

        Args:
            by_rows: rows; else columns.
            sizes: rows and columns of the full matrix, and how many of them there are before.
            addresses: of the flags (a byte a row or column, 1 where one goes, else 0), the full matrix and what is
                spread.
            parallel_for: as of :meth:`keep_mask`.
            isa: as of :meth:`keep_mask`.

        Raises:
            Error: the library refused.
        """
        number = self._numbers.get(isa or self.isa, -1)
        given = Spread(_SPREAD_SIZE, number, by_rows, 0, *sizes, *addresses, parallel_for)
        failure = self._handle.lc_spread_out(ctypes.byref(given))
        if failure:
            why = _FAILURES.get(failure, f"failure {failure}")
            raise Error(f"native spread: {why}, got isa={isa or self.isa}, (rows, columns, kept) = {sizes}")

    def norm_scratch(self, rows: int, channels: int) -> int:
        """Bytes of scratch, aligned to 64, that a batch normalisation of (rows, channels) needs.

        Raises:
            Error: sizes out of range.
        """
        found = int(self._handle.lc_norm_scratch(rows, channels))
        if found < 0:
            raise Error(f"native norm: rows and channels must be in range, got rows={rows} and channels={channels}")
        return found

    def norm(
        self,
        backward: bool,
        sizes: tuple[int, int],
        addresses: dict[str, int],
        *,
        dtype: int = 0,
        act: int = 0,
        given: bool = False,
        eps: float = 1e-5,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Batch normalisation and the activation after it, of (rows, channels); see native/leanconv.h.

        Args:
            backward: the gradients instead.
            sizes: rows and channels.
            addresses: by name, of what the direction reads and writes; absent ones are null.
            dtype: 0 float32, 1 bfloat16.
            act: 0 none, 1 ReLU, 2 ReLU6, 3 hard-swish, 4 SiLU.
            given: statistics are given.
            eps: added to the variance.
            parallel_for: as of :meth:`keep_mask`.
            isa: as of :meth:`keep_mask`.

        Raises:
            Error: the library refused.
        """
        number = self._numbers.get(isa or self.isa, -1)
        norm = Norm(_NORM_SIZE, number, dtype, act, given, 0, *sizes, eps, parallel_for=parallel_for, **addresses)
        failure = (self._handle.lc_norm_backward if backward else self._handle.lc_norm_forward)(ctypes.byref(norm))
        if failure:
            why = _FAILURES.get(failure, f"failure {failure}")
            raise Error(f"native norm: {why}, got isa={isa or self.isa}, (rows, channels) = {sizes}")

    def pointwise(
        self,
        sizes: tuple[int, int, int],
        addresses: dict[str, int],
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        measured: int = 0,
        raw: bool = False,
        dtype: int = 0,
        scale: float = 1.0,
        threads: int = 1,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> Pointwise:
        """The arguments of a pointwise convolution between two batch norms; see native/leanconv.h.

        Args:
            sizes: rows, input channels, output channels.
            addresses: by name, of what the direction reads and writes; absent ones are null.
            before: fields of the norm that x passes: act, given, eps and addresses; None: x is taken as it is.
            after: fields of the norm that y passes, where ``measured`` is not 0.
            measured: 0 no norm after; 1: forward computes its statistics, dy is that of act(norm(y)); 2: dy is that of
                norm(y).
            raw: backward leaves the gradient behind the norm before in dx.
            dtype: 0 float32, 1 bfloat16.
            scale: of what ``keep`` lets through.
            threads: that may run at once.
            parallel_for: as of :meth:`keep_mask`.
            isa: as of :meth:`keep_mask`.
        """
        norms = [Norm(**(fields or {})) for fields in (before, after)]
        return Pointwise(
            _POINTWISE_SIZE, self._numbers.get(isa or self.isa, -1), dtype, before is not None, measured, raw, scale,
            *sizes, threads=max(1, min(threads, 64)), parallel_for=parallel_for, before=norms[0], after=norms[1],
            **addresses,
        )  # fmt: skip

    def channelwise(
        self,
        sizes: tuple[int, ...],
        addresses: dict[str, int],
        *,
        before: dict[str, Any] | None = None,
        after: dict[str, Any] | None = None,
        measured: int = 0,
        raw: bool = False,
        threads: int = 1,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> Channelwise:
        """The arguments of a depthwise convolution between two batch norms; as :meth:`pointwise`.

        Args:
            sizes: the fields of ``lc_depthwise`` from bf16 to dilation_width.
            addresses: by name: x, y, weight; backward dy, dx, dweight too.
            before: as of :meth:`pointwise`, like the rest.
        """
        norms = [Norm(**(fields or {})) for fields in (before, after)]
        own = {name: addresses[name] for name in ("x", "y", "weight") if name in addresses}
        rest = {name: at for name, at in addresses.items() if name not in own}
        conv = Depthwise(0, 0, *sizes, **own)
        return Channelwise(
            _CHANNELWISE_SIZE, self._numbers.get(isa or self.isa, -1), before is not None, measured, raw, 0, conv,
            threads=max(1, min(threads, 64)), parallel_for=parallel_for, before=norms[0], after=norms[1], **rest,
        )  # fmt: skip

    def scratch(self, call: Pointwise | Channelwise, backward: bool) -> int:
        """Bytes of scratch memory, aligned to 64, that a pass needs.

        Raises:
            Error: the library refused.
        """
        function = getattr(self._handle, f"lc_{type(call).__name__.lower()}_scratch")
        found = int(function(ctypes.byref(call), backward))
        return found if found >= 0 else self._refused_stage(-found, call)

    def run(self, call: Pointwise | Channelwise, backward: bool) -> None:
        """One pass of what :meth:`pointwise` or :meth:`channelwise` describes.

        Raises:
            Error: the library refused.
        """
        step = "backward" if backward else "forward"
        failure = getattr(self._handle, f"lc_{type(call).__name__.lower()}_{step}")(ctypes.byref(call))
        if failure:
            self._refused_stage(failure, call)

    def _refused_stage(self, failure: int, call: Pointwise | Channelwise) -> NoReturn:
        why = _FAILURES.get(failure, f"failure {failure}")
        if isinstance(call, Channelwise):
            self._refused(failure, call.conv)
        got = ", ".join(f"{name}={getattr(call, name)}" for name in ("rows", "in_channels", "out_channels", "threads"))
        raise Error(f"native pointwise convolution: {why}, got {got}")

    def _mask(self, function: Callable[[object], int], isa: str | None, fields: tuple[int | None, ...]) -> None:
        mask = Mask(_SIZE, self._numbers.get(isa or self.isa, -1), *fields)
        failure = function(ctypes.byref(mask))
        if failure:
            why = _FAILURES.get(failure, f"failure {failure}")
            raise Error(f"native mask: {why}, got isa={isa or self.isa}, rows, elements, limit = {fields[2:5]}")

    def depthwise_scratch(self, sizes: tuple[int, ...], isa: str | None = None) -> int:
        """Floats of scratch memory that each pass of a depthwise convolution needs.

        Args:
            sizes: the fields of ``lc_depthwise`` from bf16 to dilation_width.
            isa: instruction set; None: the one in use.

        Raises:
            Error: the library refused.
        """
        conv = self._depthwise(sizes, isa)
        floats: int = self._handle.lc_depthwise_scratch(ctypes.byref(conv))
        if floats < 0:
            self._refused(-floats, conv)
        return floats

    def depthwise(
        self,
        step: str,
        sizes: tuple[int, ...],
        addresses: tuple[int, int, int, int | None, int],
        scratch: int,
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """One pass of a depthwise convolution, images in NHWC, contiguous; see native/leanconv.h.

        Args:
            step: ``forward``, ``backward_input`` or ``backward_weight``.
            sizes: the fields of ``lc_depthwise`` from bf16 to dilation_width.
            addresses: of x, y, weight, bias (None: there is none) and scratch memory.
            scratch: how many floats of scratch memory there are, from :meth:`depthwise_scratch`.
            parallel_for: address of a function with the signature of ``torch_parallel_for``; None: this thread alone.
            isa: instruction set; None: the one in use.

        Raises:
            Error: the library refused.
        """
        conv = self._depthwise(sizes, isa, (*addresses, scratch, parallel_for))
        failure = getattr(self._handle, f"lc_depthwise_{step}")(ctypes.byref(conv))
        if failure:
            self._refused(failure, conv)

    def _depthwise(self, sizes: tuple[int, ...], isa: str | None, rest: tuple[int | None, ...] = ()) -> Depthwise:
        assert len(sizes) == _SIZES
        return Depthwise(_DEPTHWISE_SIZE, self._numbers.get(isa or self.isa, -1), *sizes, *rest)

    def _refused(self, failure: int, conv: Depthwise) -> NoReturn:
        why = _FAILURES.get(failure, f"failure {failure}")
        got = ", ".join(f"{field[0]}={getattr(conv, field[0])}" for field in Depthwise._fields_[2 : 2 + _SIZES])
        raise Error(f"native depthwise convolution: {why}, got {got}")


# What os.environ reads and writes, without the conversions and the exception inside of it that cost a microsecond each.
_variables: Any = getattr(os.environ, "_data", os.environ)
_names = ("LEANCONV_NATIVE", "LEANCONV_ISA")
_keys = _names if _variables is os.environ else tuple(os.environ.encodekey(name) for name in _names)


def environment() -> tuple[object, object]:
    """Both variables as they stand, uninterpreted: equal where what :func:`load` and :func:`forced` say is."""
    return _variables.get(_keys[0]), _variables.get(_keys[1])


def load() -> Library | None:
    """The native library, or None where there is none, it does not fit, or ``LEANCONV_NATIVE=0``.

    Raises:
        Error: ``LEANCONV_NATIVE=1`` without a usable library; a value of either variable that cannot be honoured.
    """
    native, wanted = environment()
    return _select(_text(native), _text(wanted))


def available() -> bool:
    """Whether native code runs now."""
    return load() is not None


def isa() -> str | None:
    """Name of the instruction set in use, None without native code."""
    library = load()
    return library.isa if library else None


def forced() -> bool | None:
    """What ``LEANCONV_NATIVE`` says: True required, False off, None left to leanconv.

    Raises:
        Error: it says something else.
    """
    value = _text(environment()[0])
    if value not in ("", "0", "1"):
        raise Error(f"LEANCONV_NATIVE: must be 0 or 1 or unset, got {value!r}")
    return None if value == "" else value == "1"


def explain() -> str:
    """One sentence: which library and instruction set run, or why none does."""
    if forced() is False:
        return "native code: off, LEANCONV_NATIVE=0"
    found = _open()
    if isinstance(found, str):
        return f"native code: none, {found}"
    library = load()
    assert library is not None  # neither off nor missing
    why = "LEANCONV_ISA asks for it" if os.environ.get("LEANCONV_ISA") else "the best of " + ", ".join(library.isas)
    return f"native code: {library.path}, instruction set {library.isa} ({why})"


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else os.fsdecode(value)


@lru_cache(maxsize=64)
def _select(native: str, wanted: str) -> Library | None:
    forced()
    if wanted and wanted not in ISAS:
        raise Error(f"LEANCONV_ISA: must be one of {', '.join(ISAS)}, got {wanted!r}")
    if native == "0":
        return None
    found = _open()
    if isinstance(found, str):
        if native == "1" or wanted:
            name = "LEANCONV_NATIVE=1" if native == "1" else f"LEANCONV_ISA={wanted}"
            raise Error(f"{name}: native code must be there, got none: {found}")
        return None
    handle, path = found
    numbers = {name: i for i, name in enumerate(handle.lc_isas().decode().split(","))}
    here = tuple(name for name, number in numbers.items() if handle.lc_supported(number))
    if wanted and wanted not in here:
        raise Error(f"LEANCONV_ISA: must be one of {', '.join(here)} on this machine, got {wanted!r}")
    return Library(path, wanted or here[-1], here, handle, numbers)


@lru_cache(maxsize=1)
def _open() -> tuple[ctypes.CDLL, str] | str:
    """The library, checked, and its path; or why there is none."""
    for name in _FILES:
        found = files(__name__).joinpath(name)
        if found.is_file():
            with as_file(found) as path:
                return _check(str(path))
    return "leanconv was installed without it (it needs a C++ compiler at installation)"


def _check(path: str) -> tuple[ctypes.CDLL, str] | str:
    try:
        handle = ctypes.CDLL(path)
        handle.lc_isas.restype = ctypes.c_char_p
        for name in _CALLS:
            getattr(handle, name).argtypes = (ctypes.c_void_p,)
        handle.lc_depthwise_scratch.restype = ctypes.c_int64
        handle.lc_norm_scratch.argtypes = (ctypes.c_int64, ctypes.c_int64)
        handle.lc_norm_scratch.restype = ctypes.c_int64
        for stage in (handle.lc_pointwise_scratch, handle.lc_channelwise_scratch):
            stage.argtypes, stage.restype = (ctypes.c_void_p, ctypes.c_int32), ctypes.c_int64
        abi = handle.lc_abi()
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error}); install leanconv again"
    return (handle, path) if abi == ABI else f"{path} has ABI {abi}, this leanconv needs {ABI}; install leanconv again"
