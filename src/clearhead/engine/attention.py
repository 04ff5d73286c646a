"""Attention of up to three neighbouring tokens of one sequence to all that the sequence holds.

Keys and values lie in *pages* of 64 tokens. In a page, a head's keys are stored number by number: the first number of
all 64 keys, then the second. So the scores of many keys grow side by side in a vector, each from first to last number,
and values are read as they lie. Both are one operation: a row of factors times rows of a matrix, added up from the
first to the last. The order of a sum depends on the query's own place only, not on how many queries run together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from clearhead.engine.elementwise import exponential, round_to_bfloat16
from clearhead.engine.llvm import (
    F32,
    I16,
    I64,
    LANES,
    Loop,
    at,
    bits_as_float,
    bytes_on,
    data,
    float_as_bits,
    load,
    multiply_add,
    row_sum,
    rows_of,
    splat,
    store,
    widen_bfloat16,
)
from clearhead.utils.jit import inline, kernel

PAGE = 64
"""Tokens whose keys and values lie together."""
MOST_QUERIES = 3
WIDE = 4 * LANES
"""Columns that are added up together: for three queries 12 sums of 8 lanes, as many as the registers hold."""


def _accumulate(n_rows: int, width: int) -> Any:
    @intrinsic
    def accumulate(
        typing_context: Any,
        a: Any,
        a_row: Any,
        a_start: Any,
        n: Any,
        b: Any,
        b_start: Any,
        b_stride: Any,
        out: Any,
        out_row: Any,
        column: Any,
    ) -> Any:
        """out[out_row + r, column + c] += the sum of a[a_row + r, a_start + i] * b[b_start + i * b_stride + c].

        Over i below n, for r below n_rows and c below width. a and out are float32 of two dimensions, b float32 or
        bfloat16's bits of one.
        """
        stored = F32 if b.dtype == types.float32 else I16

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            factors, a_bytes = rows_of(context, builder, signature, arguments, 0)
            target, out_bytes = rows_of(context, builder, signature, arguments, 7)
            matrix = at(builder, data(context, builder, signature, arguments, 4), arguments[5], stored)
            lines, targets = [], []
            for r in range(n_rows):
                line = bytes_on(builder, factors, builder.mul(builder.add(arguments[1], I64(r)), a_bytes))
                lines.append(at(builder, line, arguments[2], F32))
                row = bytes_on(builder, target, builder.mul(builder.add(arguments[8], I64(r)), out_bytes))
                targets.append(at(builder, row, arguments[9], F32))
            parts = range(0, width, LANES)
            start = [load(builder, at(builder, t, I64(p), F32), F32, LANES) for t in targets for p in parts]
            with Loop(builder, arguments[3], start) as loop:
                here = at(builder, matrix, builder.mul(loop.count, arguments[6]), stored)
                # Beside the sums, the factors stay in registers and one vector of columns at a time: 12 + 3 + 1.
                factors_here = [splat(builder, builder.load(at(builder, li, loop.count, F32)), LANES) for li in lines]
                for c, p in enumerate(parts):
                    found = load(builder, at(builder, here, I64(p), stored), stored, LANES)
                    numbers = found if stored == F32 else widen_bfloat16(builder, found)
                    for r, factor in enumerate(factors_here):
                        place = r * len(parts) + c
                        loop.next[place] = multiply_add(builder, factor, numbers, loop.values[place])
            place = 0
            for t in targets:
                for p in parts:
                    store(builder, loop.values[place], at(builder, t, I64(p), F32))
                    place += 1
            return context.get_dummy_value()

        whole = types.int64
        return types.void(a, whole, whole, whole, b, whole, whole, out, whole, whole), code

    return accumulate


_three_wide, _one_wide, _one_narrow = _accumulate(3, WIDE), _accumulate(1, WIDE), _accumulate(1, LANES)


@kernel
def _accumulate_rows(
    rows: int,
    a: Any,
    a_row: int,
    a_start: int,
    n: int,
    b: Any,
    b_start: int,
    b_stride: int,
    out: Any,
    column: int,
    width: int,
) -> None:
    """`accumulate` into out[:rows], for 1 to 3 rows and any width that is a multiple of 8."""
    done = 0
    while done < width:
        if done + WIDE > width:
            for r in range(rows):
                _one_narrow(a, a_row + r, a_start, n, b, b_start + done, b_stride, out, r, column + done)
            done += LANES
        elif rows == 3:
            _three_wide(a, a_row, a_start, n, b, b_start + done, b_stride, out, 0, column + done)
            done += WIDE
        else:
            for r in range(rows):
                _one_wide(a, a_row + r, a_start, n, b, b_start + done, b_stride, out, r, column + done)
            done += WIDE


@inline
def attend(
    queries: Any,
    row: int,
    rows: int,
    head: int,
    head_dim: int,
    place: int,
    keys: Any,
    values: Any,
    layer: int,
    n_layers: int,
    key_page: int,
    value_page: int,
    table: Any,
    slot: int,
    scores: Any,
    mixed: Any,
    out: Any,
) -> None:
    """Mixes values for the queries of up to three neighbouring tokens, whose own keys are in the cache already.

    softmax(q K^T / sqrt(D)) V, Vaswani et al. 2017, equation 1.

    Args:
        queries: float32, a token a row; the head's query is in columns head * head_dim and after.
        row, rows: the first token's row, and how many tokens.
        head, head_dim: which head, and its width D.
        place: the first token's position in its sequence.
        keys, values: the cache, one dimension.
        layer, n_layers: which layer's part of a page, and how many there are.
        key_page, value_page: how many numbers of keys, and of values, one layer has in a page.
        table: the pages of each sequence, int64 [slots, pages].
        slot: the sequence.
        scores: scratch, float32 [3, tokens], as long as the context and the rest of a page.
        mixed: scratch, float32 [3, D and up to 7 more].
        out: float32, a token a row; the head's columns are written.
    """
    wide = (head_dim + 7) // 8 * 8
    scale = np.float32(1) / np.float32(np.sqrt(np.float32(head_dim)))
    length = place + rows
    pages = (length + PAGE - 1) // PAGE
    for r in range(rows):
        for t in range(pages * PAGE):
            scores[r, t] = np.float32(0)
        for d in range(wide):
            mixed[r, d] = np.float32(0)
    for page in range(pages):
        start = (table[slot, page] * n_layers + layer) * key_page + head * head_dim * PAGE
        _accumulate_rows(rows, queries, row, head * head_dim, head_dim, keys, start, PAGE, scores, page * PAGE, PAGE)
    for r in range(rows):
        _softmax(scores, r, place + r + 1, length, scale)
    for page in range(pages):
        start = (table[slot, page] * n_layers + layer) * value_page + head * wide * PAGE
        seen = min(PAGE, length - page * PAGE)
        _accumulate_rows(rows, scores, 0, page * PAGE, seen, values, start, wide, mixed, 0, wide)
    for r in range(rows):
        for d in range(head_dim):
            out[row + r, head * head_dim + d] = mixed[r, d]


@inline
def _in_order(bits: Any) -> Any:
    """A float32's bits as a whole number that is greater for a greater number, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@kernel
def _softmax(scores: Any, row: int, seen: int, length: int, scale: Any) -> None:
    """scores[row, :seen] to weights that sum to 1; scores[row, seen:length], and what fills the last 8, to 0."""
    most = np.int32(-0x80000000)
    for t in range(seen):
        most = max(most, _in_order(float_as_bits(scores[row, t])))  # of whole numbers it is found eight at a time
    greatest = bits_as_float(_in_order(most))
    for t in range(seen):
        scores[row, t] = exponential((scores[row, t] - greatest) * scale)
    for t in range(seen, max(length, (seen + 7) // 8 * 8)):
        scores[row, t] = np.float32(0)
    inverse = np.float32(1) / row_sum(scores, row, (seen + 7) // 8 * 8)
    for t in range(seen):
        scores[row, t] *= inverse


def put_number(store: Any, place: Any, number: Any) -> Any:
    """store[place] = number, rounded to bfloat16 (half to even) where the store holds bfloat16's bits."""


@overload(put_number)
def _put_number(store: Any, place: Any, number: Any) -> Any:
    return _put_float32 if store.dtype == types.float32 else _put_bfloat16


def _put_float32(store: Any, place: Any, number: Any) -> Any:
    store[place] = number


def _put_bfloat16(store: Any, place: Any, number: Any) -> Any:
    store[place] = round_to_bfloat16(number)
