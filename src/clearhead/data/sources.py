"""Where the documents of a corpus come from: text files, JSON lines, Parquet files, data sets on the hub.

A source is read in stretches, in order. The process that builds the corpus finds where they begin and end and sums
up the source's hash; the processes that encode read what is in them. A `Place` says how far a source has been read
(in bytes or in rows), so that a build can go on from there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from clearhead.data.documents import BLOCK, Block, Piece, blocks, pieces
from clearhead.errors import InputError, TrainingError

_CHUNK = 1 << 22  # bytes that are hashed at a time
_LONGEST_LINE = 1 << 28  # bytes of a JSON line, after which a file is taken for something else
_ROWS = 256  # of a table that are read at a time

_TEXT = (".txt", ".text", ".md", ".raw")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet",)
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")


@dataclass(frozen=True, slots=True)
class Place:
    """How far a source has been read.

    Attributes:
        at: bytes of a file, rows of a table.
        inside: whether that is inside a document.
        digest: SHA-256, in hex, of what has been read.
    """

    at: int = 0
    inside: bool = False
    digest: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a source that is encoded at once.

    Attributes:
        content: where it is, or the texts themselves; for `Source.pieces`.
        end: the place where it ends.
        size: about its share of `Source.size`.
    """

    content: Any
    end: Place
    size: int


class Source(Protocol):
    """Something with documents in an order that stays."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def kind(self) -> str:
        """Its form, in a word."""

    def size(self) -> int:
        """Its length in bytes, to show how far a build has come.

        Raises:
            TrainingError: where it cannot be read.
        """

    def stretches(self, start: Place, *, cut_documents: bool) -> Iterator[Stretch]:
        """What is in it from a place on.

        Args:
            start: the end of an earlier stretch; what is before it is read again and compared with its digest.
            cut_documents: whether a stretch may end inside a document, before white space.

        Raises:
            TrainingError, InputError: where it cannot be read, is broken, or has changed.
        """

    def check(self, place: Place) -> None:
        """Reads what is before a place again and compares it with the digest.

        Raises:
            TrainingError: where it has changed.
        """

    def pieces(self, content: Any) -> Iterator[Piece]:
        """The documents of a stretch, blank ones left out.

        Raises:
            InputError: where it holds something else than documents; the sentence says where.
        """


@dataclass(frozen=True, slots=True)
class TextFile:
    """UTF-8 text, with a line `<|endoftext|>` between documents."""

    name: str
    path: Path
    kind: str = "text"

    def size(self) -> int:
        return _size(self.path)

    def stretches(self, start: Place, *, cut_documents: bool) -> Iterator[Stretch]:
        with _opened(self.path) as file:
            hashed = _hash_of_past(file, start, self.name)
            for block, data in blocks(file, start.at, start.inside, size=BLOCK, cut_documents=cut_documents):
                hashed.update(data)
                yield Stretch(block, Place(block.end, not block.closed, hashed.hexdigest()), len(data))

    def check(self, place: Place) -> None:
        with _opened(self.path) as file:
            _hash_of_past(file, place, self.name)

    def pieces(self, content: Block) -> Iterator[Piece]:
        data = _bytes_at(self.path, content.start, content.end)
        # No text has a NUL, and most binary files do.
        if (nul := data.find(b"\0")) >= 0:
            raise InputError(f"{self.name} is no text: there is a NUL byte at byte {content.start + nul:,}.")
        return pieces(content, data, self.name)


@dataclass(frozen=True, slots=True)
class JsonLines:
    """A JSON object on each line, one of whose fields is the document. The text is taken as it stands."""

    name: str
    path: Path
    field: str = "text"
    kind: str = "json"

    def size(self) -> int:
        return _size(self.path)

    def stretches(self, start: Place, *, cut_documents: bool) -> Iterator[Stretch]:
        with _opened(self.path) as file:
            hashed = _hash_of_past(file, start, self.name)
            for begin, data in self._whole_lines(file, start.at):
                hashed.update(data)
                end = begin + len(data)
                yield Stretch((begin, end), Place(end, False, hashed.hexdigest()), len(data))

    def _whole_lines(self, file: BinaryIO, start: int) -> Iterator[tuple[int, bytes]]:
        buffer = b""
        while True:
            more = file.read(max(BLOCK, len(buffer)))
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

    def check(self, place: Place) -> None:
        with _opened(self.path) as file:
            _hash_of_past(file, place, self.name)

    def pieces(self, content: tuple[int, int]) -> Iterator[Piece]:
        start, end = content
        for line in _bytes_at(self.path, start, end).split(b"\n"):
            if line.strip():
                text, wrong = self._text(line)
                if wrong:
                    where = f"line {_line_number(self.path, start):,} of {self.name}"
                    raise InputError(f"{where} {wrong}; correct or remove it.")
                if not text.isspace() and text:
                    yield Piece(text, begins=True)
            start += len(line) + 1

    def _text(self, line: bytes) -> tuple[str, str]:
        """The document of a line, and what is wrong with it where something is."""
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
            return "", f"is not JSON ({str(error).splitlines()[0]})"
        if not isinstance(row, dict):
            return "", f"is a JSON {type(row).__name__}, and an object was expected"
        return _checked(row, self.field)


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A table, one of whose columns is the document. The text is taken as it stands."""

    name: str
    path: Path
    field: str = "text"
    kind: str = "parquet"

    def size(self) -> int:
        return _size(self.path)

    def stretches(self, start: Place, *, cut_documents: bool) -> Iterator[Stretch]:
        parquet = _pyarrow()
        digest = self._digest()
        if start.at and digest != start.digest:
            raise _changed(self.name)
        try:
            with parquet.ParquetFile(self.path, pre_buffer=False) as table:
                self._check_column(table)
                rows = itertools.chain.from_iterable(
                    batch.column(0).to_pylist() for batch in table.iter_batches(_ROWS, columns=[self.field])
                )
                # A row's share of the file is unknown, as the file is compressed: all count alike.
                total, size = max(table.metadata.num_rows, 1), self.size()
                for first, texts in _in_stretches(itertools.islice(rows, start.at, None), start.at):
                    last = first + len(texts)
                    part = size * last // total - size * first // total
                    yield Stretch((first, texts), Place(last, False, digest), part)
        except (OSError, _arrow_error()) as error:
            raise InputError(f"{self.name} is no whole Parquet file ({str(error).splitlines()[0]}).") from None

    def _digest(self) -> str:
        """SHA-256 of the whole file: what a row depends on may stand anywhere in it."""
        with _opened(self.path) as file:
            return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()

    def check(self, place: Place) -> None:
        if place.at and self._digest() != place.digest:
            raise _changed(self.name)

    def _check_column(self, table: Any) -> None:
        if self.field not in table.schema_arrow.names:
            columns = ", ".join(table.schema_arrow.names)
            raise InputError(f"{self.name} has no column {self.field!r}; give one of {columns} with --field.")

    def pieces(self, content: tuple[int, Sequence[Any]]) -> Iterator[Piece]:
        return _rows(self.name, self.field, *content)


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A data set of the Hugging Face hub, read through the library `datasets`, which keeps it in its cache."""

    name: str
    path: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    kind: str = "hub"

    def size(self) -> int:
        return int(self._column().data.nbytes)

    def _column(self) -> Any:
        """The rows with the documents and nothing else."""
        try:
            import datasets  # noqa: F401
        except ImportError:
            raise TrainingError(
                f"{self.name} is a data set on the hub, and those are read by the library datasets, which is not "
                "installed; install it with: pip install datasets."
            ) from None
        try:
            table = _loaded(self.path, self.config, self.split)
        except Exception as error:  # the library and those that it calls raise many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise TrainingError(
                f"{self.name} could not be loaded ({reason}); hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT "
                "was expected."
            ) from None
        if self.field not in table.column_names:
            columns = ", ".join(table.column_names)
            raise InputError(f"{self.name} has no column {self.field!r}; give one of {columns} with --field.")
        return table.select_columns([self.field])

    def stretches(self, start: Place, *, cut_documents: bool) -> Iterator[Stretch]:
        rows, hashed = self._rows_after(start)
        for first, texts in _in_stretches(rows, start.at):
            for text in texts:
                hashed.update(json.dumps(text).encode())
            size = sum(len(text) for text in texts if isinstance(text, str))
            yield Stretch((first, texts), Place(first + len(texts), False, hashed.hexdigest()), size)

    def _rows_after(self, place: Place) -> tuple[Iterator[Any], Any]:
        """The rows behind a place, and the running hash of those before it, which must be as they were."""
        table = self._column()
        rows = (text for first in range(0, len(table), _ROWS) for text in table[first : first + _ROWS][self.field])
        hashed = hashlib.sha256()
        for text in itertools.islice(rows, place.at):
            hashed.update(json.dumps(text).encode())
        if hashed.hexdigest() != place.digest:
            raise _changed(self.name)
        return rows, hashed

    def check(self, place: Place) -> None:
        self._rows_after(place)

    def pieces(self, content: tuple[int, Sequence[Any]]) -> Iterator[Piece]:
        return _rows(self.name, self.field, *content)


@functools.cache
def _loaded(path: str, config: str | None, split: str) -> Any:
    """A data set on the hub, looked for once in a process.

    It is fetched whole and mapped from the cache, not streamed: a vocabulary reads it before the tokens are made, a
    build that was stopped passes over what was read before, and a later run compares all of it. A stream would go over
    the network each time, and would not tell how large it is.
    """
    import datasets

    return datasets.load_dataset(path, config, split=split)


def find_sources(
    names: Sequence[str], *, field: str = "text", below: Path | None = None, out: Path | None = None
) -> list[Source]:
    """The sources that a user means, in the order in which they are given.

    A folder stands for the files in it and below it whose names end as texts, JSON lines or Parquet files do, sorted
    by path. `hf:NAME`, `hf:NAME:CONFIG` and `hf:NAME:CONFIG:SPLIT` are data sets on the hub; their split is `train`
    where none is given.

    Args:
        names: paths, or data sets on the hub.
        field: the field of a JSON line, or the column of a table, that is the document.
        below: the folder that paths are relative to; the current one where it is left out.
        out: where the corpus goes, which may be below a folder of texts; no source is taken from there.

    Raises:
        TrainingError: where there is no such file, a folder has none, or a file is packed; where the corpus would go
            into the folder of texts itself.
    """
    found: list[Source] = []
    for name in names:
        if name.startswith("hf:"):
            found.append(_hub_dataset(name, field))
            continue
        path = (below or Path()) / Path(name).expanduser()
        if path.is_dir():
            inside = _texts_in(path, out)
            if not inside:
                raise TrainingError(f"the folder {name} has no files that end in .txt, .md, .jsonl or .parquet.")
            found += [_file(str(Path(name) / p.relative_to(path)), p, field) for p in inside]
        else:
            found.append(_file(name, path, field))
    return found


def _texts_in(folder: Path, out: Path | None) -> list[Path]:
    """The files of a folder that are texts by their names, but for those of the corpus, sorted."""
    corpus = out.resolve() if out else None
    if corpus and folder.resolve().is_relative_to(corpus):
        raise TrainingError(f"the corpus cannot go to {out}, where its texts are; name another folder, or one in it.")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in (*_TEXT, *_JSON_LINES, *_PARQUET)
        and path.is_file()
        and not (corpus and path.resolve().is_relative_to(corpus))
    )


def _hub_dataset(name: str, field: str) -> HubDataset:
    parts = name.removeprefix("hf:").split(":")
    if not parts[0] or len(parts) > 3:
        raise TrainingError(f"{name!r} names no data set; hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT would.")
    config = parts[1] if len(parts) > 1 and parts[1] else None
    return HubDataset(name, parts[0], config, parts[2] if len(parts) > 2 else "train", field)


def _file(name: str, path: Path, field: str) -> Source:
    suffix = path.suffix.lower()
    if suffix in _PACKED:
        raise TrainingError(f"{name} is packed; unpack it and give the file that was in it.")
    with _opened(path):
        pass  # so that a wrong name is found before hours of work, and not after
    if suffix in _JSON_LINES:
        return JsonLines(name, path, field)
    if suffix in _PARQUET:
        _pyarrow()
        return ParquetFile(name, path, field)
    return TextFile(name, path)


def _checked(row: dict[str, Any], field: str) -> tuple[str, str]:
    """The text of a row, and what is wrong with it where something is."""
    if field not in row:
        return "", f"has no field {field!r} but {', '.join(map(repr, list(row)[:8])) or 'none'} (--field names another)"
    text = row[field]
    if not isinstance(text, str):
        return "", f"has {'null' if text is None else type(text).__name__} in {field!r}, and a text was expected"
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return "", f"has half of a surrogate pair in {field!r}, which is no character"
    return text, ""


def _in_stretches(rows: Iterator[Any], first: int) -> Iterator[tuple[int, list[Any]]]:
    """Rows in groups of about a block, each with the number of its first row."""
    texts: list[Any] = []
    size = 0
    for text in rows:
        texts.append(text)
        size += len(text) if isinstance(text, str) else 0
        if size >= BLOCK or len(texts) >= BLOCK // 16:
            yield first, texts
            first, texts, size = first + len(texts), [], 0
    if texts:
        yield first, texts


def _rows(name: str, field: str, first: int, texts: Sequence[Any]) -> Iterator[Piece]:
    for number, text in enumerate(texts, first):
        _, wrong = _checked({field: text}, field)
        if wrong:
            raise InputError(f"row {number:,} of {name} (counted from 0) {wrong}; correct or remove it.")
        if text and not text.isspace():
            yield Piece(text, begins=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield cast(BinaryIO, file)
    except FileNotFoundError:
        raise TrainingError(
            f"the text {path} could not be read (No such file or directory); check the path. A data set on the hub "
            "is written hf:NAME."
        ) from None
    except OSError as error:
        raise TrainingError(f"the text {path} could not be read ({error.strerror}); check the path.") from None


def _size(path: Path) -> int:
    with _opened(path) as file:
        return file.seek(0, 2)


def _bytes_at(path: Path, start: int, end: int) -> bytes:
    with _opened(path) as file:
        file.seek(start)
        data = file.read(end - start)
    if len(data) != end - start:
        raise _changed(str(path))
    return data


def _hash_of_past(file: BinaryIO, place: Place, name: str) -> Any:
    """The running SHA-256 of a file up to a place, where the file is then; it must be as it was."""
    hashed = hashlib.sha256()
    left = place.at
    while left:
        data = file.read(min(left, _CHUNK))
        if not data:
            break
        hashed.update(data)
        left -= len(data)
    if hashed.hexdigest() != place.digest:
        raise _changed(name)
    return hashed


def _changed(name: str) -> TrainingError:
    return TrainingError(
        f"{name} has changed since the corpus was begun; put the old file back, or delete the corpus and build it "
        "again."
    )


def _line_number(path: Path, start: int) -> int:
    """The number, from 1, of the line that begins at a byte."""
    lines = 1
    with _opened(path) as file:
        while start > 0 and (data := file.read(min(start, _CHUNK))):
            lines += data.count(b"\n")
            start -= len(data)
    return lines


def _pyarrow() -> Any:
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
