"""The products of a matrix with tokens' vectors: two vectors of rows by some tokens at a time.

In a *panel* (see `panels.py`) one vector holds neighbouring columns of as many rows as it has lanes: a tile broadcasts
these columns of a token to all lanes, multiplies, and adds to one sum per row. No sum runs across a vector, and a panel
is read from its first byte to its last.

A *tile* is what stays in registers while a panel is read once: the sums of its rows for one or more tokens. The
order in which the products of one row and one token are added does not depend on how many tokens the tile has, on the
panel's index, or on the thread. This is why a token's result has the same bits alone and in a batch.

    storage        weights                              activations                  sums
    float32        float32                              float32                      float32, in blocks of 64 columns
    bfloat16       the upper 16 bits, in pairs          float32, or bfloat16 if   float32, in blocks of 64 columns
                                                        the variant multiplies it
    int8 pairs     int8, a scale per row                int16, a scale per token,    int32 over the row, exact
                                                        columns 0 2 1 3 of each four
    int8 quads     uint8 with zero point 128, a scale   int8, a scale per token and  int32 in groups of 64, exact; the
                   per row and 64 columns               64 columns                   groups in float32
    int4 pairs     uint4 with zero point 8, a scale     int16, a scale per token     the same
                   per row and 32 columns
    int4 quads     the same                             int8, a scale per token and  the same
                                                        32 columns

A group's sum starts at minus the zero point times the sum of the activations, so that no correction is needed later.

Integers with 16-bit activations and int4 are used up slowly, and the CPU's own prefetcher then asks for too little: a
tile of several tokens would wait for memory that could be read faster. Their tiles ask for what comes next themselves
(`prefetched`). The other kinds became slower by it when it was measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from clearhead.engine.llvm import (
    F32,
    I8,
    I16,
    I32,
    I64,
    Builder,
    Loop,
    add_bfloat16_products,
    add_pair_products,
    add_quad_products,
    at,
    broadcast,
    bytes_on,
    constant,
    data,
    load,
    multiply_add,
    prefetch,
    rows_of,
    store,
    vector,
    widen_bfloat16,
)
from clearhead.engine.panels import COLUMNS, GROUP, PANEL, SCALE_COLUMNS, VECTORS
from clearhead.engine.variants import LANES, VARIANT
from clearhead.utils.jit import kernel

_AHEAD = 4096
"""How many bytes ahead of its columns a tile asks for weights, if its kind says so."""
_L2_BYTES = 512 << 10
"""Activations that go through all panels together; they stay in a core's second-level cache."""
_ZERO = constant(I32, 0, LANES)
_FLOAT_ZERO = constant(F32, 0.0, LANES)


class Token:
    """Where a tile finds one token's data, as pointers.

    Attributes:
        x: the activations at the current columns.
        scale: its scale, or that of the current group.
        offset: what the current group's sum starts with.
    """

    def __init__(self, x: Any, scale: Any = None, offset: Any = None) -> None:
        self.x, self.scale, self.offset = x, scale, offset


class _Floats:
    """float32 or bfloat16 weights times float32 activations."""

    activations: Any = types.float32
    tokens = VARIANT.float_tokens
    step = COLUMNS
    unroll = 8
    prefetched = False

    def __init__(self, element: ir.Type) -> None:
        self.element = element
        self.step_bytes = PANEL * self.step * (4 if element == F32 else 2)

    def add_step(self, b: Builder, weights: Any, scales: Any, tokens: list[Token], sums: list[Any]) -> list[Any]:
        zeros = [_FLOAT_ZERO] * len(sums)
        with Loop(b, I64(self.step // self.unroll), zeros) as loop:
            first = b.mul(loop.count, I64(self.unroll))
            here = at(b, weights, b.mul(first, I64(PANEL)), self.element)
            block = list(loop.values)
            for i in range(0, self.unroll, 2):
                for odd in range(2):
                    rows = [self._weights(b, here, i, odd, v) for v in range(VECTORS)]
                    for t, token in enumerate(tokens):
                        x = broadcast(b, at(b, token.x, b.add(first, I64(i + odd)), F32), F32)
                        for v in range(VECTORS):
                            block[t * VECTORS + v] = multiply_add(b, rows[v], x, block[t * VECTORS + v])
            loop.next = block
        return [b.fadd(total, block) for total, block in zip(sums, loop.values, strict=True)]

    def _weights(self, b: Builder, here: Any, i: int, odd: int, v: int) -> Any:
        if self.element == F32:
            return load(b, at(b, here, I64((i + odd) * PANEL + v * LANES), F32), F32, LANES)
        pairs = load(b, at(b, here, I64(i * PANEL + 2 * v * LANES), I16), I32, LANES)  # [rows][2 columns]
        bits = b.and_(pairs, constant(I32, 0xFFFF0000, LANES)) if odd else b.shl(pairs, constant(I32, 16, LANES))
        return b.bitcast(bits, vector(F32, LANES))

    def finish(self, b: Builder, total: Any, row_scales: Any, token: Token, bias: Any) -> Any:
        return b.fadd(total, bias)


class _BFloat16Pairs(_Floats):
    """bfloat16 weights times bfloat16 activations, by an instruction for pairs of them."""

    activations = types.uint16
    tokens = VARIANT.pair_tokens

    def __init__(self) -> None:
        super().__init__(I16)

    def add_step(self, b: Builder, weights: Any, scales: Any, tokens: list[Token], sums: list[Any]) -> list[Any]:
        block = [_FLOAT_ZERO] * len(sums)
        for pair in range(self.step // 2):
            rows = [load(b, at(b, weights, I64(pair * PANEL + v * LANES), I32), I32, LANES) for v in range(VECTORS)]
            for t, token in enumerate(tokens):
                x = broadcast(b, at(b, token.x, I64(pair), I32), I32)
                for v in range(VECTORS):
                    block[t * VECTORS + v] = add_bfloat16_products(b, block[t * VECTORS + v], rows[v], x)
        return [b.fadd(total, part) for total, part in zip(sums, block, strict=True)]


class _Int8Pairs:
    """int8 weights with a scale per row times int16 activations with a scale per token."""

    activations = types.int16
    tokens = VARIANT.pair_tokens
    step = 16
    step_bytes = PANEL * step
    prefetched = True

    def add_step(self, b: Builder, weights: Any, scales: Any, tokens: list[Token], sums: list[Any]) -> list[Any]:
        sums, pairs = list(sums), vector(I16, 2 * LANES)
        eight = constant(I16, 8, 2 * LANES)
        for quad in range(self.step // 4):
            for half in range(2):  # columns 0 and 2, then 1 and 3: a shift takes less than an instruction that widens
                rows = []
                for v in range(VECTORS):
                    both = b.bitcast(load(b, at(b, weights, I64(quad * PANEL + v * LANES), I32), I32, LANES), pairs)
                    rows.append(b.ashr(both if half else b.shl(both, eight), eight))
                for t, token in enumerate(tokens):
                    x = b.bitcast(broadcast(b, at(b, token.x, I64(2 * quad + half), I32), I32), pairs)
                    for v in range(VECTORS):
                        sums[t * VECTORS + v] = add_pair_products(b, sums[t * VECTORS + v], rows[v], x)
        return sums

    def finish(self, b: Builder, total: Any, row_scales: Any, token: Token, bias: Any) -> Any:
        scale = b.fmul(row_scales, broadcast(b, token.scale, F32))
        return multiply_add(b, b.sitofp(total, vector(F32, LANES)), scale, bias)


class _Int8Quads:
    """uint8 weights with a scale per row and 64 columns times int8 activations with a scale per group."""

    activations = types.int8
    tokens = VARIANT.group_tokens
    step = SCALE_COLUMNS[np.dtype(np.uint8)]
    step_bytes = PANEL * step
    prefetched = False

    def add_step(self, b: Builder, weights: Any, scales: Any, tokens: list[Token], sums: list[Any]) -> list[Any]:
        parts = 2 if len(tokens) == 1 else 1  # of a sum: an instruction waits for the one before it on the same sum
        exact = [broadcast(b, token.offset, I32) for token in tokens for _ in range(VECTORS)]
        exact += [_ZERO] * (parts - 1) * VECTORS
        for quad in range(self.step // 4):
            rows = [load(b, at(b, weights, I64(quad * PANEL + v * LANES), I32), I32, LANES) for v in range(VECTORS)]
            for t, token in enumerate(tokens):
                x = broadcast(b, at(b, token.x, I64(quad), I32), I32)
                for v in range(VECTORS):
                    n = (t + quad % parts) * VECTORS + v
                    exact[n] = add_quad_products(b, exact[n], rows[v], x)
        if parts == 2:
            exact = [b.add(exact[v], exact[VECTORS + v]) for v in range(VECTORS)]
        return _add_groups(b, exact, _load_scales(b, scales), tokens, sums)

    def finish(self, b: Builder, total: Any, row_scales: Any, token: Token, bias: Any) -> Any:
        return b.fadd(total, bias)


def _load_scales(b: Builder, scales: Any) -> list[Any]:
    """Read the bfloat16 scales of a panel's rows."""
    return [widen_bfloat16(b, load(b, at(b, scales, I64(v * LANES), I16), I16, LANES)) for v in range(VECTORS)]


def _add_groups(b: Builder, exact: list[Any], row_scales: list[Any], tokens: list[Token], sums: list[Any]) -> list[Any]:
    """Return sums plus the exact sums of a group times the scales of the rows and of each token's group."""
    found = []
    for t, token in enumerate(tokens):
        x_scale = broadcast(b, token.scale, F32)
        for v in range(VECTORS):
            n = t * VECTORS + v
            whole = b.sitofp(exact[n], vector(F32, LANES))
            found.append(multiply_add(b, whole, b.fmul(row_scales[v], x_scale), sums[n]))
    return found


class _Int4:
    """uint4 weights with a scale per row and group, two in a byte, times int16 or int8 activations."""

    step = GROUP
    step_bytes = PANEL * step // 2
    prefetched = True

    def __init__(self, quads: bool) -> None:
        self.quads = quads
        self.activations = types.int8 if quads else types.int16
        self.tokens = VARIANT.group_tokens if quads else VARIANT.pair_tokens

    def add_step(self, b: Builder, weights: Any, scales: Any, tokens: list[Token], sums: list[Any]) -> list[Any]:
        exact = [broadcast(b, token.offset, I32) for token in tokens for _ in range(VECTORS)]
        steps = self.step // (4 if self.quads else 2)  # quads or pairs; a byte has numbers i and i + steps / 2
        for i in range(steps // 2):
            halves = [self._halves(b, weights, i, v) for v in range(VECTORS)]
            for half, x_index in enumerate((i, i + steps // 2)):
                for t, token in enumerate(tokens):
                    x = broadcast(b, at(b, token.x, I64(x_index), I32), I32)
                    for v in range(VECTORS):
                        n = t * VECTORS + v
                        if self.quads:
                            exact[n] = add_quad_products(b, exact[n], halves[v][half], x)
                        else:
                            x16 = b.bitcast(x, vector(I16, 2 * LANES))
                            exact[n] = add_pair_products(b, exact[n], halves[v][half], x16)
        row_scales = _load_scales(b, scales)
        if self.quads:
            return _add_groups(b, exact, row_scales, tokens, sums)
        groups = [b.sitofp(total, vector(F32, LANES)) for total in exact]
        return [multiply_add(b, x, row_scales[n % VECTORS], sums[n]) for n, x in enumerate(groups)]

    def _halves(self, b: Builder, weights: Any, i: int, v: int) -> tuple[Any, Any]:
        if self.quads:
            both = load(b, at(b, weights, I64(i * PANEL + v * LANES), I32), I32, LANES)
            mask, four = constant(I32, 0x0F0F0F0F, LANES), constant(I32, 4, LANES)
        else:
            narrow = load(b, at(b, weights, I64(2 * (i * PANEL + v * LANES)), I8), I8, 2 * LANES)
            both = b.zext(narrow, vector(I16, 2 * LANES))
            mask, four = constant(I16, 15, 2 * LANES), constant(I16, 4, 2 * LANES)
        return b.and_(both, mask), b.and_(b.lshr(both, four), mask)

    def finish(self, b: Builder, total: Any, row_scales: Any, token: Token, bias: Any) -> Any:
        return b.fadd(total, bias) if self.quads else multiply_add(b, total, broadcast(b, token.scale, F32), bias)


KINDS: dict[Any, Any] = {
    types.float32: _Floats(F32),
    types.uint16: _BFloat16Pairs() if VARIANT.bfloat16 else _Floats(I16),
    types.int8: _Int8Pairs(),
    types.uint8: _Int8Quads(),
    types.int32: _Int4(quads=False),
    types.uint32: _Int4(quads=True),
}
"""How to multiply an array of weights, by the array's type: each storage has one of its own."""


def _write_tile(kind: Any, n_tokens: int, context: Any, b: Builder, signature: Any, arguments: Any) -> None:
    weights, scales, bias = (data(context, b, signature, arguments, index) for index in range(3))
    panel, first_token = arguments[3], arguments[8]
    steps = b.sdiv(arguments[4], I64(kind.step))
    x, x_stride = rows_of(context, b, signature, arguments, 5)
    x_scales, scales_stride = rows_of(context, b, signature, arguments, 6)
    offsets, offsets_stride = rows_of(context, b, signature, arguments, 7)
    y, y_stride = rows_of(context, b, signature, arguments, 9)
    x_bytes = kind.step * kind.activations.bitwidth // 8
    numbers = [b.add(first_token, I64(t)) for t in range(n_tokens)]
    starts = [
        Token(
            bytes_on(b, x, b.mul(number, x_stride)),
            bytes_on(b, x_scales, b.mul(number, scales_stride)),
            bytes_on(b, offsets, b.mul(number, offsets_stride)),
        )
        for number in numbers
    ]
    panel_steps = b.mul(panel, steps)
    weights = bytes_on(b, weights, b.mul(panel_steps, I64(kind.step_bytes)))
    start = _ZERO if isinstance(kind, _Int8Pairs) else _FLOAT_ZERO
    with Loop(b, steps, [start] * (VECTORS * n_tokens)) as loop:
        here = bytes_on(b, weights, b.mul(loop.count, I64(kind.step_bytes)))
        if kind.prefetched and n_tokens > 1:  # a token alone reads as fast as the CPU's own prefetcher can
            for line in range(0, kind.step_bytes, 64):
                prefetch(b, bytes_on(b, here, I64(_AHEAD + line)))
        group_scales = at(b, scales, b.mul(b.add(panel_steps, loop.count), I64(PANEL)), I16)
        x_on = b.mul(loop.count, I64(x_bytes))
        tokens = [  # with groups, a step is one
            Token(bytes_on(b, s.x, x_on), at(b, s.scale, loop.count, F32), at(b, s.offset, loop.count, I32))
            for s in starts
        ]
        loop.next = kind.add_step(b, here, group_scales, tokens, loop.values)
    for v in range(VECTORS):
        row = b.add(b.mul(panel, I64(PANEL)), I64(v * LANES))
        row_bias = load(b, at(b, bias, row, F32), F32, LANES)
        row_scales = load(b, at(b, scales, row, F32), F32, LANES) if isinstance(kind, _Int8Pairs) else None
        for t, token in enumerate(starts):
            line = bytes_on(b, y, b.mul(b.sub(numbers[t], arguments[10]), y_stride))
            found = kind.finish(b, loop.values[t * VECTORS + v], row_scales, token, row_bias)
            store(b, found, at(b, line, b.sub(row, arguments[11]), F32))


@intrinsic
def run_tile(
    typing_context: Any,
    weights: Any,
    scales: Any,
    bias: Any,
    panel: Any,
    columns: Any,
    x: Any,
    x_scales: Any,
    offsets: Any,
    token: Any,
    y: Any,
    y_token: Any,
    y_row: Any,
    n: Any,
) -> Any:
    """Multiply the rows of a panel by the tokens from `token` to before token + n; n is at most `most_tokens`.

    Args:
        weights: the panels, one dimension; its type says how they are stored.
        scales: for int8 pairs float32, one per row; for int8 quads and int4 bfloat16's bits, one per row and group of
            columns; else unused.
        bias: float32, one per row.
        panel: the panel's index.
        columns: how many each row has, with padding.
        x: the tokens' vectors, a row each, as long as that.
        x_scales: float32 [tokens, 1 or groups], the scales of rounded vectors.
        offsets: int32 [tokens, groups], what each group's sum starts with.
        token: the first row of x.
        y: float32; a token's result for a row of the matrix is written to y[token - y_token, row - y_row].
        n: how many tokens.
    """
    kind = KINDS[weights.dtype]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        done = builder.append_basic_block("tiles_done")
        choice = builder.switch(arguments[12], done)
        for size in range(1, kind.tokens + 1):
            block = builder.append_basic_block(f"tile_{size}")
            choice.add_case(I64(size), block)
            builder.position_at_end(block)
            _write_tile(kind, size, context, builder, signature, arguments)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(weights, scales, bias, whole, whole, x, x_scales, offsets, whole, y, whole, whole, whole), code


@intrinsic
def most_tokens(typing_context: Any, weights: Any) -> Any:
    """Return how many tokens the largest tile of a storage has."""
    kind = KINDS[weights.dtype]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return I64(kind.tokens)

    return types.int64(weights), code


@kernel
def tokens_together(matrix: Any, columns: int, vectors: Any) -> int:
    """Return how many tokens' vectors stay in the second-level cache while all panels pass by."""
    most = most_tokens(matrix.weights[0])
    return int(max(1, _L2_BYTES // (columns * vectors.numbers.itemsize) // most) * most)


@kernel
def multiply(
    matrix: Any,
    layer: int,
    columns: int,
    first: int,
    last: int,
    vectors: Any,
    start: int,
    stop: int,
    y: Any,
    y_token: int,
    y_row: int,
) -> None:
    """Multiply the panels from `first` to before `last` of a matrix by the tokens from `start` to before `stop`.

    Args:
        matrix: see `forward.Matrix`.
        layer: which of its layers.
        columns: how many the matrix has, with padding.
        vectors: the tokens' vectors, see `forward.Vectors`.
        y, y_token, y_row: where results go, as for `run_tile`.
    """
    weights, scales, bias = matrix.weights[layer], matrix.scales[layer], matrix.bias[layer]
    x, x_scales, offsets = vectors.numbers, vectors.scales, vectors.offsets
    most, block = most_tokens(weights), tokens_together(matrix, columns, vectors)
    while start < stop:
        end = min(stop, start + block)
        tiles = (end - start + most - 1) // most
        for panel in range(first, last):
            token = start
            for tile in range(tiles):
                following = start + (end - start) * (tile + 1) // tiles  # tiles of nearly the same size
                n = following - token
                run_tile(weights, scales, bias, panel, columns, x, x_scales, offsets, token, y, y_token, y_row, n)
                token = following
        start = end


@kernel
def multiply_floats(panel: Any, bias: Any, columns: int, x: Any, start: int, stop: int, y: Any) -> None:
    """Write y[i] = one panel of float32 times x[start + i, :columns] plus its bias, for the rows of x up to `stop`.

    Args:
        panel: float32 [at least `columns`, PANEL].
        bias: float32 [PANEL].
        columns: a multiple of `COLUMNS`.
        x: float32 [rows, at least `columns`].
        start, stop: which of its rows.
        y: float32 [at least stop - start, PANEL].
    """
    most, first = most_tokens(panel), start
    while start < stop:
        n = min(most, stop - start)
        run_tile(panel, bias, bias, 0, columns, x, x, x, start, y, first, 0, n)
        start += n
