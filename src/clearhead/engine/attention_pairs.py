"""Attention over keys and values in bfloat16, on a CPU with an instruction for pairs of them.

The softmax of the scores q K^T / sqrt(D), times V. Queries and the softmax's powers are rounded to bfloat16, as keys
and values are; products are summed in float32, two at a time, from the first to the last. The sum of a row's powers is
divided out at the end.

In a page, a head's keys are [pairs of its numbers][64 tokens][2], its values [pairs of tokens][numbers][2]. Both lie in
words of 32 bits that are written whole: the second half of an unfinished pair is 0, whatever the page had there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from clearhead.engine.elementwise import round_to_pairs, softmax_powers
from clearhead.engine.llvm import (
    F32,
    I16,
    I32,
    I64,
    Loop,
    add_bfloat16_products,
    address,
    at,
    broadcast,
    bytes_on,
    constant,
    load,
    prefetch,
    rows_of,
    store,
)
from clearhead.engine.page_kernels import VECTORS, layer_bytes, padded_head, padded_pairs, write_key, write_value
from clearhead.engine.pages import MOST_QUERIES, PAGE
from clearhead.engine.variants import LANES
from clearhead.utils.jit import kernel


def _pair_products(adding: bool, vectors: int) -> Any:
    @intrinsic
    def multiply_pairs(
        typing_context: Any,
        rows: Any,
        factors: Any,
        first: Any,
        matrix: Any,
        pairs: Any,
        stride: Any,
        following: Any,
        out: Any,
        column: Any,
    ) -> Any:
        """Multiply factors[:rows, first:] by a matrix of bfloat16, for `vectors` * LANES of its columns.

        Args:
            rows: 1 to MOST_QUERIES.
            factors, first: uint16, bfloat16's bits, a query per row, `pairs` * 2 numbers.
            matrix, pairs, stride: the address of the columns, and the bytes from one pair of them to the next.
            following: where the next page's columns are; they are asked for meanwhile.
            out, column: float32; results are written to out[r, column:], or added if this is to be `adding`.
        """

        def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            lines, line_bytes = rows_of(context, b, signature, arguments, 1)
            target, out_bytes = rows_of(context, b, signature, arguments, 7)
            columns, following_columns = address(b, arguments[3]), address(b, arguments[6])
            done = b.append_basic_block("multiplied")
            choice = b.switch(arguments[0], done)
            for n_rows in range(1, MOST_QUERIES + 1):
                block = b.append_basic_block(f"rows_{n_rows}")
                choice.add_case(I64(n_rows), block)
                b.position_at_end(block)
                factor_rows = [
                    at(b, bytes_on(b, lines, b.mul(I64(r), line_bytes)), arguments[2], I16) for r in range(n_rows)
                ]
                targets = [
                    at(b, at(b, bytes_on(b, target, b.mul(I64(r), out_bytes)), arguments[8], F32), I64(v * LANES), F32)
                    for r in range(n_rows)
                    for v in range(vectors)
                ]
                zero = constant(F32, 0.0, LANES)
                with Loop(b, arguments[4], [load(b, to, F32, LANES) if adding else zero for to in targets]) as loop:
                    offset = b.mul(loop.count, arguments[5])
                    if n_rows == 1:  # with more rows there is more to do for what is read
                        for line in range(0, vectors * LANES * 4, 64):
                            prefetch(b, bytes_on(b, following_columns, b.add(offset, I64(line))))
                    here = bytes_on(b, columns, offset)
                    numbers = [load(b, at(b, here, I64(v * LANES), I32), I32, LANES) for v in range(vectors)]
                    for r, line in enumerate(factor_rows):
                        factor = broadcast(b, at(b, line, b.mul(loop.count, I64(2)), I16), I32)
                        for v in range(vectors):
                            i = r * vectors + v
                            loop.next[i] = add_bfloat16_products(b, loop.values[i], numbers[v], factor)
                for total, to in zip(loop.values, targets, strict=True):
                    store(b, total, to)
                b.branch(done)
            b.position_at_end(done)
            return context.get_dummy_value()

        n = types.int64
        return types.void(n, factors, n, n, n, n, n, out, n), code

    return multiply_pairs


_scores_wide, _scores_narrow = _pair_products(False, VECTORS), _pair_products(False, 1)
_values_wide, _values_narrow = _pair_products(True, VECTORS), _pair_products(True, 1)


@kernel
def _score_page(rows: int, queries: Any, keys: int, pairs: int, following: int, out: Any, column: int) -> None:
    """Write the products of some queries and the 64 keys of a page."""
    done, stride = 0, PAGE * 4
    while done < PAGE:
        here, later = keys + done * 4, following + done * 4
        if done + VECTORS * LANES <= PAGE:
            _scores_wide(rows, queries, 0, here, pairs, stride, later, out, column + done)
            done += VECTORS * LANES
        else:
            _scores_narrow(rows, queries, 0, here, pairs, stride, later, out, column + done)
            done += LANES


@kernel
def _mix_page(
    rows: int, weights: Any, first: int, values: int, pairs: int, following: int, out: Any, wide: int
) -> None:
    """Add the values of a page, times their weights, to what some queries have mixed."""
    done, stride = 0, wide * 4
    while done < wide:
        here, later = values + done * 4, following + done * 4
        if done + VECTORS * LANES <= wide:
            _values_wide(rows, weights, first, here, pairs, stride, later, out, done)
            done += VECTORS * LANES
        else:
            _values_narrow(rows, weights, first, here, pairs, stride, later, out, done)
            done += LANES


def attend_pairs(
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
    """Do what `attention.attend` does, over keys and values in pairs of bfloat16."""
    wide, pairs = padded_head(head_dim), padded_pairs(head_dim) // 2
    length = position + rows
    n_pages, end = (length + PAGE - 1) // PAGE, (length + LANES - 1) // LANES * LANES
    start = layer * layer_bytes(heads, head_dim, stored)
    keys = start + head * pairs * PAGE * 4
    values = start + heads * pairs * PAGE * 4 + head * wide * PAGE * 2
    scores, mixed = scratch.scores[thread], scratch.mixed[thread]
    numbers, weights = scratch.queries[thread], scratch.weights[thread]
    scale = np.float32(1) / np.float32(np.sqrt(np.float32(head_dim)))
    for r in range(rows):
        for d in range(head_dim):
            i = np.uint64(d)  # an unsigned index needs no check for negative values, so the loop becomes vectors
            numbers[r, i] = round_to_pairs(queries[row + r, np.uint64(head * head_dim) + i])
        for d in range(wide):
            mixed[r, np.uint64(d)] = np.float32(0)
    for page in range(n_pages):
        here, following = pages[page] + keys, pages[min(page + 1, n_pages - 1)] + keys
        _score_page(rows, numbers, here, pairs, following, scores, page * PAGE)
    for r in range(rows):
        total = softmax_powers(scores, r, position + r + 1, end, scale, weights, r)
        scratch.query_scales[thread, r, 0] = np.float32(1) / total
    for page in range(n_pages):
        here, following = pages[page] + values, pages[min(page + 1, n_pages - 1)] + values
        _mix_page(rows, weights, page * PAGE, here, (min(PAGE, length - page * PAGE) + 1) // 2, following, mixed, wide)
    for r in range(rows):
        inverse = scratch.query_scales[thread, r, 0]
        for d in range(head_dim):
            i = np.uint64(d)
            out[row + r, np.uint64(head * head_dim) + i] = mixed[r, i] * inverse


def write_kv_pairs(
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
    """Do what `attention.write_kv` does, in pairs of bfloat16; `first` and `last` are where heads begin."""
    width, wide, pairs = heads * head_dim, padded_head(head_dim), padded_pairs(head_dim) // 2
    inside, page = position % PAGE, pages[position // PAGE] + layer * layer_bytes(heads, head_dim, stored)
    for column in range(max(first, width), last, head_dim):
        head = column // head_dim - heads  # values count on from the keys
        for d in range(head_dim):
            numbers[np.uint64(d)] = round_to_pairs(projected[row, np.uint64(column + d)])
        if head < heads:
            write_key(numbers, pairs, np.uint32(0), page + (head * pairs * PAGE + inside) * 4)
        else:
            first_value = page + heads * pairs * PAGE * 4 + (head - heads) * PAGE * wide * 2
            write_value(numbers, wide, inside % 2, first_value + inside // 2 * wide * 4)
