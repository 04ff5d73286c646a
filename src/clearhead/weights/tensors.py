"""What a tensor on disk is: a name, a shape, a number format; and the formats that NumPy does not have.

bfloat16 is the upper half of a float32 (8 bits of exponent, 7 of mantissa). NumPy has no such type, so
its bits travel here as uint16 and are widened to float32, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from clearhead.errors import WeightsError

# The name of each number format with its NumPy type as it lies in a file (little-endian). bfloat16: its bits.
NUMPY_TYPES: dict[str, np.dtype] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The formats in which a weight may be stored."""

SAVED = ("float32", "float16", "bfloat16")
"""The formats in which Clearhead saves weights."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a stored tensor before its data is read.

    Attributes:
        shape: its dimensions, as stored.
        dtype: its number format, a key of `NUMPY_TYPES`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes it takes as stored."""
        return self.size * NUMPY_TYPES[self.dtype].itemsize


class TensorFile(Protocol):
    """A file (or several that belong together) of named tensors, opened but not read."""

    @property
    def path(self) -> Path:
        """The file that was opened; for shards, their index."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor inside, by its stored name."""

    def read(self, name: str) -> np.ndarray:
        """One tensor's values, as stored (bfloat16 widened to float32); a view of the file where that is possible.

        Raises:
            WeightsError: where the data cannot be read.
        """

    def remap(self) -> TensorFile:
        """The same file mapped anew (itself, where it is not mapped).

        What has been touched of a map counts as memory of the process until nothing refers to the map any more.
        """


def shape_words(shape: tuple[int, ...]) -> str:
    """A shape as it stands in messages and tables: `[768, 2304]`."""
    return "[" + ", ".join(map(str, shape)) + "]"


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bits (uint16, any shape): exact, the lower half is zero."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bits (uint16) nearest to float32 values, ties to even, as hardware rounds. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    not_a_number = np.isnan(values)
    if not_a_number.any():  # adding could have carried its mantissa into the exponent
        rounded[not_a_number] = ((bits[not_a_number] >> 16) | 0x0040).astype(np.uint16)
    return rounded


def encode(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Values in the number format in which they will be saved; a contiguous array in little-endian order.

    Args:
        values: any float array.
        dtype: one of `SAVED`; bfloat16 gives its bits, as uint16.
        name: the tensor's name, for the message.

    Raises:
        WeightsError: where a finite value is too large for float16.
    """
    if dtype == "bfloat16":
        return narrow_to_bfloat16(values.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):
        encoded = np.ascontiguousarray(values, NUMPY_TYPES[dtype])
    if dtype == "float16" and not np.isfinite(encoded).all() and np.isfinite(values).all():
        raise WeightsError(
            f"{name} holds {np.abs(values).max():.6g}, and float16 ends at 65504; save it as bfloat16 or float32."
        )
    return encoded
