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

from clearhead.engine.elementwise import round_to_bfloat16
from clearhead.engine.llvm import bits_as_float
from clearhead.engine.tiles import CHUNKS, COLUMNS, PANEL, place_of
from clearhead.errors import InputError
from clearhead.utils.jit import entry

GROUP = CHUNKS["int4"]
"""Numbers that share a scale in int4."""
_FLOAT32, _BFLOAT16, _INT8, _ = CHUNKS.values()

DTYPES = ("float32", "bfloat16", "int8", "int4")

Array = npt.NDArray[Any]


def padded_rows(rows: int) -> int:
    """Rows with those that fill up the last panel."""
    return (rows + PANEL - 1) // PANEL * PANEL


def padded_columns(columns: int) -> int:
    """Columns with those that fill up the last chunk."""
    return (columns + COLUMNS - 1) // COLUMNS * COLUMNS


def storage(dtype: str, rows: int, columns: int) -> dict[str, tuple[np.dtype[Any], int]]:
    """The types and sizes of a matrix's arrays: "weights" and "scales", each with how many numbers."""
    n = padded_rows(rows) * padded_columns(columns)
    nothing = (np.dtype(np.float32), 0)
    found: dict[str, dict[str, tuple[np.dtype[Any], int]]] = {
        "float32": {"weights": (np.dtype(np.float32), n), "scales": nothing},
        "bfloat16": {"weights": (np.dtype(np.uint16), n), "scales": nothing},
        "int8": {"weights": (np.dtype(np.int8), n), "scales": (np.dtype(np.float32), padded_rows(rows))},
        "int4": {"weights": (np.dtype(np.uint8), n // 2), "scales": (np.dtype(np.uint16), n // GROUP)},
    }
    return found[dtype]


def pack(
    dtype: str, matrix: Array, weights: Array, scales: Array, threads: int = 1, moments: Array | None = None
) -> None:
    """Writes a matrix in a format.

    Args:
        dtype: one of `DTYPES`.
        matrix: float32 [rows, columns], row by row or (a matrix that was stored turned) column by column.
        weights, scales: one dimension, of the type and length that `storage` gives; they are filled.
        threads: how many share the work.
        moments: for int4, float32 [columns, columns]: how the matrix is used (see `calibration.py`).

    Raises:
        InputError: where the format holds whole numbers and the matrix has a NaN or an infinity.
    """
    rows, columns = matrix.shape
    padded = padded_columns(columns)
    if dtype in ("int8", "int4") and not np.isfinite(matrix).all():
        raise InputError(
            f"the weights hold numbers that are not finite, which {dtype} cannot store; "
            "look at them with `clearhead weights inspect`, or take float32."
        )
    feedback, importance = _use(columns, moments if dtype == "int4" else None)

    def part(number: int) -> None:
        first, last = (padded_rows(rows) // PANEL * (number + i) // threads for i in (0, 1))
        if dtype == "int4":
            for start in range(first * PANEL, min(rows, last * PANEL), _ROWS):
                mine = matrix[start : min(rows, last * PANEL, start + _ROWS)]
                whole, own = _round_to_int4(np.ascontiguousarray(mine.T), importance, feedback)
                _write_int4(whole, own, start, padded, weights, scales)
        else:
            _WRITERS[dtype](matrix, padded, first, last, weights, scales)

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
_ROWS = 256
"""Rows that int4 rounds together. It has them turned, so that the numbers of eight rows lie side by side, for one
instruction; what is needed of 256 rows stays in the cache."""


def _use(columns: int, moments: Array | None) -> tuple[Array | None, Array]:
    """What int4 needs to know of the moments H = X^T X of a matrix's inputs.

    H is split into U D U^T, where U is 1 on its diagonal and 0 below it, and D is 0 beside its diagonal. The squared
    error of a product with the inputs is then a sum over columns: D_k times the square of (column k's error and U_jk
    times the error of each column j before it). So a column is moved by what those before it have done, and then
    rounded. Chee et al. 2023 (QuIP), 3.1, who show that this is what GPTQ does (Frantar et al. 2023), without the
    inverse of H.

    Args:
        columns: of the matrix.
        moments: float32 [columns, columns], or None where nothing is known of the inputs.

    Returns:
        U without its diagonal, float32 [columns, columns], and D, float32 [columns].
    """
    if moments is None:
        return None, np.ones(columns, np.float32)
    exact = moments.astype(np.float64)
    diagonal = np.diag(exact).copy()
    diagonal[diagonal == 0] = 1  # an input that is always 0
    exact[np.diag_indices_from(exact)] = diagonal + _DAMPING * diagonal.mean()
    # The usual factor has its zeros above the diagonal; of H with rows and columns backwards it is ours, backwards.
    factor = np.linalg.cholesky(exact[::-1, ::-1])[::-1, ::-1]
    root = np.diag(factor).copy()
    factor = np.asarray(factor / root, np.float32)
    np.fill_diagonal(factor, 0)
    return factor, np.asarray(root**2, np.float32)


def _round_to_int4(matrix: Array, importance: Array, feedback: Array | None) -> tuple[Array, Array]:
    """Whole numbers from -8 to 7, int8 [columns, rows], and bfloat16 bits of scales, [groups, rows].

    Groups of columns are rounded from the first to the last. With feedback, a column is moved by the errors of those
    before it: by those of earlier groups in one product, by those of its own one by one.

    Args:
        matrix: float32 [columns, rows], turned.
        importance: float32 [columns], what the squared error of each column counts: D.
        feedback: U without its diagonal, as `_use` makes it, or None.
    """
    columns, rows = matrix.shape
    whole = np.zeros((columns, rows), np.int8)
    scales = np.zeros((padded_columns(columns) // GROUP, rows), np.uint16)
    errors = np.zeros((columns, rows), np.float32)
    scratch = np.empty((4, rows), np.float32)
    for group, start in enumerate(range(0, columns, GROUP)):
        own = slice(start, min(columns, start + GROUP))
        wanted = matrix[own].copy()
        if feedback is not None and start > 0:
            wanted += feedback[:start, own].T @ errors[:start]
        _best_scales(wanted, importance[own], scales[group], scratch)
        inner = np.zeros((len(wanted), 0), np.float32) if feedback is None else np.ascontiguousarray(feedback[own, own])
        _round_group(matrix[own], wanted, inner, scales[group], whole[own], errors[own])
    return whole, scales


@entry
def _round_group(matrix: Any, wanted: Any, feedback: Any, scales: Any, whole: Any, errors: Any) -> None:
    """Rounds a group of columns one by one: fills `whole` and `errors`, changes `wanted` by the feedback within it."""
    columns, rows = matrix.shape
    for i in range(columns):
        for row in range(rows):
            scale = bits_as_float(np.int32(np.uint32(scales[row]) << np.uint32(16)))
            inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
            q = min(max(np.rint(wanted[i, row] * inverse), np.float32(-8)), np.float32(7))
            whole[i, row] = np.int8(q)
            errors[i, row] = matrix[i, row] - q * scale
        for j in range(i + 1, feedback.shape[1]):
            share = feedback[i, j]
            for row in range(rows):
                wanted[j, row] += share * errors[i, row]


_TRIALS = 12
"""Scales that int4 tries for each group, from 0.7 to 1.15 of the one that just reaches the greatest number."""


@entry
def _best_scales(wanted: Any, importance: Any, scales: Any, scratch: Any) -> None:
    """The bits of the scale with the least error for each row of a group; of 0 where the row's numbers are all 0.

    For whole numbers q the scale with the least squared error is sum(x q) / sum(q q), and the error is then
    sum(x x) - sum(x q)² / sum(q q): so the q with the greatest second term are the best. All sums by importance.
    """
    columns, rows = wanted.shape
    inverses, xq, qq, best = scratch
    for row in range(rows):
        inverses[row] = best[row] = np.float32(0)
        scales[row] = np.uint16(0)
    for i in range(columns):
        for row in range(rows):
            if abs(wanted[i, row]) > abs(inverses[row]):
                inverses[row] = wanted[i, row]
    for row in range(rows):
        # The extreme becomes -8, the number that has no opposite: so the side that reaches further has more room.
        inverses[row] = np.float32(-8) / inverses[row] if inverses[row] != 0 else np.float32(0)
    for trial in range(_TRIALS):
        reach = np.float32(0.7 + 0.45 * trial / (_TRIALS - 1))
        for row in range(rows):
            xq[row] = qq[row] = np.float32(0)
        for i in range(columns):
            for row in range(rows):
                q = np.rint(wanted[i, row] * (inverses[row] * reach))
                q = min(max(q, np.float32(-8)), np.float32(7))
                xq[row] += importance[i] * wanted[i, row] * q
                qq[row] += importance[i] * q * q
        for row in range(rows):
            if qq[row] > 0 and xq[row] * xq[row] > best[row] * qq[row]:
                best[row] = xq[row] * xq[row] / qq[row]
                scales[row] = round_to_bfloat16(xq[row] / qq[row])


@entry
def _write_int4(whole: Any, own: Any, first: int, padded: int, weights: Any, scales: Any) -> None:
    """Puts rows of whole numbers and their scales, turned, the first of which is row `first`, into the panels."""
    columns, rows = whole.shape
    for row in range(rows):
        for group in range((columns + GROUP - 1) // GROUP):
            here = place_of(first + row, padded, GROUP, group * GROUP) // GROUP
            scales[here] = own[group, row]
            for i in range(GROUP // 2):
                low, high = group * GROUP + i, group * GROUP + GROUP // 2 + i
                lower = whole[low, row] if low < columns else 0
                upper = whole[high, row] if high < columns else 0
                weights[here * (GROUP // 2) + i] = np.uint8((lower & 15) | ((upper & 15) << 4))


_WRITERS: dict[str, Callable[..., None]] = {
    "float32": _write_float32,
    "bfloat16": _write_bfloat16,
    "int8": _write_int8,
}
