"""Fill a matrix's arrays: round its numbers to a dtype (see `dtypes.py`), and write them to panels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.engine.elementwise import round_to_bfloat16
from clearhead.engine.llvm import bits_as_float
from clearhead.engine.panel_kernels import panel_index, scale_index
from clearhead.engine.panels import PANEL, SCALE_COLUMNS, padded_columns, padded_rows
from clearhead.engine.rounding import error_feedback, round_to_int4
from clearhead.errors import InputError
from clearhead.utils.jit import entry, inline

Array = npt.NDArray[Any]

_INT8_SHARED = SCALE_COLUMNS[np.dtype(np.uint8)]


def pack(
    dtype: str, matrix: Array, weights: Array, scales: Array, threads: int = 1, moments: Array | None = None
) -> None:
    """Write a matrix in a dtype.

    Args:
        dtype: one of `dtypes.DTYPES`.
        matrix: float32 [rows, columns], in C or Fortran order.
        weights, scales: one dimension, of the type and length that `dtypes.storage` gives; they are filled.
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
            round_to_int4(matrix, importance, feedback, first, last, weights, scales)
        elif dtype == "int8":
            write = _write_int8_quads if weights.dtype == np.uint8 else _write_int8_pairs
            write(matrix, padded, first, last, weights, scales)
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
def _write_int8_pairs(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any) -> None:
    """Write rows as int8 with a float32 scale for each."""
    columns = matrix.shape[1]
    for panel in range(first, last, PANEL):
        for row in range(panel, min(last, panel + PANEL)):
            greatest = np.float32(0)
            for column in range(columns):
                greatest = max(greatest, abs(matrix[row, column]))
            scales[row] = greatest / np.float32(127)
            for column in range(columns):
                weights[panel_index(row, column, padded, 4)] = _to_int8(matrix[row, column], scales[row])


@entry
def _write_int8_quads(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any) -> None:
    """Write rows as uint8 with zero point 128, and a bfloat16 scale for each 64 columns."""
    columns = matrix.shape[1]
    for panel in range(first, last, PANEL):
        for start in range(0, columns, _INT8_SHARED):
            stop = min(columns, start + _INT8_SHARED)
            for row in range(panel, min(last, panel + PANEL)):
                greatest = np.float32(0)
                for column in range(start, stop):
                    greatest = max(greatest, abs(matrix[row, column]))
                bits = round_to_bfloat16(greatest / np.float32(127))
                scales[scale_index(row, start, padded, _INT8_SHARED)] = bits
                scale = bits_as_float(np.int32(np.uint32(bits) << np.uint32(16)))
                for column in range(start, stop):
                    whole = _to_int8(matrix[row, column], scale) + np.int32(128)
                    weights[panel_index(row, column, padded, 4)] = np.uint8(whole)


@inline
def _to_int8(number: Any, scale: Any) -> Any:
    """Return a number divided by its scale and rounded, from -127 to 127."""
    whole = np.rint(number / scale) if scale > 0 else np.float32(0)
    return np.int32(min(max(whole, np.float32(-127)), np.float32(127)))
