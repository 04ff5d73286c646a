"""The ONNX format: a graph of operations with the tensors that they need; what onnxruntime runs.

A file is one protocol buffer, a `ModelProto`, in which the graph (field 7) holds each tensor as an `initializer`
(field 5) with its dimensions, number format, name and bytes; or the bytes lie in a file beside it, which a protocol
buffer of more than 2 GiB needs. Source: onnx.proto and docs/ExternalData.md in onnx/onnx.

The graph is made with the `onnx` library (the extra `[onnx]`). The tensors are written and read here, one at a
time, as the library holds all of them in memory.
"""

from __future__ import annotations

import copy
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import ConfigError, WeightsError
from clearhead.weights.formats.sniff import refuse_impostor
from clearhead.weights.formats.sstable import CutError, to_varint, varint
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, shape_words

CONFIG_KEY = "clearhead_config"
"""The key in a model's `metadata_props` under which its shape stands, as the JSON of `GPTConfig`'s fields."""

KINDS = {"float32": 1, "float16": 10}
"""ONNX's number for each number format that is written."""

_KIND_NAMES = {number: name for name, number in KINDS.items()}
_GRAPH, _METADATA = 7, 14  # fields of a ModelProto
_INITIALIZER = 5  # field of a GraphProto
_DIMS, _KIND, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14  # fields of a TensorProto
_MOST_INSIDE = 2**31 - 2**24  # bytes; a protocol buffer ends at 2 GiB, and the graph needs some
_ALIGNMENT = 4096  # bytes, where a tensor begins in the file beside, so that it can be mapped


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor's bytes are: in which file, from which byte on."""

    info: TensorInfo
    path: Path
    begin: int


class OnnxFile:
    """A model that Clearhead wrote as ONNX, its tensors found, its data mapped but not read.

    Attributes:
        path: the file with the graph.
        config: the model's shape.
        tensors: every tensor inside.

    Raises:
        WeightsError: where the file is cut short, damaged, no ONNX, or was written by another program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_impostor(path)
        self._maps = {path: _mapped(path)}
        try:
            self.config, self._stored = self._look(self._maps[path])
        except (CutError, IndexError, UnicodeDecodeError) as error:
            self._damaged(str(error))
        self.tensors: dict[str, TensorInfo] = {name: stored.info for name, stored in self._stored.items()}
        for name, stored in self._stored.items():
            self._check_size(name, stored)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file itself, and those beside it that hold numbers of large models."""
        return tuple(self._maps)

    def _look(self, data: mmap.mmap) -> tuple[GPTConfig, dict[str, _Stored]]:
        told: dict[str, str] = {}
        stored: dict[str, _Stored] = {}
        for field, value in _fields(data, 0, len(data)):
            if field == _METADATA and isinstance(value, tuple):
                told |= [_text_pair(data, value)]
            elif field == _GRAPH and isinstance(value, tuple):
                for inner, tensor in _fields(data, *value):
                    if inner == _INITIALIZER and isinstance(tensor, tuple):
                        name, found = self._tensor(data, tensor)
                        stored[name] = found
        if not stored:
            self._damaged("it holds no tensors")
        if CONFIG_KEY not in told:
            raise WeightsError(
                f"{self.path} was not written by Clearhead, which reads no other ONNX file, as a graph may name its "
                "tensors in any way; open the model from which it was exported."
            )
        try:
            return GPTConfig.from_dict(json.loads(told[CONFIG_KEY])), stored
        except (ValueError, ConfigError) as error:
            self._damaged(f"its {CONFIG_KEY} cannot be read ({error})")

    def _tensor(self, data: mmap.mmap, span: tuple[int, int]) -> tuple[str, _Stored]:
        name, kind, shape, raw, outside = "", 0, [], None, dict[str, str]()
        for field, value in _fields(data, *span):
            if field == _DIMS:
                shape += [value] if isinstance(value, int) else list(_packed(data, value))
            elif field == _KIND and isinstance(value, int):
                kind = value
            elif field == _NAME and isinstance(value, tuple):
                name = data[slice(*value)].decode("utf-8")
            elif field == _RAW and isinstance(value, tuple):
                raw = value
            elif field == _EXTERNAL and isinstance(value, tuple):
                outside |= [_text_pair(data, value)]
        if kind not in _KIND_NAMES:
            self._damaged(f"{name!r} has the number format {kind}, and Clearhead writes {' and '.join(KINDS)}")
        info = TensorInfo(tuple(shape), _KIND_NAMES[kind])
        if raw is not None:
            if raw[1] - raw[0] != info.nbytes:
                self._damaged(f"{name!r} of shape {shape_words(info.shape)} has {raw[1] - raw[0]:,} bytes")
            return name, _Stored(info, self.path, raw[0])
        location = outside.get("location", "")
        if Path(location).name != location or location in ("", ".", "..") or not outside.get("offset", "").isdecimal():
            self._damaged(f"it does not say where the numbers of {name!r} are")
        return name, _Stored(info, self.path.with_name(location), int(outside["offset"]))

    def _check_size(self, name: str, stored: _Stored) -> None:
        if stored.path not in self._maps:
            if not stored.path.is_file():
                raise WeightsError(
                    f"{self.path.parent} lacks {stored.path.name}, in which {self.path.name} has its numbers; "
                    "copy it there too."
                )
            refuse_impostor(stored.path)
            self._maps[stored.path] = _mapped(stored.path)
        end, size = stored.begin + stored.info.nbytes, len(self._maps[stored.path])
        if end > size:
            raise WeightsError(
                f"{stored.path} is cut short: {name!r} ends at byte {end:,} and the file has {size:,}; copy it again."
            )

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored, a view of the file."""
        stored = self._stored[name]
        kind = NUMPY_TYPES[stored.info.dtype]
        values = np.frombuffer(self._maps[stored.path], kind, count=stored.info.size, offset=stored.begin)
        values = values.reshape(stored.info.shape)
        return values if values.flags.aligned else values.copy()

    def remap(self) -> OnnxFile:
        """The same file mapped anew; see `TensorFile.remap`."""
        other = copy.copy(self)
        other._maps = {path: _mapped(path) for path in self._maps}
        return other

    def _damaged(self, what: str) -> NoReturn:
        raise WeightsError(f"{self.path} is no ONNX file, or is cut short or damaged: {what}; copy it again.")


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """The fields of a protocol buffer: each one's number, and its value; of bytes, where they begin and end."""
    while at < end:
        tag, at = varint(data, at)
        match tag & 7:
            case 0:
                value, at = varint(data, at)
                yield tag >> 3, value
            case 2:
                size, at = varint(data, at)
                yield tag >> 3, (at, at + size)
                at += size
            case 1 | 5 as kind:
                at += 8 if kind == 1 else 4
            case _:
                raise CutError(f"at byte {at:,} is a field of an unknown kind")
        if at > end:
            raise CutError(f"a field ends at byte {at:,}, and what it is in at {end:,}")


def _packed(data: mmap.mmap, span: tuple[int, int]) -> Iterator[int]:
    at, end = span
    while at < end:
        value, at = varint(data, at)
        yield value


def _text_pair(data: mmap.mmap, span: tuple[int, int]) -> tuple[str, str]:
    """The key and the value of a `StringStringEntryProto`."""
    found = {f: data[slice(*value)].decode("utf-8") for f, value in _fields(data, *span) if isinstance(value, tuple)}
    return found.get(1, ""), found.get(2, "")


def write_onnx(
    path: Path, model: Any, tensors: Mapping[str, TensorInfo], data: Iterable[tuple[str, np.ndarray]], beside: Path
) -> bool:
    """Writes a model with one tensor in memory at a time.

    Args:
        path: the file, written in place: give a temporary name and rename it.
        model: an `onnx.ModelProto` whose graph has no initializers.
        tensors: its initializers, in order.
        data: the same names in the same order, each with a contiguous array of that shape and type.
        beside: a file in the same folder for the numbers, if they are more than one file holds; it keeps its name.

    Returns:
        whether `beside` was written.
    """
    outside = sum(info.nbytes for info in tensors.values()) > _MOST_INSIDE
    if outside:
        ends = 0
        for name, info in tensors.items():
            begin = ends + -ends % _ALIGNMENT
            ends = begin + info.nbytes
            _add_header(model, name, info, beside.name, begin)
        path.write_bytes(model.SerializeToString())
        with beside.open("wb") as file:
            for array in _in_order(tensors, data):
                file.write(bytes(-file.tell() % _ALIGNMENT))
                file.write(_bytes(array))
            _settle(file)
    else:
        headers = [_header(name, info) for name, info in tensors.items()]
        with path.open("wb") as file:
            file.write(_start(model, sum(len(h) + i.nbytes for h, i in zip(headers, tensors.values(), strict=True))))
            for header, array in zip(headers, _in_order(tensors, data), strict=True):
                file.write(header)
                file.write(_bytes(array))
            _settle(file)
    return outside


def _add_header(model: Any, name: str, info: TensorInfo, location: str, begin: int) -> None:
    tensor = model.graph.initializer.add(name=name, data_type=KINDS[info.dtype], dims=info.shape)
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", location), ("offset", begin), ("length", info.nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def _header(name: str, info: TensorInfo) -> bytes:
    """What stands in a graph before the bytes of a tensor."""
    text = name.encode()
    found = b"".join(to_varint(_DIMS << 3) + to_varint(size) for size in info.shape)
    found += to_varint(_KIND << 3) + to_varint(KINDS[info.dtype])
    found += to_varint(_NAME << 3 | 2) + to_varint(len(text)) + text
    found += to_varint(_RAW << 3 | 2) + to_varint(info.nbytes)
    return to_varint(_INITIALIZER << 3 | 2) + to_varint(len(found) + info.nbytes) + found


def _start(model: Any, following: int) -> bytes:
    """A model up to where the initializers follow, which end it."""
    graph = model.graph.SerializeToString()
    around = type(model)()
    around.CopyFrom(model)
    around.ClearField("graph")
    return bytes(around.SerializeToString() + to_varint(_GRAPH << 3 | 2) + to_varint(len(graph) + following) + graph)


def _in_order(tensors: Mapping[str, TensorInfo], data: Iterable[tuple[str, np.ndarray]]) -> Iterator[np.ndarray]:
    expected = iter(tensors.items())
    for name, array in data:
        due, info = next(expected)
        if due != name or array.shape != info.shape or array.dtype != NUMPY_TYPES[info.dtype]:
            raise ValueError(f"{name} {array.dtype} {array.shape} does not follow the header: {due} {info}")
        yield array
    if (left := next(expected, None)) is not None:
        raise ValueError(f"no data for {left[0]}")


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
