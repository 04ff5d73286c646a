"""Attention of neighbouring tokens of one sequence to everything in the sequence, and the key/value cache's layout.

Keys and values lie in *pages* of 64 tokens. A page holds all layers; a layer's part holds the keys of all heads, then
the values of all heads. A head's keys are stored number by number: the first number of all 64 keys, then the second.
So the scores of many keys grow side by side in a vector. Values are stored token by token. Both products are then one
operation: a row of factors times rows of a matrix, added from the first to the last. The order of a sum depends only on
the query's own position, not on how many queries run together.
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
    address,
    at,
    bits_as_float,
    broadcast,
    bytes_on,
    float_as_bits,
    load,
    multiply_add,
    prefetch,
    row_sum,
    rows_of,
    store,
    widen_bfloat16,
)
from clearhead.engine.variants import VARIANT
from clearhead.utils.jit import inline, kernel

PAGE = 64
"""Tokens whose keys and values lie together."""
MOST_QUERIES = VARIANT.queries
"""Neighbouring tokens that attend together."""
_VECTORS = 4
"""Vectors of keys, or of a value's numbers, that are added up together."""


def _accumulate(vectors: int) -> Any:
    @intrinsic
    def accumulate(
        typing_context: Any,
        rows: Any,
        a: Any,
        a_row: Any,
        a_start: Any,
        n: Any,
        stored: Any,
        b: Any,
        b_stride: Any,
        following: Any,
        out: Any,
        column: Any,
    ) -> Any:
        """Add to out[r, column + c] the sum over i of a[a_row + r, a_start + i] * b[i * b_stride + c].

        For i below n, r below `rows` (1 to MOST_QUERIES) and c below `vectors` * LANES. a and out are float32 of two
        dimensions; b is the address of numbers of `stored`'s type, float32 or bfloat16's bits. What lies likewise from
        address `following` on is asked for meanwhile: the next page, which no prefetcher foresees.
        """
        element = F32 if stored.dtype == types.float32 else I16

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            factors, a_bytes = rows_of(context, builder, signature, arguments, 1)
            target, out_bytes = rows_of(context, builder, signature, arguments, 9)
            matrix, next_matrix = address(builder, arguments[6]), address(builder, arguments[8])
            item_bytes = 4 if element == F32 else 2
            done = builder.append_basic_block("accumulated")
            choice = builder.switch(arguments[0], done)
            for n_rows in range(1, MOST_QUERIES + 1):
                block = builder.append_basic_block(f"rows_{n_rows}")
                choice.add_case(I64(n_rows), block)
                builder.position_at_end(block)
                lines, targets = [], []
                for r in range(n_rows):
                    line = bytes_on(builder, factors, builder.mul(builder.add(arguments[2], I64(r)), a_bytes))
                    lines.append(at(builder, line, arguments[3], F32))
                    row = bytes_on(builder, target, builder.mul(I64(r), out_bytes))
                    targets.append(at(builder, row, arguments[10], F32))
                parts = [I64(v * LANES) for v in range(vectors)]
                start = [load(builder, at(builder, t, part, F32), F32, LANES) for t in targets for part in parts]
                with Loop(builder, arguments[4], start) as loop:
                    offset = builder.mul(loop.count, arguments[7])
                    here = at(builder, matrix, offset, element)
                    if n_rows == 1:  # with more rows there is more to do for what is read
                        for line in range(0, vectors * LANES * item_bytes, 64):
                            prefetch(builder, bytes_on(builder, at(builder, next_matrix, offset, element), I64(line)))
                    numbers = [load(builder, at(builder, here, part, element), element, LANES) for part in parts]
                    if element == I16:
                        numbers = [widen_bfloat16(builder, bits) for bits in numbers]
                    for r, line in enumerate(lines):
                        factor = broadcast(builder, at(builder, line, loop.count, F32), F32)
                        for v in range(vectors):
                            index = r * vectors + v
                            loop.next[index] = multiply_add(builder, factor, numbers[v], loop.values[index])
                sums = iter(loop.values)
                for t in targets:
                    for part in parts:
                        store(builder, next(sums), at(builder, t, part, F32))
                builder.branch(done)
            builder.position_at_end(done)
            return context.get_dummy_value()

        whole = types.int64
        return types.void(whole, a, whole, whole, whole, stored, whole, whole, whole, out, whole), code

    return accumulate


_accumulate_wide, _accumulate_narrow = _accumulate(_VECTORS), _accumulate(1)


@kernel
def _accumulate_rows(
    rows: int,
    a: Any,
    a_row: int,
    a_start: int,
    n: int,
    stored: Any,
    b: int,
    b_stride: int,
    following: int,
    out: Any,
    column: int,
    width: int,
) -> None:
    """Accumulate into out[:rows, column : column + width], for a width that is a multiple of LANES."""
    done = 0
    while done < width:
        here, later, to = b + done * stored.itemsize, following + done * stored.itemsize, column + done
        if done + _VECTORS * LANES <= width:
            _accumulate_wide(rows, a, a_row, a_start, n, stored, here, b_stride, later, out, to)
            done += _VECTORS * LANES
        else:
            _accumulate_narrow(rows, a, a_row, a_start, n, stored, here, b_stride, later, out, to)
            done += LANES


@inline
def padded_head(head_dim: int) -> int:
    """Return the numbers that a value takes in a page: its own, filled up to whole vectors."""
    return (head_dim + LANES - 1) // LANES * LANES


@inline
def layer_numbers(heads: int, head_dim: int) -> int:
    """Return how many numbers one layer has in a page: keys, then values."""
    return heads * PAGE * (head_dim + padded_head(head_dim))


@kernel
def attend(
    queries: Any,
    row: int,
    rows: int,
    head: int,
    heads: int,
    head_dim: int,
    position: int,
    layer: int,
    stored: Any,
    pages: Any,
    scores: Any,
    mixed: Any,
    out: Any,
) -> None:
    """Mix values for the queries of some neighbouring tokens, whose own keys are in the cache already.

    softmax(q K^T / sqrt(D)) V, Vaswani et al. 2017, equation 1.

    Args:
        queries: float32, a token per row; the head's query is in columns head * head_dim and after.
        row, rows: the first token's row, and how many tokens, at most MOST_QUERIES.
        head, heads, head_dim: which head, of how many, and its width D.
        position: the first token's position in its sequence.
        layer: which layer's part of a page.
        stored: an empty array of the type of the cache's numbers.
        pages: int64, the addresses of the sequence's pages.
        scores: scratch, float32 [MOST_QUERIES, tokens], as long as the context and the rest of a page.
        mixed: scratch, float32 [MOST_QUERIES, D with padding].
        out: float32, a token per row; the head's columns are written.
    """
    wide = padded_head(head_dim)
    scale = np.float32(1) / np.float32(np.sqrt(np.float32(head_dim)))
    length = position + rows
    n_pages = (length + PAGE - 1) // PAGE
    first = layer * layer_numbers(heads, head_dim)
    keys = (first + head * head_dim * PAGE) * stored.itemsize
    values = (first + heads * head_dim * PAGE + head * wide * PAGE) * stored.itemsize
    for r in range(rows):
        for t in range(n_pages * PAGE):
            scores[r, t] = np.float32(0)
        for d in range(wide):
            mixed[r, d] = np.float32(0)
    for page in range(n_pages):
        start, following = pages[page] + keys, pages[min(page + 1, n_pages - 1)] + keys
        to = page * PAGE
        _accumulate_rows(
            rows, queries, row, head * head_dim, head_dim, stored, start, PAGE, following, scores, to, PAGE
        )
    for r in range(rows):
        _softmax(scores, r, position + r + 1, length, scale)
    for page in range(n_pages):
        start, following = pages[page] + values, pages[min(page + 1, n_pages - 1)] + values
        seen = min(PAGE, length - page * PAGE)
        _accumulate_rows(rows, scores, 0, page * PAGE, seen, stored, start, wide, following, mixed, 0, wide)
    for r in range(rows):
        for d in range(head_dim):
            out[row + r, head * head_dim + d] = mixed[r, d]


@inline
def _in_order(bits: Any) -> Any:
    """Turn a float32's bits into an integer that is greater for a greater number, and back."""
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@kernel
def _softmax(scores: Any, row: int, seen: int, length: int, scale: Any) -> None:
    """Turn scores[row, :seen] into weights that sum to 1; the rest up to `length` and of the last vector becomes 0."""
    most = np.int32(-0x80000000)
    for t in range(seen):
        most = max(most, _in_order(float_as_bits(scores[row, t])))  # a maximum of integers becomes vector instructions
    greatest = bits_as_float(_in_order(most))
    for t in range(seen):
        scores[row, t] = exponential((scores[row, t] - greatest) * scale)
    padded = (seen + LANES - 1) // LANES * LANES
    for t in range(seen, max(length, padded)):
        scores[row, t] = np.float32(0)
    inverse = np.float32(1) / row_sum(scores, row, padded)
    for t in range(seen):
        scores[row, t] *= inverse


# --------------------------------------------------------------------------------------------------------------
# Writing the cache
# --------------------------------------------------------------------------------------------------------------


@kernel
def write_kv(
    projected: Any,
    row: int,
    first: int,
    last: int,
    heads: int,
    head_dim: int,
    position: int,
    layer: int,
    stored: Any,
    pages: Any,
) -> None:
    """Write the keys and values in projected[row, first:last], which has q, k and v side by side, to the cache.

    Args:
        projected: float32, a token per row.
        row, first, last: which numbers.
        heads, head_dim: of the model.
        position: the token's position in its sequence.
        layer: which layer's part of a page.
        stored: an empty array of the type of the cache's numbers.
        pages: int64, the addresses of the sequence's pages.
    """
    width, wide = heads * head_dim, padded_head(head_dim)
    inside = position % PAGE
    page = pages[position // PAGE]
    start = layer * layer_numbers(heads, head_dim)
    for i in range(max(first, width), min(last, 2 * width)):
        write_number(stored, page, start + (i - width) * PAGE + inside, projected[row, np.uint64(i)])
    done, end = max(first, 2 * width) - 2 * width, last - 2 * width
    while done < end:
        head = done // head_dim
        value = start + width * PAGE + (head * PAGE + inside) * wide - head * head_dim
        stop = min(end, (head + 1) * head_dim)
        for i in range(done, stop):
            write_number(stored, page, value + i, projected[row, np.uint64(2 * width + i)])
        done = stop


def write_number(stored: Any, start: Any, index: Any, number: Any) -> Any:
    """Write a float32 as number `index` of the array of `stored`'s type at address `start`; bfloat16 is rounded."""


@overload(write_number, inline="always")
def _write_number(stored: Any, start: Any, index: Any, number: Any) -> Any:
    return _write_float32 if stored.dtype == types.float32 else _write_bfloat16


def _write_float32(stored: Any, start: Any, index: Any, number: Any) -> Any:
    _poke(stored, start, index, number)


def _write_bfloat16(stored: Any, start: Any, index: Any, number: Any) -> Any:
    _poke(stored, start, index, round_to_bfloat16(number))


@intrinsic
def _poke(typing_context: Any, stored: Any, start: Any, index: Any, number: Any) -> Any:
    element = F32 if stored.dtype == types.float32 else I16

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[3], at(builder, address(builder, arguments[1]), arguments[2], element))
        return context.get_dummy_value()

    return types.void(stored, types.int64, types.int64, stored.dtype), code
