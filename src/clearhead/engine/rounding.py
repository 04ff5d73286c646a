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
from clearhead.engine.panel_kernels import nibble_index, scale_index
from clearhead.engine.panels import GROUP, PANEL, padded_columns
from clearhead.engine.products import multiply_floats
from clearhead.utils.jit import entry, inline, kernel

Array = npt.NDArray[Any]
with_padding = inline(padded_columns)

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
        U^T without its diagonal, float32 [columns, columns with padding], and D, float32 [columns].
    """
    if moments is None:
        return None, np.ones(columns, np.float32)
    diagonal = np.diag(moments).astype(np.float64)
    diagonal[diagonal == 0] = 1  # an input that is always 0
    diagonal += _DAMPING * diagonal.mean()
    feedback = np.zeros((columns, padded_columns(columns)), np.float32)
    _factor_backwards(moments, diagonal, feedback)
    root = np.diag(feedback).copy()
    feedback /= root[:, None]
    np.fill_diagonal(feedback, 0)
    return feedback, root**2


_FACTOR_BLOCK = 128
"""Columns of a factor that are found together; all but a small corner of them by products of matrices."""


def _factor_backwards(moments: Array, diagonal: Array, found: Array) -> None:
    """Write R^T to `found`, where R R^T is the moments with another diagonal, and R is 0 below its own diagonal.

    The usual factor has its zeros above the diagonal; that of a matrix with rows and columns backwards is ours,
    backwards.
    """
    for stop in range(len(diagonal), 0, -_FACTOR_BLOCK):
        own = slice(max(0, stop - _FACTOR_BLOCK), stop)
        rest = moments[own, :stop].copy()
        np.fill_diagonal(rest[:, own], diagonal[own])
        rest -= found[stop:, own].T @ found[stop:, :stop]
        corner = np.linalg.cholesky(rest[::-1, own][:, ::-1].astype(np.float64))[::-1, ::-1]
        found[own, :stop] = np.linalg.inv(corner).astype(np.float32) @ rest
        found[own, own] = corner.T


def round_to_int4(
    matrix: Array, importance: Array, feedback: Array | None, first: int, last: int, weights: Array, scales: Array
) -> None:
    """Write the rows from `first` to before `last` of a matrix as int4, panel by panel.

    Groups of columns are rounded from the first to the last. With feedback, a column is moved by the errors of those
    before it: by those of earlier groups in one product, by those of its own one by one.

    Args:
        matrix: float32 [rows, columns].
        importance: float32 [columns], what the squared error of each column counts: D.
        feedback: U^T without its diagonal, as `error_feedback` makes it, or None.
        first, last: of the rows; `first` is where a panel begins.
        weights, scales: the panels, as `dtypes.storage` describes them.
    """
    columns = matrix.shape[1]
    padded = padded_columns(columns)
    side = 4 if weights.dtype == np.uint32 else 2
    # A panel's rows lie side by side, so that one column of all is some vectors.
    panel = np.zeros((padded, PANEL), np.float32)
    errors, zeros = np.zeros((padded, PANEL), np.float32), np.zeros(PANEL, np.float32)
    known = np.zeros((0, 0), np.float32) if feedback is None else feedback
    scratch = np.zeros((GROUP + 5, PANEL), np.float32)
    for start in range(first, last, PANEL):
        rows = matrix[start : min(last, start + PANEL)]
        panel[:columns, : len(rows)] = rows.T
        panel[:, len(rows) :] = 0
        errors[:] = 0
        _round_panel(panel, importance, known, start, side, errors, zeros, scratch, weights.view(np.uint8), scales)


@entry
def _round_panel(
    panel: Any,
    importance: Any,
    feedback: Any,
    first: int,
    side: int,
    errors: Any,
    zeros: Any,
    scratch: Any,
    weights: Any,
    scales: Any,
) -> None:
    """Round the rows of one panel, float32 [columns with padding, PANEL], the first of which is row `first`.

    Args:
        errors: of the panel's size, 0; each column's are written when it is rounded.
        zeros: float32 [PANEL].
        scratch: float32 [GROUP + 5, PANEL].
        weights, scales: the matrix's, in which the results are written.
    """
    columns, padded = len(importance), len(panel)
    wanted, scale = scratch[:GROUP], scratch[GROUP + 4]
    for start in range(0, columns, GROUP):
        own = min(GROUP, columns - start)
        if start > 0 and len(feedback) > 0:  # what lies beyond the columns before is 0 still in `errors`
            multiply_floats(errors, zeros, min(padded, with_padding(start)), feedback, start, start + own, wanted)
        else:
            wanted[:] = np.float32(0)
        for i in range(own):
            for row in range(PANEL):
                wanted[i, row] += panel[start + i, row]
        _best_scales(wanted, importance, start, own, scratch)
        for row in range(PANEL):
            bits = round_to_bfloat16(scale[row])
            scales[scale_index(first + row, start, padded, GROUP)] = bits
            scale[row] = bits_as_float(np.int32(np.uint32(bits) << np.uint32(16)))
        _round_group(panel, wanted, feedback, start, own, scale, errors, first, padded, side, weights)


@kernel
def _round_group(
    panel: Any,
    wanted: Any,
    feedback: Any,
    start: int,
    own: int,
    scale: Any,
    errors: Any,
    first: int,
    padded: int,
    side: int,
    weights: Any,
) -> None:
    """Round a group of columns one by one: write them, fill `errors`, and move the columns after each."""
    for i in range(own):
        for row in range(PANEL):
            inverse = np.float32(1) / scale[row] if scale[row] != 0 else np.float32(0)
            q = min(max(np.rint(wanted[i, row] * inverse), np.float32(-8)), np.float32(7))
            errors[start + i, row] = panel[start + i, row] - q * scale[row]
            index, shift = nibble_index(first + row, start + i, padded, side)
            weights[index] |= np.uint8((np.int32(q) + 8) << shift)
        if len(feedback) > 0:
            for j in range(i + 1, own):
                share = feedback[start + j, start + i]
                for row in range(PANEL):
                    wanted[j, row] += share * errors[start + i, row]


_TRIALS = 12
"""Scales that are tried for each group, from 0.7 to 1.15 times the one that just reaches the greatest number."""


@kernel
def _best_scales(wanted: Any, importance: Any, start: int, own: int, scratch: Any) -> None:
    """Write the scale with the least error for each row of a group to the scratch's last row; 0 if its numbers are 0.

    For whole numbers q the scale with the least squared error is sum(x q) / sum(q q), and the error is then
    sum(x x) - sum(x q)² / sum(q q): so the q with the greatest second term are the best. All sums by importance.
    """
    inverses, xq, qq, best, scale = (
        scratch[GROUP],
        scratch[GROUP + 1],
        scratch[GROUP + 2],
        scratch[GROUP + 3],
        scratch[GROUP + 4],
    )
    for row in range(PANEL):
        inverses[row] = best[row] = scale[row] = np.float32(0)
    for i in range(own):
        for row in range(PANEL):
            if abs(wanted[i, row]) > abs(inverses[row]):
                inverses[row] = wanted[i, row]
    for row in range(PANEL):
        # The extreme becomes -8, the number that has no opposite: so the side that reaches further has more room.
        inverses[row] = np.float32(-8) / inverses[row] if inverses[row] != 0 else np.float32(0)
    for trial in range(_TRIALS):
        reach = np.float32(0.7 + 0.45 * trial / (_TRIALS - 1))
        for row in range(PANEL):
            xq[row] = qq[row] = np.float32(0)
        for i in range(own):
            for row in range(PANEL):
                q = np.rint(wanted[i, row] * (inverses[row] * reach))
                q = min(max(q, np.float32(-8)), np.float32(7))
                xq[row] += importance[start + i] * wanted[i, row] * q
                qq[row] += importance[start + i] * q * q
        for row in range(PANEL):
            if qq[row] > 0 and xq[row] * xq[row] > best[row] * qq[row]:
                best[row] = xq[row] * xq[row] / qq[row]
                scale[row] = xq[row] / qq[row]
