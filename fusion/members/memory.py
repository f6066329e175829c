"""Memory: what this machine has of it for this process, within the limit of its control group."""

from __future__ import annotations

import os
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def machine_memory() -> int:
    """Bytes that this process may hold: all of the machine, or what a container gives it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit()
    return total if limit is None else min(total, limit)


def free_memory() -> int:
    """Bytes that this process may still take."""
    free = machine_memory()
    for line in MEMINFO.read_text().splitlines() if MEMINFO.exists() else ():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    used, limit = GROUP / "memory.current", _limit()
    if limit is not None and used.exists():
        free = min(free, limit - int(used.read_text()))
    return max(free, 0)


def _limit() -> int | None:
    """The limit of this process's control group (version 2; containers see their own), None without one."""
    limit = GROUP / "memory.max"
    text = limit.read_text().strip() if limit.exists() else "max"
    return None if text == "max" else int(text)
