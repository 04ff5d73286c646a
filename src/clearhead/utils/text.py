"""Read text files (UTF-8, with or without a byte-order mark), and print text from strangers."""

from __future__ import annotations

import codecs
from pathlib import Path

from clearhead.errors import InputError


def printable(text: str) -> str:
    """Replace control characters, which could give orders to a terminal, by visible escapes such as \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shown(value: object, limit: int = 80) -> str:
    """Return a value from an untrusted file as Python writes it, short and printable, for a message."""
    try:
        text = printable(str(value) if isinstance(value, BaseException) else repr(value))
    except RecursionError:
        text = f"a nested {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def type_of(value: object) -> str:
    """Return the type of a value with its article, for a message: `an int`; None is `None`, and bytes are `bytes`."""
    name = type(value).__name__
    return (
        "None"
        if value is None
        else name
        if name == "bytes"
        else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    )


def decode_text(data: bytes, name: str, *, offset: int = 0) -> str:
    """Return the text of a file, or of a part of it; a byte-order mark at the beginning of the file is dropped.

    Args:
        data: the bytes; the file's own, or those from `offset` on.
        name: the file's name, for the message.
        offset: where `data` begins in the file.

    Raises:
        InputError: if the bytes are not UTF-8.
    """
    mark = len(codecs.BOM_UTF8) if not offset and data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + mark + error.start
        raise InputError(f"{name} is not UTF-8 text ({error.reason} at byte {at:,}); convert it to UTF-8.") from None


def read_bytes(file: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); check the path.") from None


def read_text(file: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: if it cannot be read, or is not UTF-8.
    """
    return decode_text(read_bytes(file), str(file))
