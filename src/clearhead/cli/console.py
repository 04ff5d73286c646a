"""What every verb shares: where it writes, what it reads, and how it shows progress."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from clearhead.errors import InputError
from clearhead.utils.text import decode_text

_PATIENCE = 1.0  # seconds before anything is shown


def output() -> Console:
    """For what was asked for: standard output, without guessing at numbers or brackets in the text."""
    return Console(highlight=False, markup=False, emoji=False)


def notices() -> Console:
    """For what goes beside it: standard error, so that standard output can be piped on."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def notice(text: str) -> None:
    """One line beside the output, such as that a prompt was cut."""
    notices().print(f"clearhead: {text}", style="dim", soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Shows, where it takes longer than a second, that something goes on: a spinner on a terminal, else one line."""
    console = notices()
    status = console.status(what)
    show = status.start if console.is_terminal else lambda: console.print(what, soft_wrap=True)
    timer = threading.Timer(_PATIENCE, show)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # it may be about to show; only then can it be taken away
        status.stop()


def read_text(argument: str | None, file: Path | None, what: str) -> str:
    """The text that a verb works on: its argument, a file, or standard input (piped, or asked for by `-`).

    Args:
        argument: the text itself, or `-`.
        file: a file to read instead.
        what: what the text is, for a sentence: "prompt".

    Raises:
        InputError: where there is none, more than one, or a file that cannot be read as UTF-8.
    """
    if argument not in (None, "-") and file is not None:
        raise InputError(f"the {what} was given twice, as an argument and as --file {file}; give one of them.")
    if file is not None and str(file) != "-":
        return decode_text(_read(file), str(file))
    if argument not in (None, "-"):
        return argument or ""
    if argument is None and file is None and sys.stdin.isatty():
        raise InputError(f"there is no {what}; give it as an argument, with --file, or through a pipe.")
    return decode_text(sys.stdin.buffer.read(), "standard input")


def write_file(file: Path, contents: str | bytes) -> None:
    """Writes a file beside its place and renames it, so that the old one stays until the new one is whole.

    Args:
        file: its place.
        contents: text is written as UTF-8.

    Raises:
        InputError: where it cannot be written.
    """
    try:
        if file.is_dir():
            raise InputError(f"{file} is a folder; give the name of a file to write.")
        handle, beside = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(contents.encode() if isinstance(contents, str) else contents)
            umask = os.umask(0)
            os.umask(umask)
            Path(beside).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read
            os.replace(beside, file)  # noqa: PTH105
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{file} could not be written ({error.strerror}); give a file in a folder that is there."
        ) from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); give the path of a text file.") from None
