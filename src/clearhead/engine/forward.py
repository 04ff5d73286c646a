"""One pass of the whole model over some tokens, as each of the threads runs it.

All threads run `forward` at the same time and meet at the barriers. Between two barriers each works on its own part:
some tokens' rows where a step needs a whole vector, some rows of a matrix in a product, some heads in attention.

A pass knows no batch and no prompt. It has rows, each a token with a sequence and a place in it: forty sequences'
next tokens, a piece of one prompt, or both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from clearhead.compiling import entry, fused
from clearhead.engine.attention import MOST_QUERIES, PAGE, attend, put_number
from clearhead.engine.elementwise import gelu_exact, gelu_tanh, make_ready, normalize
from clearhead.engine.llvm import atomic_write
from clearhead.engine.threads import JOB, barrier, next_job
from clearhead.engine.tiles import COLUMNS, PANEL, multiply, read_row

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
    tanh: bool


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
    wanted: Array  # int64 [rows]: the rows whose logits are asked for, in order
    counts: Array  # int64 [2]: rows, wanted rows


class Scratch(NamedTuple):
    """Room for what is between the steps; kept from pass to pass, so that a pass allocates nothing."""

    x: Array  # float32 [rows, C]: the residual stream
    fine: Array  # float32 [rows, C]: a norm's or the attention's output
    wide: Array  # float32 [rows, 3C or ff_dim]: a product's output
    ready: Array  # float32 or int16 [rows, C or ff_dim]: what is multiplied by a matrix
    scales: Array  # float32 [rows]
    logits: Array  # float32 [rows, V]
    scores: Array  # float32 [threads, 3, tokens]
    mixed: Array  # float32 [threads, 3, D]


@fused
def _share(n: int, thread: int, threads: int) -> tuple[int, int]:
    """Which of n things are this thread's: from, and to before."""
    return n * thread // threads, n * (thread + 1) // threads


@fused
def _limit(padded: int) -> float:
    """How great a rounded activation may be: 127 times it, `padded` times, stays under 2³¹, and it fits 16 bits."""
    return min(32767, (2**31 - 1) // (127 * padded)) * 1.0


@fused
def forward(
    thread: int, threads: int, control: Any, weights: Any, shape: Any, cache: Any, work: Any, scratch: Any
) -> None:
    """Runs a pass; afterwards the cache has the new keys and values, and scratch.logits the rows that are wanted."""
    n, n_wanted = work.counts[0], work.counts[1]
    width, ff_width, heads = shape.width, shape.ff_width, shape.n_heads
    head_dim = width // heads
    padded, ff_padded = (width + COLUMNS - 1) // COLUMNS * COLUMNS, (ff_width + COLUMNS - 1) // COLUMNS * COLUMNS
    limit, ff_limit = _limit(padded), _limit(ff_padded)
    key_page = heads * head_dim * PAGE  # numbers of one layer in a page
    value_dim = (head_dim + 7) // 8 * 8
    value_page = heads * value_dim * PAGE
    x, fine, wide, ready, scales = scratch.x, scratch.fine, scratch.wide, scratch.ready, scratch.scales
    first, last = _share(n, thread, threads)
    for row in range(first, last):
        _embed(weights, work.tokens[row], work.places[row], width, padded, x, row)
    for layer in range(shape.n_layers):
        for row in range(first, last):
            normalize(x, row, width, weights.norm_1.weight[layer], weights.norm_1.bias[layer], shape.eps, fine)
            make_ready(fine, row, width, padded, limit, ready, scales, row)
        barrier(control, threads)
        a, b = _multiply(weights.qkv, layer, 3 * width, padded, thread, threads, ready, scales, n, wide)
        for row in range(n):
            _remember(wide, row, a, b, width, head_dim, layer, shape.n_layers, heads, cache, work)
        barrier(control, threads)
        _attend(
            thread,
            threads,
            n,
            heads,
            head_dim,
            layer,
            shape.n_layers,
            key_page,
            value_page,
            wide,
            cache,
            work,
            scratch.scores[thread],
            scratch.mixed[thread],
            fine,
        )
        barrier(control, threads)
        for row in range(first, last):
            make_ready(fine, row, width, padded, limit, ready, scales, row)
        barrier(control, threads)
        a, b = _multiply(weights.out, layer, width, padded, thread, threads, ready, scales, n, wide)
        _add(x, wide, n, a, b)
        barrier(control, threads)
        for row in range(first, last):
            normalize(x, row, width, weights.norm_2.weight[layer], weights.norm_2.bias[layer], shape.eps, fine)
            make_ready(fine, row, width, padded, limit, ready, scales, row)
        barrier(control, threads)
        a, b = _multiply(weights.up, layer, ff_width, padded, thread, threads, ready, scales, n, wide)
        for row in range(n):
            if shape.tanh:
                gelu_tanh(wide, row, a, b)
            else:
                gelu_exact(wide, row, a, b)
        barrier(control, threads)
        for row in range(first, last):
            make_ready(wide, row, ff_width, ff_padded, ff_limit, ready, scales, row)
        barrier(control, threads)
        a, b = _multiply(weights.down, layer, width, ff_padded, thread, threads, ready, scales, n, wide)
        _add(x, wide, n, a, b)
        barrier(control, threads)
    first, last = _share(n_wanted, thread, threads)
    for i in range(first, last):
        row = work.wanted[i]
        normalize(x, row, width, weights.final_norm.weight[0], weights.final_norm.bias[0], shape.eps, fine)
        make_ready(fine, row, width, padded, limit, ready, scales, i)
    barrier(control, threads)
    _multiply(weights.head, 0, shape.vocab_size, padded, thread, threads, ready, scales, n_wanted, scratch.logits)
    barrier(control, threads)


@fused
def _multiply(
    matrix: Any, layer: int, rows: int, padded: int, thread: int, threads: int, ready: Any, scales: Any, n: int, y: Any
) -> tuple[int, int]:
    """This thread's rows of a product; returns which they are, from and to before."""
    panels = (rows + PANEL - 1) // PANEL
    first, last = _share(panels, thread, threads)
    multiply(
        matrix.weights[layer],
        matrix.scales[layer],
        matrix.bias[layer],
        padded,
        first,
        last,
        ready,
        scales,
        n,
        y,
    )
    return first * PANEL, min(rows, last * PANEL)


@fused
def _add(x: Any, y: Any, n: int, first: int, last: int) -> None:
    """x += y for the columns from `first` to before `last` of n rows: the shortcut."""
    for row in range(n):
        for i in range(first, last):
            x[row, i] += y[row, i]


@fused
def _embed(weights: Any, token: int, place: int, width: int, columns: int, x: Any, row: int) -> None:
    """x[row] = the token's vector plus the place's."""
    read_row(weights.tokens.weights[0], weights.tokens.scales[0], token, columns, width, x, row)
    for i in range(width):
        x[row, i] += weights.positions[place, i]


@fused
def _remember(
    wide: Any,
    row: int,
    first: int,
    last: int,
    width: int,
    head_dim: int,
    layer: int,
    n_layers: int,
    heads: int,
    cache: Any,
    work: Any,
) -> None:
    """Puts the keys and values among wide[row, first:last] into the cache."""
    place = work.places[row]
    page = cache.table[work.slots[row], place // PAGE] * n_layers + layer
    inside = place % PAGE
    value_dim = (head_dim + 7) // 8 * 8
    for i in range(max(first, width), min(last, 2 * width)):
        put_number(cache.keys, (page * width + i - width) * PAGE + inside, wide[row, i])
    for i in range(max(first, 2 * width), last):
        head, number = divmod(i - 2 * width, head_dim)
        put_number(cache.values, ((page * heads + head) * PAGE + inside) * value_dim + number, wide[row, i])


@fused
def _attend(
    thread: int,
    threads: int,
    n: int,
    heads: int,
    head_dim: int,
    layer: int,
    n_layers: int,
    key_page: int,
    value_page: int,
    wide: Any,
    cache: Any,
    work: Any,
    scores: Any,
    mixed: Any,
    out: Any,
) -> None:
    """Attention for this thread's share of heads and rows; up to three rows of one sequence together."""
    turn = 0
    row = 0
    while row < n:
        rows = 1
        while rows < MOST_QUERIES and row + rows < n and work.slots[row + rows] == work.slots[row]:
            rows += 1
        for head in range(heads):
            if turn % threads == thread:
                attend(
                    wide,
                    row,
                    rows,
                    head,
                    head_dim,
                    work.places[row],
                    cache.keys,
                    cache.values,
                    layer,
                    n_layers,
                    key_page,
                    value_page,
                    cache.table,
                    work.slots[row],
                    scores,
                    mixed,
                    out,
                )
            turn += 1
        row += rows


@entry
def serve(
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
        forward(thread, threads, control, weights, shape, cache, work, scratch)
        if thread == 0:
            return number
