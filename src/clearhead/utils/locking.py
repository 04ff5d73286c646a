"""One process at a time in a folder: a lock that goes with its process, so that none is left behind by a crash."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clearhead.errors import WeightsError

_NAME = ".fetching.lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds a folder for as long as the block lasts.

    Raises:
        WeightsError: where another process holds it.
        OSError: where the folder cannot be written.
    """
    path = folder / _NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            if _is_still(path, handle):
                break
        except BlockingIOError:
            os.close(handle)
            raise WeightsError(
                f"another process is fetching into {folder}; wait until it is done, or choose another folder."
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # whoever held it has just removed the file: this lock would keep nobody out
    try:
        yield
    finally:
        if sys.platform != "win32":  # there an open file cannot be removed
            path.unlink(missing_ok=True)
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            raise BlockingIOError from None
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the open file is the one that the path names."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
