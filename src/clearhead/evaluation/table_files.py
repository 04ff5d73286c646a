"""Write a long table as Parquet, CSV or JSON lines, in parts, so that an interrupted job resumes.

The parts of `scores.parquet` are files in `scores.parquet.parts/`, each written through `utils.atomic`, with the number
of texts that it covers and its checksum in its name. When all are there, they are joined into the output and the folder
is removed. A part belongs to the job that `job.json` in the folder describes; another job begins anew, and a job with a
damaged part resumes before that part.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from clearhead.errors import InputError
from clearhead.evaluation.surprisal import Row
from clearhead.utils.atomic import atomic_path, write_bytes, write_text
from clearhead.utils.json_files import json_text

SUFFIXES = (".parquet", ".csv", ".jsonl")
METADATA_KEY = "clearhead"
"""The key of the metadata in a Parquet file, where its value is JSON."""

_PART_ROWS = 50_000  # rows that a part has at least, before the job ends


class TableWriter:
    """Write the rows of many texts to one file, resuming an interrupted job.

    Args:
        output: the file; its suffix decides the format.
        job: everything that decides the rows; parts of a job that was described differently are discarded.
        metadata: is stored inside a Parquet file; for other formats, in `<output>.metadata.json`.

    Attributes:
        done: how many texts the parts cover that are already there.

    Raises:
        InputError: if the format is unknown, or the folder cannot be written.
    """

    def __init__(self, output: Path, job: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        if output.suffix not in SUFFIXES:
            raise InputError(f"{output} has no known suffix; give a name that ends in {', '.join(SUFFIXES)}, or -.")
        if output.suffix == ".parquet":
            _pyarrow()
        self.output, self.metadata = output, dict(metadata)
        self.folder = output.with_name(output.name + ".parts")
        description = json.dumps(job, sort_keys=True)
        record = self.folder / "job.json"
        try:
            if self.folder.is_dir() and not (record.is_file() and record.read_bytes() == description.encode()):
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(record, description)
            self.done = _keep_whole(self._parts())
        except OSError as error:
            raise _cannot_write(output, error) from None

    def write(self, rows_of_texts: Iterable[Sequence[Row]]) -> None:
        """Write the rows of the texts after the first `done`, then join all parts into the output.

        Raises:
            InputError: if a file cannot be written.
        """
        try:
            rows: list[Row] = []
            texts = 0
            for more in rows_of_texts:
                rows += more
                texts += 1
                if len(rows) >= _PART_ROWS:
                    self._write_part(rows, texts)
                    rows, texts = [], 0
            if texts:
                self._write_part(rows, texts)
            self._join()
        except OSError as error:
            raise _cannot_write(self.output, error) from None

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{self.output.suffix}"))

    def _write_part(self, rows: Sequence[Row], texts: int) -> None:
        if self.output.suffix == ".parquet":
            pa, parquet = _pyarrow()
            buffer = io.BytesIO()
            parquet.write_table(pa.Table.from_pylist(list(rows)), buffer)
            data = buffer.getvalue()
        else:
            text = io.StringIO()
            write_rows(text, rows, self.output.suffix, header=not self._parts())
            data = text.getvalue().encode("utf-8")
        name = f"{len(self._parts()):06}-{texts}-{zlib.crc32(data):08x}{self.output.suffix}"
        write_bytes(self.folder / name, data)
        self.done += texts

    def _join(self) -> None:
        parts = self._parts()
        if not parts:
            raise InputError("there is no text in the input, so there is nothing to write; give files with some.")
        if self.output.suffix == ".parquet":
            self._join_parquet(parts)
        else:
            with atomic_path(self.output) as temporary, temporary.open("wb") as file:
                for part in parts:
                    with part.open("rb") as source:
                        shutil.copyfileobj(source, file)
            beside = self.output.with_name(self.output.name + ".metadata.json")
            write_text(beside, json.dumps(self.metadata, indent=2) + "\n")
        shutil.rmtree(self.folder)

    def _join_parquet(self, parts: Sequence[Path]) -> None:
        pa, parquet = _pyarrow()
        # A column that is empty in one part has no type there.
        schema = pa.unify_schemas([parquet.read_schema(part) for part in parts], promote_options="permissive")
        schema = schema.with_metadata({METADATA_KEY: json.dumps(self.metadata)})
        with atomic_path(self.output) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part).cast(schema))


def write_rows(file: TextIO, rows: Iterable[Row], suffix: str, *, header: bool) -> None:
    """Write rows as CSV or JSON lines.

    Args:
        file: opened for writing text.
        rows: all with the same columns.
        suffix: ".csv" or ".jsonl".
        header: whether a CSV begins with the names of the columns.
    """
    if suffix == ".jsonl":
        for row in rows:
            file.write(json_text(row) + "\n")
        return
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\r\n")
            if header:
                writer.writeheader()
        writer.writerow(row)


def read_table(file: Path) -> Iterator[Row]:
    """Yield the rows of a table that `TableWriter` wrote as Parquet."""
    _, parquet = _pyarrow()
    for batch in parquet.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()


def _keep_whole(parts: Sequence[Path]) -> int:
    """Remove the parts from the first damaged one on; return how many texts the others cover."""
    done = 0
    for number, part in enumerate(parts):
        named = re.fullmatch(rf"{number:06}-(\d+)-([0-9a-f]{{8}})", part.stem)
        if named is None or f"{zlib.crc32(part.read_bytes()):08x}" != named[2]:
            for rest in parts[number:]:
                rest.unlink()
            break
        done += int(named[1])
    return done


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            'Parquet files need pyarrow; `pip install "clearhead[eval]"` installs it. CSV and JSON lines do not.'
        ) from None
    return pyarrow, pyarrow.parquet


def _cannot_write(output: Path, error: OSError) -> InputError:
    return InputError(
        f"{output} could not be written ({error.strerror}); give a file in a writable folder with enough room. What "
        "was computed is kept: the same command resumes."
    )
