"""Parquet files as a source of documents."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, cast

from clearhead.data.documents import Fragment
from clearhead.data.sources.base import Chunk, Cursor, FileSource, open_source, source_changed
from clearhead.data.sources.rows import READ_ROWS, in_groups, row_fragments
from clearhead.errors import InputError, TrainingError


@dataclass(frozen=True, slots=True)
class ParquetFile(FileSource):
    """A table, one of whose columns is the document. The text is used unchanged."""

    field: str = "text"
    kind: str = "parquet"

    def chunks(self, start: Cursor, *, cut_documents: bool) -> Iterator[Chunk]:
        """Yield groups of rows with their texts."""
        parquet = import_parquet()
        digest = self._digest()
        if start.consumed and digest != start.digest:
            raise source_changed(self.name)
        try:
            with parquet.ParquetFile(self.path, pre_buffer=False) as table:
                self._check_column(table)
                rows = itertools.chain.from_iterable(
                    batch.column(0).to_pylist() for batch in table.iter_batches(READ_ROWS, columns=[self.field])
                )
                # A row's share of the compressed file is unknown: all rows count alike.
                total, size = max(table.metadata.num_rows, 1), self.size()
                for first, texts in in_groups(itertools.islice(rows, start.consumed, None), start.consumed):
                    last = first + len(texts)
                    part = size * last // total - size * first // total
                    yield Chunk((first, texts), Cursor(last, False, digest), part)
        except UnicodeDecodeError as error:
            raise InputError(
                f"the column {self.field!r} of {self.name} is not UTF-8 text ({error.reason} at byte {error.start:,} "
                "of a value); write the file again with valid texts."
            ) from None
        except (OSError, _arrow_error()) as error:
            raise InputError(
                f"{self.name} is not a complete Parquet file ({(str(error).splitlines() or ['unknown'])[0]}); "
                "copy or download it again."
            ) from None

    def check(self, cursor: Cursor) -> None:
        """Compare the file with the cursor's digest."""
        if cursor.consumed and self._digest() != cursor.digest:
            raise source_changed(self.name)

    def fragments(self, content: tuple[int, Sequence[Any]]) -> Iterator[Fragment]:
        """Yield the documents of a group of rows."""
        return row_fragments(self.name, self.field, *content)

    def _digest(self) -> str:
        """Return the SHA-256 of the whole file: a row may depend on bytes anywhere in it."""
        with open_source(self.path) as file:
            return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()

    def _check_column(self, table: Any) -> None:
        if self.field not in table.schema_arrow.names:
            columns = ", ".join(table.schema_arrow.names)
            raise InputError(f"{self.name} has no column {self.field!r}; give one of {columns} with --field.")


def import_parquet() -> Any:
    """Import `pyarrow.parquet`.

    Raises:
        TrainingError: if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise TrainingError(
            "Parquet files are read by pyarrow, which is not installed; install it with: pip install "
            '"clearhead[train]".'
        ) from None
    return pyarrow.parquet


def _arrow_error() -> type[Exception]:
    import pyarrow

    return cast(type[Exception], pyarrow.ArrowException)
