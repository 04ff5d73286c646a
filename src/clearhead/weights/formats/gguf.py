"""Read and write GGUF files, the format of llama.cpp: keys and values, then tensors, which may be quantized.

A file is: `GGUF`, a version, two counts, the keys with their values, for every tensor its name, dimensions
(the fastest first), dtype and offset, then the data, each tensor at a multiple of the alignment.
Source: docs/gguf.md in ggml.

The header is read here, because the `gguf` library does not report how much of a file is missing, and takes seconds
for a vocabulary. The library (the extra `[gguf]`) dequantizes and writes files.
"""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from clearhead.errors import WeightsError
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, encode, shape_words, widen_bfloat16

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {0: "float32", 1: "float16", 28: "float64", 30: "bfloat16"}  # dtypes that are not quantized
_ALIGNMENT = 32  # bytes, unless the file says otherwise
_MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where and how a tensor is stored: its shape with the slowest dimension first, and ggml's number for its dtype."""

    shape: tuple[int, ...]
    kind: int
    begin: int
    nbytes: int


class GGUFFile:
    """A GGUF file: the header is read and checked, the data is mapped into memory.

    Attributes:
        path: the file.
        keys: every key's value; an array is a list.
        tensors: every tensor inside; for a quantized one, the float32 values that `read` returns.
        quantized: the dtype (such as `Q4_0`) of each tensor that is quantized.

    Raises:
        WeightsError: if the file is cut short, damaged, not GGUF, or needs the `gguf` library, which is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_is_data(path)
        self._data = np.memmap(path, np.uint8, mode="c")
        header = GgufHeaderReader(path, self._data)
        n_tensors, n_keys = header.start()
        self.keys: dict[str, Any] = {}
        for _ in range(n_keys):
            key = header.string()
            self.keys[key] = header.value(header.number("I"))
        self._stored, self.quantized = _tensors(header, n_tensors, self.keys)
        self.tensors: dict[str, TensorInfo] = {
            name: TensorInfo(stored.shape, _PLAIN.get(stored.kind, "float32")) for name, stored in self._stored.items()
        }
        _check_size(path, self._stored, len(self._data))

    @property
    def nbytes(self) -> int:
        """The offset at which the last tensor ends."""
        return max((tensor.begin + tensor.nbytes for tensor in self._stored.values()), default=0)

    def read(self, name: str) -> np.ndarray:
        """Return one tensor, a view of the file if possible; bfloat16 and quantized values are converted to float32."""
        stored = self._stored[name]
        data = np.asarray(self._data[stored.begin : stored.begin + stored.nbytes])
        if stored.kind not in _PLAIN:
            rows = data.reshape(*stored.shape[:-1], -1)
            gguf = _library(self.path)
            return np.asarray(gguf.dequantize(rows, gguf.GGMLQuantizationType(stored.kind)), np.float32)
        kind = NUMPY_TYPES[_PLAIN[stored.kind]]
        if stored.begin % kind.itemsize:
            data = data.copy()
        values = data.view(kind).reshape(stored.shape)
        return widen_bfloat16(values) if _PLAIN[stored.kind] == "bfloat16" else values

    def remap(self) -> GGUFFile:
        """Map the same file again; see `TensorFile.remap`."""
        other = copy.copy(self)
        other._data = np.memmap(self.path, np.uint8, mode="c")
        return other


def _library(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise WeightsError(
            f"{path} needs the gguf library, which dequantizes and writes GGUF files; "
            "install it with: pip install 'clearhead[gguf]'."
        ) from None
    return gguf


class GgufHeaderReader:
    """Reads one value after another from the start of a file."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self._data, self.at = path, data, 0

    def start(self) -> tuple[int, int]:
        """Read the start of the header; return how many tensors and how many keys follow."""
        if self.take(4) != b"GGUF":
            raise WeightsError(f"{self.path} is not a GGUF file: it does not begin with the letters GGUF.")
        version = self.number("I")
        if version & 0xFFFF == 0:
            raise WeightsError(f"{self.path} is a GGUF file for big-endian machines; convert it to little-endian.")
        if version not in (2, 3):
            raise WeightsError(f"{self.path} is GGUF version {version}; Clearhead reads versions 2 and 3.")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        self._need(n_tensors * 24 + n_keys * 13)  # the minimum that they take
        return n_tensors, n_keys

    def _need(self, n_bytes: int) -> None:
        if self.at + n_bytes > len(self._data):
            raise WeightsError(
                f"{self.path} is cut short or damaged within its header: at least {n_bytes:,} bytes must follow "
                f"byte {self.at:,} and {len(self._data) - self.at:,} do, "
                f"{self.at + n_bytes - len(self._data):,} too few; download it again."
            )

    def take(self, n_bytes: int) -> bytes:
        """Read bytes."""
        self._need(n_bytes)
        self.at += n_bytes
        return self._data[self.at - n_bytes : self.at].tobytes()

    def number(self, code: str) -> Any:
        """Read a number whose type is one of `struct`'s codes."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        """Read a string."""
        text = self.take(self.number("Q"))
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            self.damaged(f"the text at byte {self.at - len(text):,} is not UTF-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        """Read the value of a key."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 2:
            self.damaged(f"the value at byte {self.at:,} has the unknown type {kind}")
        item, length = self.number("I"), self.number("Q")
        if item in _SCALARS:
            code = f"<{length}{_SCALARS[item]}"
            self._need(length)  # before the next line asks for an absurd amount
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        self._need(8 * length)
        return [self.value(item, depth + 1) for _ in range(length)]

    def damaged(self, what: str) -> NoReturn:
        """Raise the error for an invalid header."""
        raise WeightsError(f"{self.path} is not a GGUF file, or is damaged: {what}; download it again.")


def _tensors(
    header: GgufHeaderReader, count: int, keys: Mapping[str, Any]
) -> tuple[dict[str, GgufTensor], dict[str, str]]:
    """Read the description of every tensor; return them, and the dtype names of those that are quantized."""
    found: dict[str, GgufTensor] = {}
    quantized: dict[str, str] = {}
    for _ in range(count):
        name = header.string()
        n_dims = header.number("I")
        if name in found or n_dims > _MAX_DIMS:
            header.damaged(f"{name!r} is in it twice, or has {n_dims} dimensions")
        shape = tuple(reversed([header.number("Q") for _ in range(n_dims)]))
        if math.prod(max(dim, 1) for dim in shape) > 2**60:
            header.damaged(f"the shape of {name!r} is impossible")
        kind, begin = header.number("I"), header.number("Q")
        nbytes, title = _size(header, name, shape, kind)
        if kind not in _PLAIN:
            quantized[name] = title
        found[name] = GgufTensor(shape, kind, begin, nbytes)
    alignment = keys.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        header.damaged(f"its general.alignment is {alignment!r}")
    start = header.at + -header.at % alignment
    return {n: GgufTensor(t.shape, t.kind, start + t.begin, t.nbytes) for n, t in found.items()}, quantized


def _size(header: GgufHeaderReader, name: str, shape: tuple[int, ...], kind: int) -> tuple[int, str]:
    """Return how many bytes a tensor takes, and the name of its dtype."""
    if kind in _PLAIN:
        return TensorInfo(shape, _PLAIN[kind]).nbytes, _PLAIN[kind]
    gguf = _library(header.path)
    try:
        known = gguf.GGMLQuantizationType(kind)
    except ValueError:
        header.damaged(f"{name!r} has the unknown dtype {kind}")
    block, n_bytes = gguf.GGML_QUANT_SIZES[known]
    if not shape or shape[-1] % block:
        header.damaged(f"{name!r} of shape {shape_words(shape)} cannot be in {known.name}, in blocks of {block}")
    return math.prod(shape) // block * n_bytes, known.name


def _check_size(path: Path, stored: Mapping[str, GgufTensor], size: int) -> None:
    due = max((tensor.begin + tensor.nbytes for tensor in stored.values()), default=0)
    if due > size:
        first = next(name for name, tensor in stored.items() if tensor.begin + tensor.nbytes > size)
        raise WeightsError(
            f"{path} is cut short: {due - size:,} bytes are missing at its end, from {first!r} on; download it again."
        )


GGUF_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""The dtypes that are written, by the names that a user gives, with GGUF's own names."""


def write_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    data: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Write a GGUF file with one tensor in memory at a time.

    Args:
        path: the file; it is written in place, so give a temporary name.
        keys: `general.architecture` first; text, whole numbers (unsigned, 32 bits), floats (32 bits), booleans, or
            lists of them (whole numbers in lists are signed).
        tensors: what is written, in order: the shape, slowest dimension first, and the dtype, a key of `GGUF_DTYPES`.
        data: the same names in the same order, each with a contiguous float array of that shape.

    Raises:
        WeightsError: if the `gguf` library is not installed, or a value is too large for float16.
    """
    gguf = _library(path)
    writer = gguf.GGUFWriter(path, keys["general.architecture"])
    for key, value in keys.items():
        _add_key(writer, key, value)
    kinds = {name: gguf.GGMLQuantizationType[GGUF_DTYPES[dtype]] for name, (_, dtype) in tensors.items()}
    for name, (shape, _) in tensors.items():
        block, n_bytes = gguf.GGML_QUANT_SIZES[kinds[name]]
        size = math.prod(shape) // block * n_bytes
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kinds[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        expected = iter(tensors)
        for name, array in data:
            if name != next(expected) or array.shape != tensors[name][0]:
                raise ValueError(f"{name} {array.shape} does not follow the header")
            dtype = tensors[name][1]
            plain = dtype in _PLAIN.values()
            values = np.asarray(array, np.float32)
            writer.write_tensor_data(encode(array, dtype, name) if plain else gguf.quantize(values, kinds[name]))
        if (left := next(expected, None)) is not None:
            raise ValueError(f"no data for {left}")
        writer.flush()
    finally:
        writer.close()


def _add_key(writer: Any, key: str, value: Any) -> None:
    if key == "general.architecture":
        return  # the writer puts it first
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
