"""JSON lines as a source of documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from clearhead.data.documents import BLOCK_BYTES, Fragment
from clearhead.data.sources.base import (
    HASH_BYTES,
    Chunk,
    Cursor,
    SequentialFile,
    hash_prefix,
    open_source,
    read_range,
)
from clearhead.data.sources.rows import text_of_row
from clearhead.errors import InputError

_LONGEST_LINE = 1 << 28  # bytes; a longer line means that the file is not JSON lines


@dataclass(frozen=True, slots=True)
class JsonLines(SequentialFile):
    """A JSON object on each line, one of whose fields is the document. The text is used unchanged."""

    field: str = "text"
    kind: str = "json"

    def chunks(self, start: Cursor, *, cut_documents: bool) -> Iterator[Chunk]:
        """Yield groups of whole lines with their byte ranges."""
        with open_source(self.path) as file:
            hashed = hash_prefix(file, start, self.name)
            for begin, data in self._whole_lines(file, start.consumed):
                hashed.update(data)
                end = begin + len(data)
                yield Chunk((begin, end), Cursor(end, False, hashed.hexdigest()), len(data))

    def fragments(self, content: tuple[int, int]) -> Iterator[Fragment]:
        """Yield the documents of a byte range."""
        start, end = content
        for line in read_range(self.path, start, end).split(b"\n"):
            if line.strip():
                text, fault = self._parse(line)
                if fault:
                    where = f"line {_line_number(self.path, start):,} of {self.name}"
                    raise InputError(f"{where} {fault}; correct or remove it.")
                if text and not text.isspace():
                    yield Fragment(text, begins=True)
            start += len(line) + 1

    def _whole_lines(self, file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield blocks of the file that end at line ends, each with its offset."""
        buffer = b""
        while True:
            more = file.read(max(BLOCK_BYTES, len(buffer)))
            buffer += more
            cut = buffer.rfind(b"\n") + 1 if more else len(buffer)
            if cut:
                yield start, buffer[:cut]
                start, buffer = start + cut, buffer[cut:]
            if not more:
                return
            if len(buffer) >= _LONGEST_LINE:
                raise InputError(
                    f"line {_line_number(self.path, start):,} of {self.name} has more than {_LONGEST_LINE:,} bytes; "
                    "JSON lines were expected, an object with a document on each line."
                )

    def _parse(self, line: bytes) -> tuple[str, str]:
        """Return the document of a line, and what is wrong with the line ("" if nothing is)."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
            if line.lstrip().startswith(b"["):
                return "", "begins a JSON array, and an object with a document was expected on each line"
            return "", f"is not JSON ({str(error).splitlines()[0]})"
        if not isinstance(row, dict):
            return "", f"is a JSON {type(row).__name__}, and an object was expected"
        return text_of_row(row, self.field)


def _line_number(path: Path, start: int) -> int:
    """Return the number, from 1, of the line that begins at a byte."""
    lines = 1
    with open_source(path) as file:
        while start > 0 and (data := file.read(min(start, HASH_BYTES))):
            lines += data.count(b"\n")
            start -= len(data)
    return lines
