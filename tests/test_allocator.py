"""The allocator: freed memory is kept, where malloc is glibc's and the user has not decided otherwise."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from leanconv import allocator

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"

FAULTS = """
import ctypes, json, resource, sys
from leanconv import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def cycle():
    block = libc.malloc(100 << 20)
    libc.memset(block, 1, 100 << 20)
    libc.free(block)
def faults():
    cycle()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cycle()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
untuned = faults()
first = allocator.tune_allocator()
second = allocator.tune_allocator()
tuned = faults()
kept = allocator.resident_cost()
released = allocator.release_memory()
after = allocator.resident_cost()
print(json.dumps({"untuned": untuned, "tuned": tuned, "record": [first.tuned, first.reason], "same": first == second,
    "kept": kept.kept, "now": kept.now, "peak": kept.peak, "released": released, "left": after.now,
    "torch": "torch" in sys.modules}))
"""


def measured(**environment: str) -> dict[str, object]:
    """What a fresh process sees: pages of 100 MB that are faulted in again, before and after tuning."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env | environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_freed_memory_is_kept_and_can_be_released() -> None:
    found = measured()
    pages = (100 << 20) // 4096
    assert found["untuned"] > pages / 600  # huge pages of 2 MB at the most
    assert found["tuned"] < found["untuned"] / 10
    assert found["record"][0] is True
    assert found["same"] is True
    assert found["kept"] > 95 << 20
    assert found["peak"] >= found["now"] > 100 << 20
    assert found["released"] is True
    assert found["left"] < 70 << 20
    assert found["torch"] is False


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "131072", "MALLOC_MMAP_THRESHOLD_"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072", "GLIBC_TUNABLES trim_threshold"),
    ],
)
def test_what_the_environment_says_is_left(name: str, value: str, told: str) -> None:
    found = measured(**{name: value})
    assert found["record"] == [False, f"left as the environment sets it ({told})"]
    assert found["tuned"] > found["untuned"] / 2


@pytest.mark.parametrize(
    ("system", "libc", "reason"),
    [("darwin", "", "not glibc's on"), ("win32", "", "not glibc's on"), ("linux", "", "not glibc's on")],
)
def test_elsewhere_nothing_is_done_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, system: str, libc: str, reason: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("called"))
    monkeypatch.setattr(allocator, "keepers", [])
    record = allocator.tune_allocator()
    assert record.tuned is False
    assert reason in record.reason
    assert allocator.release_memory() is False


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_chosen", lambda: "")
    monkeypatch.setattr(allocator, "_owner", lambda _: "libjemalloc.so.2")
    assert allocator.tune_allocator() == allocator.Tuned(False, "malloc is libjemalloc.so.2's, not glibc's")


def test_resident_cost_reads_as_a_line() -> None:
    assert str(allocator.Resident(2_000_000, 1_000_000, 500_000)) == "peak 2 MB, resident 1 MB, of it kept free 0 MB"
    assert str(allocator.Resident(3_000_000, None, None)) == "peak 3 MB"
    if sys.platform.startswith("linux"):
        found = allocator.resident_cost()
        assert found.peak >= 10_000_000
        assert found.now is not None


def test_the_facade_has_it() -> None:
    import leanconv

    assert leanconv.tune_allocator is allocator.tune_allocator
