"""Read and write ONNX files, the format of onnxruntime: a graph of operations with the tensors that they need.

A file is one protocol buffer, a `ModelProto`, in which the graph (field 7) holds each tensor as an `initializer`
(field 5) with its dimensions, dtype, name and bytes. A protocol buffer ends at 2 GiB; beyond that the bytes are in a
separate file. Source: onnx.proto and docs/ExternalData.md in onnx/onnx.

The graph is made with the `onnx` library (the extra `[onnx]`). The tensors are written and read here, one at a
time, because the library keeps all of them in memory.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import ConfigError, WeightsError
from clearhead.utils.json_files import parse_json
from clearhead.utils.protobuf import ProtobufError, Span, encode_field, encode_varint, read_varint, spans
from clearhead.utils.text import printable
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, shape_words

CONFIG_KEY = "clearhead_config"
"""The key in a model's `metadata_props` for its shape, as the JSON of `GPTConfig`'s fields."""

KINDS = {"float32": 1, "float16": 10}
"""ONNX's number for each dtype that is written."""

_KIND_NAMES = {number: name for name, number in KINDS.items()}
_GRAPH, _METADATA = 7, 14  # fields of a ModelProto
_INITIALIZER = 5  # field of a GraphProto
_DIMS, _KIND, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14  # fields of a TensorProto
_MOST_INSIDE = 2**31 - 2**24  # bytes; a protocol buffer ends at 2 GiB, and the graph needs some
_ALIGNMENT = 4096  # bytes; tensors in the separate file begin at multiples, so that they can be mapped


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """Where a tensor's bytes are: the file and the offset."""

    info: TensorInfo
    path: Path
    begin: int


class OnnxFile:
    """A model that Clearhead wrote as ONNX: the tensors are found, the data is mapped into memory.

    Attributes:
        path: the file with the graph.
        config: the model's shape.
        tensors: every tensor inside.

    Raises:
        WeightsError: if the file is cut short, damaged, not ONNX, or was written by another program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_is_data(path)
        self._maps = {path: _mapped(path)}
        try:
            self.config, self._stored = self._look(self._maps[path])
        except (ProtobufError, IndexError, UnicodeDecodeError) as error:
            self._damaged(str(error))
        self.tensors: dict[str, TensorInfo] = {name: stored.info for name, stored in self._stored.items()}
        for name, stored in self._stored.items():
            self._check_size(name, stored)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file itself, and the separate files with the tensors of large models."""
        return tuple(self._maps)

    def _look(self, data: mmap.mmap) -> tuple[GPTConfig, dict[str, OnnxTensor]]:
        told: dict[str, str] = {}
        stored: dict[str, OnnxTensor] = {}
        for field, value in spans(data, (0, len(data))):
            if field == _METADATA and isinstance(value, tuple):
                told |= [_text_pair(data, value)]
            elif field == _GRAPH and isinstance(value, tuple):
                for inner, tensor in spans(data, value):
                    if inner == _INITIALIZER and isinstance(tensor, tuple):
                        name, found = self._tensor(data, tensor)
                        stored[name] = found
        if not stored:
            self._damaged("it has no tensors")
        if CONFIG_KEY not in told:
            raise WeightsError(
                f"{self.path} was not written by Clearhead, which reads no other ONNX files, because a graph may name "
                "its tensors in any way; open the model from which it was exported."
            )
        try:
            return GPTConfig.from_dict(parse_json(told[CONFIG_KEY], dict[str, Any])), stored
        except (ValueError, ConfigError) as error:
            self._damaged(f"its {CONFIG_KEY} cannot be read ({error})")

    def _tensor(self, data: mmap.mmap, span: Span) -> tuple[str, OnnxTensor]:
        name, kind, shape, raw, outside = "", 0, [], None, dict[str, str]()
        for field, value in spans(data, span):
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
            self._damaged(f"{name!r} has the dtype {kind}, and Clearhead writes {' and '.join(KINDS)}")
        info = TensorInfo(tuple(shape), _KIND_NAMES[kind])
        if raw is not None:
            if raw[1] - raw[0] != info.nbytes:
                self._damaged(f"{name!r} of shape {shape_words(info.shape)} has {raw[1] - raw[0]:,} bytes")
            return name, OnnxTensor(info, self.path, raw[0])
        location = outside.get("location", "")
        if Path(location).name != location or location in ("", ".", "..") or not outside.get("offset", "").isdecimal():
            self._damaged(f"it does not say where the data of {name!r} is")
        return name, OnnxTensor(info, self.path.with_name(location), int(outside["offset"]))

    def _check_size(self, name: str, stored: OnnxTensor) -> None:
        if stored.path not in self._maps:
            if not stored.path.is_file():
                raise WeightsError(
                    f"{self.path.parent} lacks {printable(stored.path.name)}, which has the tensors of "
                    f"{self.path.name}; copy it there too."
                )
            check_is_data(stored.path)
            self._maps[stored.path] = _mapped(stored.path)
        end, size = stored.begin + stored.info.nbytes, len(self._maps[stored.path])
        if end > size:
            raise WeightsError(
                f"{stored.path} is cut short: {name!r} ends at byte {end:,} and the file has {size:,}; copy it again."
            )

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, a view of the file."""
        stored = self._stored[name]
        kind = NUMPY_TYPES[stored.info.dtype]
        values = np.frombuffer(self._maps[stored.path], kind, count=stored.info.size, offset=stored.begin)
        values = values.reshape(stored.info.shape)
        return values if values.flags.aligned else values.copy()

    def remap(self) -> OnnxFile:
        """Map the same file again; see `TensorFile.remap`."""
        other = copy.copy(self)
        other._maps = {path: _mapped(path) for path in self._maps}
        return other

    def _damaged(self, what: str) -> NoReturn:
        raise WeightsError(f"{self.path} is not an ONNX file, or is cut short or damaged: {what}; copy it again.")


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _packed(data: mmap.mmap, span: Span) -> Iterator[int]:
    at, end = span
    while at < end:
        value, at = read_varint(data, at)
        yield value


def _text_pair(data: mmap.mmap, span: Span) -> tuple[str, str]:
    """Return the key and the value of a `StringStringEntryProto`."""
    found = {f: data[slice(*value)].decode("utf-8") for f, value in spans(data, span) if isinstance(value, tuple)}
    return found.get(1, ""), found.get(2, "")


def write_onnx(
    path: Path, model: Any, tensors: Mapping[str, TensorInfo], data: Iterable[tuple[str, np.ndarray]], beside: Path
) -> bool:
    """Write a model with one tensor in memory at a time.

    Args:
        path: the file; it is written in place, so give a temporary name.
        model: an `onnx.ModelProto` whose graph has no initializers.
        tensors: its initializers, in order.
        data: the same names in the same order, each with a contiguous array of that shape and type.
        beside: a file in the same folder for the tensors, if they are too large for one file; it keeps its name.

    Returns:
        Whether `beside` was written.
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
    else:
        headers = [_header(name, info) for name, info in tensors.items()]
        with path.open("wb") as file:
            file.write(_start(model, sum(len(h) + i.nbytes for h, i in zip(headers, tensors.values(), strict=True))))
            for header, array in zip(headers, _in_order(tensors, data), strict=True):
                file.write(header)
                file.write(_bytes(array))
    return outside


def _add_header(model: Any, name: str, info: TensorInfo, location: str, begin: int) -> None:
    tensor = model.graph.initializer.add(name=name, data_type=KINDS[info.dtype], dims=info.shape)
    tensor.data_location = type(tensor).EXTERNAL
    for key, value in (("location", location), ("offset", begin), ("length", info.nbytes)):
        tensor.external_data.add(key=key, value=str(value))


def _header(name: str, info: TensorInfo) -> bytes:
    """Return what precedes the bytes of a tensor in a graph."""
    found = b"".join(encode_field(_DIMS, size) for size in info.shape)
    found += encode_field(_KIND, KINDS[info.dtype]) + encode_field(_NAME, name.encode())
    found += encode_varint(_RAW << 3 | 2) + encode_varint(info.nbytes)
    return encode_varint(_INITIALIZER << 3 | 2) + encode_varint(len(found) + info.nbytes) + found


def _start(model: Any, following: int) -> bytes:
    """Return the bytes of a model up to its initializers, which are last."""
    graph = model.graph.SerializeToString()
    around = type(model)()
    around.CopyFrom(model)
    around.ClearField("graph")
    return bytes(
        around.SerializeToString() + encode_varint(_GRAPH << 3 | 2) + encode_varint(len(graph) + following) + graph
    )


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
