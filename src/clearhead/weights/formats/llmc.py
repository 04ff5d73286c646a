"""Read and write llm.c's `.bin`: a header of 256 integers, then every tensor without gaps, the blocks' stacked.

The header is little-endian int32: [0] 20240326, [1] the version, 3 for float32 and 5 for bfloat16, [2] the
context length, [3] the vocabulary, [4] layers, [5] heads, [6] emb_dim, [7] the vocabulary as padded to a multiple
of 128 with rows of zeros. Source: `gpt2_build_from_checkpoint` in llm.c's train_gpt2.c, whose names for the
tensors are in the table of layouts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import ConfigError, WeightsError
from clearhead.weights.formats.sniff import check_is_data
from clearhead.weights.layouts import TABLE, axis_sizes, layout_tensors
from clearhead.weights.tensors import NUMPY_TYPES, TensorInfo, widen_bfloat16

MAGIC = 20240326
_VERSIONS = {3: "float32", 5: "bfloat16"}
_HEADER_NUMBERS = 256
_HEADER_BYTES = 4 * _HEADER_NUMBERS
_PAD_TO = 128  # rows of the token embedding: a multiple that suits a GPU's matrix units


def padded_vocabulary(vocab_size: int) -> int:
    """Return how many rows the token embedding has in a file."""
    return -(-vocab_size // _PAD_TO) * _PAD_TO


class LlmcFile:
    """An llm.c file: the header is read and checked, the data is mapped into memory.

    Attributes:
        path: the file.
        config: the model's shape, from the header.
        tensors: every tensor; the token embedding without its padding rows.
        read: returns one tensor, a view of the file; bfloat16 is widened to float32. `read.layer(name, i)`
            returns one layer of a stack.

    Raises:
        WeightsError: if the file is cut short, damaged, or not from llm.c.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_is_data(path)
        header = _read_header(path)
        self.config, dtype = _config(path, header)
        rows = {"wte": _padded_rows(path, header)}
        self.tensors: dict[str, TensorInfo] = {}
        begins: dict[str, int] = {}
        end = _HEADER_BYTES
        for name, shape in stored_shapes(self.config):
            self.tensors[name] = TensorInfo(shape, dtype)
            begins[name] = end
            end += TensorInfo((rows.get(name, shape[0]), *shape[1:]), dtype).nbytes
        _check_size(path, end)
        self._begins = begins
        self.read = LlmcReader(path, self.tensors, begins)

    def remap(self) -> LlmcFile:
        """Map the same file again; see `TensorFile.remap`."""
        other = copy.copy(self)
        other.read = LlmcReader(self.path, self.tensors, self._begins)
        return other


class LlmcReader:
    """Reads tensors, or single layers of them, by name."""

    def __init__(self, path: Path, tensors: dict[str, TensorInfo], begins: dict[str, int]) -> None:
        # Copy-on-write: changes in memory never reach the file.
        self._data = np.memmap(path, np.uint8, mode="c")
        self._tensors, self._begins = tensors, begins

    def __call__(self, name: str) -> np.ndarray:
        """Return one tensor."""
        return self._values(name, self._view(name))

    def layer(self, name: str, layer: int) -> np.ndarray:
        """Return one layer of a stack, without the first dimension."""
        return self._values(name, self._view(name)[layer])

    def _view(self, name: str) -> np.ndarray:
        info, begin = self._tensors[name], self._begins[name]
        flat = np.asarray(self._data[begin : begin + info.nbytes])
        return flat.view(NUMPY_TYPES[info.dtype]).reshape(info.shape)

    def _values(self, name: str, stored: np.ndarray) -> np.ndarray:
        return widen_bfloat16(stored) if self._tensors[name].dtype == "bfloat16" else stored


def stored_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor's name and shape, in the order of the file; the token embedding without its padding."""
    sizes = axis_sizes(config)
    for row in TABLE:
        for piece in layout_tensors(row, "llmc", config.n_layers):
            yield piece.name, piece.shape(sizes)


def _read_header(path: Path) -> list[int]:
    with path.open("rb") as file:
        data = file.read(_HEADER_BYTES)
    first = int.from_bytes(data[:4], "little")
    if len(data) >= 4 and first != MAGIC:
        raise WeightsError(f"{path} is not an llm.c file: its first number is {first}, and {MAGIC} was expected.")
    if len(data) < _HEADER_BYTES:
        raise WeightsError(
            f"{path} is cut short: the header of an llm.c file has {_HEADER_BYTES:,} bytes and the file "
            f"{len(data):,}, {_HEADER_BYTES - len(data):,} too few; copy it again."
        )
    return [int(number) for number in np.frombuffer(data, "<i4")]


def _config(path: Path, header: list[int]) -> tuple[GPTConfig, str]:
    if header[1] not in _VERSIONS:
        known = " and ".join(f"{version} ({dtype})" for version, dtype in _VERSIONS.items())
        raise WeightsError(f"{path} is llm.c version {header[1]}; Clearhead reads {known}.")
    try:
        config = GPTConfig(
            context_length=header[2],
            vocab_size=header[3],
            n_layers=header[4],
            n_heads=header[5],
            emb_dim=header[6],
            qkv_bias=True,
            tie_weights=True,
        )
    except ConfigError as error:
        raise WeightsError(f"the header of {path} is invalid: {error}") from None
    return config, _VERSIONS[header[1]]


def _padded_rows(path: Path, header: list[int]) -> int:
    if header[7] < header[3]:
        raise WeightsError(
            f"the header of {path} is invalid: it pads a vocabulary of {header[3]} to {header[7]}, which is smaller."
        )
    return header[7]


def _check_size(path: Path, due: int) -> None:
    size = path.stat().st_size
    if size < due:
        raise WeightsError(
            f"{path} is cut short: the model in its header takes {due:,} bytes and the file has {size:,}, "
            f"{due - size:,} too few; copy it again."
        )
    if size > due:
        raise WeightsError(
            f"{path} does not match its header: the model there takes {due:,} bytes and {size - due:,} more "
            "follow; it is damaged, or not an llm.c model."
        )


def write_llmc(path: Path, config: GPTConfig, dtype: str, data: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write an llm.c file with one layer of a tensor in memory at a time.

    Args:
        path: the file; it is written in place, so give a temporary name.
        config: the model's shape.
        dtype: `float32` or `bfloat16`.
        data: every tensor of `stored_shapes`, in that order, each as one array or as several in a row
            under the same name; contiguous, of the type that `NUMPY_TYPES` has for the dtype.
    """
    versions = {dtype: version for version, dtype in _VERSIONS.items()}
    rows = padded_vocabulary(config.vocab_size)
    header = np.zeros(_HEADER_NUMBERS, "<i4")
    header[:8] = (
        MAGIC,
        versions[dtype],
        config.context_length,
        config.vocab_size,
        config.n_layers,
        config.n_heads,
        config.emb_dim,
        rows,
    )
    left = {name: TensorInfo(shape, dtype).nbytes for name, shape in stored_shapes(config)}
    order = iter(left)
    current = next(order)
    with path.open("wb") as file:
        file.write(header.tobytes())
        for name, array in data:
            if name != current:
                current = next(order)
            if name != current or array.nbytes > left[name] or array.dtype != NUMPY_TYPES[dtype]:
                raise ValueError(f"{name} {array.dtype} {array.shape} does not follow; {left[current]} of {current}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            left[name] -= array.nbytes
            if name == "wte" and not left[name]:
                file.write(bytes(TensorInfo((rows - config.vocab_size, config.emb_dim), dtype).nbytes))
        if any(left.values()):
            raise ValueError(f"data is missing: {left}")
