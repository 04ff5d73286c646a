"""Write files so that an interruption leaves the old file or the new one, never half of one.

Everything is written under a temporary name in the destination's own folder, flushed to disk, and renamed. The
temporary names are short and random, so that a long file name cannot make one too long and two writers never share one.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

TEMPORARY_SUFFIX = ".part"
"""What temporary names end with; they begin with a dot."""
_TEMPORARY_NAME = re.compile(rf"\.[0-9a-f]{{12}}{re.escape(TEMPORARY_SUFFIX)}")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path for the block to write a file at; rename the file to `path` when the block succeeds.

    If the block raises, the temporary file is removed and `path` is left as it was.

    Raises:
        OSError: if the file cannot be flushed or renamed.
    """
    path = Path(path)
    temporary = _temporary_name(path.parent)
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write `data` to a file, replacing what it held.

    Raises:
        OSError: if the file cannot be written; what it held is untouched then.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write `text` to a file as UTF-8 with `\n` line ends, replacing what it held.

    Raises:
        OSError: if the file cannot be written; what it held is untouched then.
    """
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new temporary folder for the block to fill; rename it to `folder`, which must not exist, on success.

    If the block raises, the temporary folder is removed.

    Raises:
        OSError: if the folder cannot be made, flushed or renamed.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(folder.parent)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            flush_to_disk(file)
        flush_to_disk(temporary)
        temporary.replace(folder)
        flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def staged_files(folder: str | os.PathLike[str], last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; move its files into `folder` when the block succeeds.

    Other files in `folder` stay. If the block raises, nothing in `folder` changes. Each file is renamed on its own, so
    an interruption between two renames can leave some files new and some old; `last` names those that move at the end.

    Args:
        folder: is created if it does not exist.
        last: file names, in the order in which they are moved after all others.

    Raises:
        OSError: if a file cannot be flushed or moved.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(folder)
    temporary.mkdir()
    try:
        yield temporary
        files = sorted(temporary.iterdir(), key=lambda file: last.index(file.name) + 1 if file.name in last else 0)
        for file in files:
            flush_to_disk(file)
        for file in files:
            file.replace(folder / file.name)
        flush_to_disk(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk.

    Folders are skipped on systems that cannot open one (Windows).

    Raises:
        OSError: if the contents cannot be flushed.
    """
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that a killed process has left; only for one that has the folder to itself."""
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if _TEMPORARY_NAME.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _temporary_name(folder: Path) -> Path:
    return folder / f".{secrets.token_hex(6)}{TEMPORARY_SUFFIX}"
