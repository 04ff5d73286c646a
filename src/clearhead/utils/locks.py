"""Keep other processes out of a folder or a file while one works on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock


class LockHeldError(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The lock ends with the process, so a crash leaves none behind.

    Args:
        path: the lock file; it is created, and it may stay behind.

    Raises:
        LockHeldError: if another process, or another part of this one, holds it.
        OSError: if the file cannot be written.
    """
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise LockHeldError(f"{Path(path)} is held by another process") from None
    try:
        yield
    finally:
        lock.release()
