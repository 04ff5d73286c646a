"""Rounding a matrix to int4 with little loss.

Sixteen levels are few, so each group's scale is searched, and a column's error is made up for by the columns after it
according to how the model uses its weights (see `calibration.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.engine.elementwise import round_to_bfloat16
from clearhead.engine.llvm import bits_as_float
from clearhead.engine.panels import COLUMNS, GROUP
from clearhead.utils.jit import entry

Array = npt.NDArray[Any]

_DAMPING = 0.01
"""Added to the diagonal of the moments, as a fraction of its mean, because the text is short."""


def error_feedback(columns: int, moments: Array | None) -> tuple[Array | None, Array]:
    """Return what int4 rounding needs of the moments H = X^T X of a matrix's inputs.

    H is split into U D U^T, where U is 1 on its diagonal and 0 below it, and D is 0 beside its diagonal. The squared
    error of a product with the inputs is then a sum over columns: D_k times the square of (column k's error and U_jk
    times the error of each column j before it). So a column is moved by what those before it have done, and then
    rounded. Chee et al. 2023 (QuIP), 3.1, who show that this is what GPTQ does (Frantar et al. 2023), without the
    inverse of H.

    Args:
        columns: of the matrix.
        moments: float32 [columns, columns], or None if nothing is known about the inputs.

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


def round_to_int4(matrix: Array, importance: Array, feedback: Array | None) -> tuple[Array, Array]:
    """Return integers from -8 to 7, int8 [columns, rows], and bfloat16 bits of scales, [groups, rows].

    Groups of columns are rounded from the first to the last. With feedback, a column is moved by the errors of those
    before it: by those of earlier groups in one product, by those of its own one by one.

    Args:
        matrix: float32 [columns, rows], transposed.
        importance: float32 [columns], what the squared error of each column counts: D.
        feedback: U without its diagonal, as `_use` makes it, or None.
    """
    columns, rows = matrix.shape
    whole = np.zeros((columns, rows), np.int8)
    scales = np.zeros(((columns + COLUMNS - 1) // COLUMNS * COLUMNS // GROUP, rows), np.uint16)
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
    """Round a group of columns one by one: fill `whole` and `errors`, and add the feedback within it to `wanted`."""
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
"""Scales that are tried for each group, from 0.7 to 1.15 times the one that just reaches the greatest number."""


@entry
def _best_scales(wanted: Any, importance: Any, scales: Any, scratch: Any) -> None:
    """Write the bits of the scale with the least error for each row of a group; of 0 if the row's numbers are all 0.

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
