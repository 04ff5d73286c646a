"""The GGUF format: keys and values, then tensors, many of them quantized; what llama.cpp runs.

A file is: `GGUF`, a version, two counts, the keys with their values, for every tensor its name, dimensions
(the fastest first), number format and place, then the data, each tensor at a multiple of the alignment.
Source: docs/gguf.md in ggml.

The header is read here: the `gguf` library does not say how much of a file is missing, and takes seconds over a
vocabulary. Quantized numbers are turned back by the library, and it writes the files; it is the extra `[gguf]`.
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
from clearhead.weights.formats.sniff import refuse_impostor
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, encode, shape_words, widen_bfloat16

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_PLAIN = {0: "float32", 1: "float16", 28: "float64", 30: "bfloat16"}  # number formats that are not quantized
_ALIGNMENT = 32  # bytes, where the file says nothing else
_MAX_DIMS = 4


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor lies and how: its shape with the slowest dimension first, ggml's number for its format."""

    shape: tuple[int, ...]
    kind: int
    begin: int
    nbytes: int


class GGUFFile:
    """One GGUF file, its header read and checked, its data mapped but not read.

    Attributes:
        path: the file.
        keys: every key's value; an array is a list.
        tensors: every tensor inside; a quantized one as the float32 numbers that `read` gives.
        quantized: the number format (such as `Q4_0`) of each tensor that is quantized.

    Raises:
        WeightsError: where the file is cut short, damaged, no GGUF, or needs the `gguf` library and it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_impostor(path)
        self._data = np.memmap(path, np.uint8, mode="c")
        header = _Header(path, self._data)
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
        """Where the last tensor ends, in bytes from the start of the file."""
        return max((tensor.begin + tensor.nbytes for tensor in self._stored.values()), default=0)

    def read(self, name: str) -> np.ndarray:
        """One tensor as stored, a view of the file; bfloat16 is widened to float32, quantized numbers turned back."""
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
        """The same file mapped anew; see `TensorFile.remap`."""
        other = copy.copy(self)
        other._data = np.memmap(self.path, np.uint8, mode="c")
        return other


def _library(path: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise WeightsError(
            f"{path} needs the gguf library, for quantized numbers and for writing; "
            "install it with: pip install 'clearhead[gguf]'."
        ) from None
    return gguf


class _Header:
    """Takes one value after another from the start of a file."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self._data, self.at = path, data, 0

    def start(self) -> tuple[int, int]:
        """How many tensors and how many keys follow."""
        if self.take(4) != b"GGUF":
            raise WeightsError(f"{self.path} is no GGUF file: it does not begin with the letters GGUF.")
        version = self.number("I")
        if version & 0xFFFF == 0:
            raise WeightsError(f"{self.path} is a GGUF file for big-endian machines; convert it to little-endian.")
        if version not in (2, 3):
            raise WeightsError(f"{self.path} is of GGUF's version {version}; Clearhead reads 2 and 3.")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        self._need(n_tensors * 24 + n_keys * 13)  # the least that they can take
        return n_tensors, n_keys

    def _need(self, n_bytes: int) -> None:
        if self.at + n_bytes > len(self._data):
            raise WeightsError(
                f"{self.path} is cut short, or damaged, within its header: at byte {self.at:,} at least {n_bytes:,} "
                f"bytes must follow and {len(self._data) - self.at:,} do, "
                f"{self.at + n_bytes - len(self._data):,} too few; download it again."
            )

    def take(self, n_bytes: int) -> bytes:
        """The next bytes."""
        self._need(n_bytes)
        self.at += n_bytes
        return self._data[self.at - n_bytes : self.at].tobytes()

    def number(self, code: str) -> Any:
        """The next number, of a type as `struct` calls it."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        """The next string."""
        text = self.take(self.number("Q"))
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            self.damaged(f"the text at byte {self.at - len(text):,} is not UTF-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        """The next value of a key."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth > 2:
            self.damaged(f"at byte {self.at:,} is a value of the unknown type {kind}")
        item, length = self.number("I"), self.number("Q")
        if item in _SCALARS:
            code = f"<{length}{_SCALARS[item]}"
            self._need(length)  # so that the next line asks for nothing absurd
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        self._need(8 * length)
        return [self.value(item, depth + 1) for _ in range(length)]

    def damaged(self, what: str) -> NoReturn:
        """Raises the sentence for a header that cannot be."""
        raise WeightsError(f"{self.path} is no GGUF file, or is damaged: {what}; download it again.")


def _tensors(header: _Header, count: int, keys: Mapping[str, Any]) -> tuple[dict[str, _Stored], dict[str, str]]:
    """What the header says of every tensor, and the names of the formats of those that are quantized."""
    found: dict[str, _Stored] = {}
    quantized: dict[str, str] = {}
    for _ in range(count):
        name = header.string()
        n_dims = header.number("I")
        if name in found or n_dims > _MAX_DIMS:
            header.damaged(f"{name!r} stands in it twice, or with {n_dims} dimensions")
        shape = tuple(reversed([header.number("Q") for _ in range(n_dims)]))
        if math.prod(max(dim, 1) for dim in shape) > 2**60:
            header.damaged(f"it gives {name!r} a shape that cannot be")
        kind, begin = header.number("I"), header.number("Q")
        nbytes, title = _size(header, name, shape, kind)
        if kind not in _PLAIN:
            quantized[name] = title
        found[name] = _Stored(shape, kind, begin, nbytes)
    alignment = keys.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        header.damaged(f"its general.alignment is {alignment!r}")
    start = header.at + -header.at % alignment
    return {n: _Stored(t.shape, t.kind, start + t.begin, t.nbytes) for n, t in found.items()}, quantized


def _size(header: _Header, name: str, shape: tuple[int, ...], kind: int) -> tuple[int, str]:
    """How many bytes a tensor takes, and the name of its number format."""
    if kind in _PLAIN:
        return TensorInfo(shape, _PLAIN[kind]).nbytes, _PLAIN[kind]
    gguf = _library(header.path)
    try:
        known = gguf.GGMLQuantizationType(kind)
    except ValueError:
        header.damaged(f"{name!r} has the unknown number format {kind}")
    block, n_bytes = gguf.GGML_QUANT_SIZES[known]
    if not shape or shape[-1] % block:
        header.damaged(f"{name!r} of shape {shape_words(shape)} cannot be in {known.name}, in blocks of {block}")
    return math.prod(shape) // block * n_bytes, known.name


def _check_size(path: Path, stored: Mapping[str, _Stored], size: int) -> None:
    due = max((tensor.begin + tensor.nbytes for tensor in stored.values()), default=0)
    if due > size:
        first = next(name for name, tensor in stored.items() if tensor.begin + tensor.nbytes > size)
        raise WeightsError(
            f"{path} is cut short: {due - size:,} bytes are missing at its end, from {first!r} on; download it again."
        )


WRITTEN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""The number formats that are written, by the names that a user gives, with GGUF's own."""


def write_gguf(
    path: Path,
    keys: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    data: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Writes a GGUF file with one tensor in memory at a time.

    Args:
        path: the file, written in place: give a temporary name and rename it.
        keys: `general.architecture` first; text, whole numbers (unsigned, 32 bits), floats (32 bits), booleans, or
            lists of them (whole numbers in lists are signed).
        tensors: what will be written, in order: the shape, slowest dimension first, and the format, a key of `WRITTEN`.
        data: the same names in the same order, each with a contiguous float array of that shape.

    Raises:
        WeightsError: where the `gguf` library is not installed, or a value is too large for float16.
    """
    gguf = _library(path)
    writer = gguf.GGUFWriter(path, keys["general.architecture"])
    for key, value in keys.items():
        _add_key(writer, key, value)
    kinds = {name: gguf.GGMLQuantizationType[WRITTEN[dtype]] for name, (_, dtype) in tensors.items()}
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
        return  # the writer has put it first
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
