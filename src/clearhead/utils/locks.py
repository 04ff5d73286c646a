"""Keep other processes out of a folder or a file while one works on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class LockHeldError(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike[str], *, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs. The lock ends with the process, so a crash leaves none behind.

    Args:
        path: the lock file; it is created, and it may stay behind.
        patience: seconds to wait for another holder.

    Raises:
        LockHeldError: if another process, or another part of this one, holds it.
        OSError: if the file cannot be written.
    """
    import filelock  # takes a while, and most runs lock nothing

    lock = filelock.FileLock(path, timeout=patience, poll_interval=0.02, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise LockHeldError(f"{Path(path)} is held by another process") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(path: str | os.PathLike[str]) -> bool:
    """Return whether another process, or another part of this one, holds a lock file; False if it does not exist.

    The check holds the lock for a moment itself, so those who take it should have a little patience.
    """
    if not Path(path).exists():
        return False
    try:
        with exclusive_lock(path, patience=0.1):
            return False
    except LockHeldError:
        return True
    except OSError:  # a folder that cannot be written: nobody works in it
        return False
