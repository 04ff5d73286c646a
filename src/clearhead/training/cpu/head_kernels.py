"""Compiled kernels of attention over short contexts: a whole head at a time, in float32, in the cache of its core.

Products of 64 tokens with 32 components are too small for a library: preparing the call takes as long as the numbers.
Every product here is a sum of rows with weights (`_weighted_sum`), whose inner loop becomes vector instructions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit

from clearhead.engine.llvm import atomic_add, bits_as_float
from clearhead.engine.variants import LANES
from clearhead.training.cpu.kernels import (
    BFLOAT16,
    ENTRIES,
    FIRST_ADDRESS,
    FIRST_NUMBER,
    NEXT,
    floats,
    halves,
    in_written_order,
    rows_of,
)
from clearhead.training.cpu.lines import (
    greatest,
    load_line,
    powers,
    scale_line,
    store_line,
    to_vectors,
    transpose_tile,
    weighted_sums,
)
from clearhead.utils.machine_code import Callback

A, N, SCRATCH = FIRST_ADDRESS, FIRST_NUMBER, FIRST_NUMBER + 8
"""Where a table has addresses, numbers, and the number of float32 of a piece's scratch."""
# Numba lets only a function with its runtime make arrays of addresses; no memory is allocated here either.
_with_arrays = njit(nogil=True, error_model="numpy")
_ZERO, _ONE = np.float32(0), np.float32(1)


def forward_scratch(tokens: int, width: int) -> int:
    """Return the number of float32 that `attention_of_heads` needs for a piece."""
    padded, wide = to_vectors(tokens), to_vectors(width)
    return 2 * wide * padded + tokens * wide + 2 * wide + 2 * padded


def backward_scratch(tokens: int, width: int) -> int:
    """Return the number of float32 that `gradient_of_heads` needs for a piece."""
    padded, wide = to_vectors(tokens), to_vectors(width)
    return 6 * wide * padded + 2 * tokens * padded + 2 * wide


@in_written_order
def _softmax(scores: int, seen: int) -> Any:
    """Replace the scores at an address by their weights; return the logarithm of the sum of their exponentials."""
    most = greatest(scores, seen)
    total = powers(scores, seen, most, 0)
    scale_line(scores, seen, _ZERO, _ONE / total, 0)
    return most + np.float32(math.log(total))


@_with_arrays
def _load(source: Any, tokens: int, width: int, rows: int, wide: int, place: int) -> None:
    """Copy a head's vectors to an address as float32 [rows, wide]; what pads them is zero."""
    for t in range(tokens):
        load_line(source, t, width, place + 4 * t * wide)
    out = carray(floats(place), (rows, wide))
    if width < wide:
        for t in range(tokens):
            for index in range(width, wide):
                out[t, np.uint64(index)] = _ZERO
    for t in range(tokens, rows):
        for index in range(wide):
            out[t, np.uint64(index)] = _ZERO


@in_written_order
def _transpose(rows: int, padded: int, wide: int, factor: Any, out: int) -> None:
    """Write an array [padded, wide] of float32, times a factor, as [wide, padded]; both are at addresses."""
    for t in range(0, padded, LANES):
        for c in range(0, wide, LANES):
            transpose_tile(rows + 4 * (t * wide + c), 4 * wide, factor, out + 4 * (c * padded + t), 4 * padded)


@_with_arrays
def _forward_head(
    q: Any, k: Any, v: Any, out: Any, logs: Any, tokens: int, width: int, scale: Any, scratch: int
) -> None:
    """Compute a head's attention; the arrays have a token in each row."""
    padded, wide = to_vectors(tokens), to_vectors(width)
    keys_at = scratch + 4 * wide * padded
    values_at = keys_at + 4 * wide * padded
    line_at = values_at + 4 * tokens * wide
    scores_at = line_at + 8 * wide
    _load(k, tokens, width, padded, wide, keys_at)
    _transpose(keys_at, padded, wide, scale, scratch)
    _load(v, tokens, width, tokens, wide, values_at)
    row, line = 4 * wide, 4 * padded
    for t in range(0, tokens, 2):  # two tokens at a time; the first one's weight for the second is 0
        lines = min(2, tokens - t)
        for n in range(lines):
            load_line(q, t + n, width, line_at + n * row)
        weighted_sums(lines, line_at, 4, row, width, scratch, line, to_vectors(t + lines), scores_at, line)
        for n in range(lines):
            logs[t + n] = _softmax(scores_at + n * line, t + n + 1)
        weighted_sums(lines, scores_at, 4, line, t + lines, values_at, row, wide, line_at, row)
        _store_lines(lines, line_at, row, out, t, width)


@in_written_order
def _score_gradients(weights: int, received: int, logs: Any, tokens: int, scale: Any, step: int) -> None:
    """Replace scores by their weights, and the weights' gradient by that of the scores, in the lines of a head.

    A token's line of both follows `step` bytes after the one before it.
    """
    for t in range(tokens):
        log = logs[t]
        mean = powers(weights + t * step, t + 1, log, received + t * step)
        mean = mean + (log - log)  # NaN if a score was: the exponential would hide it
        scale_line(received + t * step, t + 1, mean, scale, weights + t * step)


@_with_arrays
def _backward_head(
    q: Any, k: Any, v: Any, received: Any, gradients: Any, logs: Any, tokens: int, width: int, scale: Any, scratch: int
) -> None:
    """Compute the gradients of a head's queries, keys and values; `gradients` are three such arrays."""
    padded, wide = to_vectors(tokens), to_vectors(width)
    row, line, size = 4 * wide, 4 * padded, 4 * wide * padded  # bytes of a vector, a query's scores, and all vectors
    turned_keys, turned_values = scratch, scratch + size
    queries, keys, values, outs = scratch + 2 * size, scratch + 3 * size, scratch + 4 * size, scratch + 5 * size
    weights = scratch + 6 * size
    slopes = weights + tokens * line
    found = slopes + tokens * line
    for source, place in ((q, queries), (k, keys), (v, values), (received, outs)):
        _load(source, tokens, width, padded, wide, place)
    _transpose(keys, padded, wide, scale, turned_keys)
    _transpose(values, padded, wide, _ONE, turned_values)
    for t in range(0, tokens, 2):  # two tokens at a time; the first one's weight and slope for the second are 0
        lines, columns = min(2, tokens - t), to_vectors(min(t + 2, tokens))
        weighted_sums(lines, queries + t * row, 4, row, width, turned_keys, line, columns, weights + t * line, line)
        weighted_sums(lines, outs + t * row, 4, row, width, turned_values, line, columns, slopes + t * line, line)
    _score_gradients(weights, slopes, logs, tokens, scale, line)
    for t in range(0, tokens, 2):
        lines = min(2, tokens - t)
        own = t * line + 4 * t  # where a token meets itself; the tokens that look back at it follow, a line each
        weighted_sums(lines, slopes + t * line, 4, line, t + lines, keys, row, wide, found, row)
        _store_lines(lines, found, row, gradients[0], t, width)
        weighted_sums(lines, slopes + own, line, 4, tokens - t, queries + t * row, row, wide, found, row)
        _store_lines(lines, found, row, gradients[1], t, width)
        weighted_sums(lines, weights + own, line, 4, tokens - t, outs + t * row, row, wide, found, row)
        _store_lines(lines, found, row, gradients[2], t, width)


@_with_arrays
def _store_lines(lines: int, found: int, apart: int, out: Any, first: int, width: int) -> None:
    for n in range(lines):
        store_line(found + n * apart, out, first + n, width)


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
        line = size * heads * width  # bytes of a token's vectors
        received = carray(pointer(t[A + 3] + batch * tokens * line + head * size * width), (tokens, heads * width))
        start, shape = t[A + 4] + 3 * batch * tokens * line + head * size * width, (tokens, 3 * heads * width)
        gradients = (
            carray(pointer(start), shape),
            carray(pointer(start + line), shape),
            carray(pointer(start + 2 * line), shape),
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
    [B, T, 3, H, D], the logarithms, scratch for each piece. Numbers: as `attention_of_heads`.
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
