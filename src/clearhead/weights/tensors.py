"""Tensors on disk: shape and dtype, what a file of tensors offers, and bfloat16, which NumPy lacks.

bfloat16 is the upper half of a float32 (8 bits of exponent, 7 of mantissa). NumPy has no such type, so its bits are
kept as uint16 and widened to float32, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clearhead.errors import WeightsError

NUMPY_TYPES: dict[str, np.dtype[Any]] = {
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
"""The NumPy type of each dtype as it is stored (little-endian); for bfloat16, of its bits."""

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The dtypes in which a weight may be stored."""

SAVED = ("float32", "float16", "bfloat16")
"""The dtypes in which Clearhead saves weights."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The shape and the dtype of a stored tensor, known before its data is read.

    Attributes:
        shape: its dimensions, as stored.
        dtype: a key of `NUMPY_TYPES`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The stored size in bytes."""
        return self.size * NUMPY_TYPES[self.dtype].itemsize


class TensorFile(Protocol):
    """A file of named tensors, or several that belong together, opened but not read."""

    @property
    def path(self) -> Path:
        """The file that was opened; the index if there are shards."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor inside, by its stored name."""

    def read(self, name: str) -> npt.NDArray[Any]:
        """Return one tensor as stored (bfloat16 widened to float32); a view of the file if possible.

        Raises:
            WeightsError: if the data cannot be read.
        """

    def remap(self) -> TensorFile:
        """Return the same file, memory-mapped anew (itself if it is not mapped).

        Pages of a map that were read count as memory of the process until nothing refers to the map any more.
        """


def shape_words(shape: tuple[int, ...]) -> str:
    """Return a shape as messages and tables show it: `[768, 2304]`."""
    return "[" + ", ".join(map(str, shape)) + "]"


def widen_bfloat16(bits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the float32 values of bfloat16 bits (uint16, any shape); this is exact, as the lower half is zero."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def narrow_to_bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the bfloat16 bits (uint16) nearest to float32 values, ties to even, as hardware rounds. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    is_nan = np.isnan(values)
    if is_nan.any():  # adding could have carried its mantissa into the exponent
        rounded[is_nan] = ((bits[is_nan] >> 16) | 0x0040).astype(np.uint16)
    return rounded


def encode(values: npt.NDArray[Any], dtype: str, name: str) -> npt.NDArray[Any]:
    """Return values in the dtype in which they will be saved: a contiguous little-endian array.

    Args:
        values: any float array.
        dtype: one of `SAVED`; bfloat16 is returned as its bits, uint16.
        name: the tensor's name, for the message.

    Raises:
        WeightsError: if a finite value is too large for float16.
    """
    if dtype == "bfloat16":
        return narrow_to_bfloat16(values.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):
        encoded = np.ascontiguousarray(values, NUMPY_TYPES[dtype])
    if dtype == "float16" and not np.isfinite(encoded).all() and np.isfinite(values).all():
        raise WeightsError(
            f"{name} holds {np.abs(values).max():.6g}, but float16 ends at 65504; save it as bfloat16 or float32."
        )
    return encoded
