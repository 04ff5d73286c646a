"""What the kernels need and Python cannot say: vectors, atomic counters, and the bits of a number.

Numba turns Python into LLVM's intermediate code; an *intrinsic* is a function whose intermediate code is written
by hand. Vectors here are LLVM's own, of a fixed number of lanes: on a CPU whose registers are narrower LLVM uses
several, so the same code runs on AVX2, AVX-512, NEON and plain SSE2, and gives the same bits on each run of one.
"""

from __future__ import annotations

import sys
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()

LANES = 8
"""Partial sums that a product is cut into: 8 float32 fill one AVX2 register. Part of what makes results repeatable."""


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    """The type of `lanes` numbers side by side."""
    return ir.VectorType(element, lanes)


def data(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, place: int) -> Any:
    """The address of the first element of the array that is argument number `place`."""
    array = context.make_array(signature.args[place])(context, builder, arguments[place])
    return array.data


def rows_of(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, place: int) -> tuple[Any, Any]:
    """The address of a two-dimensional array and the bytes from one row to the next."""
    array = context.make_array(signature.args[place])(context, builder, arguments[place])
    return array.data, cgutils.unpack_tuple(builder, array.strides)[0]


def at(builder: ir.IRBuilder, pointer: Any, offset: Any, element: ir.Type) -> Any:
    """The address `offset` elements on, as a pointer to `element`."""
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [offset])


def bytes_on(builder: ir.IRBuilder, pointer: Any, offset: Any) -> Any:
    """The address `offset` bytes on."""
    return builder.gep(builder.bitcast(pointer, I8.as_pointer()), [offset])


def opaque(builder: ir.IRBuilder, value: Any) -> Any:
    """The same number, which the compiler must take for another one: what is read through it is read anew."""
    unknown = ir.FunctionType(value.type, [value.type])
    return builder.asm(unknown, "", "=r,0", [value], side_effect=True)  # no instruction, on any machine


def load(builder: ir.IRBuilder, pointer: Any, element: ir.Type, lanes: int) -> Any:
    """Reads `lanes` numbers that lie side by side; the address needs no alignment beyond one element's."""
    read = builder.load(builder.bitcast(pointer, vector(element, lanes).as_pointer()))
    read.align = max(1, getattr(element, "width", 32) // 8)
    return read


def store(builder: ir.IRBuilder, value: Any, pointer: Any) -> None:
    """Writes a vector."""
    written = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    element = value.type.element
    written.align = max(1, getattr(element, "width", 32) // 8)


def splat(builder: ir.IRBuilder, number: Any, lanes: int) -> Any:
    """A vector with the same number in every lane."""
    empty = ir.Constant(vector(number.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, number, I32(0))
    return builder.shuffle_vector(first, empty, ir.Constant(vector(I32, lanes), [0] * lanes))


def shuffle(builder: ir.IRBuilder, a: Any, b: Any, lanes: list[int]) -> Any:
    """A vector of the named lanes of two: 0, 1, ... are a's, and b's go on from there."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(lanes)), lanes))


def multiply_add(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """a * b + c on vectors of float32, rounded once where the CPU has such an instruction."""
    name = f"llvm.fmuladd.v{a.type.count}f32"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def multiply_pairs(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """int16 [2n] times int16 [2n], neighbours added: int32 [n]. One instruction (pmaddwd) on x86.

    No sum can overflow: 2 * 32767² < 2³¹.
    """
    n = a.type.count
    wide = vector(I32, n)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide), flags=["nsw"])
    even = shuffle(builder, products, products, list(range(0, n, 2)))
    odd = shuffle(builder, products, products, list(range(1, n, 2)))
    return builder.add(even, odd)


def widen_bfloat16(builder: ir.IRBuilder, bits: Any) -> Any:
    """bfloat16 as 16 bits to float32: the same number with sixteen more bits of mantissa, all 0."""
    n = bits.type.count
    wide = builder.shl(builder.zext(bits, vector(I32, n)), ir.Constant(vector(I32, n), [16] * n))
    return builder.bitcast(wide, vector(F32, n))


def sum_lanes_of_four(builder: ir.IRBuilder, rows: list[Any]) -> Any:
    """Four vectors of 8 to one of 4, each lane the sum of one vector's; always added in the same order."""
    add = builder.fadd if rows[0].type.element == F32 else builder.add
    halves = [add(shuffle(builder, r, r, [0, 1, 2, 3]), shuffle(builder, r, r, [4, 5, 6, 7])) for r in rows]
    pairs = [
        add(shuffle(builder, a, b, [0, 2, 4, 6]), shuffle(builder, a, b, [1, 3, 5, 7]))  # a0+a1 a2+a3 b0+b1 b2+b3
        for a, b in (halves[:2], halves[2:])
    ]
    return add(shuffle(builder, pairs[0], pairs[1], [0, 2, 4, 6]), shuffle(builder, pairs[0], pairs[1], [1, 3, 5, 7]))


class Loop:
    """A counted loop with numbers that change from turn to turn: `with Loop(builder, n, start) as loop`.

    Attributes:
        count: the turn, int64, from 0.
        values: what `start` gave in the first turn and what the last turn left in `next` after that.
    """

    def __init__(self, builder: ir.IRBuilder, turns: Any, start: list[Any]) -> None:
        self._builder, self._turns, self._start = builder, turns, start

    def __enter__(self) -> Loop:
        builder, entry = self._builder, self._builder.block
        self._body = builder.append_basic_block("turn")
        self._done = builder.append_basic_block("done")
        some = builder.icmp_signed(">", self._turns, I64(0))
        builder.cbranch(some, self._body, self._done)
        self._entry = entry
        builder.position_at_end(self._body)
        self.count = builder.phi(I64)
        self.count.add_incoming(I64(0), entry)
        self.values = [builder.phi(value.type) for value in self._start]
        for phi, value in zip(self.values, self._start, strict=True):
            phi.add_incoming(value, entry)
        self.next = list(self.values)
        return self

    def __exit__(self, *error: object) -> None:
        builder = self._builder
        following = builder.add(self.count, I64(1))
        end = builder.block
        self.count.add_incoming(following, end)
        for phi, value in zip(self.values, self.next, strict=True):
            phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed("<", following, self._turns), self._body, self._done)
        builder.position_at_end(self._done)
        self.values = [builder.phi(value.type) for value in self._start]  # what is there after the loop
        for phi, first, last in zip(self.values, self._start, self.next, strict=True):
            phi.add_incoming(first, self._entry)
            phi.add_incoming(last, end)


@intrinsic
def bits_as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 whose 32 bits are these."""
    if bits != types.int32:
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), code


@intrinsic
def float_as_bits(typing_context: Any, number: Any) -> Any:
    """The 32 bits of a float32."""
    if number != types.float32:
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], I32)

    return types.int32(types.float32), code


def _lane_sum(squared: bool) -> Any:
    @intrinsic
    def total(typing_context: Any, numbers: Any, row: Any, n: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            base, stride = rows_of(context, builder, signature, arguments, 0)
            line = bytes_on(builder, base, builder.mul(arguments[1], stride))
            zero = ir.Constant(vector(F32, LANES), [0.0] * LANES)
            with Loop(builder, builder.sdiv(arguments[2], I64(LANES)), [zero]) as loop:
                x = load(builder, at(builder, line, builder.mul(loop.count, I64(LANES)), F32), F32, LANES)
                if squared:
                    loop.next[0] = multiply_add(builder, x, x, loop.values[0])
                else:
                    loop.next[0] = builder.fadd(loop.values[0], x)
            return builder.extract_element(sum_lanes_of_four(builder, [loop.values[0]] * 4), I32(0))

        return types.float32(numbers, types.int64, types.int64), code

    return total


row_sum = _lane_sum(squared=False)
"""row_sum(numbers, row, n): the sum of numbers[row, :n] in float32, in 8 partial sums; n is a multiple of 8."""
row_square_sum = _lane_sum(squared=True)
"""row_square_sum(numbers, row, n): the same of the squares."""


@intrinsic
def atomic_add(typing_context: Any, counters: Any, place: Any, amount: Any) -> Any:
    """Adds to counters[place] so that no other thread's addition is lost; returns what was there before."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), code


@intrinsic
def atomic_read(typing_context: Any, counters: Any, place: Any) -> Any:
    """counters[place] as the other threads left it, and with it all that they wrote before."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        found = builder.load_atomic(pointer, "seq_cst", 8)
        # No instruction: what was read from anywhere before this must be read anew after it. LLVM may conclude from a
        # function that only loads from one address that it reads nothing else, and keep what others have changed.
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)
        return found

    return types.int64(counters, types.int64), code


@intrinsic
def atomic_write(typing_context: Any, counters: Any, place: Any, value: Any) -> Any:
    """counters[place] = value, after all that this thread wrote before."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        builder.store_atomic(arguments[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(counters, types.int64, types.int64), code


@intrinsic
def atomic_swap(typing_context: Any, counters: Any, place: Any, expected: Any, value: Any) -> Any:
    """counters[place] = value where `expected` was there, in one step for all threads; returns whether it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        found = builder.cmpxchg(pointer, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(counters, types.int64, types.int64, types.int64), code


_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


@intrinsic
def yield_core(typing_context: Any) -> Any:
    """Lets the operating system run another thread on this core, where it offers that."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if binding.address_of_symbol(_YIELD):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), _YIELD)
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), code
