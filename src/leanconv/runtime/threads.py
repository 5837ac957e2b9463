"""How many threads this process may have at once, and what its control group says."""

from __future__ import annotations

import os

__all__ = ["control_group", "usable_cores"]


def usable_cores() -> int:
    """How many threads can run at once: the affinity mask, and the quota of the control group, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota("/sys/fs/cgroup")
    return max(1, min(cores, quota)) if quota else cores


def control_group(new: str, *old: str, root: str | os.PathLike[str] = "/sys/fs/cgroup") -> list[str] | None:
    """The words of a file of the control group.

    Args:
        new: its name in version 2.
        old: files that say the same in version 1, one word each.
        root: where control groups are mounted.

    Returns:
        None: there is none, as outside Linux.
    """
    try:
        for names in ((new,), old):
            if os.path.isfile(os.path.join(root, names[0])):
                return [word for name in names for word in _text(root, name).split()]
    except OSError:
        pass
    return None


def _quota(root: str | os.PathLike[str]) -> int | None:
    """Cores that the control group grants; None: no limit."""
    try:
        words = control_group("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", root=root)
        limit, period = words or ("max", "")
        return -(-int(limit) // int(period)) if int(limit) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None


def _text(root: str | os.PathLike[str], name: str) -> str:
    with open(os.path.join(root, name), encoding="utf-8") as file:
        return file.read()
