"""Read and write TensorFlow checkpoints, through a memory map and one tensor at a time, without TensorFlow.

A checkpoint called `model.ckpt` is an index, `model.ckpt.index`, and one or more files of data,
`model.ckpt.data-00000-of-00001`. The index is a sorted-string table (`sstable.py`): under the empty key a
`BundleHeaderProto`, under each tensor's name a `BundleEntryProto` with its type, shape, shard, offset, size
and CRC-32C. The data files have nothing but the tensors' bytes. Source: tensor_bundle.proto in
tensorflow/core/protobuf, and tensor_shape.proto and types.proto in tensorflow/core/framework.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.protobuf import ProtobufError, encode_field, encode_varint, fields
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.formats.sstable import build_table, crc32c, mask, read_table, unmask
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, shape_words, widen_bfloat16

# TensorFlow's number for each dtype that is read here. Types from 101 on are references to these.
_DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_DTYPE_NUMBERS = {name: number for number, name in _DTYPES.items()}
_STRINGS = 7
_MAX_DIMS = 32
_MAX_NUMBERS = 2**60  # more than any file has, less than what overflows NumPy's sizes
_MAX_SHARDS = 10_000

Message = dict[int, list[int | bytes]]
"""The fields of a protocol buffer, by number; their values in order."""


@dataclass(frozen=True, slots=True)
class CheckpointEntry:
    """Where a tensor's bytes are, as the index records it.

    Attributes:
        info: its shape and dtype.
        shard: the number of its data file.
        offset: where it begins in that file.
        crc: the CRC-32C of its bytes.
    """

    info: TensorInfo
    shard: int
    offset: int
    crc: int


class TensorFlowFile:
    """A TensorFlow checkpoint: the index is read and checked, the data is mapped into memory.

    Attributes:
        path: the index.
        tensors: every tensor of numbers; strings, which only TensorFlow 2 writes besides the weights, are left out.
        entries: where each of them is.
        notes: remarks on harmless oddities of the files.

    Args:
        path: the index.
        check: whether `read` verifies a tensor's checksum when it first reads it.
        shards: the data files, if they are not beside the index under its name.
        data: whether the data files are opened; if not, names and shapes are known and nothing can be read.

    Raises:
        WeightsError: if a file is missing, cut short, damaged, or from another checkpoint.
    """

    def __init__(
        self, path: Path, *, check: bool = True, shards: Sequence[Path] | None = None, data: bool = True
    ) -> None:
        self.path = path
        check_is_data(path)
        table = read_table(path)
        n_shards = _header(path, table)
        self._shards = shards or [shard_path(path, shard, n_shards) for shard in range(n_shards)]
        self.entries: dict[str, CheckpointEntry] = dict(_read_entries(path, table, len(self._shards)))
        self._has_more = len(self.entries) < len(table) - 1  # one entry is the header, the others are strings
        self.tensors: dict[str, TensorInfo] = {name: entry.info for name, entry in self.entries.items()}
        self._unchecked = set(self.entries) if check else set()
        self._maps = self._map_shards() if data else []
        self.notes = tuple(self._odd_sizes()) if data else ()

    def _map_shards(self) -> list[np.ndarray]:
        """Map every data file, private and copy-on-write, so that changes in memory stay there."""
        missing = [path.name for path in self._shards if not path.is_file()]
        if missing:
            raise WeightsError(
                f"{self.path.parent} lacks {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}, the data "
                f"of {self.path.name} ({len(self._shards) - len(missing)} of {len(self._shards)} files are there); "
                "download what is missing."
            )
        for shard, path in enumerate(self._shards):
            self._check_size(shard, path)
        return [
            np.memmap(path, np.uint8, mode="c") if path.stat().st_size else np.zeros(0, np.uint8)
            for path in self._shards
        ]

    def _ends(self, shard: int) -> list[tuple[int, str]]:
        """Return where each tensor of a data file ends, and its name."""
        return [(e.offset + e.info.nbytes, name) for name, e in self.entries.items() if e.shard == shard]

    def _odd_sizes(self) -> Iterator[str]:
        """Yield a remark on each data file that continues after the last tensor in the index.

        A tensor that is not read here (strings, or a type that only TensorFlow knows) may be there.
        """
        for shard, path in enumerate(self._shards):
            due, size = max(self._ends(shard), default=(0, ""))[0], path.stat().st_size
            if size > due and not self._has_more:
                yield (
                    f"{path} is longer than {self.path.name} says: {size - due:,} bytes follow the last tensor and "
                    "are not used. If a broken download appended them, download both again."
                )

    def _check_size(self, shard: int, path: Path) -> None:
        """Check that a data file is data, and that it has the last tensor of the index."""
        ends = self._ends(shard)
        due, size = max(ends, default=(0, ""))[0], path.stat().st_size
        if due or size:
            check_is_data(path)
        if size < due:
            first = min((end, name) for end, name in ends if end > size)[1]
            raise WeightsError(
                f"{path} is cut short: it has {size:,} bytes, and {due - size:,} of the {due:,} that its index names "
                f"are missing, from {first!r} on; download it again, or continue the download."
            )

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, a view of the file if possible; bfloat16 is widened to float32.

        Raises:
            WeightsError: if its checksum is wrong.
        """
        entry = self.entries[name]
        if name in self._unchecked:
            if not self._is_sound(entry):
                raise WeightsError(self._wrong([name]))
            self._unchecked.discard(name)
        values = self._bytes(entry).view(NUMPY_TYPES[entry.info.dtype]).reshape(entry.info.shape)
        if not values.flags.aligned:
            values = values.copy()
        return widen_bfloat16(values) if entry.info.dtype == "bfloat16" else values

    def remap(self) -> TensorFlowFile:
        """Map the same files again; checked tensors stay checked. See `TensorFile.remap`."""
        other = copy.copy(self)
        other._maps = self._map_shards()
        return other

    def verify(self, progress: Callable[[int], None] = lambda n_bytes: None) -> None:
        """Read every tensor and compare its checksum with the index.

        Args:
            progress: called after each tensor with its number of bytes.

        Raises:
            WeightsError: if checksums are wrong; it names the tensors.
        """
        if wrong := self.damaged(progress):
            self._unchecked.update(wrong)
            raise WeightsError(self._wrong(wrong))

    def damaged(self, progress: Callable[[int], None] = lambda n_bytes: None) -> list[str]:
        """Return the tensors whose checksums are wrong; from then on `read` returns them as they are.

        Args:
            progress: called after each tensor with its number of bytes.
        """
        wrong = []
        for name, entry in self.entries.items():
            if not self._is_sound(entry):
                wrong.append(name)
            progress(entry.info.nbytes)
        self._unchecked.clear()
        return wrong

    def data_files(self) -> Iterator[tuple[Path, int]]:
        """Yield every data file, and how many bytes it must have according to the index."""
        for shard, path in enumerate(self._shards):
            yield path, max((e.offset + e.info.nbytes for e in self.entries.values() if e.shard == shard), default=0)

    def _bytes(self, entry: CheckpointEntry) -> np.ndarray:
        return np.asarray(self._maps[entry.shard])[entry.offset : entry.offset + entry.info.nbytes]

    def _is_sound(self, entry: CheckpointEntry) -> bool:
        return crc32c(self._bytes(entry)) == entry.crc

    def _wrong(self, names: list[str]) -> str:
        shard = self._shards[self.entries[names[0]].shard]
        which = repr(names[0]) + (f" and {len(names) - 1} more of {len(self.entries)} tensors" if names[1:] else "")
        verb = "do" if names[1:] else "does"
        return (
            f"{shard}: {which} {verb} not have the checksum in {self.path.name}; the data is damaged, or "
            "the index belongs to another checkpoint: download both again."
        )


def shard_path(index: Path, shard: int, n_shards: int) -> Path:
    """Return the path of the data file with this number, next to its index."""
    return index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{n_shards:05d}")


def _header(path: Path, table: Mapping[bytes, bytes]) -> int:
    """Return the number of data files, from the header."""
    if b"" not in table:
        _damaged(path, "it has no header")
    message = _message(path, table[b""], "the header")
    n_shards, endianness = _number(path, message, 1, "the header"), _number(path, message, 2, "the header")
    if endianness:
        raise WeightsError(
            f"{path} is from a checkpoint with big-endian numbers, which Clearhead does not read; "
            "save it again on a little-endian machine."
        )
    if not 1 <= n_shards <= _MAX_SHARDS:
        _damaged(path, f"it names {n_shards:,} data files")
    return n_shards


def _read_entries(path: Path, table: Mapping[bytes, bytes], n_shards: int) -> Iterator[tuple[str, CheckpointEntry]]:
    for key, value in table.items():
        if not key:
            continue
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError:
            _damaged(path, f"the name {key!r} is not text")
        entry = _entry(path, name, _message(path, value, repr(name)), n_shards)
        if entry is not None:
            yield name, entry


def _entry(path: Path, name: str, message: Message, n_shards: int) -> CheckpointEntry | None:
    """Check one tensor's entry and return it; None for strings, which are not weights."""
    dtype = _number(path, message, 1, repr(name)) % 100
    if dtype == _STRINGS:
        return None
    if dtype not in _DTYPES:
        raise WeightsError(
            f"{path} stores {name!r} as TensorFlow's dtype {dtype}, which Clearhead does not read "
            f"(it reads {', '.join(_DTYPE_NUMBERS)}); save the checkpoint without it."
        )
    if 7 in message:
        raise WeightsError(
            f"{path} stores {name!r} in slices, because the model was split over several machines; "
            "save the checkpoint from an unsplit model."
        )
    info = TensorInfo(_shape(path, name, message), _DTYPES[dtype])
    shard, offset, size = (_number(path, message, field, repr(name)) for field in (3, 4, 5))
    if shard >= n_shards:
        _damaged(path, f"it puts {name!r} into data file {shard:,} of {n_shards}")
    if size != info.nbytes:
        _damaged(
            path,
            f"{name!r} of shape {shape_words(info.shape)} in {info.dtype} takes {info.nbytes:,} bytes, "
            f"and it records {size:,}",
        )
    if offset >= 2**62:
        _damaged(path, f"it puts {name!r} at byte {offset:,}")
    return CheckpointEntry(info, shard, offset, unmask(_checksum(path, message, repr(name))))


def _shape(path: Path, name: str, message: Message) -> tuple[int, ...]:
    shape: list[int] = []
    numbers = 1
    for part in message.get(2, []):
        part_message = _message(path, _as_bytes(path, part, repr(name)), repr(name))
        if part_message.get(3):
            _damaged(path, f"it does not know the shape of {name!r}")
        for dim in part_message.get(2, []):
            size = _number(path, _message(path, _as_bytes(path, dim, repr(name)), repr(name)), 1, repr(name))
            numbers *= max(size, 1)  # a zero must not hide a dimension that is too large for NumPy
            if numbers > _MAX_NUMBERS or len(shape) == _MAX_DIMS:
                _damaged(path, f"the shape of {name!r} is impossible")
            shape.append(size)
    return tuple(shape)


def _message(path: Path, data: bytes, where: str) -> Message:
    """Return the fields of a protocol buffer, by number; their values in order."""
    found: Message = {}
    try:
        for number, value in fields(data):
            found.setdefault(number, []).append(value)
    except ProtobufError as error:
        _damaged(path, f"{error} in {where}")
    return found


def _number(path: Path, message: Message, field: int, where: str) -> int:
    """Return a field that is a number: its last value, or 0 if it is absent."""
    value = message.get(field, [0])[-1]
    if isinstance(value, bytes):
        _damaged(path, f"field {field} of {where} is not a number")
    return value


def _checksum(path: Path, message: Message, where: str) -> int:
    """Return the field with the checksum, a fixed-size number; 0 if it is absent."""
    value = message.get(6, [bytes(4)])[-1]
    if isinstance(value, int) or len(value) != 4:
        _damaged(path, f"field 6 of {where} is not a checksum")
    return int.from_bytes(value, "little")


def _as_bytes(path: Path, value: int | bytes, where: str) -> bytes:
    if isinstance(value, int):
        _damaged(path, f"the shape of {where} is a number")
    return value


def _damaged(path: Path, what: str) -> NoReturn:
    raise WeightsError(f"{path} is damaged, or not the index of a TensorFlow checkpoint: {what}; download it again.")


def write_tensorflow(prefix: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]) -> None:
    """Write a checkpoint, `prefix.index` and `prefix.data-00000-of-00001`, with one tensor in memory at a time.

    The tensors are in the order of their names without gaps, as in the checkpoints that OpenAI published.

    Args:
        prefix: the path without its endings; the files are written in place, so give a temporary name.
        tensors: what is written.
        read: returns the array of a name in `tensors`, of its shape and the type that `NUMPY_TYPES` has for it.
    """
    index = prefix.with_name(prefix.name + ".index")
    with shard_path(index, 0, 1).open("wb") as file:
        entries = dict(_write_data(file.write, tensors, read))
    index.write_bytes(index_bytes(entries))


def _write_data(
    write: Callable[[memoryview], object], tensors: Mapping[str, TensorInfo], read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, CheckpointEntry]]:
    offset = 0
    for name in sorted(tensors, key=str.encode):
        info, values = tensors[name], read(name)
        if values.shape != info.shape or values.dtype != NUMPY_TYPES[info.dtype]:
            raise ValueError(f"{name} {values.dtype} {values.shape} is not {info}")
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        write(flat.data)
        yield name, CheckpointEntry(info, 0, offset, crc32c(flat))
        offset += info.nbytes


def index_bytes(entries: Mapping[str, CheckpointEntry]) -> bytes:
    """Return the index of a checkpoint with one data file, byte for byte as TensorFlow writes it."""
    header = encode_field(1, 1) + encode_field(3, encode_field(1, 1))  # one data file; version 1 of the format
    table = [(b"", header)]
    table += [(name.encode(), _entry_bytes(entries[name])) for name in sorted(entries, key=str.encode)]
    return build_table(table)


def _entry_bytes(entry: CheckpointEntry) -> bytes:
    shape = b"".join(encode_field(2, encode_field(1, size) if size else b"") for size in entry.info.shape)
    found = encode_field(1, _DTYPE_NUMBERS[entry.info.dtype]) + encode_field(2, shape)
    for field, value in ((3, entry.shard), (4, entry.offset), (5, entry.info.nbytes)):
        found += encode_field(field, value) if value else b""  # zeros are left out
    return found + encode_varint(6 << 3 | 5) + mask(entry.crc).to_bytes(4, "little")


def index_in(path: Path) -> Path | None:
    """Find the index that a folder, a file of a checkpoint, or their common prefix means; None if there is none.

    In a folder it is the one that the file `checkpoint` names, otherwise the one with the highest number at its
    end (the training step), otherwise the newest.
    """
    if path.is_dir():
        named = _named_in(path / "checkpoint")
        if named and (index := path / f"{named}.index").is_file():
            return index
        found = [index for index in path.glob("*.index") if index.is_file()]
        return max(found, key=_age, default=None)
    if path.name == "checkpoint" and path.is_file():
        return index_in(path.parent)
    if path.name.endswith(".index"):
        return path if path.is_file() else None
    prefix = re.sub(r"\.(data-\d{5}-of-\d{5}|meta)$", "", path.name)
    index = path.parent / f"{prefix}.index"
    return index if prefix and index.is_file() else None


def _age(index: Path) -> tuple[int, float, str]:
    step = re.search(r"-(\d{1,18})\.index$", index.name)
    return (int(step[1]) if step else -1, index.stat().st_mtime, index.name)


def _named_in(checkpoint: Path) -> str | None:
    """Return the file name of the newest checkpoint according to the text file `checkpoint`."""
    try:
        text = checkpoint.read_text(encoding="utf-8", errors="replace") if checkpoint.stat().st_size < 2**20 else ""
    except OSError:
        return None
    line = re.search(r'^[ \t]*model_checkpoint_path:[ \t]*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    if line is None:
        return None
    path = re.sub(r"\\([\\\"'])", r"\1", line[1])
    return re.split(r"[/\\]", path)[-1] or None  # it may be a full path on another machine
