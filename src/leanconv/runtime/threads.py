"""How many threads this process may have at once."""

from __future__ import annotations

import os

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """How many threads can run at once: the affinity mask, and the quota of the control group, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota("/sys/fs/cgroup")
    return max(1, min(cores, quota)) if quota else cores


def _quota(root: str | os.PathLike[str]) -> int | None:
    """Cores that the control group grants, version 2 or 1; None: no limit."""
    try:
        if os.path.isfile(os.path.join(root, "cpu.max")):
            limit, period = _text(root, "cpu.max").split()
        else:
            limit, period = _text(root, "cpu/cpu.cfs_quota_us"), _text(root, "cpu/cpu.cfs_period_us")
        return -(-int(limit) // int(period)) if int(limit) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # not Linux, or "max"
        return None


def _text(root: str | os.PathLike[str], name: str) -> str:
    with open(os.path.join(root, name), encoding="utf-8") as file:
        return file.read()
