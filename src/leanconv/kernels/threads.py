"""torch's own thread pool for native code, so that ``torch.set_num_threads`` holds and no second runtime competes."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

__all__ = ["parallel_for"]


@lru_cache(maxsize=1)
def parallel_for() -> int | None:
    """Address of ``torch_parallel_for`` (plain C, in torch's stable interface since 2.10); None where it is missing.

    It is found through the libraries that torch's own module depends on. Without it native code runs in the calling
    thread.
    """
    try:
        function = ctypes.CDLL(torch._C.__file__).torch_parallel_for
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
