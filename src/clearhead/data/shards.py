"""Tokens on disk: files of at most so many ids each, read as one array.

A shard is a flat array of little-endian ids (`<name>.00000.bin`), beside which stand the places in it where documents
begin (`<name>.00000.idx`, little-endian uint32). Every shard of a name but the last has the same number of ids, so a
document may begin in one and end in the next.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clearhead.errors import TrainingError

INDEX = np.dtype("<u4")
"""The numbers of an index file."""

_PIECE = 1 << 22  # bytes that are hashed or copied at a time


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of ids and its index.

    Attributes:
        file: the name of the ids' file in the corpus folder; the index has the suffix `.idx` in place of `.bin`.
        tokens: how many ids it holds.
        documents: how many documents begin in it.
        sha256: of the ids' file.
        index_sha256: of the index.
    """

    file: str
    tokens: int
    documents: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """The name of the index file."""
        return f"{self.file.removesuffix('.bin')}.idx"


@dataclass(frozen=True, slots=True)
class Part:
    """A text's tokens for training, or those that are held out.

    Attributes:
        tokens: how many there are.
        documents: how many documents they make; a document that was cut in two counts in both parts.
        text_bytes: the documents' length in UTF-8.
        shards: the files, in order.
    """

    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[Shard, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Part:
        """A part as `asdict` gives it."""
        return cls(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


def _mapped(path: Path, length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    expected = length * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise TrainingError(
            f"{path} has {found:,} bytes and the manifest says {expected:,}; delete the corpus and build it again."
        )
    return np.memmap(path, dtype, mode="r") if length else np.empty(0, dtype)


class Tokens:
    """The ids of a part as one array, mapped and not read.

    Attributes:
        dtype: their type.
    """

    @classmethod
    def open(cls, folder: Path, part: Part, dtype: np.dtype[Any]) -> Tokens:
        """Those of a part whose files are in a folder.

        Raises:
            TrainingError: where a file is missing or has another length than its shard.
        """
        return cls([_mapped(folder / shard.file, shard.tokens, dtype) for shard in part.shards], dtype)

    def __init__(self, arrays: Sequence[npt.NDArray[np.unsignedinteger[Any]]], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._arrays = arrays
        self._each = len(arrays[0]) if arrays else 1  # ids in every shard but the last
        self._length = sum(map(len, arrays))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, places: slice, /) -> npt.NDArray[np.unsignedinteger[Any]]:
        start, stop, step = places.indices(self._length)
        if step != 1:
            raise IndexError("tokens are read one after another: a slice with a step of 1 was expected")
        first, last = start // self._each, max(stop - 1, 0) // self._each
        parts = [
            self._arrays[n][max(start - n * self._each, 0) : stop - n * self._each]
            for n in range(first, min(last, len(self._arrays) - 1) + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts], dtype=self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self[:], dtype, copy=copy)


class Starts:
    """The places among a part's tokens where documents begin, mapped and not read."""

    def __init__(self, folder: Path, part: Part) -> None:
        self._places: list[tuple[int, int, npt.NDArray[np.uint32]]] = []  # first token, last and one, places behind it
        first = 0
        for shard in part.shards:
            places = _mapped(folder / shard.index, shard.documents, INDEX)
            self._places.append((first, first + shard.tokens, places))
            first += shard.tokens

    def between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Those from a token on and before another, rising, int64."""
        found = [np.empty(0, np.int64)]
        for first, last, places in self._places:
            if first < stop and last > start:
                here = slice(*np.searchsorted(places, [max(start - first, 0), stop - first]))
                found.append(places[here].astype(np.int64) + first)
        return np.concatenate(found)


class Writer:
    """Writes the shards of one part, and goes on writing where an earlier writer of the same files stopped.

    Between `checkpoint` and the next, files may hold more than the state says; a writer that is made from the state
    cuts that off.

    Args:
        folder: where the files go.
        name: what their names begin with.
        dtype: of the ids.
        shard_tokens: ids in a shard.
        state: what `checkpoint` gave; None to begin.
    """

    def __init__(
        self, folder: Path, name: str, dtype: np.dtype[Any], shard_tokens: int, state: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, dtype, shard_tokens
        values = state or {"tokens": 0, "documents": 0, "text_bytes": 0, "shards": []}
        self.tokens, self.documents, self.text_bytes = values["tokens"], values["documents"], values["text_bytes"]
        self._shards = [Shard(**shard) for shard in values["shards"]]
        self._open: _OpenShard | None = None
        drop_shards(folder, name, len(self._shards) + (self.tokens > len(self._shards) * shard_tokens))
        if left := self.tokens - len(self._shards) * shard_tokens:
            starts = self.documents - sum(shard.documents for shard in self._shards)
            self._open = _OpenShard(self._path(), dtype, left, starts)

    def _path(self) -> Path:
        return self.folder / f"{self.name}.{len(self._shards):05d}.bin"

    def write(self, ids: npt.NDArray[Any], starts: npt.NDArray[np.int64], text_bytes: int) -> None:
        """Appends ids.

        Args:
            ids: unsigned integers [tokens].
            starts: the places in them where documents begin, rising, int64 [documents].
            text_bytes: the length of their text.

        Raises:
            OSError: where the disk does not take them.
        """
        self.text_bytes += text_bytes
        while len(ids):
            if self._open is None:
                self._open = _OpenShard(self._path(), self.dtype)
            room = self.shard_tokens - self._open.tokens
            here = int(np.searchsorted(starts, room))
            self._open.write(ids[:room], starts[:here])
            self.tokens += min(room, len(ids))
            self.documents += here
            ids, starts = ids[room:], starts[here:] - room
            if self._open.tokens == self.shard_tokens:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None

    def checkpoint(self) -> dict[str, Any]:
        """Brings everything onto the disk; returns the state from which a new writer goes on."""
        if self._open is not None:
            self._open.sync()
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "shards": [asdict(shard) for shard in self._shards],
        }

    def close(self) -> Part:
        """Ends the last shard; returns what was written."""
        self._close_shard()
        return Part(self.tokens, self.documents, self.text_bytes, tuple(self._shards))

    def abandon(self) -> None:
        """Closes the files as they are."""
        if self._open is not None:
            self._open.abandon()


def drop_shards(folder: Path, name: str, first: int) -> None:
    """Deletes the files of a name from a shard on."""
    for path in folder.glob(f"{name}.[0-9]*.*"):
        stem, _, number = path.name.removesuffix(path.suffix).rpartition(".")
        if stem == name and path.suffix in (".bin", ".idx") and number.isdigit() and int(number) >= first:
            path.unlink()


class _OpenShard:
    """The shard that is being written."""

    def __init__(self, path: Path, dtype: np.dtype[Any], tokens: int = 0, documents: int = 0) -> None:
        self.path, self.tokens, self.documents = path, tokens, documents
        self._dtype = dtype
        self._ids, self._ids_hash = _open_at(path, tokens * dtype.itemsize)
        self._index, self._index_hash = _open_at(path.with_suffix(".idx"), documents * INDEX.itemsize)

    def write(self, ids: npt.NDArray[Any], starts: npt.NDArray[np.int64]) -> None:
        for file, hashed, values in (
            (self._ids, self._ids_hash, ids.astype(self._dtype, copy=False)),
            (self._index, self._index_hash, (starts + self.tokens).astype(INDEX)),
        ):
            data = np.ascontiguousarray(values).data.cast("B") if len(values) else b""
            file.write(data)
            hashed.update(data)
        self.tokens += len(ids)
        self.documents += len(starts)

    def sync(self) -> None:
        for file in (self._ids, self._index):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> Shard:
        self.sync()
        self.abandon()
        return Shard(
            self.path.name, self.tokens, self.documents, self._ids_hash.hexdigest(), self._index_hash.hexdigest()
        )

    def abandon(self) -> None:
        self._ids.close()
        self._index.close()


def _open_at(path: Path, size: int) -> tuple[BinaryIO, Any]:
    """A file open for writing behind its first bytes, the rest cut off, and the running hash of those."""
    if size and (not path.exists() or path.stat().st_size < size):
        raise TrainingError(
            f"{path} is shorter than the unfinished build has written; delete the folder and build the corpus again."
        )
    file = path.open("r+b" if size else "w+b")
    hashed = hashlib.sha256()
    for data in _chunks(file, size):
        hashed.update(data)
    file.truncate(size)
    file.seek(size)
    return file, hashed


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        data = file.read(min(size, _PIECE))
        size -= len(data)
        yield data


def shorter(folder: Path, shards: Sequence[Shard], tokens: int, dtype: np.dtype[Any]) -> Iterator[Shard]:
    """The shards of a part of which only the first tokens are left, as they will be when `settle` has cut them."""
    for shard in shards:
        if tokens >= shard.tokens:
            yield shard
        elif tokens > 0:
            places = _mapped(folder / shard.index, shard.documents, INDEX)
            documents = int(np.searchsorted(places, tokens))
            hashes = [
                _hash(folder / file, size)
                for file, size in ((shard.file, tokens * dtype.itemsize), (shard.index, documents * INDEX.itemsize))
            ]
            yield Shard(shard.file, tokens, documents, *hashes)
        tokens -= shard.tokens


def _hash(path: Path, size: int) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        for data in _chunks(file, size):
            hashed.update(data)
    return hashed.hexdigest()


def settle(folder: Path, name: str, part: Part, dtype: np.dtype[Any]) -> None:
    """Cuts the files of a part to what it says, and deletes those of that name that it does not have.

    It can be done again, where it was interrupted.
    """
    for shard in part.shards:
        for file, size in (
            (shard.file, shard.tokens * dtype.itemsize),
            (shard.index, shard.documents * INDEX.itemsize),
        ):
            if (folder / file).stat().st_size > size:
                os.truncate(folder / file, size)
    drop_shards(folder, name, len(part.shards))
