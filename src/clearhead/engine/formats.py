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


def pack(form: str, matrix: Array, weights: Array, scales: Array, threads: int = 1) -> None:
    """Writes a matrix in a format.

    Args:
        form: one of `FORMATS`.
        matrix: float32 [rows, columns]
        weights, scales: one dimension, of the type and length that `storage` gives; they are filled.
        threads: how many share the work.

    Raises:
        InputError: where the format holds whole numbers and the matrix has a NaN or an infinity.
    """
    rows, columns = matrix.shape
    padded = padded_columns(columns)
    write = _WRITERS[form]
    panels = padded_rows(rows) // PANEL
    edges = [panels * part // threads for part in range(threads + 1)]

    def part(number: int) -> bool:
        room = np.empty((2, GROUP), np.float32)
        return bool(write(matrix, padded, edges[number], edges[number + 1], weights, scales, room))

    if threads == 1:
        fine = [part(0)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            fine = list(pool.map(part, range(threads)))
    if not all(fine):
        raise InputError(
            f"the weights hold numbers that are not finite, which {form} cannot store; "
            "look at them with `clearhead weights inspect`, or take float32."
        )


@entry
def _write_float32(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any, room: Any) -> bool:
    rows, columns = matrix.shape
    for panel in range(first, last):
        for row in range(panel * PANEL, min(rows, panel * PANEL + PANEL)):
            for i in range(columns):
                weights[place_of(row, padded, _FLOAT32, i)] = matrix[row, i]
    return True


@entry
def _write_bfloat16(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any, room: Any) -> bool:
    rows, columns = matrix.shape
    for panel in range(first, last):
        for row in range(panel * PANEL, min(rows, panel * PANEL + PANEL)):
            for i in range(columns):
                weights[place_of(row, padded, _BFLOAT16, i)] = round_to_bfloat16(matrix[row, i])
    return True


@entry
def _write_int8(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any, room: Any) -> bool:
    rows, columns = matrix.shape
    for panel in range(first, last):
        for row in range(panel * PANEL, min(rows, panel * PANEL + PANEL)):
            greatest = np.float32(0)
            for i in range(columns):
                if not np.isfinite(matrix[row, i]):
                    return False
                greatest = max(greatest, abs(matrix[row, i]))
            scales[row] = greatest / np.float32(127)
            inverse = np.float32(127) / greatest if greatest > 0 else np.float32(0)
            for i in range(columns):
                weights[place_of(row, padded, _INT8, i)] = np.int8(np.rint(matrix[row, i] * inverse))
    return True


_TRIALS = 12
"""Scales that int4 tries for each group, from 0.7 to 1.15 of the one that just reaches the greatest number."""


@entry
def _write_int4(matrix: Any, padded: int, first: int, last: int, weights: Any, scales: Any, room: Any) -> bool:
    rows, columns = matrix.shape
    group, whole = room[0], room[1]
    for panel in range(first, last):
        for row in range(panel * PANEL, min(rows, panel * PANEL + PANEL)):
            for number in range(padded // GROUP):
                here = place_of(row, padded, GROUP, number * GROUP) // GROUP
                for i in range(GROUP):
                    place = number * GROUP + i
                    group[i] = matrix[row, place] if place < columns else np.float32(0)
                    if not np.isfinite(group[i]):
                        return False
                scales[here] = _best_int4(group, whole)
                for i in range(GROUP // 2):
                    lower, upper = int(whole[i]), int(whole[GROUP // 2 + i])
                    weights[here * (GROUP // 2) + i] = np.uint8((lower & 15) | ((upper & 15) << 4))
    return True


@kernel
def _best_int4(group: Any, whole: Any) -> Any:
    """Fills `whole` with numbers from -8 to 7; returns the bfloat16 bits of the scale that goes with them.

    For whole numbers q the scale with the least squared error is sum(x q) / sum(q q), and the error is then
    sum(x x) - sum(x q)² / sum(q q): so the q with the greatest second term are the best.
    """
    extreme = np.float32(0)
    for i in range(len(group)):
        if abs(group[i]) > abs(extreme):
            extreme = group[i]
    if extreme == 0:
        for i in range(len(group)):
            whole[i] = np.float32(0)
        return np.uint16(0)
    best, best_inverse = np.float32(-1), np.float32(0)
    for trial in range(_TRIALS):
        # The extreme becomes -8, the number that has no opposite: so the side that reaches further has more room.
        inverse = np.float32(-8) / extreme * np.float32(0.7 + 0.45 * trial / (_TRIALS - 1))
        xq, qq = np.float32(0), np.float32(0)
        for i in range(len(group)):
            q = min(max(np.rint(group[i] * inverse), np.float32(-8)), np.float32(7))
            xq += group[i] * q
            qq += q * q
        if qq > 0 and xq * xq > best * qq:
            best, best_inverse = xq * xq / qq, inverse
    xq, qq = np.float32(0), np.float32(0)
    for i in range(len(group)):
        whole[i] = min(max(np.rint(group[i] * best_inverse), np.float32(-8)), np.float32(7))
        xq += group[i] * whole[i]
        qq += whole[i] * whole[i]
    return round_to_bfloat16(xq / qq)


_WRITERS: dict[str, Callable[..., bool]] = {
    "float32": _write_float32,
    "bfloat16": _write_bfloat16,
    "int8": _write_int8,
    "int4": _write_int4,
}
