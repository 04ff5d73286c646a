"""How the engine stores weights: four dtypes, and how numbers are rounded to each.

A matrix [rows, columns] becomes panels (see `products.py`), with rows and columns padded with zeros. What one weight
takes, with its share of a scale:

    float32     32 bits
    bfloat16    16 bits     the nearest number with 8 bits of mantissa
    int8        8.04 bits   integers from -127 to 127 times a scale per row (the row's greatest magnitude / 127)
    int4        4.5 bits    integers from -8 to 7 times a scale per group of 32, see `rounding.py`

How int8 and int4 lie in memory depends on the activations that they are multiplied by: pairs of columns for 16-bit
activations, quads for 8-bit ones.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.engine.elementwise import round_to_bfloat16
from clearhead.engine.products import COLUMNS, GROUPS, PANEL, group_index, nibble_index, panel_index
from clearhead.engine.rounding import error_feedback, round_to_int4
from clearhead.errors import InputError
from clearhead.utils.jit import entry

DTYPES = ("float32", "bfloat16", "int8", "int4")
ACTIVATIONS = ("8bit", "16bit")
"""How finely activations are rounded for int8 and int4 weights."""

Array = npt.NDArray[Any]

_INT4_ROWS = 256
"""Rows that are rounded to int4 together. They are transposed, so that one column's numbers of many rows lie side by
side in a vector, and fit into the cache."""


def padded_rows(rows: int) -> int:
    """Return the number of rows with those that fill up the last panel."""
    return (rows + PANEL - 1) // PANEL * PANEL


def padded_columns(columns: int) -> int:
    """Return the number of columns with those that fill up the last group."""
    return (columns + COLUMNS - 1) // COLUMNS * COLUMNS


def storage(dtype: str, activations: str, rows: int, columns: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """Return the types and sizes of a matrix's arrays, "weights" and "scales".

    The type of "weights" is different for each way to store weights; the kernels are chosen by it.
    """
    n = padded_rows(rows) * padded_columns(columns)
    quads = activations == "8bit"
    kind: type[np.generic]
    if dtype in ("float32", "bfloat16"):
        kind = np.float32 if dtype == "float32" else np.uint16
        return {"weights": (np.dtype(kind), n), "scales": (np.dtype(np.float32), 0)}
    if dtype == "int8":
        kind = np.uint8 if quads else np.int8
        return {"weights": (np.dtype(kind), n), "scales": (np.dtype(np.float32), padded_rows(rows))}
    kind = np.uint32 if quads else np.int32  # eight weights in each
    return {"weights": (np.dtype(kind), n // 8), "scales": (np.dtype(np.uint16), n // GROUPS["int4"])}


def pack(
    dtype: str, matrix: Array, weights: Array, scales: Array, threads: int = 1, moments: Array | None = None
) -> None:
    """Write a matrix in a dtype.

    Args:
        dtype: one of `DTYPES`.
        matrix: float32 [rows, columns], in C or Fortran order.
        weights, scales: one dimension, of the type and length that `storage` gives; they are filled.
        threads: how many share the work.
        moments: for int4, float32 [columns, columns]: how the matrix is used (see `calibration.py`).

    Raises:
        InputError: if the dtype holds integers and the matrix contains NaN or infinity.
    """
    rows, columns = matrix.shape
    padded = padded_columns(columns)
    if dtype in ("int8", "int4") and not np.isfinite(matrix).all():
        raise InputError(
            f"the weights contain NaN or infinity, which {dtype} cannot store; "
            "look at them with `clearhead weights inspect`, or load float32."
        )
    feedback, importance = error_feedback(columns, moments if dtype == "int4" else None)

    def write_part(part: int) -> None:
        first, last = (padded_rows(rows) // PANEL * (part + i) // threads * PANEL for i in (0, 1))
        last = min(rows, last)
        if dtype == "int4":
            side = 4 if weights.dtype == np.uint32 else 2
            for start in range(first, last, _INT4_ROWS):
                transposed = np.ascontiguousarray(matrix[start : min(last, start + _INT4_ROWS)].T)
                whole, own_scales = round_to_int4(transposed, importance, feedback)
                _write_int4(whole, own_scales, start, padded, side, weights.view(np.uint8), scales)
        elif dtype == "int8":
            side, zero_point = (4, 128) if weights.dtype == np.uint8 else (2, 0)
            _write_int8(matrix, padded, first, last, side, zero_point, weights, scales)
        else:
            _write_floats(matrix, padded, first, last, weights)

    if threads == 1:
        write_part(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(write_part, range(threads)))


@entry
def _write_floats(matrix: Any, padded: int, first: int, last: int, weights: Any) -> None:
    """Write rows as float32, or in pairs as bfloat16, by the type of `weights`."""
    columns = matrix.shape[1]
    for panel in range(first, last, PANEL):
        for column in range(columns):
            for row in range(panel, min(last, panel + PANEL)):
                if weights.itemsize == 4:
                    weights[panel_index(row, column, padded, 1)] = matrix[row, column]
                else:
                    weights[panel_index(row, column, padded, 2)] = round_to_bfloat16(matrix[row, column])


@entry
def _write_int8(
    matrix: Any, padded: int, first: int, last: int, side: int, zero_point: int, weights: Any, scales: Any
) -> None:
    columns = matrix.shape[1]
    for row in range(first, last):
        scales[row] = 0  # the greatest magnitude, for now
    for panel in range(first, last, PANEL):
        end = min(last, panel + PANEL)
        for column in range(columns):
            for row in range(panel, end):
                scales[row] = max(scales[row], abs(matrix[row, column]))
        for column in range(columns):
            for row in range(panel, end):
                inverse = np.float32(127) / scales[row] if scales[row] > 0 else np.float32(0)
                whole = np.int32(np.rint(matrix[row, column] * inverse)) + zero_point
                weights[panel_index(row, column, padded, side)] = whole
    for row in range(first, last):
        scales[row] /= np.float32(127)


@entry
def _write_int4(whole: Any, own: Any, first: int, padded: int, side: int, weights: Any, scales: Any) -> None:
    """Write transposed rows of integers and their scales, the first of which is row `first`, to the panels."""
    columns, rows = whole.shape
    for row in range(rows):
        for group in range(own.shape[0]):
            scales[group_index(first + row, group * _GROUP, padded)] = own[group, row]
        for column in range(columns):
            index, shift = nibble_index(first + row, column, padded, side)
            weights[index] |= np.uint8((whole[column, row] + 8) << shift)


_GROUP = GROUPS["int4"]
