"""The memory and processors that this process may use, including cgroup limits.

Containers and batch systems grant less than the machine has, which ``os.cpu_count()`` and
``/proc/meminfo`` alone overlook. Both cgroup versions are read. Without cgroups (macOS, Windows)
the operating system's own figures are used.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["available_cpus", "available_memory"]

_CGROUP = Path("/sys/fs/cgroup")


def _number(path: Path) -> float | None:
    """First number in a cgroup file; None if the file is absent or says "max"."""
    try:
        word = path.read_text(encoding="utf-8").split()[0]
        return None if word == "max" else float(word)
    except (OSError, ValueError, IndexError):
        return None


def _own_cgroups() -> list[Path]:
    """Directories of this process's cgroups and of all their parents."""
    directories = [_CGROUP, _CGROUP / "memory", _CGROUP / "cpu"]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return directories
    for line in lines:
        _, controllers, group = line.split(":", 2)
        for controller in controllers.split(",") or [""]:
            directory = _CGROUP / controller / group.lstrip("/")
            while directory not in (_CGROUP, _CGROUP.parent):
                directories.append(directory)
                directory = directory.parent
    return directories


def available_memory() -> int:
    """Bytes that this process can still allocate without swapping."""
    free = math.inf
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    free = 1024.0 * float(line.split()[1])
    except OSError:
        pass
    if free == math.inf:
        try:
            free = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            free = float(8 << 30)  # Windows without /proc: assume 8 GiB
    for directory in _own_cgroups():
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit = _number(directory / limit_name)
            used = _number(directory / used_name)
            if limit is not None and used is not None:
                # the page cache counts as used, but is released on demand
                cached = 0.0
                try:
                    for line in (directory / "memory.stat").read_text().splitlines():
                        key, _, value = line.partition(" ")
                        if key in ("inactive_file", "total_inactive_file"):
                            cached = max(cached, float(value))
                except (OSError, ValueError):
                    pass
                free = min(free, limit - used + cached)
    return max(int(free), 0)


def available_cpus() -> int:
    """Processors that this process may keep busy: affinity and cgroup quota, at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    for directory in _own_cgroups():
        try:
            words = (directory / "cpu.max").read_text().split()
        except OSError:
            words = []
        if len(words) == 2 and words[0] != "max":
            count = min(count, max(1, math.ceil(float(words[0]) / float(words[1]))))
        quota = _number(directory / "cpu.cfs_quota_us")
        period = _number(directory / "cpu.cfs_period_us")
        if quota and period and quota > 0:
            count = min(count, max(1, math.ceil(quota / period)))
    return max(count, 1)
