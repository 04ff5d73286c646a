"""Compiled kernels of attention over short contexts: a whole head at a time, in float32, in the cache of its core.

Products of 64 tokens with 32 components are too small for a library: preparing the call takes as long as the numbers.
Every product here is a sum of rows with weights (`_weighted_sum`), whose inner loop becomes vector instructions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, register_jitable

from clearhead.engine.llvm import (
    F32,
    I64,
    Loop,
    address,
    at,
    atomic_add,
    bits_as_float,
    broadcast,
    constant,
    load,
    multiply_add,
    store,
)
from clearhead.engine.variants import LANES
from clearhead.training.cpu.kernels import (
    BFLOAT16,
    ENTRIES,
    FIRST_ADDRESS,
    FIRST_NUMBER,
    NEXT,
    ROWS,
    compiled_rows,
    exp,
    floats,
    greatest_of,
    halves,
    read,
    rows_of,
    write,
)
from clearhead.utils.machine_code import Callback

A, N, SCRATCH = FIRST_ADDRESS, FIRST_NUMBER, FIRST_NUMBER + 8
"""Where a table has addresses, numbers, and the number of float32 of a piece's scratch."""
# Numba lets only a function with its runtime make arrays of addresses; no memory is allocated here either.
_with_arrays = njit(nogil=True, error_model="numpy")
_ZERO, _ONE = np.float32(0), np.float32(1)


def forward_scratch(tokens: int, width: int) -> int:
    """Return the number of float32 that `attention_of_heads` needs for a piece."""
    padded, wide = _padded(tokens), _padded(width)
    return width * padded + tokens * wide + wide + padded


def backward_scratch(tokens: int, width: int) -> int:
    """Return the number of float32 that `gradient_of_heads` needs for a piece."""
    padded, wide = _padded(tokens), _padded(width)
    return 2 * width * padded + 3 * tokens * wide + 2 * tokens * padded + wide


@register_jitable
def _padded(numbers: int) -> int:
    """Return the numbers of whole vectors that have room for so many."""
    return (numbers + LANES - 1) // LANES * LANES


def _sum_of_rows(vectors: int, turns: int) -> Any:
    """Return a function that sums rows of `vectors` vectors, `turns` rows in a turn, each with sums of its own."""

    @intrinsic
    def total(typing_context: Any, weights: Any, step: Any, count: Any, rows: Any, stride: Any, out: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first_weight, step, count, first_row, stride, out = arguments
            zero = constant(F32, 0.0, LANES)

            def add(k: Any, sums: list[Any]) -> list[Any]:
                weight = address(builder, builder.add(first_weight, builder.mul(k, step)))
                row = address(builder, builder.add(first_row, builder.mul(k, stride)))
                factor = broadcast(builder, weight, F32, LANES)
                return [
                    multiply_add(builder, factor, load(builder, at(builder, row, I64(n * LANES), F32), F32, LANES), one)
                    for n, one in enumerate(sums)
                ]

            with Loop(builder, builder.sdiv(count, I64(turns)), [zero] * (turns * vectors)) as loop:
                first = builder.mul(loop.count, I64(turns))
                for turn in range(turns):
                    own = slice(turn * vectors, (turn + 1) * vectors)
                    loop.next[own] = add(builder.add(first, I64(turn)), loop.values[own])
            sums = loop.values[:vectors]
            for turn in range(1, turns):
                others = loop.values[turn * vectors : (turn + 1) * vectors]
                sums = [builder.fadd(one, other) for one, other in zip(sums, others, strict=True)]
            done = builder.mul(builder.sdiv(count, I64(turns)), I64(turns))
            with Loop(builder, builder.sub(count, done), sums) as rest:
                rest.next = add(builder.add(done, rest.count), rest.values)
            for n, value in enumerate(rest.values):
                store(builder, value, at(builder, address(builder, out), I64(n * LANES), F32))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), code

    return total


_sum_4, _sum_2, _sum_1 = _sum_of_rows(4, 1), _sum_of_rows(2, 2), _sum_of_rows(1, 4)


@compiled_rows
def _weighted_sum(weights: int, step: int, count: int, rows: int, stride: int, columns: int, out: int) -> None:
    """Write the sum over k < count of weights[k step] * rows[k, :columns] to out[:columns], all in float32.

    Args:
        weights, rows, out: addresses.
        step: the bytes from one weight to the next.
        count: the number of rows.
        stride: the bytes from one row to the next.
        columns: a multiple of LANES.
    """
    left = columns // LANES
    while left >= 4:
        _sum_4(weights, step, count, rows, stride, out)
        rows, out, left = rows + 16 * LANES, out + 16 * LANES, left - 4
    if left >= 2:
        _sum_2(weights, step, count, rows, stride, out)
        rows, out, left = rows + 8 * LANES, out + 8 * LANES, left - 2
    if left:
        _sum_1(weights, step, count, rows, stride, out)


@compiled_rows
def _load(source: Any, tokens: int, width: int, out: Any) -> None:
    """Copy a head's vectors as float32 [tokens, width]; what pads a row is zero."""
    for t in range(tokens):
        for index in range(width):
            out[t, np.uint64(index)] = read(source, t, np.uint64(index))
        for index in range(width, out.shape[1]):
            out[t, np.uint64(index)] = _ZERO


@compiled_rows
def _load_transposed(source: Any, tokens: int, width: int, factor: Any, out: Any) -> None:
    """Copy a head's vectors times a factor as float32 [width, tokens]; what pads a row is zero."""
    for c in range(width):
        for t in range(tokens):
            out[c, t] = read(source, t, np.uint64(c)) * factor
        for t in range(tokens, out.shape[1]):
            out[c, t] = _ZERO


@compiled_rows
def _softmax(scores: Any, row: int, seen: int, padded: int) -> Any:
    """Replace a row of scores by its weights; return the logarithm of the sum of their exponentials.

    What follows the tokens seen is not read afterwards.
    """
    greatest = greatest_of(scores, row, seen)
    wrong = greatest - greatest  # NaN if a score is NaN or infinite
    for index in range(seen, padded):
        scores[row, np.uint64(index)] = np.float32(-np.inf)
    total = _ZERO
    for index in range(padded):
        i = np.uint64(index)
        e = exp(scores[row, i] - greatest)
        scores[row, i] = e
        total += e
    inverse = _ONE / total + wrong
    for index in range(padded):
        i = np.uint64(index)
        scores[row, i] = scores[row, i] * inverse
    return greatest + np.float32(math.log(total)) + wrong


@_with_arrays
def _forward_head(
    q: Any, k: Any, v: Any, out: Any, logs: Any, tokens: int, width: int, scale: Any, scratch: int
) -> None:
    """Compute a head's attention; the arrays have a token in each row."""
    padded, wide = _padded(tokens), _padded(width)
    values_at = scratch + 4 * width * padded
    line_at = values_at + 4 * tokens * wide
    scores_at = line_at + 4 * wide
    _load_transposed(k, tokens, width, scale, carray(floats(scratch), (width, padded)))
    _load(v, tokens, width, carray(floats(values_at), (tokens, wide)))
    line, scores = carray(floats(line_at), (1, wide)), carray(floats(scores_at), (1, padded))
    for t in range(tokens):
        columns = _padded(t + 1)
        for index in range(width):
            line[0, np.uint64(index)] = read(q, t, np.uint64(index))
        _weighted_sum(line_at, 4, width, scratch, 4 * padded, columns, scores_at)
        logs[t] = _softmax(scores, 0, t + 1, columns)
        _weighted_sum(scores_at, 4, t + 1, values_at, 4 * wide, wide, line_at)
        _store_line(line, out, t, width)


@compiled_rows
def _score_gradients(weights: Any, received: Any, logs: Any, tokens: int, scale: Any) -> None:
    """Replace scores by their weights, and the weights' gradient by that of the scores, in the rows of a head."""
    for t in range(tokens):
        columns = _padded(t + 1)
        log = logs[t]
        mean = _ZERO
        for index in range(t + 1, columns):
            weights[t, np.uint64(index)] = np.float32(-np.inf)
        for index in range(columns):
            i = np.uint64(index)
            w = exp(weights[t, i] - log)
            weights[t, i] = w
            mean += w * received[t, i]
        mean = mean + (log - log)  # NaN if a score was: the exponential would hide it
        for index in range(columns):
            i = np.uint64(index)
            received[t, i] = scale * weights[t, i] * (received[t, i] - mean)


@_with_arrays
def _backward_head(
    q: Any, k: Any, v: Any, received: Any, gradients: Any, logs: Any, tokens: int, width: int, scale: Any, scratch: int
) -> None:
    """Compute the gradients of a head's queries, keys and values; `gradients` are three such arrays."""
    padded, wide = _padded(tokens), _padded(width)
    row, line = 4 * wide, 4 * padded  # bytes of a vector, and of the scores of a query
    turned_keys, turned_values = scratch, scratch + width * line
    queries = turned_values + width * line
    keys, outs = queries + tokens * row, queries + 2 * tokens * row
    weights = queries + 3 * tokens * row
    slopes = weights + tokens * line
    found_at = slopes + tokens * line
    found = carray(floats(found_at), (1, wide))
    for source, place in ((q, queries), (k, keys), (received, outs)):
        _load(source, tokens, width, carray(floats(place), (tokens, wide)))
    _load_transposed(k, tokens, width, scale, carray(floats(turned_keys), (width, padded)))
    _load_transposed(v, tokens, width, _ONE, carray(floats(turned_values), (width, padded)))
    for t in range(tokens):
        columns = _padded(t + 1)
        _weighted_sum(queries + t * row, 4, width, turned_keys, line, columns, weights + t * line)
        _weighted_sum(outs + t * row, 4, width, turned_values, line, columns, slopes + t * line)
    shape = (tokens, padded)
    _score_gradients(carray(floats(weights), shape), carray(floats(slopes), shape), logs, tokens, scale)
    for t in range(tokens):
        own = t * line + 4 * t  # where a token meets itself; the tokens that look back at it follow, a line each
        _weighted_sum(slopes + t * line, 4, t + 1, keys, row, wide, found_at)
        _store_line(found, gradients[0], t, width)
        _weighted_sum(slopes + own, line, tokens - t, queries + t * row, row, wide, found_at)
        _store_line(found, gradients[1], t, width)
        _weighted_sum(weights + own, line, tokens - t, outs + t * row, row, wide, found_at)
        _store_line(found, gradients[2], t, width)


@compiled_rows
def _store_line(line: Any, out: Any, row: int, width: int) -> None:
    for index in range(width):
        write(out, row, np.uint64(index), line[0, np.uint64(index)])


def _inputs_of(pointer: Any, size: int) -> Any:
    """Return a function that finds the queries, keys and values of a head, for arrays of numbers of `size` bytes."""

    @_with_arrays
    def inputs(t: Any, row: int) -> Any:
        """Return queries, keys and values [T, distance of tokens]."""
        heads, shape = t[N + 3], (t[N + 1], t[N + 6])
        start = size * (row // heads * t[N + 4] + row % heads * t[N + 5])
        return (
            carray(pointer(t[A] + start), shape),
            carray(pointer(t[A + 1] + start), shape),
            carray(pointer(t[A + 2] + start), shape),
        )

    return inputs


def _forward_of(pointer: Any, size: int) -> Any:
    """Return a function that computes a head's attention, for arrays of numbers of `size` bytes."""
    inputs = _inputs_of(pointer, size)

    @_with_arrays
    def compute(t: Any, row: int, scratch: int) -> None:
        """Find a head's arrays and compute it."""
        tokens, width, heads = t[N + 1], t[N + 2], t[N + 3]
        batch, head = row // heads, row % heads
        q, k, v = inputs(t, row)
        out = carray(pointer(t[A + 3] + size * (batch * tokens * heads + head) * width), (tokens, heads * width))
        logs = carray(floats(t[A + 4] + 4 * row * tokens), (tokens,))
        _forward_head(q, k, v, out, logs, tokens, width, bits_as_float(np.int32(t[N + 7])), scratch)

    return compute


def _backward_of(pointer: Any, size: int) -> Any:
    """Return a function that computes a head's gradients, for arrays of numbers of `size` bytes."""
    inputs = _inputs_of(pointer, size)

    @_with_arrays
    def compute(t: Any, row: int, scratch: int) -> None:
        """Find a head's arrays and compute its gradients."""
        tokens, width, heads = t[N + 1], t[N + 2], t[N + 3]
        batch, head = row // heads, row % heads
        q, k, v = inputs(t, row)
        start = size * (batch * tokens * heads + head) * width
        whole = size * t[ROWS] * tokens * width
        shape = (tokens, heads * width)
        received = carray(pointer(t[A + 3] + start), shape)
        gradients = (
            carray(pointer(t[A + 4] + start), shape),
            carray(pointer(t[A + 4] + start + whole), shape),
            carray(pointer(t[A + 4] + start + 2 * whole), shape),
        )
        logs = carray(floats(t[A + 5] + 4 * row * tokens), (tokens,))
        _backward_head(q, k, v, received, gradients, logs, tokens, width, bits_as_float(np.int32(t[N + 7])), scratch)

    return compute


_forward_floats, _forward_halves = _forward_of(floats, 4), _forward_of(halves, 2)
_backward_floats, _backward_halves = _backward_of(floats, 4), _backward_of(halves, 2)


@Callback
def attention_of_heads(table: Any) -> None:
    """Causal attention, a head in each row of the table.

    Addresses: queries, keys, values, out [B, T, H, D], the logarithms of the sums [B, H, T], scratch for each piece.
    Numbers: the type; T, D and H; the distance of batches, heads and tokens in queries, keys and values; the bits of
    the scale; the float32 of a piece's scratch.
    """
    t = carray(table, (ENTRIES,))
    while True:
        piece = atomic_add(t, NEXT, 1)
        first, last = rows_of(t, piece)
        if first == last:
            return
        for row in range(first, last):
            if t[N] == BFLOAT16:
                _forward_halves(t, row, t[A + 5] + 4 * piece * t[SCRATCH])
            else:
                _forward_floats(t, row, t[A + 5] + 4 * piece * t[SCRATCH])


@Callback
def gradient_of_heads(table: Any) -> None:
    """The gradient of causal attention, a head in each row of the table.

    Addresses: queries, keys, values, the gradient of the result [B, T, H, D], the gradients of queries, keys and values
    [3, B, T, H, D], the logarithms, scratch for each piece. Numbers: as `attention_of_heads`.
    """
    t = carray(table, (ENTRIES,))
    while True:
        piece = atomic_add(t, NEXT, 1)
        first, last = rows_of(t, piece)
        if first == last:
            return
        for row in range(first, last):
            if t[N] == BFLOAT16:
                _backward_halves(t, row, t[A + 6] + 4 * piece * t[SCRATCH])
            else:
                _backward_floats(t, row, t[A + 6] + 4 * piece * t[SCRATCH])


HEAD_KERNELS = (attention_of_heads, gradient_of_heads)
"""Both, to be compiled together."""
