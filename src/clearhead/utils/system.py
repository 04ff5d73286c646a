"""The cache folder, and how much of the machine the process may use or has used up. No Numba here."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from clearhead.utils.localization import announce


def cache_folder() -> Path:
    """Return the cache folder: CLEARHEAD_CACHE, or the user's. It may not exist."""
    if chosen := os.environ.get("CLEARHEAD_CACHE"):
        return Path(os.path.expanduser(chosen))  # noqa: PTH111 - Path.expanduser raises if there is no home
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = _home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")
    return base / "clearhead"


def scratch_folder(n_bytes: int) -> Path:
    """Return a folder for temporary files of this size together.

    It is the cache folder, whose disk is rarely a small one in memory; the system's temporary folder if the cache
    cannot be written or is too full.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            enough = shutil.disk_usage(folder).free >= n_bytes
    except OSError:
        enough = False
    return folder if enough else Path(tempfile.gettempdir())


class _Reported:
    lost_cache = False


def report_lost_cache(what: str, reason: object) -> None:
    """Say on standard error, once in a process, that something cannot be kept in the cache folder.

    Args:
        what: what is lost, as the subject of a sentence.
        reason: an error of the system, or why in a few words.
    """
    if _Reported.lost_cache:
        return
    _Reported.lost_cache = True
    why = reason.strerror or type(reason).__name__ if isinstance(reason, OSError) else reason
    announce(
        f"clearhead: {what} cannot be kept in {cache_folder()} ({why}), so every run takes this time again; set "
        "CLEARHEAD_CACHE to a folder that can be read and written, on a disk with enough space."
    )


def _home() -> Path:
    """Return the home folder; users without one, as in some containers, get a folder among the temporary files."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"clearhead-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and by a container's limit."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota()
    return max(1, min(cores, cores if quota is None else round(quota)))


def _quota() -> float | None:
    """Return the cores that a container may use (cgroup version 2, then 1); None for no limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return None if limit < 0 else limit / int((folder / "cpu.cfs_period_us").read_text())
    return None


def free_memory() -> int | None:
    """Return the bytes of memory that are free, by the system and by a container's limit; None if unknown."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        found.append(limit - int((folder / "memory.current").read_text()))
    return min(found) if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the machine or a device ran out of memory."""
    # PyTorch has its own class for GPUs only, so the message decides.
    known = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in known)
    )
