"""Read the texts to score: plain text, one text a line, or columns of CSV, TSV or JSON."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.data.records import DELIMITERS, Record, read_records
from clearhead.errors import InputError
from clearhead.evaluation.surprisal import InputText
from clearhead.evaluation.words import TextSpan
from clearhead.utils.text import read_text

_JSON = (".json", ".jsonl", ".ndjson")


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
    return file.suffix.lower() in (*DELIMITERS, *_JSON)


def texts_of_lines(text: str, name: str, where: str) -> Iterator[InputText]:
    """Yield each line that is not blank as a text, called after `name` and its number."""
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield InputText(f"{name}:{number}", line.removesuffix("\n"), where=f"line {number} of {where}")


def read_texts(
    files: Sequence[Path], columns: Columns = Columns(), *, lines: bool = False, bare_columns: Sequence[str] = ()
) -> Iterator[InputText]:
    """Yield the texts of files.

    A CSV, TSV or JSON file (an array, or lines) has a text in each row. Any other file is one text, or, if `lines`, has
    one in each line that is not blank. Texts without an id column are called after the file and the row or line.

    Args:
        files: the files.
        columns: the columns of tables.
        lines: whether each line of a file that is no table is a text.
        bare_columns: the columns of a TSV file without a row of names, as `read_records` finds it.

    Raises:
        InputError: if a file cannot be read, is not UTF-8, or lacks a column.
    """
    for file in files:
        if is_table(file):
            for number, record in enumerate(read_records(file, bare_columns), start=1):
                yield _from_record(record, columns, file, number)
        elif lines:
            yield from texts_of_lines(read_text(file), file.name, str(file))
        else:
            yield InputText(file.name, read_text(file), where=str(file))


def read_regions(file: Path) -> dict[str, list[TextSpan]]:
    """Read regions of texts from a table with the columns text_id, start, end and, if it has one, region.

    Raises:
        InputError: if the file is not a table, lacks a column, or a start or end is not a whole number.
    """
    if not is_table(file):
        raise InputError(f"{file} is not a table; give a file whose name ends in .csv, .tsv, .json or .jsonl.")
    found: dict[str, list[TextSpan]] = {}
    for record in read_records(file):
        values = {name: _value(record, name, file) for name in ("text_id", "start", "end")}
        try:
            start, end = int(str(values["start"])), int(str(values["end"]))
        except ValueError:
            raise InputError(
                f"{record.where} has the region {values['start']!r} to {values['end']!r}; give start and end "
                "as whole numbers, counting characters from 0."
            ) from None
        found.setdefault(str(values["text_id"]), []).append(
            TextSpan(start, end, str(record.values.get("region") or ""))
        )
    return found


def _from_record(record: Record, columns: Columns, file: Path, number: int) -> InputText:
    text = _value(record, columns.text, file)
    context = "" if columns.context is None else _value(record, columns.context, file)
    for name, value in ((columns.text, text), (columns.context, context)):
        if not isinstance(value, str):
            raise InputError(f"column {name!r} in {record.where} contains {value!r}; give text.")
    id = f"{file.name}:{number}" if columns.id is None else str(_value(record, columns.id, file))
    return InputText(id, text, context, record.where)


def _value(record: Record, name: str, file: Path) -> Any:
    values = record.values
    if name not in values and file.suffix.lower() in DELIMITERS:
        name = name.lower()
    if name not in values:
        raise InputError(f"{file} has no column {name!r}; it has {', '.join(values)}.")
    return values[name]
