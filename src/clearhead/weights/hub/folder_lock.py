"""Let one process at a time download into a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from clearhead.errors import WeightsError
from clearhead.utils.locks import LockHeldError, exclusive_lock

LOCK_FILE = ".fetching.lock"
"""The name of the lock file in the folder."""


@contextlib.contextmanager
def folder_for_download(folder: Path) -> Iterator[None]:
    """Create a folder, and remove what was created if the block fails and leaves it empty.

    Raises:
        OSError: if it cannot be created.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: what was downloaded stays for the next try
            for path in created:
                path.rmdir()
        raise


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other downloads out of a folder while the block runs.

    Raises:
        WeightsError: if another process downloads into it.
        OSError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / LOCK_FILE))
        except LockHeldError:
            raise WeightsError(
                f"another process is downloading into {folder}; wait until it is done, or choose another folder."
            ) from None
        try:
            yield
        finally:
            # Removed before it is released, so that a finished download leaves no litter. A process that opened it just
            # before gets a lock of no effect; the worst that follows is a file that fails its checksum.
            with contextlib.suppress(OSError):  # Windows does not remove an open file
                (folder / LOCK_FILE).unlink()
