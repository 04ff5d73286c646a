"""Building blocks that Python cannot express: vectors, atomic counters, and the bits of a number.

Numba turns Python into LLVM's intermediate representation (IR). An *intrinsic* is a function whose IR is written by
hand. Vectors have as many lanes as the kernel variant says; if the CPU's registers are narrower, LLVM uses several.
"""

from __future__ import annotations

import platform
import sys
from typing import Any, TypeAlias

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from clearhead.engine.variants import LANES, VARIANT

I8, I16, I32, I64, F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()

Builder: TypeAlias = Any
"""llvmlite's `IRBuilder`, which has no types."""


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    """Return the type of `lanes` numbers side by side."""
    return ir.VectorType(element, lanes)


def constant(element: ir.Type, value: Any, lanes: int) -> Any:
    """Return a vector with the same constant in every lane."""
    return ir.Constant(vector(element, lanes), [value] * lanes)


def data(context: Any, builder: Builder, signature: Any, arguments: Any, index: int) -> Any:
    """Return the address of the first element of the array that is argument number `index`."""
    return context.make_array(signature.args[index])(context, builder, arguments[index]).data


def rows_of(context: Any, builder: Builder, signature: Any, arguments: Any, index: int) -> tuple[Any, Any]:
    """Return the address of a two-dimensional array and the bytes from one row to the next."""
    array = context.make_array(signature.args[index])(context, builder, arguments[index])
    return array.data, cgutils.unpack_tuple(builder, array.strides)[0]


def address(builder: Builder, number: Any) -> Any:
    """Turn an int64 into a pointer."""
    return builder.inttoptr(number, I8.as_pointer())


def at(builder: Builder, pointer: Any, offset: Any, element: ir.Type) -> Any:
    """Return a pointer to `element`, `offset` elements further."""
    return builder.gep(builder.bitcast(pointer, element.as_pointer()), [offset])


def bytes_on(builder: Builder, pointer: Any, offset: Any) -> Any:
    """Return the pointer `offset` bytes further."""
    return builder.gep(builder.bitcast(pointer, I8.as_pointer()), [offset])


def opaque(builder: Builder, value: Any) -> Any:
    """Return the same number in a form that the compiler cannot see through, so that it reads memory again."""
    unknown = ir.FunctionType(value.type, [value.type])
    return builder.asm(unknown, "", "=r,0", [value], side_effect=True)  # no instruction, on any machine


def load(builder: Builder, pointer: Any, element: ir.Type, lanes: int) -> Any:
    """Read `lanes` numbers that lie side by side; the pointer needs no alignment beyond one element's."""
    read = builder.load(builder.bitcast(pointer, vector(element, lanes).as_pointer()))
    read.align = max(1, getattr(element, "width", 32) // 8)
    return read


def store(builder: Builder, value: Any, pointer: Any) -> None:
    """Write a vector."""
    written = builder.store(value, builder.bitcast(pointer, value.type.as_pointer()))
    element = value.type.element
    written.align = max(1, getattr(element, "width", 32) // 8)


def splat(builder: Builder, number: Any, lanes: int) -> Any:
    """Return a vector with the same number in every lane."""
    empty = ir.Constant(vector(number.type, lanes), ir.Undefined)
    first = builder.insert_element(empty, number, I32(0))
    return builder.shuffle_vector(first, empty, ir.Constant(vector(I32, lanes), [0] * lanes))


def broadcast(builder: Builder, pointer: Any, element: ir.Type, lanes: int = LANES) -> Any:
    """Read one number into every lane; it needs no alignment."""
    read = builder.load(builder.bitcast(pointer, element.as_pointer()))
    read.align = 1
    return splat(builder, read, lanes)


def shuffle(builder: Builder, a: Any, b: Any, lanes: list[int]) -> Any:
    """Return a vector of the named lanes of two: 0, 1, ... are a's, and b's follow."""
    return builder.shuffle_vector(a, b, ir.Constant(vector(I32, len(lanes)), lanes))


def call(builder: Builder, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    """Call one of LLVM's own functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def prefetch(builder: Builder, pointer: Any) -> None:
    """Ask for the cache line at a pointer, which may lie anywhere."""
    call(
        builder, "llvm.prefetch.p0", ir.VoidType(), [builder.bitcast(pointer, I8.as_pointer()), I32(0), I32(3), I32(1)]
    )


def multiply_add(builder: Builder, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c on vectors of float32, rounded once if the CPU has such an instruction."""
    return call(builder, f"llvm.fmuladd.v{a.type.count}f32", a.type, [a, b, c])


def add_pair_products(builder: Builder, sums: Any, a: Any, b: Any) -> Any:
    """Return sums, int32 [n], plus the products of int16 [2n] and int16 [2n], neighbours added.

    LLVM makes one or two instructions of it on x86 (vpdpwssd, or pmaddwd and paddd). For ARM it does not find the
    instruction that adds neighbours. No sum of two products overflows: 2 * 32767² < 2³¹.
    """
    n = sums.type.count
    wide = vector(I32, 2 * n)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide), flags=["nsw"])
    if _ARM and n == 4:
        low, high = (shuffle(builder, products, products, list(range(first, first + n))) for first in (0, n))
        return _in_order(builder, builder.add(sums, call(builder, _ADD_NEIGHBOURS, sums.type, [low, high])))
    even = shuffle(builder, products, products, list(range(0, 2 * n, 2)))
    odd = shuffle(builder, products, products, list(range(1, 2 * n, 2)))
    return _in_order(builder, builder.add(sums, builder.add(even, odd)))


_ARM = platform.machine().lower() in ("aarch64", "arm64")
_ADD_NEIGHBOURS = "llvm.aarch64.neon.addp.v4i32"
_REGISTER = {"x86_64": "v" if LANES == 16 else "x", "amd64": "v" if LANES == 16 else "x", "aarch64": "w", "arm64": "w"}
"""What LLVM calls a vector's register, by the processor."""


def _in_order(builder: Builder, sums: Any) -> Any:
    """Return the same vector in a form that LLVM cannot see through.

    Otherwise it adds up all products of one sum before it starts with the next, as whole numbers may be added in any
    order. It then needs the activations of all columns at a time, for which there are not enough registers. The side
    effect that it is told of keeps loads where they are written, next to their use, for the same reason.
    """
    register = _REGISTER.get(platform.machine().lower())
    if register is None or "x86" in VARIANT.dot:  # vpdpwssd multiplies and adds, which leaves nothing to reorder
        return sums
    unchanged = ir.FunctionType(sums.type, [sums.type])
    return builder.asm(unchanged, "", f"={register},0", [sums], side_effect=True)  # no instruction


def add_quad_products(builder: Builder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """Return sums, int32 [n], plus the products of uint8 [4n] and int8 [4n], each four neighbours added. All is exact.

    `unsigned` has zero points added, see `zero_point`; both come as int32 [n], four bytes in each.
    """
    n = sums.type.count
    if VARIANT.dot:
        quads = vector(I8, 4 * n)
        return call(
            builder, VARIANT.dot, sums.type, [sums, builder.bitcast(unsigned, quads), builder.bitcast(signed, quads)]
        )
    pairs, eight = vector(I16, 2 * n), constant(I16, 8, 2 * n)
    w, x = builder.bitcast(unsigned, pairs), builder.bitcast(signed, pairs)
    low, high = builder.and_(w, constant(I16, 255, 2 * n)), builder.lshr(w, eight)
    sums = add_pair_products(builder, sums, low, builder.ashr(builder.shl(x, eight), eight))
    return add_pair_products(builder, sums, high, builder.ashr(x, eight))


class _BFloat16(ir.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"


_BFLOAT16 = _BFloat16()


def add_bfloat16_products(builder: Builder, sums: Any, a: Any, b: Any) -> Any:
    """Return sums, float32 [n], plus the products of bfloat16 [2n] and [2n], neighbours added.

    Both come as int32 [n], two numbers in each.
    """
    n = sums.type.count
    pairs = vector(_BFLOAT16, 2 * n)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * n}"
    return call(builder, name, sums.type, [sums, builder.bitcast(a, pairs), builder.bitcast(b, pairs)])


def narrow_to_bfloat16(builder: Builder, numbers: Any) -> Any:
    """Round a float32 or a vector to bfloat16, half to even, as int16; a CPU that multiplies bfloat16 can do it."""
    if not isinstance(numbers.type, ir.VectorType):
        return builder.bitcast(builder.fptrunc(numbers, _BFLOAT16), I16)
    n = numbers.type.count
    return builder.bitcast(builder.fptrunc(numbers, vector(_BFLOAT16, n)), vector(I16, n))


def widen_bfloat16(builder: Builder, bits: Any) -> Any:
    """Turn bfloat16's 16 bits into float32: the same number with sixteen more bits of mantissa, all 0."""
    n = bits.type.count
    wide = builder.shl(builder.zext(bits, vector(I32, n)), constant(I32, 16, n))
    return builder.bitcast(wide, vector(F32, n))


def sum_lanes(builder: Builder, numbers: Any) -> Any:
    """Return the sum of a vector's lanes; halves are added until one lane is left, so always in the same order."""
    add = builder.fadd if numbers.type.element == F32 else builder.add
    n = numbers.type.count
    while n > 1:
        n //= 2
        low, high = list(range(n)), list(range(n, 2 * n))
        numbers = add(shuffle(builder, numbers, numbers, low), shuffle(builder, numbers, numbers, high))
    return builder.extract_element(numbers, I32(0))


def greatest_lane(builder: Builder, numbers: Any) -> Any:
    """Return the greatest lane of a vector of int32."""
    return call(builder, f"llvm.vector.reduce.smax.v{numbers.type.count}i32", I32, [numbers])


def greatest_float(builder: Builder, numbers: Any) -> Any:
    """Return the greatest lane of a vector of float32 without NaN."""
    n = numbers.type.count
    while n > 1:
        n //= 2
        low = shuffle(builder, numbers, numbers, list(range(n)))
        high = shuffle(builder, numbers, numbers, list(range(n, 2 * n)))
        numbers = builder.select(builder.fcmp_ordered(">", low, high), low, high)
    return builder.extract_element(numbers, I32(0))


class Loop:
    """A counted loop with values that change from turn to turn: `with Loop(builder, n, start) as loop`.

    Attributes:
        count: the turn, int64, from 0.
        values: `start` in the first turn, then what the last turn left in `next`; after the loop, the final ones.
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
    """Return the float32 with these 32 bits."""
    if bits != types.int32:
        return None

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), code


@intrinsic
def float_as_bits(typing_context: Any, number: Any) -> Any:
    """Return the 32 bits of a float32."""
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
            with Loop(builder, builder.sdiv(arguments[2], I64(LANES)), [constant(F32, 0.0, LANES)]) as loop:
                x = load(builder, at(builder, line, builder.mul(loop.count, I64(LANES)), F32), F32, LANES)
                if squared:
                    loop.next[0] = multiply_add(builder, x, x, loop.values[0])
                else:
                    loop.next[0] = builder.fadd(loop.values[0], x)
            return sum_lanes(builder, loop.values[0])

        return types.float32(numbers, types.int64, types.int64), code

    return total


row_sum = _lane_sum(squared=False)
"""row_sum(numbers, row, n): the sum of numbers[row, :n] in float32, in LANES partial sums; n is a multiple of LANES."""
row_square_sum = _lane_sum(squared=True)
"""row_square_sum(numbers, row, n): the sum of the squares, likewise."""


@intrinsic
def atomic_add(typing_context: Any, counters: Any, index: Any, amount: Any) -> Any:
    """Add to counters[index] so that no other thread's addition is lost; return the value before."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(counters, types.int64, types.int64), code


@intrinsic
def atomic_read(typing_context: Any, counters: Any, index: Any) -> Any:
    """Return counters[index], and make visible what other threads wrote before they set it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        found = builder.load_atomic(pointer, "seq_cst", 8)
        # No instruction, but memory must be read again after it. From a function that only loads one address LLVM may
        # conclude that nothing else is read, and keep values that other threads have changed.
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)
        return found

    return types.int64(counters, types.int64), code


@intrinsic
def atomic_write(typing_context: Any, counters: Any, index: Any, value: Any) -> Any:
    """Set counters[index], after everything that this thread wrote before."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        builder.store_atomic(arguments[2], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(counters, types.int64, types.int64), code


@intrinsic
def atomic_swap(typing_context: Any, counters: Any, index: Any, expected: Any, value: Any) -> Any:
    """Set counters[index] if it is `expected`, in one step for all threads; return whether it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = at(builder, data(context, builder, signature, arguments, 0), arguments[1], I64)
        found = builder.cmpxchg(pointer, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(counters, types.int64, types.int64, types.int64), code


_YIELD = "SwitchToThread" if sys.platform == "win32" else "sched_yield"


@intrinsic
def yield_core(typing_context: Any) -> Any:
    """Let the operating system run another thread on this core, if it offers that."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if binding.address_of_symbol(_YIELD):
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(I32, []), _YIELD)
            builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), code
