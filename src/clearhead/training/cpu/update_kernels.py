"""Compiled kernels over all gradients at once: their norm, and the update of the weights by AdamW.

Both are limited by memory, so each number is read and written once: the update undoes the scale of the gradients, clips
them, moves both averages and the weight, and writes the weight's copy in bfloat16 if there is one. The tensors
of a model are divided into chunks; a row of the table of chunks describes one:

    0 ... 4    addresses: weights, gradient, its average, the average of its square, the copy in bfloat16 (0: none)
    5, 6       the number of weights; the type of the gradient
    7 ... 9    bits of float32: the factor of weight decay, the step size, and 1 / sqrt(1 - beta_2^step)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from clearhead.engine.llvm import bits_as_float
from clearhead.training.cpu.kernels import (
    BFLOAT16,
    ENTRIES,
    FIRST_NUMBER,
    ROWS,
    compiled_rows,
    floats,
    halves,
    next_rows,
    read,
    wholes,
    write,
)
from clearhead.utils.machine_code import Callback

WEIGHTS, GRADIENT, AVERAGE, SQUARES, COPY, COUNT, TYPE, DECAY, STEP_SIZE, CORRECTION = range(10)
FIELDS = 10
"""The numbers of a chunk."""
EPSILON = 1e-8
"""What AdamW adds to the root of the averaged square."""
_EPSILON = np.float32(EPSILON)


@compiled_rows
def _sum_of_squares(gradient: Any) -> Any:
    total = np.float32(0)
    for index in range(gradient.shape[1]):
        value = read(gradient, 0, np.uint64(index))
        total += value * value
    return total


@compiled_rows
def _updated(weights: Any, gradient: Any, average: Any, squares: Any, rates: Any, chunk: Any, i: Any) -> Any:
    """Return a weight after a step of AdamW (Loshchilov and Hutter 2019, algorithm 2), and move its averages."""
    factor, rest_1, beta_2, rest_2 = rates
    decay, step_size, correction = chunk
    g = read(gradient, 0, i) * factor
    m = average[0, i] + rest_1 * (g - average[0, i])
    v = beta_2 * squares[0, i] + rest_2 * g * g
    average[0, i] = m
    squares[0, i] = v
    return weights[0, i] * decay - step_size * m / (math.sqrt(v) * correction + _EPSILON)


@compiled_rows
def _update(weights: Any, gradient: Any, average: Any, squares: Any, rates: Any, chunk: Any) -> None:
    """Take a step with every weight of a chunk."""
    for index in range(weights.shape[1]):
        i = np.uint64(index)
        weights[0, i] = _updated(weights, gradient, average, squares, rates, chunk, i)


@compiled_rows
def _update_with_copy(
    weights: Any, gradient: Any, average: Any, squares: Any, rates: Any, chunk: Any, copy: Any
) -> None:
    """Take the same step, and write the weights in bfloat16 as well."""
    for index in range(weights.shape[1]):
        i = np.uint64(index)
        w = _updated(weights, gradient, average, squares, rates, chunk, i)
        weights[0, i] = w
        write(copy, 0, i, w)


@Callback
def sums_of_squares(table: Any) -> None:
    """The sum of the squares of each chunk's gradient. Addresses: the chunks, the sums (float32)."""
    t = carray(table, (ENTRIES,))
    chunks, sums = carray(wholes(t[4]), (t[ROWS], FIELDS)), carray(floats(t[5]), (t[ROWS],))
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        for row in range(first, last):
            shape = (1, chunks[row, COUNT])
            if chunks[row, TYPE] == BFLOAT16:
                sums[row] = _sum_of_squares(carray(halves(chunks[row, GRADIENT]), shape))
            else:
                sums[row] = _sum_of_squares(carray(floats(chunks[row, GRADIENT]), shape))


@Callback
def adamw(table: Any) -> None:
    """A step of AdamW. Addresses: the chunks.

    Numbers: bits of float32: the gradients' factor, 1 - beta_1, beta_2, 1 - beta_2.
    """
    t = carray(table, (ENTRIES,))
    chunks = carray(wholes(t[4]), (t[ROWS], FIELDS))
    rates = (
        bits_as_float(np.int32(t[FIRST_NUMBER])),
        bits_as_float(np.int32(t[FIRST_NUMBER + 1])),
        bits_as_float(np.int32(t[FIRST_NUMBER + 2])),
        bits_as_float(np.int32(t[FIRST_NUMBER + 3])),
    )
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        for row in range(first, last):
            shape = (1, chunks[row, COUNT])
            w, m = carray(floats(chunks[row, WEIGHTS]), shape), carray(floats(chunks[row, AVERAGE]), shape)
            v = carray(floats(chunks[row, SQUARES]), shape)
            chunk = (
                bits_as_float(np.int32(chunks[row, DECAY])),
                bits_as_float(np.int32(chunks[row, STEP_SIZE])),
                bits_as_float(np.int32(chunks[row, CORRECTION])),
            )
            copied = chunks[row, COPY] != 0
            if chunks[row, TYPE] == BFLOAT16:
                low = carray(halves(chunks[row, GRADIENT]), shape)
                if copied:
                    _update_with_copy(w, low, m, v, rates, chunk, carray(halves(chunks[row, COPY]), shape))
                else:
                    _update(w, low, m, v, rates, chunk)
            else:
                g = carray(floats(chunks[row, GRADIENT]), shape)
                if copied:
                    _update_with_copy(w, g, m, v, rates, chunk, carray(halves(chunks[row, COPY]), shape))
                else:
                    _update(w, g, m, v, rates, chunk)


UPDATE_KERNELS = (sums_of_squares, adamw)
"""All of them, to be compiled together."""
