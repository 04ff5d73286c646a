"""Where Clearhead keeps what it need not make again, and how much of the machine it may use. No Numba here."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder for things that can be made again: CLEARHEAD_CACHE, or the user's cache folder. It may not exist."""
    if told := os.environ.get("CLEARHEAD_CACHE"):
        return Path(told).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "clearhead"


def usable_cores() -> int:
    """How many cores this process may use: those of its affinity, and no more than a container's limit allows."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, cores if quota is None else round(quota)))


def _quota() -> float | None:
    """Cores that a container may use (cgroup version 2, then 1); None for no limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit < 0 else limit / int((folder / "cpu.cfs_period_us").read_text())
    return None


def free_memory() -> int | None:
    """Bytes that a process may still take, by the system and by a container's limit; None where nobody tells."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        found.append(limit - int((folder / "memory.current").read_text()))
    return min(found) if found else None
