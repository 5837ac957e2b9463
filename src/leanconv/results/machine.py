"""Where a run took place: the machine and the versions, without importing any of them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["environment", "usable_cores"]

_PACKAGES = ("leanconv", "torch", "lightning-fabric", "numpy", "pillow", "safetensors")


def environment(packages: Iterable[str] = _PACKAGES) -> dict[str, Any]:
    """The machine and the versions, as plain values for a record.

    Args:
        packages: names of distributions; those that are not installed are left out.

    Returns:
        ``date`` (now, ISO 8601, UTC), ``cpu`` (model), ``arch``, ``cores`` (of the machine), ``usable_cores``,
        ``memory_bytes`` (None where unknown), ``system``, ``python``, and ``versions`` (distribution -> version).
    """
    versions = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "arch": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def usable_cores() -> int:
    """How many threads can run at once: the affinity mask, and the quota of the control group, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, quota)) if quota else cores


def _quota(root: Path) -> int | None:
    """Cores that the control group grants, version 2 or 1; None: no limit."""
    try:
        if (root / "cpu.max").is_file():
            limit, period = (root / "cpu.max").read_text().split()
        else:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        return -(-int(limit) // int(period)) if int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # not Linux, or "max"
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, platform.processor() or platform.machine())


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
