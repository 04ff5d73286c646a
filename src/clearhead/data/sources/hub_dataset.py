"""Data sets of the Hugging Face hub as a source of documents."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.data.documents import Fragment
from clearhead.data.sources.base import Chunk, Cursor
from clearhead.data.sources.rows import READ_ROWS, in_groups, row_fragments
from clearhead.errors import InputError, TrainingError
from clearhead.weights.hub.hub import quiet_hub

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True, slots=True)
class Download:
    """What loading a data set downloads.

    Attributes:
        n_bytes: how much; None if everything is there already, or the hub does not say.
        text_bytes: the size of the split, if the hub says it.
        folder: where the library `datasets` keeps it; HF_HOME moves it.
    """

    n_bytes: int | None
    text_bytes: int | None
    folder: Path


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A data set of the hub, read through the library `datasets`, which caches it.

    Attributes:
        name: as the user gave it.
        path: its name on the hub.
        config: the part of it, if it has several.
        split: its split.
        field: the column with the documents.
        revision: a commit, branch or tag; the newest of `main` if None.
    """

    name: str
    path: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    kind: str = "hub"

    @classmethod
    def from_name(cls, name: str, field: str) -> HubDataset:
        """Parse `hf:NAME`, `hf:NAME:CONFIG` or `hf:NAME:CONFIG:SPLIT`; NAME may be `NAME@REVISION`.

        Raises:
            TrainingError: if the name has another form.
        """
        parts = name.removeprefix("hf:").split(":")
        path, at, revision = parts[0].partition("@")
        if not path or len(parts) > 3 or bool(at) != bool(revision):
            raise TrainingError(
                f"{name!r} does not name a data set; expected hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT."
            )
        config = parts[1] if len(parts) > 1 and parts[1] else None
        return cls(name, path, config, parts[2] if len(parts) > 2 else "train", field, revision or None)

    def at(self, revision: str) -> HubDataset:
        """Return the data set as it was at a revision, unless its name has one already."""
        return self if self.revision else replace(self, revision=revision)

    def commit(self) -> str:
        """Return the commit on the hub that is read."""
        with self._named_errors():
            return _load(self.path, self.config, self.split, self.revision)[1]

    def download(self) -> Download:
        """Return what loading the data set will download, from its description on the hub alone.

        Raises:
            TrainingError: if the library `datasets` is missing, or the data set cannot be found.
        """
        datasets = self._library()
        with self._named_errors():
            builder = datasets.load_dataset_builder(self.path, self.config, revision=self.revision)
            info, folder = builder.info, Path(builder.cache_dir)
            split = (info.splits or {}).get(self.split)
            there = (folder / "dataset_info.json").is_file()
        return Download(None if there else info.download_size or None, split.num_bytes if split else None, folder)

    def size(self) -> int:
        """Return the size of the column in memory, in bytes."""
        return int(self._column().data.nbytes)

    def chunks(self, start: Cursor, *, cut_documents: bool) -> Iterator[Chunk]:
        """Yield groups of rows with their texts."""
        rows, hashed = self._rows_after(start)
        for first, texts in in_groups(rows, start.consumed):
            for text in texts:
                hashed.update(json.dumps(text).encode())
            size = sum(len(text) for text in texts if isinstance(text, str))
            yield Chunk((first, texts), Cursor(first + len(texts), False, hashed.hexdigest()), size)

    def check(self, cursor: Cursor) -> None:
        """Compare the rows before a cursor with its digest."""
        self._rows_after(cursor)

    def fragments(self, content: tuple[int, Sequence[Any]]) -> Iterator[Fragment]:
        """Yield the documents of a group of rows."""
        return row_fragments(self.name, self.field, *content)

    def _column(self) -> Any:
        """Return the data set with the document's column alone."""
        self._library()
        with self._named_errors():
            table, _ = _load(self.path, self.config, self.split, self.revision)
        if self.field not in table.column_names:
            columns = ", ".join(table.column_names)
            raise InputError(f"{self.name} has no column {self.field!r}; give one of {columns} with --field.")
        return table.select_columns([self.field])

    def _library(self) -> Any:
        try:
            import datasets
        except ImportError:
            raise TrainingError(
                f"{self.name} is a data set on the hub, and the library datasets that reads it is not installed; "
                "install it with: pip install 'clearhead[eval]'."
            ) from None
        return datasets

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library and its dependencies raise many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise TrainingError(
                f"{self.name} could not be loaded ({reason}); check the network and the name, which is hf:NAME, "
                "hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT."
            ) from None

    def _rows_after(self, cursor: Cursor) -> tuple[Iterator[Any], _Hash]:
        """Return the rows after a cursor, and the running hash of the rows before it, which must match."""
        table = self._column()
        rows = (
            text for first in range(0, len(table), READ_ROWS) for text in table[first : first + READ_ROWS][self.field]
        )
        hashed = hashlib.sha256()
        for text in itertools.islice(rows, cursor.consumed):
            hashed.update(json.dumps(text).encode())
        if hashed.hexdigest() != cursor.digest:
            raise TrainingError(
                f"{self.name} is not what it was when the corpus was begun; delete the corpus and build it again, "
                "with hf:NAME@REVISION if the texts are to stay the same."
            )
        return rows, hashed


@functools.cache
def _load(path: str, config: str | None, split: str, revision: str | None) -> tuple[Any, str]:
    """Load a data set, once in a process, and return it with the commit on the hub that it is from.

    It is downloaded completely and mapped from the cache, not streamed: learning a vocabulary reads it before the
    tokens are made, a resumed build skips what was read before, and a later run compares all of it. A stream would
    download everything each time, and does not know its size.
    """
    import datasets

    if quiet := not sys.stderr.isatty() and not datasets.are_progress_bars_disabled():
        datasets.disable_progress_bars()
    try:
        with quiet_hub():
            builder = datasets.load_dataset_builder(path, config, revision=revision)
            builder.download_and_prepare()
        return builder.as_dataset(split=split), str(builder.hash)
    finally:
        if quiet:
            datasets.enable_progress_bars()
