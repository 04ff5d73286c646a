"""What every source of documents offers, and what the sources that are files share.

A source is read in chunks, in order. The process that builds the corpus finds where the chunks begin and end and
computes the source's hash; the processes that encode read what is in them. A `Cursor` says how far a source has been
read, so that a build can resume from there.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypedDict

from clearhead.data.documents import Fragment
from clearhead.errors import TrainingError
from clearhead.utils.json_files import Count

if TYPE_CHECKING:
    from hashlib import _Hash

HASH_BYTES = 1 << 22
"""Bytes that are hashed at a time."""


class CursorJson(TypedDict):
    """A cursor in `build.json`."""

    at: Count
    inside: bool
    digest: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a source has been read.

    Attributes:
        consumed: bytes of a file, or rows of a table.
        inside: whether the cursor is inside a document.
        digest: SHA-256, in hex, of what has been read.
    """

    consumed: int = 0
    inside: bool = False
    digest: str = hashlib.sha256().hexdigest()

    def to_json(self) -> CursorJson:
        """Return the cursor as `build.json` stores it."""
        return {"at": self.consumed, "inside": self.inside, "digest": self.digest}

    @classmethod
    def from_json(cls, values: CursorJson) -> Cursor:
        """Restore a cursor from `build.json`."""
        return cls(values["at"], values["inside"], values["digest"])


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a source that is encoded at once.

    Attributes:
        content: its byte range, or the texts themselves; an argument of `DocumentSource.fragments`.
        end: the cursor behind it.
        size: its approximate share of `DocumentSource.size`.
    """

    content: Any
    end: Cursor
    size: int


class DocumentSource(Protocol):
    """A sequence of documents whose order does not change."""

    @property
    def name(self) -> str:
        """The name that the user gave."""

    @property
    def kind(self) -> str:
        """The kind of source, in one word: `text`, `json`, `parquet`, `hub`."""

    def size(self) -> int:
        """Return its length in bytes, for progress reports.

        Raises:
            TrainingError: if the source cannot be read.
        """

    def chunks(self, start: Cursor, *, cut_documents: bool) -> Iterator[Chunk]:
        """Yield the chunks after a cursor.

        Args:
            start: the end of an earlier chunk. What precedes it is read again and compared with its digest.
            cut_documents: whether a chunk may end inside a document, before white space.

        Raises:
            TrainingError, InputError: if the source cannot be read, is malformed, or has changed.
        """

    def check(self, cursor: Cursor) -> None:
        """Read everything before a cursor again and compare it with the digest.

        Raises:
            TrainingError: if the source has changed.
        """

    def fragments(self, content: Any) -> Iterator[Fragment]:
        """Yield the documents of a chunk without the blank ones.

        Raises:
            InputError: if the chunk contains anything but documents; the message gives the location.
        """


@dataclass(frozen=True, slots=True)
class FileSource:
    """A source that is one file.

    Attributes:
        name: as the user gave it.
        path: of the file.
    """

    name: str
    path: Path

    def size(self) -> int:
        """Return the length of the file in bytes."""
        return file_size(self.path)


@dataclass(frozen=True, slots=True)
class SequentialFile(FileSource):
    """A file that is read from its beginning to its end; a cursor's digest covers everything before it."""

    def check(self, cursor: Cursor) -> None:
        """Compare the beginning of the file with the cursor's digest."""
        check_prefix(self.path, cursor, self.name)


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Open a source's file for reading.

    Raises:
        TrainingError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise TrainingError(
            f"the text {path} could not be read (No such file or directory); check the path. A data set on the hub "
            "is written hf:NAME."
        ) from None
    except OSError as error:
        raise TrainingError(f"the text {path} could not be read ({error.strerror}); check the path.") from None


def file_size(path: Path) -> int:
    """Return the length of a source's file in bytes."""
    with open_source(path) as file:
        return file.seek(0, 2)


def read_range(path: Path, start: int, end: int) -> bytes:
    """Read the bytes of a source's file from `start` to `end`.

    Raises:
        TrainingError: if the file has become shorter.
    """
    with open_source(path) as file:
        file.seek(start)
        data = file.read(end - start)
    if len(data) != end - start:
        raise source_changed(str(path))
    return data


def hash_prefix(file: BinaryIO, cursor: Cursor, name: str) -> _Hash:
    """Read a file up to a cursor and return its running SHA-256.

    Raises:
        TrainingError: if the digest is not the cursor's.
    """
    hashed = hashlib.sha256()
    left = cursor.consumed
    while left:
        data = file.read(min(left, HASH_BYTES))
        if not data:
            break
        hashed.update(data)
        left -= len(data)
    if hashed.hexdigest() != cursor.digest:
        raise source_changed(name)
    return hashed


def check_prefix(path: Path, cursor: Cursor, name: str) -> None:
    """Compare the beginning of a file with a cursor's digest.

    Raises:
        TrainingError: if the file has changed.
    """
    with open_source(path) as file:
        hash_prefix(file, cursor, name)


def source_changed(name: str) -> TrainingError:
    """Return the error for a source that is not what it was when the build began."""
    return TrainingError(
        f"{name} has changed since the corpus was begun; restore the old file, or delete the corpus and build it again."
    )
