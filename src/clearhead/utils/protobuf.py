"""Read and write protocol buffers field by field, without their schema.

Source: "Encoding" in the documentation of Protocol Buffers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Span = tuple[int, int]
"""Where the bytes of a value begin and end."""


class ProtobufError(ValueError):
    """The bytes are not a protocol buffer."""


def read_varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """Return the number (seven bits per byte) that begins at offset `at`, and the offset where it ends.

    Raises:
        ProtobufError: if it does not end, or is larger than 64 bits.
    """
    value = 0
    for n in range(10):
        if at + n >= len(data):
            break
        byte = data[at + n]
        value |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, at + n + 1
    raise ProtobufError("a number is cut off")


def encode_varint(value: int) -> bytes:
    """Return the bytes that `read_varint` reads as `value`."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def encode_field(number: int, value: int | bytes) -> bytes:
    """Return the bytes of a field that is an integer, or a string or message."""
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def spans(data: bytes | mmap.mmap, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Yield each field of a message inside `data`, without copying bytes.

    Args:
        data: the bytes around the message.
        span: where the message begins and ends in them.

    Yields:
        a field's number, and its value: an integer, or where the bytes of a string, a message or a fixed-size number
        begin and end in `data`.

    Raises:
        ProtobufError: if the message ends within a field, or a field is of an unknown kind.
    """
    at, end = span
    while at < end:
        tag, at = read_varint(data, at)
        match tag & 7:
            case 0:
                value, at = read_varint(data, at)
                if at > end:
                    raise ProtobufError("a number is cut off")
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = read_varint(data, at)
            case 5:
                size = 4
            case _:
                raise ProtobufError(f"the field at byte {at:,} is of an unknown kind")
        if at + size > end:
            raise ProtobufError("a field is cut off")
        yield tag >> 3, (at, at + size)
        at += size


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field's number and value: an integer, or bytes for strings, messages and fixed-size numbers.

    Raises:
        ProtobufError: if the bytes end within a field, or a field is of an unknown kind.
    """
    for number, value in spans(data, (0, len(data))):
        yield number, value if isinstance(value, int) else data[slice(*value)]
