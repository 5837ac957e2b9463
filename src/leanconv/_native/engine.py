"""Engines of the native library: they run the plan of a network; see native/leanconv.h."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence

from leanconv._native.library import Library, refuse
from leanconv._native.structures import Batch, Plan, Step, Value

__all__ = ["Engine"]


class Engine:
    """A network, ready to run on its own threads. It may be called from any thread; calls wait for each other.

    Args:
        library: the native library.
        values: height, width, channels, offset (-1: none), scale (0: float32) and zero point of each value.
        steps: the steps; what their pointers point to must live while the engine is made, and no longer.
        ends: numbers of the values that are the network's input and output.
        memory: floats of the arena for one image.
        threads: how many work at once, 1 to 64.
        isa: instruction set; None: the one in use.
        path: way over bytes; None: the best that does not exceed the instruction set.

    Raises:
        Error: the library refused.
    """

    def __init__(
        self,
        library: Library,
        values: Sequence[tuple[int, int, int, int, float, int]],
        steps: Sequence[Step],
        ends: tuple[int, int],
        memory: int,
        threads: int,
        isa: str | None = None,
        path: str | None = None,
    ) -> None:
        maps, listed = (Value * len(values))(*(Value(*value) for value in values)), (Step * len(steps))(*steps)
        plan = Plan(
            ctypes.sizeof(Plan), library.number(isa), ctypes.addressof(maps), len(values), ctypes.addressof(listed),
            len(steps), *ends, memory, threads, -1, -1 if path is None else library.paths[path],
        )  # fmt: skip
        made = ctypes.c_void_p()
        failure = library.handle.lc_engine_new(ctypes.byref(plan), ctypes.byref(made))
        if failure:
            where = f"step {plan.refused}" if plan.refused >= 0 else "no step in particular"
            got = f"{where} of {len(steps)}, {len(values)} values, memory={memory}, threads={threads}"
            refuse("engine", failure, got)
        self._handle, self._engine, self._steps = library.handle, made.value, len(steps)
        weakref.finalize(self, library.handle.lc_engine_free, made.value)

    def run(self, images: int, sizes: tuple[int, int], addresses: tuple[int, int]) -> None:
        """One batch.

        Args:
            images: how many.
            sizes: floats of the input and of the output of the whole batch.
            addresses: of the input, images one after another, and of the output.

        Raises:
            Error: the library refused.
        """
        batch = Batch(ctypes.sizeof(Batch), 0, self._engine, images, *sizes, *addresses)
        failure = self._handle.lc_engine_run(ctypes.byref(batch))
        if failure:
            refuse("engine", failure, f"images={images}, floats of input and output = {sizes}")

    def times(self) -> list[float]:
        """Seconds that each step of the last run took, zeros before the first."""
        seconds = (ctypes.c_double * self._steps)()
        failure = self._handle.lc_engine_times(self._engine, seconds, self._steps)
        if failure:
            refuse("engine", failure, f"{self._steps} steps")
        return list(seconds)
