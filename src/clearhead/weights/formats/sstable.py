"""Read and write sorted-string tables (byte strings by byte-string key), the format of a TensorFlow index.

A table is blocks, then a footer. A block is entries, restart points, and a trailer:

    entry    varint: bytes of the key shared with the one before; varint: the other bytes; varint: bytes of the value;
             those other bytes of the key; the value
    restarts offsets of entries that share nothing, as uint32s; then their number, a uint32
    trailer  one byte, 0 for no compression and 1 for Snappy; the masked CRC-32C of the block and that byte

The data blocks have the entries; one index block has, for each data block, a key not below its last one and
its handle (offset and size, varints); the footer has the handles of an unused block and of the index
block, zeros up to 40 bytes, and 8 bytes that identify the format. All numbers are little-endian.
Source: the LevelDB project, doc/table_format.md; TensorFlow's copy leaves out filters.

The files come from the network, so every length is checked against the file's size before it is used,
and names, their number and the file are limited to what a real index needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from clearhead.errors import WeightsError
from clearhead.utils.protobuf import ProtobufError, encode_varint, read_varint

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER = 48  # bytes
_TRAILER = 5  # bytes
_RESTART_EVERY = 16  # entries; what TensorFlow writes
_MAX_FILE = 16 * 2**20  # bytes; the index of the largest GPT-2 with its optimizer takes 60 KB
_MAX_ENTRIES = 2**16
_MAX_KEY = 1024  # bytes
_CHUNK = 2**16  # bytes that are checksummed at a time


def crc32c(data: bytes | np.ndarray, crc: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of bytes, or of a contiguous array's memory, continuing from `crc`."""
    import google_crc32c

    flat = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data.reshape(-1).view(np.uint8)
    for begin in range(0, flat.size, _CHUNK):
        # As bytes, because the library takes no writable memory; so small a copy stays in the cache.
        crc = google_crc32c.extend(crc, flat[begin : begin + _CHUNK].tobytes())
    return crc


def mask(crc: int) -> int:
    """Return a CRC as these files store it, so that a CRC over data that contains CRCs stays a good one."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """Return the CRC from which `mask` made `stored`."""
    turned = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((turned >> 17) | (turned << 15)) & 0xFFFFFFFF


def read_table(path: Path) -> dict[bytes, bytes]:
    """Read a whole table, in the order of its keys.

    Raises:
        WeightsError: if the file cannot be read, is cut short or damaged, is compressed, or is not such a table.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= _MAX_FILE else b""
    except OSError as error:
        raise WeightsError(f"{path} could not be read ({error.strerror}).") from None
    if size > _MAX_FILE:
        raise WeightsError(
            f"{path} has {size:,} bytes, far more than the index of a TensorFlow checkpoint; "
            "it may be the data file with the name of the index: download the index."
        )
    if len(data) < _FOOTER or data[-8:] != _MAGIC:
        raise WeightsError(
            f"{path} is not the index of a TensorFlow checkpoint, or is cut short: its {size:,} bytes do not end "
            "with the mark of a sorted-string table; download it again."
        )
    try:
        return dict(_entries(path, data))
    except ProtobufError as error:
        _damaged(path, str(error))


def _entries(path: Path, data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of all data blocks. The blocks must be in order, so that none is read twice."""
    footer = len(data) - _FOOTER
    at = footer
    for _ in range(2):  # of the unused block, which is skipped, and of the index block
        offset, at = read_varint(data, at)
        size, at = read_varint(data, at)
    end, last, count = 0, None, 0
    for _, handle in _block_entries(path, _block(path, data, offset, size, footer)):
        offset, at = read_varint(handle, 0)
        size, _ = read_varint(handle, at)
        if offset < end:
            _damaged(path, "its blocks overlap")
        end = offset + size + _TRAILER
        for key, value in _block_entries(path, _block(path, data, offset, size, footer)):
            count += 1
            if count > _MAX_ENTRIES:
                _damaged(path, f"it names more than {_MAX_ENTRIES:,} tensors")
            if last is not None and key <= last:
                _damaged(path, f"the name {key!r} follows {last!r}, which is out of order")
            last = key
            yield key, value


def _block(path: Path, data: bytes, offset: int, size: int, footer: int) -> bytes:
    """Check a block and return it without its trailer."""
    end = offset + size
    if end + _TRAILER > footer:
        _damaged(path, f"a block of {size:,} bytes at byte {offset:,} does not fit into it")
    stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
    if mask(crc32c(data[offset : end + 1])) != stored:
        _damaged(path, f"the block at byte {offset:,} has the wrong checksum")
    if data[end] == 1:
        raise WeightsError(
            f"{path} is compressed with Snappy, which Clearhead does not read; TensorFlow itself writes the index of a "
            "checkpoint uncompressed: open and save the checkpoint with TensorFlow."
        )
    if data[end] != 0:
        _damaged(path, f"the block at byte {offset:,} is compressed in an unknown way ({data[end]})")
    return data[offset:end]


def _block_entries(path: Path, block: bytes) -> Iterator[tuple[bytes, bytes]]:
    n_restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * n_restarts
    if len(block) < 4 or end < 0:
        _damaged(path, "a block is too short for its restart points")
    key, at = b"", 0
    while at < end:
        shared, at = read_varint(block, at)
        n_more, at = read_varint(block, at)
        n_value, at = read_varint(block, at)
        if shared > len(key) or at + n_more + n_value > end:
            _damaged(path, "an entry does not fit into its block")
        if shared + n_more > _MAX_KEY:
            _damaged(path, f"a name in it has {shared + n_more:,} bytes")
        key = key[:shared] + block[at : at + n_more]
        yield key, block[at + n_more : at + n_more + n_value]
        at += n_more + n_value


def _damaged(path: Path, what: str) -> NoReturn:
    raise WeightsError(f"{path} is damaged: {what}; download it again.")


def build_table(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a table of these keys and values, in the order of the keys; byte for byte as TensorFlow writes it.

    That is true if the entries fit into one block, 256 KiB or some 6,000 tensors; beyond it TensorFlow would begin
    another block, but it reads larger ones too.
    """
    listed = list(entries)
    if any(a >= b for (a, _), (b, _) in itertools.pairwise(listed)):
        raise ValueError("the keys are not in order")
    table = bytearray()
    handles = []
    if listed:
        handles.append((_successor(listed[-1][0]), _append(table, _build_block(listed))))
    unused = _append(table, _build_block([]))
    index = _append(table, _build_block(handles))
    table += (unused + index).ljust(_FOOTER - len(_MAGIC), b"\0") + _MAGIC
    return bytes(table)


def _append(table: bytearray, block: bytes) -> bytes:
    """Append a block with its trailer; return its handle."""
    offset = len(table)
    with_type = block + b"\0"
    table += with_type + mask(crc32c(with_type)).to_bytes(4, "little")
    return encode_varint(offset) + encode_varint(len(block))


def _build_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    block, restarts, before = bytearray(), [0], b""
    for n, (key, value) in enumerate(entries):
        shared = 0
        if n % _RESTART_EVERY:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        elif n:
            restarts.append(len(block))
        block += (
            encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value)) + key[shared:] + value
        )
        before = key
    return bytes(block) + b"".join(n.to_bytes(4, "little") for n in [*restarts, len(restarts)])


def _successor(key: bytes) -> bytes:
    """Return the shortest key that is not below this one: up to its first byte that can be raised, raised."""
    for n, byte in enumerate(key):
        if byte < 0xFF:
            return key[:n] + bytes([byte + 1])
    return key
