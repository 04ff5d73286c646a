"""Attention over keys and values in 8 bits: a scale for each token and head, and sums of whole numbers.

The softmax of the scores q K^T / sqrt(D), times V, with four roundings to 127 or 255 levels: of a token's query, key
and value, each by head, and of a query's weights, by page. A value's scale goes into its weight before that is rounded.
So both products are sums of bytes times bytes, which are exact; pages are added in float32 from the first to the last.

In a page, a head's keys are [quads of its numbers][64 tokens][4], its values [quads of tokens][numbers][4].
Keys are unsigned (128 is added), and a sum of scores starts at -128 times the sum of the query's numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from clearhead.engine.elementwise import ROUND, softmax_powers
from clearhead.engine.llvm import (
    F32,
    I8,
    I32,
    I64,
    Loop,
    add_quad_products,
    address,
    at,
    bits_as_float,
    broadcast,
    bytes_on,
    call,
    constant,
    data,
    float_as_bits,
    greatest_lane,
    load,
    multiply_add,
    prefetch,
    rows_of,
    splat,
    store,
    vector,
)
from clearhead.engine.page_kernels import VECTORS, layer_bytes, padded_head, padded_quads, poke, write_key, write_value
from clearhead.engine.pages import MOST_QUERIES, PAGE
from clearhead.engine.variants import LANES
from clearhead.utils.jit import inline, kernel

_LEVELS = np.float32(127)


# --------------------------------------------------------------------------------------------------------------
# The products
# --------------------------------------------------------------------------------------------------------------


def _byte_products(of_keys: bool, vectors: int) -> Any:
    @intrinsic
    def multiply_bytes(
        typing_context: Any,
        rows: Any,
        factors: Any,
        first: Any,
        starts: Any,
        scales: Any,
        scale_column: Any,
        matrix: Any,
        quads: Any,
        stride: Any,
        column_scales: Any,
        following: Any,
        out: Any,
        column: Any,
    ) -> Any:
        """Multiply factors[:rows, first:] by a matrix of bytes, for `vectors` * LANES of its columns.

        Args:
            rows: 1 to MOST_QUERIES.
            factors, first: int8 or uint8, a query per row, `quads` * 4 numbers.
            starts: int32 [rows]; what the sums of scores start with.
            scales, scale_column: float32; row r is multiplied by scales[r, scale_column].
            matrix, quads, stride: the address of the columns, and the bytes from one quad of them to the next.
            column_scales: the address of a float32 for each column of keys.
            following: where the next page's columns are; they are asked for meanwhile.
            out, column: float32; scores are written to out[r, column:], mixed values are added to it.
        """

        def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
            lines, line_bytes = rows_of(context, b, signature, arguments, 1)
            start = data(context, b, signature, arguments, 3)
            row_scales, scale_bytes = rows_of(context, b, signature, arguments, 4)
            target, out_bytes = rows_of(context, b, signature, arguments, 11)
            columns, following_columns = address(b, arguments[6]), address(b, arguments[10])
            done = b.append_basic_block("multiplied")
            choice = b.switch(arguments[0], done)
            for n_rows in range(1, MOST_QUERIES + 1):
                block = b.append_basic_block(f"rows_{n_rows}")
                choice.add_case(I64(n_rows), block)
                b.position_at_end(block)
                factor_rows = [
                    at(b, bytes_on(b, lines, b.mul(I64(r), line_bytes)), arguments[2], I8) for r in range(n_rows)
                ]
                if of_keys:
                    first_sums = [broadcast(b, at(b, start, I64(r), I32), I32) for r in range(n_rows)]
                else:
                    first_sums = [constant(I32, 0, LANES)] * n_rows
                with Loop(b, arguments[7], [total for total in first_sums for _ in range(vectors)]) as loop:
                    offset = b.mul(loop.count, arguments[8])
                    if n_rows == 1:  # with more rows there is more to do for what is read
                        for line in range(0, vectors * LANES * 4, 64):
                            prefetch(b, bytes_on(b, following_columns, b.add(offset, I64(line))))
                    here = bytes_on(b, columns, offset)
                    numbers = [load(b, at(b, here, I64(v * LANES), I32), I32, LANES) for v in range(vectors)]
                    for r, line in enumerate(factor_rows):
                        factor = broadcast(b, at(b, line, b.mul(loop.count, I64(4)), I8), I32)
                        for v in range(vectors):
                            i = r * vectors + v
                            unsigned, signed = (numbers[v], factor) if of_keys else (factor, numbers[v])
                            loop.next[i] = add_quad_products(b, loop.values[i], unsigned, signed)
                for r in range(n_rows):
                    scale = bytes_on(b, row_scales, b.mul(I64(r), scale_bytes))
                    scale = broadcast(b, at(b, scale, arguments[5], F32), F32)
                    row = at(b, bytes_on(b, target, b.mul(I64(r), out_bytes)), arguments[12], F32)
                    for v in range(vectors):
                        total = b.sitofp(loop.values[r * vectors + v], vector(F32, LANES))
                        to = at(b, row, I64(v * LANES), F32)
                        if of_keys:
                            of_column = load(b, at(b, address(b, arguments[9]), I64(v * LANES), F32), F32, LANES)
                            store(b, b.fmul(total, b.fmul(scale, of_column)), to)
                        else:
                            store(b, multiply_add(b, total, scale, load(b, to, F32, LANES)), to)
                b.branch(done)
            b.position_at_end(done)
            return context.get_dummy_value()

        n = types.int64
        return types.void(n, factors, n, starts, scales, n, n, n, n, n, n, out, n), code

    return multiply_bytes


_scores_wide, _scores_narrow = _byte_products(True, VECTORS), _byte_products(True, 1)
_values_wide, _values_narrow = _byte_products(False, VECTORS), _byte_products(False, 1)


@kernel
def _score_page(
    rows: int, scratch: Any, thread: int, keys: int, quads: int, key_scales: int, following: int, column: int
) -> None:
    """Write the scores of some queries and the 64 keys of a page."""
    queries, starts = scratch.queries[thread], scratch.starts[thread]
    scales, out = scratch.query_scales[thread], scratch.scores[thread]
    done, stride = 0, PAGE * 4
    while done < PAGE:
        here, later, of_column, to = keys + done * 4, following + done * 4, key_scales + done * 4, column + done
        if done + VECTORS * LANES <= PAGE:
            _scores_wide(rows, queries, 0, starts, scales, 0, here, quads, stride, of_column, later, out, to)
            done += VECTORS * LANES
        else:
            _scores_narrow(rows, queries, 0, starts, scales, 0, here, quads, stride, of_column, later, out, to)
            done += LANES


@kernel
def _mix_page(
    rows: int, scratch: Any, thread: int, page: int, values: int, quads: int, following: int, wide: int
) -> None:
    """Add the values of a page, times their weights, to what some queries have mixed."""
    weights, starts = scratch.weights[thread], scratch.starts[thread]
    scales, out = scratch.weight_scales[thread], scratch.mixed[thread]
    done, stride, first = 0, wide * 4, page * PAGE
    while done < wide:
        here, later = values + done * 4, following + done * 4
        if done + VECTORS * LANES <= wide:
            _values_wide(rows, weights, first, starts, scales, page, here, quads, stride, 0, later, out, done)
            done += VECTORS * LANES
        else:
            _values_narrow(rows, weights, first, starts, scales, page, here, quads, stride, 0, later, out, done)
            done += LANES


# --------------------------------------------------------------------------------------------------------------
# Rounding
# --------------------------------------------------------------------------------------------------------------


@kernel
def _round_head(source: Any, row: int, first: int, n: int, out: Any) -> Any:
    """Round source[row, first : first + n] to out[:n], int8, and return the scale: (greatest magnitude) / 127."""
    bits = np.int32(0)
    for i in range(first, first + n):
        bits = np.int32(max(bits, np.int32(float_as_bits(source[row, np.uint64(i)]) & np.int32(0x7FFFFFFF))))
    greatest = bits_as_float(bits)
    inverse = _LEVELS / greatest if greatest > 0 else np.float32(0)
    for i in range(n):
        number = source[row, np.uint64(first + i)] * inverse
        out[np.uint64(i)] = np.int8(np.int32((number + ROUND) - ROUND))
    return greatest / _LEVELS


@intrinsic
def _round_page(
    typing_context: Any, weights: Any, row: Any, page: Any, seen: Any, value_scales: Any, out: Any, scales: Any
) -> Any:
    """Round weights[row], times the values' scales, to uint8 for one page; weights from `seen` on count as 0.

    scales[row, page] becomes (greatest) / 255.
    """

    def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        row, page = arguments[1], arguments[2]
        first = b.mul(page, I64(PAGE))
        w, w_bytes = rows_of(context, b, signature, arguments, 0)
        q, q_bytes = rows_of(context, b, signature, arguments, 5)
        s, s_bytes = rows_of(context, b, signature, arguments, 6)
        w = at(b, bytes_on(b, w, b.mul(row, w_bytes)), first, F32)
        q = at(b, bytes_on(b, q, b.mul(row, q_bytes)), first, I8)
        s = at(b, bytes_on(b, s, b.mul(row, s_bytes)), page, F32)
        value_scales = address(b, arguments[4])
        floats, wholes = vector(F32, LANES), vector(I32, LANES)
        left = splat(b, b.trunc(b.sub(arguments[3], first), I32), LANES)
        parts, greatest = [], constant(I32, 0, LANES)
        for start in range(0, PAGE, LANES):
            number = load(b, at(b, w, I64(start), F32), F32, LANES)
            scale = load(b, at(b, value_scales, I64(start), F32), F32, LANES)
            index = wholes([start + i for i in range(LANES)])
            part = b.select(b.icmp_signed("<", index, left), b.fmul(number, scale), constant(F32, 0.0, LANES))
            bits = b.bitcast(part, wholes)  # no number is below 0, so their bits are in the same order
            greatest = b.select(b.icmp_signed(">", bits, greatest), bits, greatest)
            parts.append(part)
        most = b.bitcast(greatest_lane(b, greatest), F32)
        inverse = b.select(b.fcmp_ordered(">", most, F32(0.0)), b.fdiv(F32(255.0), most), F32(0.0))
        for i, part in enumerate(parts):
            scaled = b.fmul(part, splat(b, inverse, LANES))
            whole = b.fptosi(call(b, f"llvm.rint.v{LANES}f32", floats, [scaled]), wholes)
            store(b, b.trunc(whole, vector(I8, LANES)), at(b, q, I64(i * LANES), I8))
        b.store(b.fdiv(most, F32(255.0)), s)
        return context.get_dummy_value()

    n = types.int64
    return types.void(weights, n, n, n, n, out, scales), code


# --------------------------------------------------------------------------------------------------------------
# Attention
# --------------------------------------------------------------------------------------------------------------


@inline
def _key_scales(heads: int, head_dim: int) -> int:
    """Return where the scales of a layer's keys are in a page, in bytes from the layer's start."""
    return heads * PAGE * (padded_quads(head_dim) + padded_head(head_dim))


def attend_8bit(
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
    """Do what `attention.attend` does, over keys and values in 8 bits."""
    wide, quads = padded_head(head_dim), padded_quads(head_dim) // 4
    length = position + rows
    n_pages = (length + PAGE - 1) // PAGE
    start = layer * layer_bytes(heads, head_dim, stored)
    keys = start + head * quads * 4 * PAGE
    values = start + heads * quads * 4 * PAGE + head * wide * PAGE
    key_scales = start + _key_scales(heads, head_dim) + head * PAGE * 4
    value_scales = key_scales + heads * PAGE * 4
    scores, mixed = scratch.scores[thread], scratch.mixed[thread]
    weights, scales = scratch.weights[thread], scratch.weight_scales[thread]
    root = np.float32(np.sqrt(np.float32(head_dim)))
    for r in range(rows):
        numbers = scratch.queries[thread, r]
        scale = _round_head(queries, row + r, head * head_dim, head_dim, numbers)
        total = np.int32(0)
        for d in range(head_dim):
            total += np.int32(numbers[np.uint64(d)])  # an unsigned index needs no check for negative values
        scratch.starts[thread, r] = np.int32(-128) * total
        scratch.query_scales[thread, r, 0] = scale / root
        for d in range(wide):
            mixed[r, np.uint64(d)] = np.float32(0)
    for page in range(n_pages):
        here, following = pages[page], pages[min(page + 1, n_pages - 1)] + keys
        _score_page(rows, scratch, thread, here + keys, quads, here + key_scales, following, page * PAGE)
    for r in range(rows):
        seen = position + r + 1
        inverse = np.float32(1) / softmax_powers(
            scores, r, seen, (seen + LANES - 1) // LANES * LANES, np.float32(1), scores, r
        )
        for page in range(n_pages):
            _round_page(scores, r, page, seen, pages[page] + value_scales, weights, scales)
        for page in range(n_pages):
            scales[r, np.uint64(page)] *= inverse
    for page in range(n_pages):
        here, following = pages[page] + values, pages[min(page + 1, n_pages - 1)] + values
        _mix_page(rows, scratch, thread, page, here, (min(PAGE, length - page * PAGE) + 3) // 4, following, wide)
    for r in range(rows):
        for d in range(head_dim):
            out[row + r, np.uint64(head * head_dim + d)] = mixed[r, np.uint64(d)]


def write_kv_8bit(
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
    """Do what `attention.write_kv` does, in 8 bits; `first` and `last` are where heads begin.

    `numbers` is scratch, int8, as long as a head's numbers with padding.
    """
    width, wide, quads = heads * head_dim, padded_head(head_dim), padded_quads(head_dim) // 4
    inside, page = position % PAGE, pages[position // PAGE]
    start = layer * layer_bytes(heads, head_dim, stored)
    scales = start + _key_scales(heads, head_dim)
    for column in range(max(first, width), last, head_dim):
        head = column // head_dim - heads  # values count on from the keys
        scale = _round_head(projected, row, column, head_dim, numbers)
        poke(np.float32(scale), page + scales, head * PAGE + inside)
        if head < heads:
            to = page + start + (head * quads * PAGE + inside) * 4
            write_key(numbers, quads, np.uint32(0x80808080), to)
        else:
            first_value = page + start + heads * quads * 4 * PAGE + (head - heads) * wide * PAGE
            write_value(numbers, wide, inside % 4, first_value + inside // 4 * wide * 4)
