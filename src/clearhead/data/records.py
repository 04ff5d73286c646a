"""Read files of records: JSON lines, a JSON array of objects, CSV, or tab-separated values."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from clearhead.errors import TrainingError

_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file.

    Attributes:
        where: its location, such as `line 3 of train.jsonl`, for errors.
        values: its fields.
    """

    where: str
    values: dict[str, Any]


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, in order.

    A file that ends in `.csv` or `.tsv` is a table whose first row names the columns; the names are lower-cased, and a
    `.tsv` file of two columns without such a row has a label and a text in each row, like the SMS Spam Collection. Any
    other file is a JSON array of objects, or has a JSON object on each line; blank lines are skipped.

    Raises:
        TrainingError: if the file cannot be read or is malformed; the message gives the location.
    """
    with open_records(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        try:
            if path.suffix.lower() in _TABLES:
                yield from _read_table(text, path)
            elif _first_character(text) == "[":
                yield from _read_array(text, path)
            else:
                yield from _read_lines(text, path)
        except UnicodeDecodeError as error:
            raise TrainingError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8."
            ) from None


@contextlib.contextmanager
def open_records(path: Path) -> Iterator[BinaryIO]:
    """Open a file of the recipe.

    Raises:
        TrainingError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TrainingError(
            f"{path} could not be read ({error.strerror}); point --data at the folder that contains the recipe's files."
        ) from None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file of the recipe.

    Raises:
        TrainingError: if it cannot be read.
    """
    with open_records(path) as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def _first_character(text: io.TextIOWrapper) -> str:
    """Return the first character that is not white space, and go back to the beginning."""
    found = ""
    while not found.strip() and (found := text.read(1)):
        pass
    text.seek(0)
    return found


def _read_lines(text: io.TextIOWrapper, path: Path) -> Iterator[Record]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TrainingError(f"{where} is not JSON ({error}); each line is one example.") from None
        if not isinstance(values, dict):
            raise TrainingError(f"{where} is not a JSON object; each line is one example.")
        yield Record(where, values)


def _read_array(text: io.TextIOWrapper, path: Path) -> Iterator[Record]:
    try:
        items = json.load(text)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise TrainingError(
            f"{path} begins like a JSON array and is not one ({error}); correct it, or put one object on each line."
        ) from None
    for number, values in enumerate(items, 1):
        where = f"item {number} of {path}"
        if not isinstance(values, dict):
            raise TrainingError(f"{where} is not a JSON object; each item is one example.")
        yield Record(where, values)


def _read_table(text: io.TextIOWrapper, path: Path) -> Iterator[Record]:
    delimiter = _TABLES[path.suffix.lower()]
    if delimiter == "\t":  # a quotation mark is a character like any other there
        rows = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for row in rows:
            where = f"line {rows.line_num} of {path}"
            if not row:
                continue
            if not names:
                names = [name.strip().lower() for name in row]
                if delimiter == "\t" and len(names) == 2 and "text" not in names and "prompt" not in names:
                    names = ["label", "text"]
                else:
                    continue
            if len(row) != len(names):
                raise TrainingError(
                    f"{where} has {len(row)} values and the first line names {len(names)} columns; put a value that "
                    'contains the separator or a line end in "quotes", or correct the line.'
                )
            yield Record(where, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise TrainingError(f"line {rows.line_num} of {path} is not a row of a table ({error}); correct it.") from None
