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

from leanconv.runtime.threads import usable_cores

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
