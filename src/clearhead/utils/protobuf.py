"""Read protocol buffers field by field, without their schema.

Source: "Encoding" in the documentation of Protocol Buffers.
"""

from __future__ import annotations

from collections.abc import Iterator


class ProtobufError(ValueError):
    """The bytes are not a protocol buffer."""


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield each field's number and value: an integer, or bytes for strings, messages and fixed-size numbers.

    Raises:
        ProtobufError: if the bytes end within a field, or a field is of an unknown kind.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(data, at)
            case 5:
                size = 4
            case _:
                raise ProtobufError(f"the field at byte {at:,} is of an unknown kind")
        if at + size > len(data):
            raise ProtobufError(f"a field ends at byte {at + size:,}, after the end of the data")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(10):
        if at + n >= len(data):
            break
        value |= (data[at + n] & 0x7F) << (7 * n)
        if data[at + n] < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + n + 1
    raise ProtobufError("a number is cut off")
