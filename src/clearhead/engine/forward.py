"""One pass of the whole model over some tokens, as each of the threads runs it.

All threads run `forward` at the same time. It is a chain of phases; each is cut into pieces that the threads take as
they come (see `threads.py`): some tokens' rows where a step needs a whole vector, some rows of a matrix in a product,
some heads in attention.

A pass knows no batch and no prompt. It has rows, each a token with a sequence and a place in it: forty sequences'
next tokens, a piece of one prompt, or both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clearhead.engine.attention import MOST_QUERIES, PAGE, attend, put_number
from clearhead.engine.elementwise import gelu_exact, gelu_tanh, normalize, quantize_activations, relu
from clearhead.engine.llvm import atomic_write
from clearhead.engine.threads import JOB, finish, next_job, open_next, pieces_of, take, take_next
from clearhead.engine.tiles import COLUMNS, PANEL, multiply, read_row
from clearhead.utils.jit import entry, inline, kernel

Array = npt.NDArray[Any]


class Matrix(NamedTuple):
    """The linear layers of one kind, a layer a row: panels (see `tiles.py`), scales, and biases."""

    weights: Array
    scales: Array
    bias: Array


class Norm(NamedTuple):
    """Weights and biases of one kind of norm, float32 [layers, C]."""

    weight: Array
    bias: Array


class Weights(NamedTuple):
    """A whole model, in the order in which a token meets it."""

    tokens: Matrix  # [1, V rows of C]
    positions: Array  # float32 [context_length, C]
    norm_1: Norm
    qkv: Matrix
    out: Matrix
    norm_2: Norm
    up: Matrix
    down: Matrix
    final_norm: Norm  # [1, C]
    head: Matrix  # [1, V rows of C]; the same arrays as `tokens` where they are tied


class Shape(NamedTuple):
    """The numbers that the pass needs of a config."""

    n_layers: int
    n_heads: int
    width: int
    ff_width: int
    vocab_size: int
    eps: float
    activation: int  # an index of elementwise.ACTIVATIONS


class Cache(NamedTuple):
    """Keys and values; `attention.py` has their layout. A page holds all layers and heads."""

    keys: Array  # float32 or bfloat16's bits, [pages * page_stride of keys]
    values: Array
    table: Array  # int64 [slots, pages of a sequence]


class Work(NamedTuple):
    """What to run, a row a token. The rows of one sequence stand together, in order."""

    tokens: Array  # int64 [rows]
    places: Array  # int64 [rows]: position in the sequence
    slots: Array  # int64 [rows]: row in the cache's table
    row_index: Array  # int64 [rows]: 0, 1, 2, ...
    wanted: Array  # int64 [rows]: the rows whose logits are asked for, in order
    counts: Array  # int64 [2]: rows, wanted rows


class Scratch(NamedTuple):
    """Room for what is between the steps; kept from pass to pass, so that a pass allocates nothing."""

    x: Array  # float32 [rows, C]: the residual stream
    normed: Array  # float32 [rows, C]: a norm's or the attention's output
    projected: Array  # float32 [rows, 3C or ff_dim]: a product's output
    quantized_input: Array  # float32 or int16 [rows, C or ff_dim]: what is multiplied by a matrix
    scales: Array  # float32 [rows]
    logits: Array  # float32 [rows, V]
    scores: Array  # float32 [threads, 3, tokens]
    mixed: Array  # float32 [threads, 3, D]


@inline
def _limit(padded: int) -> float:
    """How great a rounded activation may be: 127 times it, `padded` times, stays under 2³¹, and it fits 16 bits."""
    return min(32767, (2**31 - 1) // (127 * padded)) * 1.0


@inline
def forward(team: Any, thread: int, weights: Any, shape: Any, cache: Any, work: Any, scratch: Any) -> int:
    """Runs a pass, together with the other threads, and returns how many phases it had.

    When they are done, the cache has the new keys and values, and scratch.logits the rows that are wanted.
    """
    n, n_wanted = work.counts[0], work.counts[1]
    width, ff_width = shape.width, shape.ff_width
    padded, ff_padded = (width + COLUMNS - 1) // COLUMNS * COLUMNS, (ff_width + COLUMNS - 1) // COLUMNS * COLUMNS
    limit, ff_limit = _limit(padded), _limit(ff_padded)
    x, normed, projected, logits = scratch.x, scratch.normed, scratch.projected, scratch.logits
    groups = _groups(n, work)
    phase = 0
    _embed_all(team, phase, n, weights, shape, padded, work, x)
    for layer in range(shape.n_layers):
        _norm(team, phase + 1, work.row_index, n, weights.norm_1, layer, shape, padded, limit, scratch)
        _product(
            team, phase + 2, weights.qkv, layer, 3 * width, padded, n, STORE_KV, projected, shape, cache, work, scratch
        )
        _attention(team, phase + 3, thread, n, groups, layer, shape, cache, work, scratch)
        _round(team, phase + 4, n, normed, width, padded, limit, scratch)
        _product(team, phase + 5, weights.out, layer, width, padded, n, ADD, projected, shape, cache, work, scratch)
        _norm(team, phase + 6, work.row_index, n, weights.norm_2, layer, shape, padded, limit, scratch)
        _product(team, phase + 7, weights.up, layer, ff_width, padded, n, GELU, projected, shape, cache, work, scratch)
        _round(team, phase + 8, n, projected, ff_width, ff_padded, ff_limit, scratch)
        _product(team, phase + 9, weights.down, layer, width, ff_padded, n, ADD, projected, shape, cache, work, scratch)
        phase += 9
    _norm(team, phase + 1, work.wanted, n_wanted, weights.final_norm, 0, shape, padded, limit, scratch)
    _product(
        team, phase + 2, weights.head, 0, shape.vocab_size, padded, n_wanted, STORE, logits, shape, cache, work, scratch
    )
    return phase + 3


def phases_of(n_layers: int) -> int:
    """How many phases `forward` has."""
    return 9 * n_layers + 3


# What is done with a product's columns as soon as they are there.
STORE, STORE_KV, ADD, GELU = range(4)
_ROW_WORK = 8  # multiplications that one number of a row is worth, in a norm or when it is rounded


@kernel
def _embed_all(team: Any, phase: int, n: int, weights: Any, shape: Any, padded: int, work: Any, x: Any) -> None:
    """The first phase: each token's vector."""
    control, number, threads = team
    pieces = pieces_of(n, n * shape.width * _ROW_WORK, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for row in range(n * piece // pieces, n * (piece + 1) // pieces):
            _embed(weights, work.tokens[row], work.places[row], shape.width, padded, x, row)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def _norm(
    team: Any, phase: int, rows: Any, n: int, norm: Any, layer: int, shape: Any, padded: int, limit: float, scratch: Any
) -> None:
    """A norm of n rows of the residual stream, made ready to be multiplied; there they stand together."""
    control, number, threads = team
    pieces = pieces_of(n, n * shape.width * _ROW_WORK, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for i in range(n * piece // pieces, n * (piece + 1) // pieces):
            row = rows[i]
            normalize(scratch.x, row, shape.width, norm.weight[layer], norm.bias[layer], shape.eps, scratch.normed)
            quantize_activations(
                scratch.normed, row, shape.width, padded, limit, scratch.quantized_input, scratch.scales, i
            )
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def _round(team: Any, phase: int, n: int, source: Any, width: int, padded: int, limit: float, scratch: Any) -> None:
    """Makes rows ready to be multiplied."""
    control, number, threads = team
    pieces = pieces_of(n, n * width * _ROW_WORK, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for row in range(n * piece // pieces, n * (piece + 1) // pieces):
            quantize_activations(source, row, width, padded, limit, scratch.quantized_input, scratch.scales, row)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def _product(
    team: Any,
    phase: int,
    matrix: Any,
    layer: int,
    rows: int,
    padded: int,
    n: int,
    then: int,
    y: Any,
    shape: Any,
    cache: Any,
    work: Any,
    scratch: Any,
) -> None:
    """y = what is ready, times a matrix of so many rows, plus its bias; `then` says what comes after."""
    control, number, threads = team
    panels = (rows + PANEL - 1) // PANEL
    pieces = pieces_of(panels, n * rows * padded, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        first, last = panels * piece // pieces, panels * (piece + 1) // pieces
        multiply(
            matrix.weights[layer],
            matrix.scales[layer],
            matrix.bias[layer],
            padded,
            first,
            last,
            scratch.quantized_input,
            scratch.scales,
            n,
            y,
        )
        a, b = first * PANEL, min(rows, last * PANEL)
        if then == ADD:
            _add(scratch.x, y, n, a, b)
        elif then == STORE_KV:
            for row in range(n):
                write_kv(y, row, a, b, shape, layer, cache, work)
        elif then == GELU:
            for row in range(n):
                if shape.activation == 0:
                    gelu_tanh(y, row, a, b)
                elif shape.activation == 1:
                    gelu_exact(y, row, a, b)
                else:
                    relu(y, row, a, b)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@inline
def _add(x: Any, y: Any, n: int, first: int, last: int) -> None:
    """x += y for the columns from `first` to before `last` of n rows: the shortcut."""
    for row in range(n):
        for place in range(first, last):
            i = np.uint64(place)  # it cannot count from the end, so the loop becomes vectors
            x[row, i] += y[row, i]


@inline
def _embed(weights: Any, token: int, place: int, width: int, columns: int, x: Any, row: int) -> None:
    """x[row] = the token's vector plus the place's."""
    read_row(weights.tokens.weights[0], weights.tokens.scales[0], token, columns, width, x, row)
    for i in range(width):
        x[row, i] += weights.positions[place, i]


@inline
def write_kv(wide: Any, row: int, first: int, last: int, shape: Any, layer: int, cache: Any, work: Any) -> None:
    """Puts the keys and values among wide[row, first:last] into the cache."""
    width, heads = shape.width, shape.n_heads
    head_dim = width // heads
    place = work.places[row]
    page = cache.table[work.slots[row], place // PAGE] * shape.n_layers + layer
    inside = place % PAGE
    value_dim = (head_dim + 7) // 8 * 8
    for i in range(max(first, width), min(last, 2 * width)):
        put_number(cache.keys, np.uint64((page * width + i - width) * PAGE + inside), wide[row, np.uint64(i)])
    done, end = max(first, 2 * width) - 2 * width, last - 2 * width
    while done < end:
        head = done // head_dim
        start = ((page * heads + head) * PAGE + inside) * value_dim - head * head_dim
        stop = min(end, (head + 1) * head_dim)
        for i in range(done, stop):
            put_number(cache.values, np.uint64(start + i), wide[row, np.uint64(2 * width + i)])
        done = stop


@inline
def _together(row: int, n: int, work: Any) -> int:
    """How many rows, this one and those after it, are one sequence's and attend together."""
    rows = 1
    while rows < MOST_QUERIES and row + rows < n and work.slots[row + rows] == work.slots[row]:
        rows += 1
    return rows


@inline
def _groups(n: int, work: Any) -> int:
    """How many such groups the rows are."""
    groups, row = 0, 0
    while row < n:
        row += _together(row, n, work)
        groups += 1
    return groups


@kernel
def _attention(
    team: Any,
    phase: int,
    thread: int,
    n: int,
    groups: int,
    layer: int,
    shape: Any,
    cache: Any,
    work: Any,
    scratch: Any,
) -> None:
    """Attention. A piece is some heads of one group of rows, or where there are many groups, all heads of some."""
    control, number, threads = team
    heads = shape.n_heads
    head_dim = shape.width // heads
    value_dim = (head_dim + 7) // 8 * 8
    units = groups * heads  # in the order of the groups
    pieces = pieces_of(units, units * head_dim * 2 * PAGE, threads)
    row, rows, group = 0, _together(0, n, work), 0
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for unit in range(units * piece // pieces, units * (piece + 1) // pieces):
            while group < unit // heads:
                row += rows
                rows = _together(row, n, work)
                group += 1
            attend(
                scratch.projected,
                row,
                rows,
                unit % heads,
                head_dim,
                work.places[row],
                cache.keys,
                cache.values,
                layer,
                shape.n_layers,
                heads * head_dim * PAGE,
                heads * value_dim * PAGE,
                cache.table,
                work.slots[row],
                scratch.scores[thread],
                scratch.mixed[thread],
                scratch.normed,
            )
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@entry
def worker_loop(
    thread: int, threads: int, control: Any, number: int, weights: Any, shape: Any, cache: Any, work: Any, scratch: Any
) -> int:
    """What each thread calls; the only function that Python calls, so that there is one to compile.

    Thread 0 calls the others to pass `number`, runs its part of it and returns. Any other thread runs its part of each
    pass after `number`, until none has come for a while, and returns the number of the last one.
    """
    patient = True  # this thread was woken for a pass that is about to come
    while True:
        if thread == 0:
            atomic_write(control, JOB, number)
        else:
            job = next_job(control, number, patient)
            if job < 0:
                return number
            number, patient = job, False
        phases = forward((control, number, threads), thread, weights, shape, cache, work, scratch)
        if thread == 0:
            open_next(control, number + 1, phases)
            return number
