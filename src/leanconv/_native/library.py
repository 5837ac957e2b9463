"""A loaded library: one method per call of native/leanconv.h."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from leanconv._native.structures import (
    DEPTHWISE_SIZES,
    Burst,
    Channelwise,
    Depthwise,
    Dropout,
    Mask,
    Norm,
    Pointwise,
    Spread,
)
from leanconv.errors import Error

__all__ = ["DROPOUT_CHANNELS", "DROPOUT_ROW", "Library", "refuse"]

DROPOUT_ROW = 4096  # LC_DROPOUT_ROW
DROPOUT_CHANNELS = 4096  # the most channels that lc_dropout counts last
_FAILURES = {
    1: "the argument struct has another size",
    2: "this processor lacks the instruction set",
    3: "an argument is out of range",
    4: "the thread pool failed",
    5: "there is not enough memory",
}


def refuse(what: str, failure: int, got: str) -> NoReturn:
    """Tell that a call of the library failed.

    Raises:
        Error: always.
    """
    raise Error(f"native {what}: {_FAILURES.get(failure, f'failure {failure}')}, got {got}")


@dataclass(frozen=True)
class Library:
    """A loaded library and the instruction set in use.

    Attributes:
        path: the file.
        isa: name of the instruction set in use.
        isas: those that both the library and this processor have, the plainest first.
        paths: name -> number of the ways over bytes that both have, the plainest first.
    """

    path: str
    isa: str
    isas: tuple[str, ...]
    paths: dict[str, int]
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
        given = Dropout(
            ctypes.sizeof(Dropout), self._number(isa), dtype, exact, batch, 0, key, sample, samples, elements, channels,
            limit, scale, *addresses, parallel_for,
        )  # fmt: skip
        failure = self._handle.lc_dropout_apply(ctypes.byref(given))
        if failure:
            got = f"isa={isa or self.isa}, (samples, elements, channels) = {sizes}, limit={limit}, dtype={dtype}"
            refuse("dropout", failure, got)

    def spread(
        self,
        by_rows: bool,
        sizes: tuple[int, int, int, int],
        addresses: tuple[int, int, int],
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Rows or columns of a float32 matrix, spread out between zeros.

        Args:
            by_rows: rows; else columns.
            sizes: rows and columns of the full matrix, how many of them there are before, and from how many floats on
                the next row of these begins.
            addresses: of the flags (a byte a row or column, 1 where one goes, else 0), the full matrix and what is
                spread.
            parallel_for: as of :meth:`keep_mask`.
            isa: as of :meth:`keep_mask`.

        Raises:
            Error: the library refused.
        """
        self._move("spread", self._handle.lc_spread_out, by_rows, sizes, (*addresses, parallel_for), isa)

    def gather(
        self,
        by_rows: bool,
        sizes: tuple[int, int, int, int],
        addresses: tuple[int, int, int],
        parallel_for: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Some rows or columns of a float32 matrix, side by side: :meth:`spread` undone, arguments as there."""
        self._move("gather", self._handle.lc_gather_in, by_rows, sizes, (*addresses, parallel_for), isa)

    def _move(
        self,
        what: str,
        call: Any,
        by_rows: bool,
        sizes: tuple[int, int, int, int],
        addresses: tuple[int | None, ...],
        isa: str | None,
    ) -> None:
        given = Spread(ctypes.sizeof(Spread), self._number(isa), by_rows, 0, *sizes, *addresses)
        failure = call(ctypes.byref(given))
        if failure:
            refuse(what, failure, f"isa={isa or self.isa}, (rows, columns, kept, stride) = {sizes}")

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
        norm = Norm(
            ctypes.sizeof(Norm),
            self._number(isa),
            dtype,
            act,
            given,
            0,
            *sizes,
            eps,
            parallel_for=parallel_for,
            **addresses,
        )
        failure = (self._handle.lc_norm_backward if backward else self._handle.lc_norm_forward)(ctypes.byref(norm))
        if failure:
            refuse("norm", failure, f"isa={isa or self.isa}, (rows, channels) = {sizes}")

    def pointwise(
        self,
        sizes: tuple[int, int, int, int],
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
            ctypes.sizeof(Pointwise), self._number(isa), dtype, before is not None, measured, raw,
            scale, *sizes, threads=max(1, min(threads, 64)), parallel_for=parallel_for, before=norms[0], after=norms[1],
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
            ctypes.sizeof(Channelwise), self._number(isa), before is not None, measured, raw, 0,
            conv, threads=max(1, min(threads, 64)), parallel_for=parallel_for, before=norms[0], after=norms[1], **rest,
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
        if isinstance(call, Channelwise):
            self._refused(failure, call.conv)
        got = ", ".join(f"{name}={getattr(call, name)}" for name in ("rows", "in_channels", "out_channels", "threads"))
        refuse("pointwise convolution", failure, got)

    @property
    def handle(self) -> ctypes.CDLL:
        """The library itself."""
        return self._handle

    def number(self, isa: str | None = None) -> int:
        """The library's number of an instruction set (None: the one in use), -1 for one that it does not have."""
        return self._number(isa)

    def path_of(self, isa: str | None = None) -> str:
        """The best way over bytes that does not exceed an instruction set (None: the one in use)."""
        number = self._handle.lc_path_of(self._number(isa))
        return next(name for name, each in self.paths.items() if each == number)

    def _number(self, isa: str | None) -> int:
        """The library's number of an instruction set, -1 for one that it does not have."""
        return self._numbers.get(isa or self.isa, -1)

    def _mask(self, function: Callable[[object], int], isa: str | None, fields: tuple[int | None, ...]) -> None:
        mask = Mask(ctypes.sizeof(Mask), self._number(isa), *fields)
        failure = function(ctypes.byref(mask))
        if failure:
            refuse("mask", failure, f"isa={isa or self.isa}, rows, elements, limit = {fields[2:5]}")

    def burst(self, turns: int, path: str | None = None) -> int:
        """Multiply-adds in registers, as fast as this processor can, on the calling thread.

        Args:
            turns: 0 to 2^40; a turn is 48 to 192 multiply-adds in float32, 192 to 65,536 of bytes.
            path: a way over bytes, whose multiply-adds these are; None: float32.

        Returns:
            How many multiply-adds were done.

        Raises:
            Error: ``turns`` out of range.
        """
        out, way = ctypes.c_float(), -1 if path is None else self.paths[path]
        burst = Burst(ctypes.sizeof(Burst), self._number(None), turns, 0, ctypes.addressof(out), way, 0)
        failure = self._handle.lc_peak(ctypes.byref(burst))
        if failure:
            refuse("burst", failure, f"turns={turns}")
        return int(burst.count)

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
        assert len(sizes) == DEPTHWISE_SIZES
        return Depthwise(ctypes.sizeof(Depthwise), self._number(isa), *sizes, *rest)

    def _refused(self, failure: int, conv: Depthwise) -> NoReturn:
        got = ", ".join(
            f"{field[0]}={getattr(conv, field[0])}" for field in Depthwise._fields_[2 : 2 + DEPTHWISE_SIZES]
        )
        refuse("depthwise convolution", failure, got)
