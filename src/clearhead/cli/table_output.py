"""Write one or more rows per text to a file, with progress, and resume an interrupted job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.cli.console import notice

if TYPE_CHECKING:
    from clearhead.evaluation.surprisal import InputText, Row

    RowsOf = Callable[[Iterable[InputText]], Iterator[list[Row]]]


def file_states(files: Sequence[Path]) -> list[list[str | int]]:
    """Return the paths, sizes and times of files, which show whether an interrupted job had the same files."""
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def write_table(
    rows_of: RowsOf,
    texts: Iterator[InputText],
    output: Path,
    job: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    doing: str,
) -> None:
    """Write the rows of texts to a file.

    Args:
        rows_of: yields the rows of each text.
        texts: all texts of the job.
        output: a Parquet, CSV or JSON lines file.
        job: everything besides the metadata that decides the rows.
        metadata: is stored with the table.
        doing: what progress is called.

    Raises:
        InputError: if the file cannot be written.
    """
    from clearhead.evaluation.table_files import TableWriter
    from clearhead.utils.progress import Progress

    writer = TableWriter(output, {**job, "metadata": metadata}, metadata)
    if writer.done:
        notice(f"resuming after {writer.done:,} texts that {writer.folder} has.")
        for _ in zip(range(writer.done), texts, strict=False):
            pass
    with Progress(doing, None) as progress:

        def counted() -> Iterator[list[Row]]:
            rows = texts_done = 0
            for more in rows_of(texts):
                rows, texts_done = rows + len(more), texts_done + 1
                progress.advance(1, f"{texts_done:,} texts, {rows:,} rows")
                yield more

        writer.write(counted())
