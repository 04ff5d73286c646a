"""Read files of records: JSON lines, a JSON array of objects, CSV, or tab-separated values.

Examples for fine-tuning, texts to score or to classify, regions, and the items of benchmarks all come from here.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.errors import InputError
from clearhead.utils.text import decode_text

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""The suffixes of tables, and what separates the values of a row."""

_LONGEST_VALUE = 1 << 30  # characters of a value in a table; Python's own limit is 131,072


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file, or one row of a table.

    Attributes:
        where: its location, such as `line 3 of train.jsonl`, for errors.
        values: its fields; the names of a table's columns are in lower case.
    """

    where: str
    values: dict[str, Any]


def read_records(path: Path, bare_columns: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the records of a file, in order.

    A file that ends in `.csv` or `.tsv` is a table whose first row names the columns; a value in quotation marks may
    contain separators and line ends. Any other file is a JSON array of objects, or has a JSON object on each line;
    blank lines are skipped.

    Args:
        path: the file, in UTF-8.
        bare_columns: the columns of a `.tsv` file without a row of names, the first of which is a label: one whose
            first row has this many values, none of these names, and a first value with which another row begins too.
            In such a file, quotation marks are characters like any other.

    Raises:
        InputError: if the file cannot be read or is malformed; the message gives the location.
    """
    try:
        with path.open("rb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            if path.suffix.lower() in DELIMITERS:
                yield from _read_table(text, path, bare_columns)
            else:
                yield from _read_json(text, str(path))
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        decode_text(path.read_bytes(), str(path))  # raises, with the place in the whole file
        raise


def json_records(data: bytes, name: str) -> Iterator[Record]:
    """Yield the records of a JSON array, or of JSON lines, that are in memory.

    Args:
        data: the bytes, in UTF-8.
        name: what the records' locations call it.

    Raises:
        InputError: as `read_records`.
    """
    yield from _read_json(io.StringIO(decode_text(data, name), newline=""), name)


def _read_json(text: io.TextIOBase, name: str) -> Iterator[Record]:
    return _read_array(text, name) if _first_character(text) == "[" else _read_lines(text, name)


def _first_character(text: io.TextIOBase) -> str:
    """Return the first character that is not white space, and go back to the beginning."""
    found = ""
    while not found.strip() and (found := text.read(1)):
        pass
    text.seek(0)
    return found


def _read_lines(text: io.TextIOBase, name: str) -> Iterator[Record]:
    for number, line in enumerate(text, 1):
        if not line.strip():
            continue
        where = f"line {number} of {name}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{where} is not JSON ({error}); put one object on each line, or give a table a name that ends in "
                ".csv or .tsv."
            ) from None
        if not isinstance(values, dict):
            raise InputError(f"{where} is not a JSON object; put one object on each line.")
        yield Record(where, values)


def _read_array(text: io.TextIOBase, name: str) -> Iterator[Record]:
    try:
        items = json.load(text)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name} begins like a JSON array and is not one ({error}); correct it, or put one object on each line."
        ) from None
    for number, values in enumerate(items, 1):
        where = f"item {number} of {name}"
        if not isinstance(values, dict):
            raise InputError(f"{where} is not a JSON object; each item is one object.")
        yield Record(where, values)


def _read_table(text: io.TextIOBase, path: Path, bare_columns: Sequence[str]) -> Iterator[Record]:
    csv.field_size_limit(_LONGEST_VALUE)
    delimiter = DELIMITERS[path.suffix.lower()]
    names: list[str] = []
    if bare := delimiter == "\t" and bare_columns and _is_bare(text, bare_columns):
        names = list(bare_columns)
        rows = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if not row:
                continue
            if not names:
                names = _column_names(row, path)
                continue
            where = f"line {rows.line_num} of {path}"
            if len(row) != len(names):
                if bare:
                    raise InputError(
                        f"the number of values in {where} is {len(row)}, and the columns are "
                        f"{', '.join(map(repr, names))}, separated by a tab; correct the line."
                    )
                raise InputError(
                    f"the number of values in {where} is {len(row)}, and that of columns in the first line "
                    f'{len(names)}; put a value that contains the separator or a line end in "quotes", or correct the '
                    "line."
                )
            yield Record(where, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise InputError(
            f"line {rows.line_num} of {path} is not a row of a table ({error}); put a value that contains a quotation "
            'mark in "quotes" and double the mark.'
        ) from None


def _is_bare(text: io.TextIOBase, bare_columns: Sequence[str]) -> bool:
    """Return whether a table has no row of names, and go back to its beginning."""
    first = text.readline().rstrip("\r\n").split("\t")
    names = {name.strip().strip('"').lower() for name in first}
    bare = len(first) == len(bare_columns) and not names & {*bare_columns}
    bare = bare and any(line.split("\t", 1)[0] == first[0] for line in text)  # a label recurs, a column's name does not
    text.seek(0)
    return bare


def _column_names(row: Sequence[str], path: Path) -> list[str]:
    names = [name.strip().lower() for name in row]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"the first line of {path} names the column {twice!r} twice; give each a name of its own.")
    return names
