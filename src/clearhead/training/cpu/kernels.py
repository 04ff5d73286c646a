"""Compiled kernels of a training step: GELU, layer norm, causal softmax, cross-entropy, each with its gradient.

torch divides each of these into several passes over memory, with copies between bfloat16 and float32 on the way. Here
each is one pass that reads and writes either type and computes in float32.

A kernel is a C function of one table of int64, which any number of threads call at the same time: each takes the next
piece of the rows until none is left. Which thread computes a row never changes a bit of it.

    table   0      the next piece            4 ...    addresses of the arrays, as the kernel's docstring lists them
            1      the number of pieces      12 ...   more numbers, likewise
            2, 3   rows and columns
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic, overload, register_jitable

from clearhead.engine.elementwise import exponential
from clearhead.engine.llvm import I16, I32, atomic_add, bits_as_float, constant, float_as_bits, vector
from clearhead.utils.machine_code import Callback

NEXT, PIECES, ROWS, COLUMNS, FIRST_ADDRESS, FIRST_NUMBER = 0, 1, 2, 3, 4, 12
ENTRIES = 21  # the length of a table
FLOAT32, BFLOAT16 = 0, 1  # the types of the arrays of 16 or 32 bits, as kernels know them by number

in_written_order = njit(nogil=True, error_model="numpy", _nrt=False, fastmath=False)  # said: callers' is inherited
# Sums may be taken in any order, so that they become vector instructions; the order is fixed when LLVM compiles.
compiled_rows = njit(nogil=True, error_model="numpy", _nrt=False, fastmath={"reassoc", "nsz", "contract"})

_SLOPE, _CUBIC = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
_ONE, _TWO, _THREE = np.float32(1), np.float32(2), np.float32(3)


def _pointer_to(element: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_data_type(element).as_pointer())

        return types.CPointer(element)(types.int64), code

    return pointer


floats, halves, wholes = _pointer_to(types.float32), _pointer_to(types.uint16), _pointer_to(types.int64)


def read(numbers: Any, row: Any, column: Any) -> Any:
    """Return a float32 of an array of float32, or of bfloat16's bits."""


@overload(read)
def _read_as(numbers: Any, row: Any, column: Any) -> Any:
    return _read_float32 if numbers.dtype == types.float32 else _read_bfloat16


def _read_float32(numbers: Any, row: Any, column: Any) -> Any:
    return numbers[row, column]


def _read_bfloat16(numbers: Any, row: Any, column: Any) -> Any:
    return bits_as_float(np.int32(np.int32(numbers[row, column]) << np.int32(16)))


def write(numbers: Any, row: Any, column: Any, value: Any) -> None:
    """Write a float32 into such an array, rounded to its type."""


@overload(write)
def _write_as(numbers: Any, row: Any, column: Any, value: Any) -> Any:
    return _write_float32 if numbers.dtype == types.float32 else _write_bfloat16


def _write_float32(numbers: Any, row: Any, column: Any, value: Any) -> None:
    numbers[row, column] = value


def _write_bfloat16(numbers: Any, row: Any, column: Any, value: Any) -> None:
    numbers[row, column] = _bfloat16_bits(np.float32(value))


@intrinsic
def _bfloat16_bits(typing_context: Any, number: Any) -> Any:
    """Return `bfloat16_bits` of a float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return bfloat16_bits(builder, arguments[0])

    return types.uint16(types.float32), code


def bfloat16_bits(builder: Any, number: Any) -> Any:
    """Round float32 to bfloat16's bits, half to even; NaN stays NaN. In Numba's integers it would take 64 bits.

    Args:
        builder: where the instructions go.
        number: a number or a vector.
    """
    lanes = getattr(number.type, "count", 0)

    def whole(value: int) -> Any:
        return constant(I32, value, lanes) if lanes else I32(value)

    bits = builder.bitcast(number, vector(I32, lanes) if lanes else I32)
    high = builder.lshr(bits, whole(16))
    nearest = builder.add(builder.add(bits, whole(0x7FFF)), builder.and_(high, whole(1)))
    is_nan = builder.fcmp_unordered("uno", number, number)
    found = builder.select(is_nan, builder.or_(high, whole(64)), builder.lshr(nearest, whole(16)))
    return builder.trunc(found, vector(I16, lanes) if lanes else I16)


@register_jitable
def next_rows(table: Any) -> tuple[int, int]:
    """Take the next piece; return its first row and the one behind its last, which are equal if none is left."""
    return rows_of(table, atomic_add(table, NEXT, 1))


@register_jitable
def rows_of(table: Any, piece: int) -> tuple[int, int]:
    """Return a piece's first row and the one behind its last; equal ones if there is no such piece."""
    pieces, rows = table[PIECES], table[ROWS]
    if piece >= pieces:
        return 0, 0
    return piece * rows // pieces, (piece + 1) * rows // pieces


@in_written_order
def exp(x: Any) -> Any:
    """`exponential`, which rounds by its sums, with them in the order in which they are written, whoever calls it."""
    return exponential(x)


@compiled_rows
def _gelu_rows(x: Any, out: Any, first: int, last: int) -> None:
    """0.5 x (1 + tanh u) = x / (1 + e^(-2u)), with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    for row in range(first, last):
        for index in range(x.shape[1]):
            i = np.uint64(index)  # unsigned, so that the loop has no test for negative indices and is vectorized
            v = read(x, row, i)
            u = _SLOPE * (v + _CUBIC * v * v * v)
            write(out, row, i, v / (_ONE + exp(-_TWO * u)))


@compiled_rows
def _gelu_gradient_rows(x: Any, gradient: Any, out: Any, first: int, last: int) -> None:
    """The gradient times s + x s (1 - s) 2 du/dx, with s = 1 / (1 + e^(-2u))."""
    for row in range(first, last):
        for index in range(x.shape[1]):
            i = np.uint64(index)
            v = read(x, row, i)
            u = _SLOPE * (v + _CUBIC * v * v * v)
            s = _ONE / (_ONE + exp(-_TWO * u))
            slope = _TWO * _SLOPE * (_ONE + _THREE * _CUBIC * v * v)
            write(out, row, i, read(gradient, row, i) * (s + v * s * (_ONE - s) * slope))


@compiled_rows
def greatest_of(numbers: Any, row: int, count: int) -> Any:
    """Return the greatest of numbers[row, :count]; NaN if there is one whose sign is not set.

    The bits of floats are ordered as integers are, after those of negative ones are flipped: a maximum of integers
    becomes vector instructions.
    """
    most = np.int32(-(2**31))
    for index in range(count):
        bits = float_as_bits(read(numbers, row, np.uint64(index)))
        most = max(most, np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))))
    return bits_as_float(np.int32(most ^ ((most >> np.int32(31)) & np.int32(0x7FFFFFFF))))


@compiled_rows
def _softmax_rows(scores: Any, weights: Any, geometry: Any, scale: Any, first: int, last: int) -> None:
    """Write the causal softmax of scale * scores; `geometry` is the queries of a head and the first one's position."""
    for row in range(first, last):
        seen = geometry[1] + row % geometry[0] + 1
        greatest = greatest_of(scores, row, seen) * scale
        total = np.float32(0)
        for index in range(seen):
            i = np.uint64(index)
            e = exp(scores[row, i] * scale - greatest)
            scores[row, i] = e
            total += e
        inverse = _ONE / total + (greatest - greatest)  # NaN if a score is NaN or infinite
        for index in range(seen):
            i = np.uint64(index)
            write(weights, row, i, scores[row, i] * inverse)
        for index in range(seen, scores.shape[1]):
            write(weights, row, np.uint64(index), np.float32(0))


@compiled_rows
def _softmax_gradient_rows(
    weights: Any, received: Any, out: Any, geometry: Any, scale: Any, first: int, last: int
) -> None:
    """Write the gradient of the scores: scale * weight * (received - the mean of `received` with the weights)."""
    for row in range(first, last):
        seen = geometry[1] + row % geometry[0] + 1
        mean = np.float32(0)
        for index in range(seen):
            i = np.uint64(index)
            mean += read(weights, row, i) * received[row, i]
        for index in range(seen):
            i = np.uint64(index)
            write(out, row, i, scale * read(weights, row, i) * (received[row, i] - mean))
        for index in range(seen, weights.shape[1]):
            write(out, row, np.uint64(index), np.float32(0))


@compiled_rows
def _cross_entropy_rows(logits: Any, targets: Any, nats: Any, ignored: int, first: int, last: int) -> None:
    """Write the nats of the targets, and in place of the logits their gradient: softmax minus one at the target."""
    for row in range(first, last):
        target = targets[0, row]
        columns = logits.shape[1]
        if target == ignored:
            nats[0, row] = np.float32(0)
            for index in range(columns):
                write(logits, row, np.uint64(index), np.float32(0))
            continue
        greatest = greatest_of(logits, row, columns)
        wanted = read(logits, row, np.uint64(target)) - greatest
        total = np.float32(0)
        for index in range(columns):
            total += exp(read(logits, row, np.uint64(index)) - greatest)
        inverse = _ONE / total + (greatest - greatest)
        for index in range(columns):
            i = np.uint64(index)
            write(logits, row, i, exp(read(logits, row, i) - greatest) * inverse)
        probability = np.float32(math.exp(wanted)) * inverse
        write(logits, row, np.uint64(target), probability - _ONE)
        nats[0, row] = np.float32(math.log(total)) - wanted + (greatest - greatest)


@compiled_rows
def _add_rows(x: Any, added: Any, out: Any, first: int, last: int) -> None:
    """Write x plus numbers of either type, in float32."""
    for row in range(first, last):
        for index in range(x.shape[1]):
            i = np.uint64(index)
            out[row, i] = x[row, i] + read(added, row, i)


@compiled_rows
def _norm_rows(x: Any, weight: Any, bias: Any, out: Any, statistics: Any, eps: Any, first: int, last: int) -> None:
    """Write the layer norm of each row, and its mean and 1 / sqrt(variance + eps)."""
    width = np.float32(x.shape[1])
    for row in range(first, last):
        total, squares = np.float32(0), np.float32(0)
        for index in range(x.shape[1]):
            total += x[row, np.uint64(index)]
        mean = total / width
        for index in range(x.shape[1]):
            distance = x[row, np.uint64(index)] - mean
            squares += distance * distance
        inverse = _ONE / np.float32(math.sqrt(squares / width + eps))
        statistics[row, 0], statistics[row, 1] = mean, inverse
        for index in range(x.shape[1]):
            i = np.uint64(index)
            write(out, row, i, (x[row, i] - mean) * inverse * weight[0, i] + bias[0, i])


@compiled_rows
def _norm_gradient_rows(
    x: Any, weight: Any, received: Any, statistics: Any, out: Any, sums: Any, first: int, last: int
) -> None:
    """Write the gradient of x, and in `sums` the sums over these rows that are the gradients of weight and bias."""
    width = np.float32(x.shape[1])
    for index in range(x.shape[1]):
        i = np.uint64(index)
        sums[0, i], sums[1, i] = np.float32(0), np.float32(0)
    for row in range(first, last):
        mean, inverse = statistics[row, 0], statistics[row, 1]
        total, projected = np.float32(0), np.float32(0)
        for index in range(x.shape[1]):
            i = np.uint64(index)
            normed = (x[row, i] - mean) * inverse
            g = read(received, row, i)
            sums[0, i] += g * normed
            sums[1, i] += g
            total += g * weight[0, i]
            projected += g * weight[0, i] * normed
        total, projected = total / width, projected / width
        for index in range(x.shape[1]):
            i = np.uint64(index)
            normed = (x[row, i] - mean) * inverse
            out[row, i] = inverse * (read(received, row, i) * weight[0, i] - total - normed * projected)


@compiled_rows
def _accumulate_row(total: Any, numbers: Any, added: bool) -> None:
    """Add a row of numbers to float32 sums, or write it."""
    if added:
        for index in range(numbers.shape[1]):
            i = np.uint64(index)
            total[0, i] += read(numbers, 0, i)
    else:
        for index in range(numbers.shape[1]):
            i = np.uint64(index)
            total[0, i] = read(numbers, 0, i)


@Callback
def add(table: Any) -> None:
    """Add to float32. Addresses: x, what is added to it, the sum (float32). Numbers: the type of what is added."""
    t = carray(table, (ENTRIES,))
    shape = (t[ROWS], t[COLUMNS])
    x, out = carray(floats(t[4]), shape), carray(floats(t[6]), shape)
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[FIRST_NUMBER] == BFLOAT16:
            _add_rows(x, carray(halves(t[5]), shape), out, first, last)
        else:
            _add_rows(x, carray(floats(t[5]), shape), out, first, last)


@Callback
def layer_norm(table: Any) -> None:
    """Layer norm of float32, or of a sum that is computed first.

    Addresses: x, weight, bias, out, statistics [rows, 2], what is added to x (0 for nothing), the sum (float32).
    Numbers: the type of out and of what is added, the bits of eps.
    """
    t = carray(table, (ENTRIES,))
    shape, line = (t[ROWS], t[COLUMNS]), (1, t[COLUMNS])
    given, weight, bias = carray(floats(t[4]), shape), carray(floats(t[5]), line), carray(floats(t[6]), line)
    statistics, eps = carray(floats(t[8]), (t[ROWS], 2)), bits_as_float(np.int32(t[FIRST_NUMBER + 1]))
    low = t[FIRST_NUMBER] == BFLOAT16
    x = carray(floats(t[10] if t[9] else t[4]), shape)
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[9] and low:
            _add_rows(given, carray(halves(t[9]), shape), x, first, last)
        elif t[9]:
            _add_rows(given, carray(floats(t[9]), shape), x, first, last)
        if low:
            _norm_rows(x, weight, bias, carray(halves(t[7]), shape), statistics, eps, first, last)
        else:
            _norm_rows(x, weight, bias, carray(floats(t[7]), shape), statistics, eps, first, last)


@Callback
def layer_norm_gradient(table: Any) -> None:
    """The gradient of layer norm.

    Addresses: x, weight, the gradient of its result, statistics, the gradient of x, sums [pieces, 2, columns] of which
    those over the pieces are the gradients of weight and bias, a gradient (float32) that reaches x beside the norm (0
    for none). Numbers: the type of the received gradient.
    """
    t = carray(table, (ENTRIES,))
    shape, columns = (t[ROWS], t[COLUMNS]), t[COLUMNS]
    x, weight = carray(floats(t[4]), shape), carray(floats(t[5]), (1, columns))
    statistics, out = carray(floats(t[7]), (t[ROWS], 2)), carray(floats(t[8]), shape)
    while True:
        piece = atomic_add(t, NEXT, 1)
        first, last = rows_of(t, piece)
        if first == last:
            return
        sums = carray(floats(t[9] + piece * 8 * columns), (2, columns))
        if t[FIRST_NUMBER] == BFLOAT16:
            _norm_gradient_rows(x, weight, carray(halves(t[6]), shape), statistics, out, sums, first, last)
        else:
            _norm_gradient_rows(x, weight, carray(floats(t[6]), shape), statistics, out, sums, first, last)
        if t[10]:
            _add_rows(out, carray(floats(t[10]), shape), out, first, last)


@Callback
def accumulate(table: Any) -> None:
    """Add bfloat16 to sums in float32, or start them. Addresses: sums, numbers.

    Numbers: the distance between rows of the sums; whether to add.
    """
    t = carray(table, (ENTRIES,))
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        for row in range(first, last):
            total = carray(floats(t[4] + 4 * row * t[FIRST_NUMBER]), (1, t[COLUMNS]))
            line = carray(halves(t[5] + 2 * row * t[COLUMNS]), (1, t[COLUMNS]))
            _accumulate_row(total, line, t[FIRST_NUMBER + 1] != 0)


@Callback
def gelu(table: Any) -> None:
    """GELU of x into out. Addresses: x, out. Numbers: their type."""
    t = carray(table, (ENTRIES,))
    shape = (t[ROWS], t[COLUMNS])
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[FIRST_NUMBER] == BFLOAT16:
            _gelu_rows(carray(halves(t[4]), shape), carray(halves(t[5]), shape), first, last)
        else:
            _gelu_rows(carray(floats(t[4]), shape), carray(floats(t[5]), shape), first, last)


@Callback
def gelu_gradient(table: Any) -> None:
    """The gradient of GELU. Addresses: x, the gradient of its result, out. Numbers: their type."""
    t = carray(table, (ENTRIES,))
    shape = (t[ROWS], t[COLUMNS])
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[FIRST_NUMBER] == BFLOAT16:
            x, received, out = carray(halves(t[4]), shape), carray(halves(t[5]), shape), carray(halves(t[6]), shape)
            _gelu_gradient_rows(x, received, out, first, last)
        else:
            a, b, c = carray(floats(t[4]), shape), carray(floats(t[5]), shape), carray(floats(t[6]), shape)
            _gelu_gradient_rows(a, b, c, first, last)


@Callback
def causal_softmax(table: Any) -> None:
    """Causal softmax of scores [heads * queries, keys] times a scale.

    Addresses: scores (float32, overwritten), the weights (may be the scores, in float32). Numbers: the type of the
    weights, queries of a head, the first query's position, the bits of the scale.
    """
    t = carray(table, (ENTRIES,))
    shape = (t[ROWS], t[COLUMNS])
    scores = carray(floats(t[4]), shape)
    geometry, scale = (t[FIRST_NUMBER + 1], t[FIRST_NUMBER + 2]), bits_as_float(np.int32(t[FIRST_NUMBER + 3]))
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[FIRST_NUMBER] == BFLOAT16:
            _softmax_rows(scores, carray(halves(t[5]), shape), geometry, scale, first, last)
        else:
            _softmax_rows(scores, carray(floats(t[5]), shape), geometry, scale, first, last)


@Callback
def causal_softmax_gradient(table: Any) -> None:
    """The gradient of the scores of causal softmax.

    Addresses: the weights, their gradient (float32), out (may be the gradient, in float32). Numbers: as
    `causal_softmax`; the type is that of the weights and of out.
    """
    t = carray(table, (ENTRIES,))
    shape = (t[ROWS], t[COLUMNS])
    received = carray(floats(t[5]), shape)
    geometry, scale = (t[FIRST_NUMBER + 1], t[FIRST_NUMBER + 2]), bits_as_float(np.int32(t[FIRST_NUMBER + 3]))
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[FIRST_NUMBER] == BFLOAT16:
            weights, out = carray(halves(t[4]), shape), carray(halves(t[6]), shape)
            _softmax_gradient_rows(weights, received, out, geometry, scale, first, last)
        else:
            wide, wide_out = carray(floats(t[4]), shape), carray(floats(t[6]), shape)
            _softmax_gradient_rows(wide, received, wide_out, geometry, scale, first, last)


@Callback
def cross_entropy(table: Any) -> None:
    """Cross-entropy of logits and its gradient.

    Addresses: logits (overwritten by their gradient), targets (int64), nats (float32). Numbers: the type of the logits,
    the target that does not count.
    """
    t = carray(table, (ENTRIES,))
    shape, line = (t[ROWS], t[COLUMNS]), (1, t[ROWS])
    targets, nats = carray(wholes(t[5]), line), carray(floats(t[6]), line)
    while True:
        first, last = next_rows(t)
        if first == last:
            return
        if t[FIRST_NUMBER] == BFLOAT16:
            _cross_entropy_rows(carray(halves(t[4]), shape), targets, nats, t[FIRST_NUMBER + 1], first, last)
        else:
            _cross_entropy_rows(carray(floats(t[4]), shape), targets, nats, t[FIRST_NUMBER + 1], first, last)


KERNELS = (
    gelu,
    gelu_gradient,
    causal_softmax,
    causal_softmax_gradient,
    cross_entropy,
    add,
    layer_norm,
    layer_norm_gradient,
    accumulate,
)
"""All of them, to be compiled together."""
