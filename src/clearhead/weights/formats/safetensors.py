"""Read and write safetensors files, through a memory map and one tensor at a time.

A file is: the header's length (8 bytes, little-endian), the header (JSON: for every tensor its dtype,
shape and where its data begins and ends, counted from the end of the header), then the data, without
gaps. Source: the format's description in the README of huggingface/safetensors.

The header is read here because the `safetensors` library gives NumPy no bfloat16, copies every tensor,
writes only from memory, and does not report how much of a file is missing.
"""

from __future__ import annotations

import copy
import json
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clearhead.errors import WeightsError
from clearhead.weights.formats.sniff import check_is_data, detect_format
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, shape_words, widen_bfloat16

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "U64": "uint64",
    "I32": "int32",
    "U32": "uint32",
    "I16": "int16",
    "U16": "uint16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_DTYPE_NAMES = {name: short for short, name in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the limit that the format's own library sets
_MAX_DIMS = 32
_MAX_NUMBERS = 2**60  # more than any file has, less than what overflows NumPy's sizes


class SafetensorsFile:
    """A safetensors file: the header is read and checked, the data is mapped into memory.

    Attributes:
        path: the file.
        tensors: every tensor inside.
        metadata: the header's `__metadata__`, text to text.

    Raises:
        WeightsError: if the file is cut short, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_is_data(path)
        size = path.stat().st_size
        header, self._data_start = _read_header(path, size)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        entries = {name: _entry(path, name, value) for name, value in header.items()}
        _check_coverage(path, {n: span for n, (_, span) in entries.items()}, size - self._data_start)
        self.tensors: dict[str, TensorInfo] = {name: info for name, (info, _) in entries.items()}
        self._begins = {name: span[0] for name, (_, span) in entries.items()}
        self._map = _mapped(path)

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, a view of the file if possible; bfloat16 is widened to float32."""
        info = self.tensors[name]
        flat = np.frombuffer(
            self._map, NUMPY_TYPES[info.dtype], count=info.size, offset=self._data_start + self._begins[name]
        )
        values = flat.reshape(info.shape)
        if not values.flags.aligned:
            values = values.copy()
        return widen_bfloat16(values) if info.dtype == "bfloat16" else values

    def remap(self) -> SafetensorsFile:
        """Map the same file again; see `TensorFile.remap`."""
        other = copy.copy(self)
        other._map = _mapped(self.path)
        return other


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        # Private and copy-on-write: changes in memory never reach the file.
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorInfo], data: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file with one tensor in memory at a time.

    Args:
        path: the file; it is written in place, so give a temporary name.
        tensors: what is written, in order; the header is made from it.
        data: the same names in the same order, each with a contiguous array of that shape and of the type
            that `NUMPY_TYPES` has for its dtype.
        metadata: text for the header.
    """
    with path.open("wb") as file:
        file.write(_header(tensors, metadata))
        expected = iter(tensors.items())
        for name, array in data:
            due, info = next(expected)
            if due != name or array.shape != info.shape or array.dtype != NUMPY_TYPES[info.dtype]:
                raise ValueError(f"{name} {array.dtype} {array.shape} does not follow the header: {due} {info}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        if (left := next(expected, None)) is not None:
            raise ValueError(f"no data for {left[0]}")


def _header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, info in tensors.items():
        end = begin + info.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)  # so that the data begins at a cache line
    return len(text).to_bytes(8, "little") + text


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """Return the header as JSON, and the offset of the data."""
    if (kind := detect_format(path)) in ("pytorch", "gguf", "hdf5"):
        raise WeightsError(f"{path} is a {kind} file and not safetensors; rename it to match its format.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise WeightsError(f"{path} has {size} bytes, too few for a safetensors file; download it again.")
        if length > _MAX_HEADER:
            raise WeightsError(
                f"{path} is not a safetensors file, or is damaged: its first 8 bytes announce a header of {length:,} "
                f"bytes, and the format allows {_MAX_HEADER:,}; download it again."
            )
        if 8 + length > size:
            raise WeightsError(
                f"{path} is cut short: its header needs {8 + length:,} bytes and the file has {size:,}, "
                f"{8 + length - size:,} too few; download it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"its header is not JSON ({error})")
    if not isinstance(header, dict):
        _damaged(path, "its header is not a JSON object")
    metadata = header.get("__metadata__")
    if metadata is not None and (
        not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values())
    ):
        _damaged(path, "its __metadata__ does not map strings to strings")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is in it twice")
    return values


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _entry(path: Path, name: str, value: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """Check one tensor's entry in the header; return its description, and where its data begins and ends."""
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        _damaged(path, f"its header lacks dtype, shape or data_offsets of {name!r}")
    shape, offsets, dtype = value["shape"], value["data_offsets"], value["dtype"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsError(
            f"{path} stores {name!r} as {dtype!r}, a dtype that Clearhead does not read "
            f"(it reads {', '.join(_DTYPES)}); convert the file first."
        )
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        _damaged(path, f"the shape of {name!r} in its header is impossible")
    if not _are_sizes(offsets) or len(offsets) != 2:
        _damaged(path, f"the data_offsets of {name!r} in its header are impossible")
    numbers = 1
    for dim in shape:
        numbers *= max(dim, 1)  # a zero must not hide a dimension that NumPy cannot hold
        if numbers > _MAX_NUMBERS:
            _damaged(path, f"the shape of {name!r} in its header is impossible")
    info = TensorInfo(tuple(shape), _DTYPES[dtype])
    begin, end = offsets
    if end - begin != info.nbytes:
        _damaged(
            path,
            f"{name!r} of shape {shape_words(info.shape)} in {info.dtype} takes {info.nbytes:,} bytes, "
            f"and its header gives it {end - begin:,}",
        )
    return info, (begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_coverage(path: Path, spans: Mapping[str, tuple[int, int]], data_size: int) -> None:
    """Check that the tensors follow one another without gaps to the end of the file."""
    end = 0
    by_offset = sorted(spans.items(), key=lambda item: item[1])
    for name, (begin, stop) in by_offset:
        if begin != end:
            _damaged(path, f"the data of {name!r} begins at byte {begin:,} where {end:,} was expected")
        end = stop
    if end > data_size:
        first = next(name for name, span in by_offset if span[1] > data_size)
        raise WeightsError(
            f"{path} is cut short: {end - data_size:,} bytes are missing at its end, from {first!r} on; "
            "download it again."
        )
    if end < data_size:
        _damaged(path, f"{data_size - end:,} bytes follow its last tensor")


def _damaged(path: Path, what: str) -> NoReturn:
    raise WeightsError(f"{path} is not a safetensors file, or is damaged: {what}; download it again.")
