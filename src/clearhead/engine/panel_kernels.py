"""Where a number of a matrix lies in panels (see `panels.py`), and how a row is read out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from clearhead.engine.llvm import bits_as_float
from clearhead.engine.panels import GROUP, PANEL, SCALE_COLUMNS
from clearhead.utils.jit import inline

_INT8_SHARED = SCALE_COLUMNS[np.dtype(np.uint8)]


@inline
def panel_index(row: int, column: int, columns: int, side: int) -> int:
    """Return the index of a number in panels with `side` columns of a row side by side."""
    lane_group = row // PANEL * columns // side + column // side
    return (lane_group * PANEL + row % PANEL) * side + column % side


@inline
def scale_index(row: int, column: int, columns: int, shared: int) -> int:
    """Return the index of the scale that `shared` columns of a row have together."""
    return (row // PANEL * (columns // shared) + column // shared) * PANEL + row % PANEL


@inline
def nibble_index(row: int, column: int, columns: int, side: int) -> tuple[int, int]:
    """Return the index of the byte of an int4 number, and by how many bits it is shifted there."""
    inside = column % GROUP
    half = GROUP // 2
    group = row // PANEL * (columns // GROUP) + column // GROUP
    step, high = inside % half // side, inside // half
    return (group * half + step * side) * PANEL + row % PANEL * side + inside % side, 4 * high


def read_row(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    """Write one row of a matrix in panels to out[to, :width], as float32."""


@overload(read_row, inline="never")
def _read_row(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    return {
        types.float32: _read_float32,
        types.uint16: _read_bfloat16,
        types.int8: _read_int8_pairs,
        types.uint8: _read_int8_quads,
        types.int32: _read_int4_pairs,
        types.uint32: _read_int4_quads,
    }[weights.dtype]


def _read_float32(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = weights[panel_index(row, i, columns, 1)]


def _read_bfloat16(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = _widened(weights[panel_index(row, i, columns, 2)])


def _read_int8_pairs(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = np.float32(weights[panel_index(row, i, columns, 4)]) * scales[row]


def _read_int8_quads(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        scale = _widened(scales[scale_index(row, i, columns, _INT8_SHARED)])
        out[to, i] = np.float32(np.int32(weights[panel_index(row, i, columns, 4)]) - 128) * scale


def _read_int4_pairs(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = _read_nibble(weights, scales, row, i, columns, 2)


def _read_int4_quads(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = _read_nibble(weights, scales, row, i, columns, 4)


@inline
def _widened(bits: Any) -> Any:
    """Return the float32 that a bfloat16's bits stand for."""
    return bits_as_float(np.int32(np.uint32(bits) << np.uint32(16)))


@inline
def _read_nibble(weights: Any, scales: Any, row: int, column: int, columns: int, side: int) -> Any:
    """Read an int4 number from an array of 32-bit words."""
    index, shift = nibble_index(row, column, columns, side)
    number = (np.int64(weights[index // 4]) >> (index % 4 * 8 + shift)) & 15
    return np.float32(number - 8) * _widened(scales[scale_index(row, column, columns, GROUP)])
