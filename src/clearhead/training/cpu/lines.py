"""Vector instructions over short lines of float32 at addresses, for kernels that compute attention a head at a time.

LLVM makes vectors of long loops: it takes four at a time and leaves what remains to scalar instructions, which here
would be nearly everything. These functions take one vector at a time. A line has room for whole vectors.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

from clearhead.engine.elementwise import power
from clearhead.engine.llvm import (
    F32,
    I16,
    I32,
    I64,
    Builder,
    Loop,
    address,
    at,
    broadcast,
    bytes_on,
    constant,
    load,
    multiply_add,
    rows_of,
    shuffle,
    splat,
    store,
    sum_lanes,
    vector,
    widen_bfloat16,
)
from clearhead.engine.variants import LANES
from clearhead.training.cpu.kernels import bfloat16_bits, compiled_rows


@register_jitable
def to_vectors(numbers: int) -> int:
    """Return the numbers of whole vectors that have room for so many."""
    return (numbers + LANES - 1) // LANES * LANES


def _sum_of_rows(vectors: int, turns: int, lines: int) -> Any:
    """Return a function that writes `lines` sums of rows of `vectors` vectors, each row with a weight for each sum.

    It takes `turns` rows in a turn, which have sums of their own, so that no addition waits for the one before it.
    """

    @intrinsic
    def total(
        typing_context: Any,
        weights: Any,
        step: Any,
        apart: Any,
        count: Any,
        rows: Any,
        stride: Any,
        out: Any,
        out_apart: Any,
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first_weight, step, apart, count, first_row, stride, out, out_apart = arguments
            zero = constant(F32, 0.0, LANES)

            def add(k: Any, sums: list[Any]) -> list[Any]:
                weight = builder.add(first_weight, builder.mul(k, step))
                row = address(builder, builder.add(first_row, builder.mul(k, stride)))
                numbers = [load(builder, at(builder, row, I64(n * LANES), F32), F32, LANES) for n in range(vectors)]
                found = []
                for line in range(lines):
                    place = address(builder, builder.add(weight, builder.mul(apart, I64(line))))
                    factor = broadcast(builder, place, F32, LANES)
                    own = sums[line * vectors : (line + 1) * vectors]
                    found += [multiply_add(builder, factor, *pair) for pair in zip(numbers, own, strict=True)]
                return found

            each = lines * vectors
            with Loop(builder, builder.sdiv(count, I64(turns)), [zero] * (turns * each)) as loop:
                first = builder.mul(loop.count, I64(turns))
                for turn in range(turns):
                    own = slice(turn * each, (turn + 1) * each)
                    loop.next[own] = add(builder.add(first, I64(turn)), loop.values[own])
            sums = loop.values[:each]
            for turn in range(1, turns):
                others = loop.values[turn * each : (turn + 1) * each]
                sums = [builder.fadd(one, other) for one, other in zip(sums, others, strict=True)]
            done = builder.mul(builder.sdiv(count, I64(turns)), I64(turns))
            with Loop(builder, builder.sub(count, done), sums) as rest:
                rest.next = add(builder.add(done, rest.count), rest.values)
            for n, value in enumerate(rest.values):
                place = address(builder, builder.add(out, builder.mul(out_apart, I64(n // vectors))))
                store(builder, value, at(builder, place, I64(n % vectors * LANES), F32))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), code

    return total


_two_4, _two_2, _two_1 = _sum_of_rows(4, 1, 2), _sum_of_rows(2, 2, 2), _sum_of_rows(1, 4, 2)
_one_4, _one_2, _one_1 = _sum_of_rows(4, 1, 1), _sum_of_rows(2, 2, 1), _sum_of_rows(1, 4, 1)


@compiled_rows
def weighted_sums(
    lines: int,
    weights: int,
    step: int,
    apart: int,
    count: int,
    rows: int,
    stride: int,
    columns: int,
    out: int,
    out_apart: int,
) -> None:
    """Write one or two lines: the sums over k < count of weights[k step] * rows[k, :columns], all in float32.

    Args:
        lines: 1 or 2.
        weights, rows, out: addresses.
        step: the bytes from one weight to the next.
        apart: the bytes from the weights of the first line to those of the second.
        count: the number of rows.
        stride: the bytes from one row to the next.
        columns: a multiple of LANES.
        out_apart: the bytes from the first line to the second.
    """
    left = columns // LANES
    while left >= 4:
        if lines == 2:
            _two_4(weights, step, apart, count, rows, stride, out, out_apart)
        else:
            _one_4(weights, step, apart, count, rows, stride, out, out_apart)
        rows, out, left = rows + 16 * LANES, out + 16 * LANES, left - 4
    if left >= 2:
        if lines == 2:
            _two_2(weights, step, apart, count, rows, stride, out, out_apart)
        else:
            _one_2(weights, step, apart, count, rows, stride, out, out_apart)
        rows, out, left = rows + 8 * LANES, out + 8 * LANES, left - 2
    if left:
        if lines == 2:
            _two_1(weights, step, apart, count, rows, stride, out, out_apart)
        else:
            _one_1(weights, step, apart, count, rows, stride, out, out_apart)


def _seen_lanes(builder: Builder, turn: Any, seen: Any) -> Any:
    """Return which lanes of a loop's turn are below `seen`, an I64."""
    index = builder.mul(turn, I64(LANES))
    lane = ir.Constant(vector(I32, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lane, splat(builder, builder.trunc(builder.sub(seen, index), I32), LANES))


def _line(builder: Builder, place: Any, turn: Any) -> Any:
    """Return the pointer to the vector of a loop's turn in a line at an address."""
    return at(builder, address(builder, place), builder.mul(turn, I64(LANES)), F32)


@intrinsic
def greatest(typing_context: Any, line: Any, seen: Any) -> Any:
    """Return the greatest of the first `seen` float32 of a line, whose last vector is whole; NaN may be lost."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, seen = arguments
        least = constant(F32, float("-inf"), LANES)
        with Loop(builder, _turns(builder, seen), [least]) as loop:
            numbers = load(builder, _line(builder, line, loop.count), F32, LANES)
            numbers = builder.select(_seen_lanes(builder, loop.count, seen), numbers, least)
            greater = builder.fcmp_ordered(">", numbers, loop.values[0])
            loop.next[0] = builder.select(greater, numbers, loop.values[0])
        (numbers,), lanes = loop.values, LANES
        while lanes > 1:
            lanes //= 2
            low = shuffle(builder, numbers, numbers, list(range(lanes)))
            high = shuffle(builder, numbers, numbers, list(range(lanes, 2 * lanes)))
            numbers = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        return builder.extract_element(numbers, I32(0))

    return types.float32(types.int64, types.int64), code


def _turns(builder: Builder, numbers: Any) -> Any:
    """Return how many vectors hold so many numbers."""
    return builder.sdiv(builder.add(numbers, I64(LANES - 1)), I64(LANES))


@intrinsic
def powers(typing_context: Any, line: Any, seen: Any, shift: Any, factors: Any) -> Any:
    """Replace the first `seen` numbers x of a line by e^(x - shift), and the rest of the last vector by 0.

    Return their sum, each times its factor of another line; without one (0) it is the sum itself.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, seen, shift, factors = arguments
        zero, one = constant(F32, 0.0, LANES), constant(F32, 1.0, LANES)
        away = splat(builder, shift, LANES)
        with Loop(builder, _turns(builder, seen), [zero]) as loop:
            place = _line(builder, line, loop.count)
            numbers = power(builder, builder.fsub(load(builder, place, F32, LANES), away))
            numbers = builder.select(_seen_lanes(builder, loop.count, seen), numbers, zero)
            store(builder, numbers, place)
            given = builder.icmp_signed("!=", factors, I64(0))
            other = builder.select(given, factors, line)  # an address that can be read in either case
            factor = builder.select(given, load(builder, _line(builder, other, loop.count), F32, LANES), one)
            loop.next[0] = multiply_add(builder, numbers, factor, loop.values[0])
        return sum_lanes(builder, loop.values[0])

    return types.float32(types.int64, types.int64, types.float32, types.int64), code


@intrinsic
def scale_line(typing_context: Any, line: Any, numbers: Any, minus: Any, factor: Any, weights: Any) -> Any:
    """Replace the first numbers x of a line by (x - minus) * factor, times the weights in another line unless it is 0.

    The rest of the last vector is changed likewise.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line, numbers, minus, factor, weights = arguments
        given = builder.icmp_signed("!=", weights, I64(0))
        other = builder.select(given, weights, line)
        minus, factor = splat(builder, minus, LANES), splat(builder, factor, LANES)
        with Loop(builder, _turns(builder, numbers), []) as loop:
            place = _line(builder, line, loop.count)
            weight = load(builder, _line(builder, other, loop.count), F32, LANES)
            weight = builder.select(given, builder.fmul(weight, factor), factor)
            store(builder, builder.fmul(builder.fsub(load(builder, place, F32, LANES), minus), weight), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.float32, types.int64), code


@intrinsic
def transpose_tile(typing_context: Any, rows: Any, stride: Any, factor: Any, out: Any, out_stride: Any) -> Any:
    """Write a tile of LANES rows of LANES float32 each, times a factor, with rows and columns exchanged."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, stride, factor, out, out_stride = arguments
        times = splat(builder, factor, LANES)
        tile = [
            builder.fmul(
                load(builder, address(builder, builder.add(rows, builder.mul(stride, I64(n)))), F32, LANES), times
            )
            for n in range(LANES)
        ]
        distance = LANES // 2
        while distance:  # exchange the blocks beside the diagonal, of half the size each time
            stay = [lane if not lane & distance else LANES + lane - distance for lane in range(LANES)]
            other = [lane + distance if not lane & distance else LANES + lane for lane in range(LANES)]
            for n in range(LANES):
                if not n & distance:
                    upper, lower = tile[n], tile[n + distance]
                    tile[n] = shuffle(builder, upper, lower, stay)
                    tile[n + distance] = shuffle(builder, upper, lower, other)
            distance //= 2
        for n, numbers in enumerate(tile):
            store(builder, numbers, address(builder, builder.add(out, builder.mul(out_stride, I64(n)))))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), code


def _copy_line(builder: Builder, count: Any, read: Any, write: Any) -> None:
    """Copy numbers in whole vectors, and what is left one by one; `read` and `write` get an index and the lanes."""
    vectors = builder.sdiv(count, I64(LANES))
    with Loop(builder, vectors, []) as loop:
        first = builder.mul(loop.count, I64(LANES))
        write(first, LANES, read(first, LANES))
    done = builder.mul(vectors, I64(LANES))
    with Loop(builder, builder.sub(count, done), []) as loop:
        index = builder.add(done, loop.count)
        write(index, 1, read(index, 1))


def _row_of(context: Any, builder: Builder, signature: Any, arguments: Any, index: int) -> tuple[Any, bool]:
    """Return the address of a row, the argument after an array, and whether it holds bfloat16's bits."""
    base, stride = rows_of(context, builder, signature, arguments, index)
    row = bytes_on(builder, base, builder.mul(arguments[index + 1], stride))
    return row, signature.args[index].dtype == types.uint16


@intrinsic
def load_line(typing_context: Any, source: Any, row: Any, count: Any, out: Any) -> Any:
    """Copy the first numbers of a row, of either type, to an address as float32."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, low = _row_of(context, builder, signature, arguments, 0)
        kind = I16 if low else F32

        def read_numbers(first: Any, lanes: int) -> Any:
            numbers = load(builder, at(builder, place, first, kind), kind, lanes)
            return widen_bfloat16(builder, numbers) if low else numbers

        def write_numbers(first: Any, lanes: int, numbers: Any) -> None:
            store(builder, numbers, at(builder, address(builder, arguments[3]), first, F32))

        _copy_line(builder, arguments[2], read_numbers, write_numbers)
        return context.get_dummy_value()

    return types.void(source, types.int64, types.int64, types.int64), code


@intrinsic
def store_line(typing_context: Any, line: Any, out: Any, row: Any, count: Any) -> Any:
    """Copy float32 at an address to the first numbers of a row, rounded to its type."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, low = _row_of(context, builder, signature, arguments, 1)
        kind = I16 if low else F32

        def read_numbers(first: Any, lanes: int) -> Any:
            return load(builder, at(builder, address(builder, arguments[0]), first, F32), F32, lanes)

        def write_numbers(first: Any, lanes: int, numbers: Any) -> None:
            numbers = bfloat16_bits(builder, numbers) if low else numbers
            store(builder, numbers, at(builder, place, first, kind))

        _copy_line(builder, arguments[3], read_numbers, write_numbers)
        return context.get_dummy_value()

    return types.void(types.int64, out, types.int64, types.int64), code
