"""What every writer of weights shares: files in one step, and errors in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clearhead.errors import WeightsError
from clearhead.utils.atomic import staged_files

AddFiles = Callable[[Path], None]
"""Writes more files into the folder that it is given."""


@contextlib.contextmanager
def write_errors(dest: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a `WeightsError` that names `dest`."""
    try:
        yield
    except OSError as error:
        raise WeightsError(f"{dest} could not be written ({error.strerror or error}); nothing was changed.") from None


def write_folder(folder: Path, write: Callable[[Path], Sequence[str]], stale: Callable[[str], bool]) -> list[Path]:
    """Write files into a folder so that none of them is replaced before all are complete.

    Args:
        folder: is created if it does not exist; other files in it stay.
        write: writes every file into the folder that it is given, and returns the names of those that are to be moved
            last, in that order.
        stale: whether a file in `folder`, by its name, belongs to the model that is replaced; it is removed at the
            end unless it is new.

    Returns:
        the files written, in the order in which they were moved.

    Raises:
        WeightsError: if a file cannot be written.
    """
    last: list[str] = []
    with write_errors(folder):
        with staged_files(folder, last) as temporary:
            last += write(temporary)
            others = sorted(path.name for path in temporary.iterdir() if path.name not in last)
        names = [*others, *last]
        for path in folder.iterdir():
            if stale(path.name) and path.name not in names:
                path.unlink()
    return [folder / name for name in names]
