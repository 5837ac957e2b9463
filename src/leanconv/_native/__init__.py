"""The native library: found, checked and called through ctypes. No torch here, so that engine files can run without it.

Three environment variables, read when a function is called, never at import:

- ``LEANCONV_NATIVE``: ``0`` turns native code off, ``1`` requires it (an error where there is none); unset: used where
  there is one.
- ``LEANCONV_ISA``: forces one instruction set (``scalar``, ``avx2``, ``avx512``, ``neon``); one that this library or
  this processor lacks is an error, never another one silently.
- ``LEANCONV_INT8``: forces one way over bytes, for networks that are quantised (``scalar``, ``avx2``, ``avxvnni``,
  ``avx512``, ``vnni``, ``amx``), likewise; unset: the best that does not exceed the instruction set.
"""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from typing import Any

from leanconv._native.engine import Engine
from leanconv._native.library import DROPOUT_CHANNELS, DROPOUT_ROW, Library
from leanconv.errors import Error

__all__ = [
    "ABI",
    "DROPOUT_CHANNELS",
    "DROPOUT_ROW",
    "ISAS",
    "PATHS",
    "Engine",
    "Library",
    "available",
    "environment",
    "explain",
    "forced",
    "int8",
    "isa",
    "load",
]

ABI = 5
ISAS = ("scalar", "avx2", "avx512", "neon")
PATHS = ("scalar", "avx2", "avxvnni", "avx512", "vnni", "amx")
_FILES = ("libleanconv.so", "libleanconv.dylib")
_CALLS = (
    "lc_keep_mask",
    "lc_keep_exact",
    "lc_dropout_apply",
    "lc_spread_out",
    "lc_gather_in",
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
    "lc_engine_new",
    "lc_engine_run",
    "lc_engine_times",
    "lc_engine_free",
    "lc_peak",
)
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


def int8() -> str | None:
    """Name of the way over bytes in use, None without native code.

    Raises:
        Error: ``LEANCONV_INT8`` names one that there is not, or that this library or processor lacks.
    """
    library, wanted = load(), os.environ.get("LEANCONV_INT8", "")
    if wanted and wanted not in PATHS:
        raise Error(f"LEANCONV_INT8: must be one of {', '.join(PATHS)}, got {wanted!r}")
    if library is None:
        return None
    if wanted and wanted not in library.paths:
        raise Error(f"LEANCONV_INT8: must be one of {', '.join(library.paths)} on this machine, got {wanted!r}")
    return wanted or library.path_of()


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
    ways = {n: i for i, n in enumerate(handle.lc_paths().decode().split(",")) if handle.lc_path_supported(i)}
    return Library(path, wanted or here[-1], here, ways, handle, numbers)


@lru_cache(maxsize=1)
def _open() -> tuple[ctypes.CDLL, str] | str:
    """The library, checked, and its path; or why there is none."""
    # An editable installation has two folders; importlib.resources finds it too, and takes 8 ms to import.
    for folder in __path__:
        for name in _FILES:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                return _check(path)
    return "leanconv was installed without it (it needs a C++ compiler at installation)"


def _check(path: str) -> tuple[ctypes.CDLL, str] | str:
    try:
        handle = ctypes.CDLL(path)
        handle.lc_isas.restype = handle.lc_paths.restype = ctypes.c_char_p
        for name in _CALLS:
            getattr(handle, name).argtypes = (ctypes.c_void_p,)
        handle.lc_depthwise_scratch.restype = ctypes.c_int64
        handle.lc_norm_scratch.argtypes = (ctypes.c_int64, ctypes.c_int64)
        handle.lc_norm_scratch.restype = ctypes.c_int64
        for stage in (handle.lc_pointwise_scratch, handle.lc_channelwise_scratch):
            stage.argtypes, stage.restype = (ctypes.c_void_p, ctypes.c_int32), ctypes.c_int64
        handle.lc_engine_new.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        handle.lc_engine_times.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        handle.lc_engine_free.restype = None
        abi = handle.lc_abi()
    except (OSError, AttributeError) as error:
        return f"{path} cannot be loaded ({error}); install leanconv again"
    return (handle, path) if abi == ABI else f"{path} has ABI {abi}, this leanconv needs {ABI}; install leanconv again"
