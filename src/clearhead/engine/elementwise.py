"""Norms, activation functions and rounding: the steps that take one token's vector at a time.

Each function handles one row, in one order, so a row's bits do not depend on its neighbours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numba.np import numpy_support

from clearhead.engine.llvm import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Builder,
    Loop,
    at,
    bits_as_float,
    bytes_on,
    call,
    constant,
    float_as_bits,
    greatest_float,
    greatest_lane,
    load,
    multiply_add,
    narrow_to_bfloat16,
    row_square_sum,
    row_sum,
    rows_of,
    splat,
    store,
    sum_lanes,
    vector,
)
from clearhead.engine.panels import GROUP, SCALE_COLUMNS
from clearhead.engine.variants import LANES
from clearhead.utils.jit import kernel

ROUND = np.float32(12582912.0)
"""1.5 · 2²³: added and taken away again it rounds to a whole number, half to even."""
_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # ln 2 in two parts, the first with few bits, so that n · high is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_LINEAR = np.float32(-2 * math.sqrt(2 / math.pi))
_CUBIC = np.float32(0.044715)
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)


def power(b: Builder, x: Any) -> Any:
    """Return e to the x in float32, to about two units of the last place; below -87 as at -87. NaN stays NaN.

    x = n ln 2 + r with |r| at most ln 2 / 2; e^r by its Taylor series to r^7 (the remainder is under 1e-8); 2^n by its
    bits. There is no branch; x is a number or a vector, with the same bits.
    """
    lanes = x.type.count if isinstance(x.type, ir.VectorType) else 0
    whole = vector(I32, lanes) if lanes else I32

    def number(value: Any) -> Any:
        return constant(F32, float(value), lanes) if lanes else F32(float(value))

    def times_plus(a: Any, c: Any, d: Any) -> Any:
        return call(b, f"llvm.fmuladd.{f'v{lanes}' if lanes else ''}f32", x.type, [a, c, d])

    least, most = number(_LEAST), number(_MOST)
    x = b.select(b.fcmp_ordered("<", x, least), least, x)
    x = b.select(b.fcmp_ordered(">", x, most), most, x)
    n = b.fsub(times_plus(x, number(_LOG2_E), number(ROUND)), number(ROUND))
    r = times_plus(n, number(-_LN2_LOW), times_plus(n, number(-_LN2_HIGH), x))
    p = number(1 / 5040)
    for term in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = times_plus(p, r, number(np.float32(term)))
    bits = b.add(b.fptosi(n, whole), constant(I32, 127, lanes) if lanes else I32(127))
    return b.fmul(p, b.bitcast(b.shl(bits, constant(I32, 23, lanes) if lanes else I32(23)), x.type))


@intrinsic
def exponential(typing_context: Any, x: Any) -> Any:
    """Return `power` of a number; a loop over a row becomes vector instructions."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return power(builder, arguments[0])

    return types.float32(types.float32), code


@intrinsic
def softmax_powers(
    typing_context: Any, scores: Any, row: Any, seen: Any, end: Any, scale: Any, out: Any, out_row: Any
) -> Any:
    """Write e^((scores[row, t] - greatest) * scale) to out[out_row, t] for t below `seen`, and return their sum.

    What is between `seen` and `end`, a multiple of LANES, becomes 0. out is float32, perhaps the scores themselves, or
    uint16: then the powers are rounded to bfloat16, and the sum is of what they were before.
    """

    def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, x_bytes = rows_of(context, b, signature, arguments, 0)
        y, y_bytes = rows_of(context, b, signature, arguments, 5)
        x, y = bytes_on(b, x, b.mul(arguments[1], x_bytes)), bytes_on(b, y, b.mul(arguments[6], y_bytes))
        narrow = signature.args[5].dtype == types.uint16
        turns = b.sdiv(arguments[3], I64(LANES))
        seen = splat(b, b.trunc(arguments[2], I32), LANES)
        lane = ir.Constant(vector(I32, LANES), list(range(LANES)))

        def read(turn: Any, instead: float) -> tuple[Any, Any]:
            """Return the scores of one turn of a loop, with `instead` where they are not seen, and where they are."""
            start = b.mul(turn, I64(LANES))
            index = b.add(splat(b, b.trunc(start, I32), LANES), lane)
            visible = b.icmp_signed("<", index, seen)
            numbers = load(b, at(b, x, start, F32), F32, LANES)
            return b.select(visible, numbers, constant(F32, instead, LANES)), visible

        with Loop(b, turns, [constant(F32, float("-inf"), LANES)]) as loop:
            numbers, _ = read(loop.count, float("-inf"))
            greater = b.fcmp_ordered(">", numbers, loop.values[0])
            loop.next[0] = b.select(greater, numbers, loop.values[0])
        most = splat(b, greatest_float(b, loop.values[0]), LANES)
        factor = splat(b, arguments[4], LANES)
        with Loop(b, turns, [constant(F32, 0.0, LANES)]) as loop:
            numbers, visible = read(loop.count, 0.0)
            powers = b.select(visible, power(b, b.fmul(b.fsub(numbers, most), factor)), constant(F32, 0.0, LANES))
            loop.next[0] = b.fadd(loop.values[0], powers)
            start = b.mul(loop.count, I64(LANES))
            if narrow:
                store(b, narrow_to_bfloat16(b, powers), at(b, y, start, I16))
            else:
                store(b, powers, at(b, y, start, F32))
        return sum_lanes(b, loop.values[0])

    n = types.int64
    return types.float32(scores, n, n, n, types.float32, out, n), code


@kernel
def round_to_bfloat16(number: Any) -> Any:
    """Return the bits of the nearest bfloat16, half to even; NaN stays NaN."""
    bits = np.uint32(float_as_bits(np.float32(number)))
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(64))
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@intrinsic
def round_to_pairs(typing_context: Any, number: Any) -> Any:
    """Do what `round_to_bfloat16` does, by the instruction of a CPU that multiplies bfloat16."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return narrow_to_bfloat16(builder, arguments[0])

    return types.uint16(types.float32), code


@kernel
def normalize(x: Any, row: int, width: int, weight: Any, bias: Any, eps: float, out: Any) -> None:
    """Write LayerNorm (Ba et al. 2016, equation 4) of x[row, :width] to out[row, :width]; the rest of the row is 0."""
    padded = (width + LANES - 1) // LANES * LANES
    mean = row_sum(x, row, padded) / np.float32(width)  # x is 0 beyond its width
    for column in range(width):
        i = np.uint64(column)  # an unsigned index needs no check for negative values, so the loop becomes vectors
        out[row, i] = x[row, i] - mean
    for column in range(width, padded):
        out[row, np.uint64(column)] = np.float32(0)
    variance = row_square_sum(out, row, padded) / np.float32(width)
    scale = _ONE / np.float32(math.sqrt(variance + np.float32(eps)))
    for column in range(width):
        i = np.uint64(column)
        out[row, i] = out[row, i] * scale * weight[i] + bias[i]


@intrinsic
def gelu_tanh(typing_context: Any, y: Any, row: Any, first: Any, last: Any) -> Any:
    """Apply the tanh form of GELU (Hendrycks and Gimpel 2016) to y[row, first:last], in whole vectors.

    0.5 x (1 + tanh u) = x / (1 + e^(-2u)), with u = sqrt(2/pi) (x + 0.044715 x³).
    """

    def code(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        base, stride = rows_of(context, b, signature, arguments, 0)
        line = at(b, bytes_on(b, base, b.mul(arguments[1], stride)), arguments[2], F32)
        vectors = b.sdiv(b.add(b.sub(arguments[3], arguments[2]), I64(LANES - 1)), I64(LANES))
        linear, cubic, one = (constant(F32, float(value), LANES) for value in (_LINEAR, _LINEAR * _CUBIC, _ONE))
        with Loop(b, vectors, []) as loop:
            here = at(b, line, b.mul(loop.count, I64(LANES)), F32)
            x = load(b, here, F32, LANES)
            powers = power(b, b.fmul(x, multiply_add(b, b.fmul(x, x), cubic, linear)))
            store(b, b.fdiv(x, b.fadd(powers, one)), here)
        return context.get_dummy_value()

    n = types.int64
    return types.void(y, n, n, n), code


@kernel
def gelu_exact(y: Any, row: int, first: int, last: int) -> None:
    """Apply x times the standard normal CDF at x to y[row, first:last]."""
    for column in range(first, last):
        i = np.uint64(column)
        x = y[row, i]
        y[row, i] = x * _HALF * (_ONE + np.float32(math.erf(x * np.float32(math.sqrt(0.5)))))


@kernel
def relu(y: Any, row: int, first: int, last: int) -> None:
    """Apply max(x, 0) to y[row, first:last]; NaN stays NaN."""
    for column in range(first, last):
        i = np.uint64(column)
        x = y[row, i]
        y[row, i] = np.float32(0) if x < np.float32(0) else x


ZERO_POINTS = {types.uint8: 128, types.int32: 8, types.uint32: 8}
"""The whole number that stands for a weight of 0, by the type of the weights' array, if it is not 0."""


def quantize_activations(
    weights: Any, source: Any, row: int, width: int, padded: int, out: Any, scales: Any, offsets: Any, to: int
) -> None:
    """Write source[row, :width] to out[to] in the form in which it is multiplied by such weights.

    Args:
        weights: an array whose type names the storage; it is not read.
        source: float32, a token per row.
        row, width: which numbers.
        padded: out[to, width:padded] becomes 0.
        out: float32: the numbers are copied. uint16: they are rounded to bfloat16. int16: they are divided by
            scales[to, 0] = (greatest magnitude) / limit and rounded. int8: likewise in groups, each with a scale of its
            own and a limit of 127.
        scales: float32 [tokens, 1 or groups].
        offsets: int32 [tokens, groups]; set to minus the zero point of the weights times each group's sum.
        to: the row of out, scales and offsets.
    """


@overload(quantize_activations, inline="never")
def _quantize_activations(
    weights: Any, source: Any, row: Any, width: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    if out.dtype == types.float32:
        return _copy_row
    if out.dtype == types.uint16:
        return _round_row_to_bfloat16
    if out.dtype == types.int8:
        return _round_in_groups
    return _round_row if weights.dtype == types.int8 else _round_row_and_sum


def _copy_row(
    weights: Any, source: Any, row: Any, width: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    for i in range(width):
        out[to, np.uint64(i)] = source[row, np.uint64(i)]
    for i in range(width, padded):
        out[to, np.uint64(i)] = np.float32(0)


def _round_row_to_bfloat16(
    weights: Any, source: Any, row: Any, width: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    for i in range(width):
        out[to, np.uint64(i)] = round_to_pairs(source[row, np.uint64(i)])
    for i in range(width, padded):
        out[to, np.uint64(i)] = np.uint16(0)


def _round_row(
    weights: Any, source: Any, row: Any, width: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    _round_to_int16(source, row, width, padded, out, scales, to)
    for i in range(0, padded, 4):  # the order in which weights of 8 bits become pairs, see `products.py`
        second = out[to, i + 1]
        out[to, i + 1] = out[to, i + 2]
        out[to, i + 2] = second


def _round_row_and_sum(
    weights: Any, source: Any, row: Any, width: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    _round_to_int16(source, row, width, padded, out, scales, to)
    for group in range(padded // GROUP):
        total = np.int32(0)
        for i in range(group * GROUP, (group + 1) * GROUP):
            total += np.int32(out[to, i])
        offsets[to, group] = np.int32(-8) * total


@kernel
def _round_to_int16(source: Any, row: int, width: int, padded: int, out: Any, scales: Any, to: int) -> None:
    """Round a row with one scale: as finely as 127 times it, `padded` times, stays under 2³¹, and it fits 16 bits."""
    limit = np.float32(min(32767, (2**31 - 1) // (127 * padded)))
    bits = np.int32(0)
    for i in range(width):
        # Magnitudes are ordered as their bits are, and a maximum of integers becomes vector instructions.
        bits = np.int32(max(bits, np.int32(float_as_bits(source[row, i]) & np.int32(0x7FFFFFFF))))
    greatest = bits_as_float(bits)
    scales[to, 0] = greatest / limit
    inverse = limit / greatest if greatest > 0 else np.float32(0)
    for i in range(width):
        out[to, i] = np.int16(np.int32((source[row, i] * inverse + ROUND) - ROUND))
    for i in range(width, padded):
        out[to, i] = np.int16(0)


def _round_in_groups(
    weights: Any, source: Any, row: Any, width: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    for i in range(width, padded):
        source[row, np.uint64(i)] = np.float32(0)
    _round_groups(weights, source, row, padded, out, scales, offsets, to)


@intrinsic
def _round_groups(
    typing_context: Any, weights: Any, source: Any, row: Any, padded: Any, out: Any, scales: Any, offsets: Any, to: Any
) -> Any:
    """Round source[row, :padded] to int8 in groups: round(x * 127 / max|x|)."""
    zero_point, group = ZERO_POINTS[weights.dtype], SCALE_COLUMNS[numpy_support.as_dtype(weights.dtype)]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lines = []
        for index, number in ((1, 2), (4, 7), (5, 7), (6, 7)):
            base, stride = rows_of(context, builder, signature, arguments, index)
            lines.append(bytes_on(builder, base, builder.mul(arguments[number], stride)))
        x, q, scale, offset = lines
        floats, wholes = vector(F32, LANES), vector(I32, LANES)
        with Loop(builder, builder.sdiv(arguments[3], I64(group)), []) as loop:
            start = builder.mul(loop.count, I64(group))
            columns = [builder.add(start, I64(i)) for i in range(0, group, LANES)]
            parts = [load(builder, at(builder, x, column, F32), F32, LANES) for column in columns]
            greatest = constant(I32, 0, LANES)
            for part in parts:
                magnitude = builder.and_(builder.bitcast(part, wholes), constant(I32, 0x7FFFFFFF, LANES))
                greatest = builder.select(builder.icmp_signed(">", magnitude, greatest), magnitude, greatest)
            most = builder.bitcast(greatest_lane(builder, greatest), F32)
            inverse = builder.select(
                builder.fcmp_ordered(">", most, F32(0.0)), builder.fdiv(F32(127.0), most), F32(0.0)
            )
            total = constant(I32, 0, LANES)
            for column, part in zip(columns, parts, strict=True):
                scaled = builder.fmul(part, splat(builder, inverse, LANES))
                whole = builder.fptosi(call(builder, f"llvm.rint.v{LANES}f32", floats, [scaled]), wholes)
                total = builder.add(total, whole)
                store(builder, builder.trunc(whole, vector(I8, LANES)), at(builder, q, column, I8))
            builder.store(builder.fdiv(most, F32(127.0)), at(builder, scale, loop.count, F32))
            negative = builder.mul(sum_lanes(builder, total), I32(-zero_point))
            builder.store(negative, at(builder, offset, loop.count, I32))
        return context.get_dummy_value()

    number = types.int64
    return types.void(weights, source, number, number, out, scales, offsets, number), code
