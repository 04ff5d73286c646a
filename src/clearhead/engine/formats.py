"""How the engine stores weights: four formats, and how numbers are rounded to each.

A matrix [rows, columns] becomes panels (see `tiles.py`): rows are filled up with zeros to a multiple of 4, columns to
a multiple of 32. What one weight costs, with its share of a scale:

    float32     32 bits
    bfloat16    16 bits     the nearest number with 8 bits of mantissa
    int8        8.04 bits   whole numbers from -127 to 127 times a scale a row (the row's greatest magnitude / 127)
    int4        4.5 bits    whole numbers from -8 to 7 times a scale a group of 32, chosen for the
                           least squared error
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.compiling import entry, kernel
from clearhead.engine.elementwise import round_to_bfloat16
from clearhead.engine.llvm import bits_as_float
from clearhead.engine.tiles import CHUNKS, COLUMNS, PANEL, place_of
from clearhead.errors import InputError

GROUP = CHUNKS["int4"]
"""Numbers that share a scale in int4."""
_FLOAT32, _BFLOAT16, _INT8, _ = CHUNKS.values()

FORMATS = ("float32", "bfloat16", "int8", "int4")

Array = npt.NDArray[Any]


def padded_rows(rows: int) -> int:
    """Rows with those that fill up the last panel."""
    return (rows + PANEL - 1) // PANEL * PANEL


def padded_columns(columns: int) -> int:
    """Columns with those that fill up the last chunk."""
    return (columns + COLUMNS - 1) // COLUMNS * COLUMNS


def storage(form: str, rows: int, columns: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """The types and sizes of a matrix's arrays: "weights" and "scales", each with how many numbers."""
    n = padded_rows(rows) * padded_columns(columns)
    nothing = (np.dtype(np.float32), 0)
    found: dict[str, dict[str, tuple[np.dtype[Any], int]]] = {
        "float32": {"weights": (np.dtype(np.float32), n), "scales": nothing},
        "bfloat16": {"weights": (np.dtype(np.uint16), n), "scales": nothing},
        "int8": {"weights": (np.dtype(np.int8), n), "scales": (np.dtype(np.float32), padded_rows(rows))},
        "int4": {"weights": (np.dtype(np.uint8), n // 2), "scales": (np.dtype(np.uint16), n // GROUP)},
    }
    return found[form]


def pack(
    form: str, matrix: Array, weights: Array, scales: Array, threads: int = 1, moments: Array | None = None
) -> None:
    """Writes a matrix in a format.

    Args:
        form: one of `FORMATS`.
        matrix: float32 [rows, columns], row by row or (a matrix that was stored turned) column by column.
        weights, scales: one dimension, of the type and length that `storage` gives; they are filled.
        threads: how many share the work.
        moments: for int4, float32 [columns, columns]: how the matrix is used (see `calibration.py`).

    Raises:
        InputError: where the format holds whole numbers and the matrix has a NaN or an infinity.
    """
    rows, columns = matrix.shape
    padded = padded_columns(columns)
    if form in ("int8", "int4") and not np.isfinite(matrix).all():
        raise InputError(
            f"the weights hold numbers that are not finite, which {form} cannot store; "
            "look at them with `clearhead weights inspect`, or take float32."
        )
    if form == "int4":
        feedback = None if moments is None else _feedback(moments)
        importance = np.ones(columns, np.float32) if moments is None else np.diag(moments).astype(np.float32)

    def part(number: int) -> None:
        first, last = (padded_rows(rows) // PANEL * (number + i) // threads for i in (0, 1))
        if form == "int4":
            mine = slice(first * PANEL, min(rows, last * PANEL))
            whole, own = _round_to_int4(np.array(matrix[mine], order="C"), importance, feedback)
            _write_int4(whole, own, first * PANEL, padded, weights, scales)
        else:
            _WRITERS[form](matrix, padded, first, last, weights, scales)

    if threads == 1:
        part(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(threads)))


_TOGETHER = 8
"""Panels that are written in turn, a chunk of each: where a matrix lies column by column, 32 numbers of a column then
come from two lines of the cache."""


@entry
def _write_float32(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any) -> None:
    rows, columns = matrix.shape
    together = PANEL * (1 if matrix.strides[1] == matrix.itemsize else _TOGETHER)
    for block in range(first * PANEL, min(rows, last * PANEL), together):
        for start in range(0, columns, _FLOAT32):
            for row in range(block, min(rows, last * PANEL, block + together)):
                here = place_of(row, padded, _FLOAT32, start)
                if start + _FLOAT32 <= columns:
                    for i in range(_FLOAT32):  # a number of turns that the compiler knows
                        weights[here + i] = matrix[row, start + i]
                else:
                    for i in range(columns - start):
                        weights[here + i] = matrix[row, start + i]


@entry
def _write_bfloat16(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any) -> None:
    rows, columns = matrix.shape
    together = PANEL * (1 if matrix.strides[1] == matrix.itemsize else _TOGETHER)
    for block in range(first * PANEL, min(rows, last * PANEL), together):
        for start in range(0, columns, _BFLOAT16):
            for row in range(block, min(rows, last * PANEL, block + together)):
                here = place_of(row, padded, _BFLOAT16, start)
                for i in range(min(_BFLOAT16, columns - start)):
                    weights[here + i] = round_to_bfloat16(matrix[row, start + i])


@entry
def _write_int8(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any) -> None:
    rows, columns = matrix.shape
    together = PANEL * (1 if matrix.strides[1] == matrix.itemsize else _TOGETHER)
    for block in range(first * PANEL, min(rows, last * PANEL), together):
        end = min(rows, last * PANEL, block + together)
        for row in range(block, end):
            scales[row] = 0  # the greatest magnitude, for now
        for start in range(0, columns, _INT8):
            for row in range(block, end):
                for i in range(start, min(start + _INT8, columns)):
                    scales[row] = max(scales[row], abs(matrix[row, i]))
        for start in range(0, columns, _INT8):
            for row in range(block, end):
                inverse = np.float32(127) / scales[row] if scales[row] > 0 else np.float32(0)
                here = place_of(row, padded, _INT8, start)
                for i in range(min(_INT8, columns - start)):
                    weights[here + i] = np.int8(np.rint(matrix[row, start + i] * inverse))
        for row in range(block, end):
            scales[row] /= np.float32(127)


_DAMPING = 0.01
"""Added to the diagonal of the moments, as a share of its mean: the text is short, and the moments are not exact."""


def _feedback(moments: Array) -> Array:
    """The upper Cholesky factor of the moments' inverse, float32 [columns, columns].

    Row i says how the error of column i is made up for by the columns after it. Frantar et al. 2023 (GPTQ), 3.3.
    """
    exact = moments.astype(np.float64)
    diagonal = np.diag(exact).copy()
    diagonal[diagonal == 0] = 1  # an input that is always 0
    exact[np.diag_indices_from(exact)] = diagonal + _DAMPING * diagonal.mean()
    return np.linalg.cholesky(np.linalg.inv(exact)).T.astype(np.float32)


def _round_to_int4(matrix: Array, importance: Array, feedback: Array | None) -> tuple[Array, Array]:
    """Whole numbers from -8 to 7, int8 [rows, columns], and bfloat16 bits of scales, [rows, groups].

    Groups are rounded from left to right. With feedback, the error of each column is spread over the columns after it:
    within the group one by one, over the rest as one product.

    Args:
        matrix: float32 [rows, columns]; it is changed.
        importance: float32 [columns], what the squared error of each column counts.
        feedback: as `_feedback` makes it, or None.
    """
    rows, columns = matrix.shape
    whole = np.zeros((rows, columns), np.int8)
    scales = np.zeros((rows, padded_columns(columns) // GROUP), np.uint16)
    for group, start in enumerate(range(0, columns, GROUP)):
        end = min(columns, start + GROUP)
        errors = np.zeros((rows, end - start), np.float32)
        inner = np.eye(end - start, dtype=np.float32) if feedback is None else feedback[start:end, start:end]
        _round_group(
            matrix[:, start:end],
            importance[start:end],
            np.ascontiguousarray(inner),
            whole[:, start:end],
            scales[:, group],
            errors,
        )
        if feedback is not None and end < columns:
            matrix[:, end:] -= errors @ feedback[start:end, end:]
    return whole, scales


@entry
def _round_group(matrix: Any, importance: Any, feedback: Any, whole: Any, scales: Any, errors: Any) -> None:
    """Rounds a group of columns: fills `whole`, `scales` and `errors`, changes `matrix` by the feedback within it."""
    rows, columns = matrix.shape
    for row in range(rows):
        inverse = _best_scale(matrix, row, columns, importance)
        scales[row] = round_to_bfloat16(np.float32(1) / inverse) if inverse != 0 else np.uint16(0)
        scale = bits_as_float(np.int32(np.uint32(scales[row]) << np.uint32(16)))
        for i in range(columns):
            x = matrix[row, i]
            q = min(max(np.rint(x / scale), np.float32(-8)), np.float32(7)) if scale != 0 else np.float32(0)
            whole[row, i] = np.int8(q)
            errors[row, i] = (x - q * scale) / feedback[i, i]
            for j in range(i + 1, columns):
                matrix[row, j] -= errors[row, i] * feedback[i, j]


_TRIALS = 12
"""Scales that int4 tries for each group, from 0.7 to 1.15 of the one that just reaches the greatest number."""


@kernel
def _best_scale(matrix: Any, row: int, columns: int, importance: Any) -> Any:
    """One over the scale with the least error for the numbers of a row; 0 where they are all 0.

    For whole numbers q the scale with the least squared error is sum(x q) / sum(q q), and the error is then
    sum(x x) - sum(x q)² / sum(q q): so the q with the greatest second term are the best. All sums by importance.
    """
    extreme = np.float32(0)
    for i in range(columns):
        if abs(matrix[row, i]) > abs(extreme):
            extreme = matrix[row, i]
    if extreme == 0:
        return np.float32(0)
    best, found = np.float32(-1), np.float32(0)
    for trial in range(_TRIALS):
        # The extreme becomes -8, the number that has no opposite: so the side that reaches further has more room.
        inverse = np.float32(-8) / extreme * np.float32(0.7 + 0.45 * trial / (_TRIALS - 1))
        xq, qq = np.float32(0), np.float32(0)
        for i in range(columns):
            q = min(max(np.rint(matrix[row, i] * inverse), np.float32(-8)), np.float32(7))
            xq += importance[i] * matrix[row, i] * q
            qq += importance[i] * q * q
        if qq > 0 and xq * xq > best * qq:
            best, found = xq * xq / qq, qq / xq
    return found


@entry
def _write_int4(whole: Any, own: Any, first: int, padded: int, weights: Any, scales: Any) -> None:
    """Puts rows of whole numbers and their scales, the first of which is row `first`, into the panels."""
    rows, columns = whole.shape
    for row in range(rows):
        for group in range((columns + GROUP - 1) // GROUP):
            here = place_of(first + row, padded, GROUP, group * GROUP) // GROUP
            scales[here] = own[row, group]
            for i in range(GROUP // 2):
                low, high = group * GROUP + i, group * GROUP + GROUP // 2 + i
                lower = whole[row, low] if low < columns else 0
                upper = whole[row, high] if high < columns else 0
                weights[here * (GROUP // 2) + i] = np.uint8((lower & 15) | ((upper & 15) << 4))


_WRITERS: dict[str, Callable[..., None]] = {
    "float32": _write_float32,
    "bfloat16": _write_bfloat16,
    "int8": _write_int8,
}
