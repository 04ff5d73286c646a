"""Read the texts to score: plain text, one text a line, or columns of CSV, TSV or JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.errors import InputError
from clearhead.evaluation.surprisal import InputText
from clearhead.evaluation.words import TextSpan
from clearhead.utils.text import decode_text

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that hold the texts.

    Attributes:
        text: what is scored.
        id: names each text; None numbers them.
        context: text before it, which is not scored; None for none.
    """

    text: str = "text"
    id: str | None = None
    context: str | None = None


def is_table(file: Path) -> bool:
    """Return whether `read_texts` finds a text in each row of this file."""
    return file.suffix.lower() in (*_DELIMITERS, *_JSON_LINES)


def texts_of_lines(text: str, name: str, where: str) -> Iterator[InputText]:
    """Yield each line that is not blank as a text, called after `name` and its number."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield InputText(f"{name}:{number}", line, where=f"line {number} of {where}")


def read_texts(files: Sequence[Path], columns: Columns = Columns(), *, lines: bool = False) -> Iterator[InputText]:
    """Yield the texts of files.

    A CSV, TSV or JSON lines file has a text in each row. Any other file is one text, or, if `lines`, has one in each
    line that is not blank. Texts without an id column are called after the file and the row or line.

    Raises:
        InputError: if a file cannot be read, is not UTF-8, or lacks a column.
    """
    for file in files:
        if is_table(file):
            for number, row in enumerate(read_rows(file), start=1):
                yield _from_row(row, columns, file, number)
        elif lines:
            yield from texts_of_lines(_read(file), file.name, str(file))
        else:
            yield InputText(file.name, _read(file), where=str(file))


def read_regions(file: Path) -> dict[str, list[TextSpan]]:
    """Read regions of texts from a table with the columns text_id, start, end and, if it has one, region.

    Raises:
        InputError: if the file cannot be read, lacks a column, or a start or end is not a whole number.
    """
    found: dict[str, list[TextSpan]] = {}
    for number, row in enumerate(read_rows(file), start=1):
        values = {name: _value(row, name, file) for name in ("text_id", "start", "end")}
        try:
            start, end = int(str(values["start"])), int(str(values["end"]))
        except ValueError:
            raise InputError(
                f"row {number} of {file} has the region {values['start']!r} to {values['end']!r}; give start and end "
                "as whole numbers, counting characters from 0."
            ) from None
        found.setdefault(str(values["text_id"]), []).append(TextSpan(start, end, str(row.get("region") or "")))
    return found


def read_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a CSV, TSV or JSON lines file.

    Raises:
        InputError: if the file cannot be read or has another form.
    """
    text, suffix = _read(file), file.suffix.lower()
    if suffix in _DELIMITERS:
        try:
            yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[suffix], strict=True)
        except csv.Error as error:
            raise InputError(f"{file} is not a table ({error}); give a file with a header line.") from None
        return
    if suffix not in _JSON_LINES:
        raise InputError(f"{file} is not a table; give a file whose name ends in .csv, .tsv or .jsonl.")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} of {file} is not JSON ({error}); give one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"line {number} of {file} is not a JSON object; give one object a line.")
        yield row


def _from_row(row: Mapping[str, Any], columns: Columns, file: Path, number: int) -> InputText:
    where = f"row {number} of {file}"
    text = _value(row, columns.text, file)
    context = "" if columns.context is None else _value(row, columns.context, file)
    for name, value in ((columns.text, text), (columns.context, context)):
        if not isinstance(value, str):
            raise InputError(f"column {name!r} in {where} contains {value!r}; give text.")
    id = f"{file.name}:{number}" if columns.id is None else str(_value(row, columns.id, file))
    return InputText(id, text, context, where)


def _value(row: Mapping[str, Any], name: str, file: Path) -> Any:
    if name not in row:
        there = ", ".join(str(key) for key in row if key is not None)
        raise InputError(f"{file} has no column {name!r}; it has {there}.")
    return row[name]


def _read(file: Path) -> str:
    try:
        return decode_text(file.read_bytes(), str(file))
    except OSError as error:
        raise InputError(f"{file} could not be read ({error.strerror}); check the path.") from None
