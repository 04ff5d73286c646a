"""Tokens on disk: shard files with a fixed maximum number of ids, written one after another and read as one array.

A shard is a flat array of little-endian ids (`<name>.00000.bin`). Its index file (`<name>.00000.idx`, little-endian
uint32) lists where in it documents begin. All shards of a name except the last have the same number of ids, so a
document may begin in one and end in the next.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clearhead.errors import TrainingError
from clearhead.utils.json_files import Count, FileName

INDEX = np.dtype("<u4")
"""The type of the numbers in an index file."""

_HASH_BYTES = 1 << 22  # hashed at a time


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of ids and its index.

    Attributes:
        file: the name of the file of ids; the index file's name ends with `.idx` instead of `.bin`.
        tokens: the number of ids.
        documents: how many documents begin in it.
        sha256: the checksum of the file of ids.
        index_sha256: the checksum of the index file.
    """

    file: FileName
    tokens: Count
    documents: Count
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """The name of the index file."""
        return f"{self.file.removesuffix('.bin')}.idx"


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """The training tokens of a text, or its held-out tokens.

    Attributes:
        tokens: the number of tokens.
        documents: the number of documents; a document that was cut in two counts in both splits.
        text_bytes: the documents' length in UTF-8.
        shards: the files, in order.
    """

    tokens: Count = 0
    documents: Count = 0
    text_bytes: Count = 0
    shards: tuple[Shard, ...] = ()


def _map_file(path: Path, length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    expected = length * dtype.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise TrainingError(
            f"{path} has {found:,} bytes and the manifest says {expected:,}; delete the corpus and build it again."
        )
    return np.memmap(path, dtype, mode="r") if length else np.empty(0, dtype)


class ShardedTokens:
    """The ids of a split as one array, memory-mapped.

    Attributes:
        dtype: the ids' type.
    """

    @classmethod
    def open(cls, folder: Path, split: TokenSplit, dtype: np.dtype[Any]) -> ShardedTokens:
        """Map the files of a split.

        Raises:
            TrainingError: if a file is missing or its length is not its shard's.
        """
        return cls([_map_file(folder / shard.file, shard.tokens, dtype) for shard in split.shards], dtype)

    def __init__(self, arrays: Sequence[npt.NDArray[np.unsignedinteger[Any]]], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._arrays = arrays
        self._each = len(arrays[0]) if arrays else 1  # ids in every shard but the last
        self._length = sum(map(len, arrays))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: slice, /) -> npt.NDArray[np.unsignedinteger[Any]]:
        start, stop, step = indices.indices(self._length)
        if step != 1:
            raise IndexError("tokens are read in slices with a step of 1")
        first, last = start // self._each, max(stop - 1, 0) // self._each
        parts = [
            self._arrays[n][max(start - n * self._each, 0) : stop - n * self._each]
            for n in range(first, min(last, len(self._arrays) - 1) + 1)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts], dtype=self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self[:], dtype, copy=copy)


class DocumentStarts:
    """The indices of a split's tokens at which documents begin, memory-mapped."""

    def __init__(self, folder: Path, split: TokenSplit) -> None:
        # Of each shard: its first token, the one after its last, and the starts relative to the first.
        self._shards: list[tuple[int, int, npt.NDArray[np.uint32]]] = []
        first = 0
        for shard in split.shards:
            starts = _map_file(folder / shard.index, shard.documents, INDEX)
            self._shards.append((first, first + shard.tokens, starts))
            first += shard.tokens

    def between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the starts from one token on and before another, increasing, int64."""
        found = [np.empty(0, np.int64)]
        for first, last, starts in self._shards:
            if first < stop and last > start:
                here = slice(*np.searchsorted(starts, [max(start - first, 0), stop - first]))
                found.append(starts[here].astype(np.int64) + first)
        return np.concatenate(found)


class ShardWriter:
    """Write the shards of one split, or continue where an earlier writer of the same files stopped.

    Between two calls of `checkpoint` the files may contain more than the state says; a writer that is made from the
    state cuts that off.

    Args:
        folder: the folder of the files.
        name: the beginning of the files' names.
        dtype: the ids' type.
        shard_tokens: ids in a shard.
        state: the result of `checkpoint`; None to begin.
    """

    def __init__(
        self, folder: Path, name: str, dtype: np.dtype[Any], shard_tokens: int, state: TokenSplit | None = None
    ) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, dtype, shard_tokens
        before = state or TokenSplit()
        self.tokens, self.documents, self.text_bytes = before.tokens, before.documents, before.text_bytes
        self._shards = list(before.shards)
        self._open: _OpenShard | None = None
        delete_shards(folder, name, len(self._shards) + (self.tokens > len(self._shards) * shard_tokens))
        if left := self.tokens - len(self._shards) * shard_tokens:
            starts = self.documents - sum(shard.documents for shard in self._shards)
            self._open = _OpenShard(self._path(), dtype, left, starts)

    def _path(self) -> Path:
        return self.folder / f"{self.name}.{len(self._shards):05d}.bin"

    def write(self, ids: npt.NDArray[Any], starts: npt.NDArray[np.int64], text_bytes: int) -> None:
        """Append ids.

        Args:
            ids: unsigned integers [tokens].
            starts: the indices of `ids` at which documents begin, increasing, int64 [documents].
            text_bytes: the length of their text.

        Raises:
            OSError: if they cannot be written.
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

    def checkpoint(self) -> TokenSplit:
        """Flush everything to the disk; return the state from which a new writer continues."""
        if self._open is not None:
            self._open.sync()
        return TokenSplit(self.tokens, self.documents, self.text_bytes, tuple(self._shards))

    def close(self) -> TokenSplit:
        """End the last shard; return what was written."""
        self._close_shard()
        return TokenSplit(self.tokens, self.documents, self.text_bytes, tuple(self._shards))

    def abandon(self) -> None:
        """Close the files without completing the shard."""
        if self._open is not None:
            self._open.abandon()


def delete_shards(folder: Path, name: str, first: int) -> None:
    """Delete the shards of a name from number `first` on."""
    for path in folder.glob(f"{name}.[0-9]*.*"):
        stem, _, number = path.name.removesuffix(path.suffix).rpartition(".")
        if stem == name and path.suffix in (".bin", ".idx") and number.isdigit() and int(number) >= first:
            path.unlink()


class _OpenShard:
    """The shard that is being written, with the running hashes of its two files."""

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
    """Open a file for writing after its first `size` bytes, cut off the rest, and return the running hash."""
    if size and (not path.exists() or path.stat().st_size < size):
        raise TrainingError(
            f"{path} is shorter than the unfinished build has written; delete the folder and build the corpus again."
        )
    file = path.open("r+b" if size else "w+b")
    hashed = hashlib.sha256()
    for data in _read_parts(file, size):
        hashed.update(data)
    file.truncate(size)
    file.seek(size)
    return file, hashed


def _read_parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        data = file.read(min(size, _HASH_BYTES))
        size -= len(data)
        yield data


def truncated(folder: Path, shards: Sequence[Shard], tokens: int, dtype: np.dtype[Any]) -> Iterator[Shard]:
    """Yield the shards that remain of the first tokens of a split, as they are after `truncate_files`."""
    for shard in shards:
        if tokens >= shard.tokens:
            yield shard
        elif tokens > 0:
            starts = _map_file(folder / shard.index, shard.documents, INDEX)
            documents = int(np.searchsorted(starts, tokens))
            hashes = [
                _hash(folder / file, size)
                for file, size in ((shard.file, tokens * dtype.itemsize), (shard.index, documents * INDEX.itemsize))
            ]
            yield Shard(shard.file, tokens, documents, *hashes)
        tokens -= shard.tokens


def _hash(path: Path, size: int) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        for data in _read_parts(file, size):
            hashed.update(data)
    return hashed.hexdigest()


def truncate_files(folder: Path, name: str, split: TokenSplit, dtype: np.dtype[Any]) -> None:
    """Cut the files of a split to the lengths that it says, and delete further shards of that name.

    An interrupted call can be repeated.
    """
    for shard in split.shards:
        for file, size in (
            (shard.file, shard.tokens * dtype.itemsize),
            (shard.index, shard.documents * INDEX.itemsize),
        ):
            if (folder / file).stat().st_size > size:
                os.truncate(folder / file, size)
    delete_shards(folder, name, len(split.shards))
