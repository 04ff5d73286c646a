"""The products of a matrix with some tokens' vectors: four rows by up to three tokens at a time.

A *panel* is four rows of a matrix, stored chunk by chunk: 16 numbers of the first row, 16 of the second, and so on
to the fourth, then the next 16 of the first (the formats differ in how many). So a panel is read from its first byte to
its last, which is what memory is fastest at, and each piece of a token's vector that is loaded serves four rows.

A *tile* is what stays in registers while a panel is read once: the sums of its four rows for one, two or three
tokens. Each sum is eight partial sums side by side (`LANES`), added up at the end in a fixed order. The order in which
the products of one row and one token are added does not depend on how many tokens the tile has, on the panel's
place, or on the thread. This is why a token's result has the same bits alone and in a crowd.

    format      stored as                     multiplied as
    float32     float32                       float32 × float32
    bfloat16    the upper 16 bits             widened to float32
    int8        int8, a scale a row           int8 × int16 with sums in int32, which are exact
    int4        two in a byte, a scale a      int4 × int16 with sums in int32, exact, per group of 32;
                group of 32                   the groups in float32
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from clearhead.engine.llvm import (
    F32,
    I8,
    I16,
    I32,
    I64,
    LANES,
    Loop,
    at,
    bits_as_float,
    bytes_on,
    data,
    load,
    multiply_add,
    multiply_pairs,
    opaque,
    rows_of,
    shuffle,
    splat,
    store,
    sum_lanes_of_four,
    vector,
    widen_bfloat16,
)
from clearhead.utils.jit import inline, kernel

PANEL = 4
"""Rows in a panel."""
COLUMNS = 32
"""Columns are filled up with zeros to a multiple of this, the longest chunk."""
CHUNKS = {"float32": 8, "bfloat16": 8, "int8": 16, "int4": 32}
"""Numbers of one row that lie side by side in a panel: what one turn of a tile's loop takes of each row. With more, the
compiler holds more in registers than there are."""
MOST_TOKENS = 3
"""Tokens in the largest tile: 4 × 3 sums fill 12 of the 16 registers that AVX2 has."""
BLOCK = 48
"""Tokens that go through all panels together: 48 × 3072 numbers of 16 bits are 288 KiB."""

Pointers = list[Any]


class _Floats:
    """float32 or bfloat16 weights, float32 activations."""

    activations = types.float32
    held = MOST_TOKENS  # tokens whose numbers stay in registers beside the sums of the largest tile

    chunk = CHUNKS["float32"]

    def __init__(self, element: ir.Type) -> None:
        self.element = element
        self.chunk_bytes = PANEL * self.chunk * (4 if element == F32 else 2)
        self.start = ir.Constant(vector(F32, LANES), [0.0] * LANES)

    def turn(self, b: ir.IRBuilder, weights: Any, scales: Any, tokens: list[Pointers], sums: list[list[Any]]) -> None:
        for part in range(0, self.chunk, LANES):
            for row in range(PANEL):
                here = load(b, at(b, weights, I64(row * self.chunk + part), self.element), self.element, LANES)
                w = here if self.element == F32 else widen_bfloat16(b, here)
                for place, token in enumerate(tokens[row]):
                    x = load(b, at(b, token, I64(part), F32), F32, LANES)
                    sums[row][place] = multiply_add(b, w, x, sums[row][place])

    def finish(self, b: ir.IRBuilder, total: Any, row_scales: Any, token_scale: Any, bias: Any) -> Any:
        return b.fadd(total, bias)


class _Int8:
    """int8 weights with a scale a row, int16 activations with a scale a token."""

    activations = types.int16
    held = 2  # a product needs a register of its own before it is added
    chunk = CHUNKS["int8"]
    chunk_bytes = PANEL * chunk
    start = ir.Constant(vector(I32, LANES), [0] * LANES)

    def turn(self, b: ir.IRBuilder, weights: Any, scales: Any, tokens: list[Pointers], sums: list[list[Any]]) -> None:
        for part in range(0, self.chunk, 2 * LANES):
            for row in range(PANEL):
                narrow = load(b, at(b, weights, I64(row * self.chunk + part), I8), I8, 2 * LANES)
                w = b.sext(narrow, vector(I16, 2 * LANES))
                for place, token in enumerate(tokens[row]):
                    x = load(b, at(b, token, I64(part), I16), I16, 2 * LANES)
                    sums[row][place] = b.add(sums[row][place], multiply_pairs(b, w, x))

    def finish(self, b: ir.IRBuilder, total: Any, row_scales: Any, token_scale: Any, bias: Any) -> Any:
        scale = b.fmul(row_scales, splat(b, token_scale, PANEL))
        return multiply_add(b, b.sitofp(total, vector(F32, PANEL)), scale, bias)


class _Int4:
    """int4 weights with a scale for each group of 32, int16 activations with a scale a token."""

    activations = types.int16
    held = 0  # and so do the two halves of the weights and their scale
    chunk = CHUNKS["int4"]
    chunk_bytes = PANEL * chunk // 2
    start = ir.Constant(vector(F32, LANES), [0.0] * LANES)

    def turn(self, b: ir.IRBuilder, weights: Any, scales: Any, tokens: list[Pointers], sums: list[list[Any]]) -> None:
        wide = vector(I16, 2 * LANES)
        group_scales = widen_bfloat16(b, load(b, scales, I16, PANEL))
        for row in range(PANEL):
            # Byte i of sixteen holds number i in its lower half and number 16 + i in its upper, both signed.
            both = b.sext(load(b, at(b, weights, I64(row * self.chunk // 2), I8), I8, 2 * LANES), wide)
            upper = b.ashr(both, ir.Constant(wide, [4] * 2 * LANES))
            lower = b.ashr(b.shl(both, ir.Constant(wide, [12] * 2 * LANES)), ir.Constant(wide, [12] * 2 * LANES))
            scale = shuffle(b, group_scales, group_scales, [row] * LANES)
            for place, token in enumerate(tokens[row]):
                first, second = (load(b, at(b, token, I64(p), I16), I16, 2 * LANES) for p in (0, 2 * LANES))
                exact = b.add(multiply_pairs(b, lower, first), multiply_pairs(b, upper, second))
                sums[row][place] = multiply_add(b, b.sitofp(exact, vector(F32, LANES)), scale, sums[row][place])

    def finish(self, b: ir.IRBuilder, total: Any, row_scales: Any, token_scale: Any, bias: Any) -> Any:
        return multiply_add(b, total, splat(b, token_scale, PANEL), bias)


KINDS = {types.float32: _Floats(F32), types.uint16: _Floats(I16), types.int8: _Int8(), types.uint8: _Int4()}
"""What to do with an array of weights, by its type: each format has one of its own."""


def _write_tile(kind: Any, n_tokens: int, context: Any, b: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    weights, scales, bias = (data(context, b, signature, arguments, place) for place in range(3))
    panel, token = arguments[3], arguments[7]
    chunks = b.sdiv(arguments[4], I64(kind.chunk))
    x, x_stride = rows_of(context, b, signature, arguments, 5)
    x_scales = data(context, b, signature, arguments, 6)
    y, y_stride = rows_of(context, b, signature, arguments, 8)
    first = b.mul(panel, chunks)
    weights = bytes_on(b, weights, b.mul(first, I64(kind.chunk_bytes)))
    tokens = [bytes_on(b, x, b.mul(b.add(token, I64(t)), x_stride)) for t in range(n_tokens)]
    with Loop(b, chunks, [kind.start] * (PANEL * n_tokens)) as loop:
        here = bytes_on(b, weights, b.mul(loop.count, I64(kind.chunk_bytes)))
        group = at(b, scales, b.mul(b.add(first, loop.count), I64(PANEL)), I16)
        on = b.mul(loop.count, I64(kind.chunk * kind.activations.bitwidth // 8))
        # Sums alone fill most registers. What has no place there is read from the cache again for each row, through an
        # address that the compiler cannot know to be the same; else it would read once, and keep a sum in memory.
        held = kind.held if n_tokens == MOST_TOKENS else n_tokens
        again = [opaque(b, on) if held < n_tokens else on for _ in range(PANEL)]
        pieces = [[bytes_on(b, t, on if p < held else o) for p, t in enumerate(tokens)] for o in again]
        sums = [loop.values[row * n_tokens : (row + 1) * n_tokens] for row in range(PANEL)]
        kind.turn(b, here, group, pieces, sums)
        loop.next = [one for row in sums for one in row]
    column = b.mul(panel, I64(PANEL))
    bias4 = load(b, at(b, bias, column, F32), F32, PANEL)
    row_scales = load(b, at(b, scales, column, F32), F32, PANEL) if isinstance(kind, _Int8) else None
    for t in range(n_tokens):
        total = sum_lanes_of_four(b, [loop.values[row * n_tokens + t] for row in range(PANEL)])
        token_scale = b.load(at(b, x_scales, b.add(token, I64(t)), F32))
        line = bytes_on(b, y, b.mul(b.add(token, I64(t)), y_stride))
        store(b, kind.finish(b, total, row_scales, token_scale, bias4), at(b, line, column, F32))
    return context.get_dummy_value()


def _tile(n_tokens: int) -> Any:
    """The tile for so many tokens, as a function that a kernel can call."""

    @intrinsic
    def tile(
        typing_context: Any,
        weights: Any,
        scales: Any,
        bias: Any,
        panel: Any,
        columns: Any,
        x: Any,
        x_scales: Any,
        token: Any,
        y: Any,
    ) -> Any:
        """Writes y[token : token + n_tokens, 4 * panel : 4 * panel + 4].

        Args:
            weights: the panels, one dimension; its type tells the format.
            scales: for int8 float32, one a row; for int4 bfloat16's bits, four a chunk; else not read.
            bias: float32, one a row.
            panel: which.
            columns: how many each row has, with those that fill it up.
            x: the tokens' vectors, a row each, as long as that.
            x_scales: float32, one a token, that int16 vectors are to be multiplied by.
            token: the first row of x.
            y: float32, a row a token.
        """
        kind = KINDS[weights.dtype]

        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _write_tile(kind, n_tokens, context, builder, signature, arguments)

        return types.void(weights, scales, bias, types.int64, types.int64, x, x_scales, types.int64, y), code

    return tile


tile_1, tile_2, tile_3 = (_tile(n) for n in range(1, MOST_TOKENS + 1))


@kernel
def multiply(
    weights: Any, scales: Any, bias: Any, columns: int, first: int, last: int, x: Any, x_scales: Any, n: int, y: Any
) -> None:
    """y = x W^T + bias for the panels from `first` to before `last`, and the first n tokens of x."""
    # As many tokens at a time as stay in the second-level cache while all panels pass by.
    for start in range(0, n, BLOCK):
        end = min(n, start + BLOCK)
        for panel in range(first, last):
            token = start
            while token + 3 <= end:
                tile_3(weights, scales, bias, panel, columns, x, x_scales, token, y)
                token += 3
            if token + 2 == end:
                tile_2(weights, scales, bias, panel, columns, x, x_scales, token, y)
            elif token + 1 == end:
                tile_1(weights, scales, bias, panel, columns, x, x_scales, token, y)


_FLOAT32, _BFLOAT16, _INT8, _INT4 = CHUNKS.values()


def read_row(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    """out[to, :width] = one row of a matrix in panels, as float32."""


@overload(read_row, inline="never")
def _read_row(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    return {
        types.float32: _read_float32,
        types.uint16: _read_bfloat16,
        types.int8: _read_int8,
        types.uint8: _read_int4,
    }[weights.dtype]


@inline
def place_of(row: int, columns: int, chunk: int, i: int) -> int:
    """Where number i of a row stands among the numbers of a matrix in panels with chunks of this length."""
    return ((row // PANEL * (columns // chunk) + i // chunk) * PANEL + row % PANEL) * chunk + i % chunk


def _read_float32(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = weights[place_of(row, columns, _FLOAT32, i)]


def _read_bfloat16(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = bits_as_float(np.int32(np.uint32(weights[place_of(row, columns, _BFLOAT16, i)]) << np.uint32(16)))


def _read_int8(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        out[to, i] = np.float32(weights[place_of(row, columns, _INT8, i)]) * scales[row]


def _read_int4(weights: Any, scales: Any, row: Any, columns: Any, width: Any, out: Any, to: Any) -> Any:
    for i in range(width):
        place = place_of(row, columns, _INT4, i)
        chunk, inside = place // _INT4, place % _INT4
        both = np.int32(np.int8(weights[chunk * (_INT4 // 2) + inside % (_INT4 // 2)]))
        number = both >> 4 if inside >= _INT4 // 2 else ((both & 15) ^ 8) - 8  # 8 to 15 stand for -8 to -1
        out[to, i] = np.float32(number) * bits_as_float(np.int32(np.uint32(scales[chunk]) << np.uint32(16)))
