"""What sources of rows share: the document in a row, and groups of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clearhead.data.documents import BLOCK_BYTES, Fragment
from clearhead.errors import InputError

READ_ROWS = 256
"""Rows of a table that are read at a time."""


def text_of_row(row: Mapping[str, Any], field: str) -> tuple[str, str]:
    """Return the document of a row, and what is wrong with the row ("" if nothing is)."""
    if field not in row:
        return "", f"has no field {field!r} but {', '.join(map(repr, list(row)[:8])) or 'none'} (--field names another)"
    text = row[field]
    if not isinstance(text, str):
        return "", f"has {'null' if text is None else type(text).__name__} in {field!r}, and a text was expected"
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "", f"has half of a surrogate pair in {field!r}, which is not a character"
    return text, ""


def in_groups(rows: Iterator[Any], first: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield rows in groups of about one block of text, each with the number of its first row."""
    texts: list[Any] = []
    size = 0
    for text in rows:
        texts.append(text)
        size += len(text) if isinstance(text, str) else 0
        if size >= BLOCK_BYTES or len(texts) >= BLOCK_BYTES // 16:
            yield first, texts
            first, texts, size = first + len(texts), [], 0
    if texts:
        yield first, texts


def row_fragments(name: str, field: str, first: int, texts: Sequence[Any]) -> Iterator[Fragment]:
    """Yield the documents of a group of rows without the blank ones.

    Args:
        name: the source's name, for errors.
        field: the column's name, for errors.
        first: the number of the first row.
        texts: the column's values.

    Raises:
        InputError: if a value is not a text.
    """
    for number, text in enumerate(texts, first):
        _, fault = text_of_row({field: text}, field)
        if fault:
            raise InputError(f"row {number:,} of {name} (counted from 0) {fault}; correct or remove it.")
        if text and not text.isspace():
            yield Fragment(text, begins=True)
