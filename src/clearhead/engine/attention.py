"""Attention of neighbouring tokens of one sequence to everything in the sequence, and writing the key/value cache.

Keys and values in float32 and bfloat16 are handled here, those in 8 bits in `attention_8bit.py`, and bfloat16 on a CPU
that multiplies it in `attention_pairs.py`.

In a page (see `pages.py`) a head's keys are stored number by number: the first number of all 64 keys, then the second.
So the scores of many keys grow side by side in a vector. Values are stored token by token. Both products are then one
operation: a row of factors times rows of a matrix, added from the first to the last. The order of a sum depends only on
the query's own position, not on how many queries run together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from clearhead.engine.attention_8bit import attend_8bit, write_kv_8bit
from clearhead.engine.attention_pairs import attend_pairs, write_kv_pairs
from clearhead.engine.elementwise import round_to_bfloat16, softmax_powers
from clearhead.engine.llvm import (
    F32,
    I16,
    I64,
    Loop,
    address,
    at,
    broadcast,
    bytes_on,
    load,
    multiply_add,
    prefetch,
    rows_of,
    store,
    widen_bfloat16,
)
from clearhead.engine.page_kernels import VECTORS, layer_bytes, padded_head, poke
from clearhead.engine.pages import MOST_QUERIES, PAGE
from clearhead.engine.variants import LANES, VARIANT
from clearhead.utils.jit import kernel


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


_accumulate_wide, _accumulate_narrow = _accumulate(VECTORS), _accumulate(1)


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
        if done + VECTORS * LANES <= width:
            _accumulate_wide(rows, a, a_row, a_start, n, stored, here, b_stride, later, out, to)
            done += VECTORS * LANES
        else:
            _accumulate_narrow(rows, a, a_row, a_start, n, stored, here, b_stride, later, out, to)
            done += LANES


def attend(
    queries: Any,
    row: Any,
    rows: Any,
    head: Any,
    heads: Any,
    head_dim: Any,
    position: Any,
    layer: Any,
    stored: Any,
    pages: Any,
    scratch: Any,
    thread: Any,
    out: Any,
) -> Any:
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
        scratch: see `arrays.AttentionScratch`.
        thread: whose part of it.
        out: float32, a token per row; the head's columns are written.
    """


@overload(attend, inline="never")
def _attend(
    queries: Any,
    row: Any,
    rows: Any,
    head: Any,
    heads: Any,
    head_dim: Any,
    position: Any,
    layer: Any,
    stored: Any,
    pages: Any,
    scratch: Any,
    thread: Any,
    out: Any,
) -> Any:
    if stored.dtype == types.int8:
        return attend_8bit
    return attend_pairs if VARIANT.bfloat16 and stored.dtype == types.uint16 else _attend_floats


def _attend_floats(
    queries: Any,
    row: Any,
    rows: Any,
    head: Any,
    heads: Any,
    head_dim: Any,
    position: Any,
    layer: Any,
    stored: Any,
    pages: Any,
    scratch: Any,
    thread: Any,
    out: Any,
) -> Any:
    """Do what `attend` says, over keys and values in float32 or bfloat16."""
    scores, mixed = scratch.scores[thread], scratch.mixed[thread]
    wide = padded_head(head_dim)
    scale = np.float32(1) / np.float32(np.sqrt(np.float32(head_dim)))
    length = position + rows
    n_pages = (length + PAGE - 1) // PAGE
    first = layer * layer_bytes(heads, head_dim, stored)
    keys = first + head * head_dim * PAGE * stored.itemsize
    values = first + (heads * head_dim * PAGE + head * wide * PAGE) * stored.itemsize
    for r in range(rows):
        for t in range(n_pages * PAGE):
            scores[r, np.uint64(t)] = np.float32(0)  # an unsigned index needs no check for negative values
        for d in range(wide):
            mixed[r, np.uint64(d)] = np.float32(0)
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
            out[row + r, np.uint64(head * head_dim + d)] = mixed[r, np.uint64(d)]


@kernel
def _softmax(scores: Any, row: int, seen: int, length: int, scale: Any) -> None:
    """Turn scores[row, :seen] into weights that sum to 1; the rest up to `length` and of the last vector becomes 0."""
    end = (length + LANES - 1) // LANES * LANES
    inverse = np.float32(1) / softmax_powers(scores, row, seen, end, scale, scores, row)
    for t in range(seen):
        scores[row, np.uint64(t)] *= inverse


# --------------------------------------------------------------------------------------------------------------
# Writing the cache
# --------------------------------------------------------------------------------------------------------------


def write_kv(
    projected: Any,
    row: Any,
    first: Any,
    last: Any,
    heads: Any,
    head_dim: Any,
    position: Any,
    layer: Any,
    stored: Any,
    pages: Any,
    numbers: Any,
) -> Any:
    """Write the keys and values in projected[row, first:last], which has q, k and v side by side, to the cache.

    Args:
        projected: float32, a token per row.
        row, first, last: which numbers; whole heads.
        heads, head_dim: of the model.
        position: the token's position in its sequence.
        layer: which layer's part of a page.
        stored: an empty array of the type of the cache's numbers.
        pages: int64, the addresses of the sequence's pages.
        numbers: scratch, int8, as long as a head's numbers with padding.
    """


@overload(write_kv, inline="never")
def _write_kv(
    projected: Any,
    row: Any,
    first: Any,
    last: Any,
    heads: Any,
    head_dim: Any,
    position: Any,
    layer: Any,
    stored: Any,
    pages: Any,
    numbers: Any,
) -> Any:
    if stored.dtype == types.int8:
        return write_kv_8bit
    return write_kv_pairs if VARIANT.bfloat16 and stored.dtype == types.uint16 else _write_kv_floats


def _write_kv_floats(
    projected: Any,
    row: Any,
    first: Any,
    last: Any,
    heads: Any,
    head_dim: Any,
    position: Any,
    layer: Any,
    stored: Any,
    pages: Any,
    numbers: Any,
) -> Any:
    width, wide = heads * head_dim, padded_head(head_dim)
    inside = position % PAGE
    start = pages[position // PAGE] + layer * layer_bytes(heads, head_dim, stored)
    for i in range(max(first, width), min(last, 2 * width)):
        poke(in_cache(stored, projected[row, np.uint64(i)]), start, (i - width) * PAGE + inside)
    for done in range(max(first, 2 * width), last, head_dim):
        value = width * PAGE + ((done // head_dim - 2 * heads) * PAGE + inside) * wide - done
        for i in range(done, done + head_dim):
            poke(in_cache(stored, projected[row, np.uint64(i)]), start, value + i)


def in_cache(stored: Any, number: Any) -> Any:
    """Return a float32 as it is stored in the cache: as it is, or rounded to bfloat16."""


@overload(in_cache, inline="always")
def _in_cache(stored: Any, number: Any) -> Any:
    return _as_float32 if stored.dtype == types.float32 else _as_bfloat16


def _as_float32(stored: Any, number: Any) -> Any:
    return number


def _as_bfloat16(stored: Any, number: Any) -> Any:
    return round_to_bfloat16(number)
