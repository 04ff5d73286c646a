"""One pass of the whole model over some tokens, as each of the threads runs it.

All threads run `forward` at the same time. It is a chain of phases; each is cut into pieces that the threads take one
after another (see `threads.py`): tokens' rows if a step needs a whole vector, rows of a matrix in a product, heads in
attention.

A pass knows no batch and no prompt. It has rows, each a token with a sequence and a position: forty sequences' next
tokens, a piece of one prompt, or both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clearhead.engine import control as layout
from clearhead.engine.arrays import Norm
from clearhead.engine.attention import attend, write_kv
from clearhead.engine.elementwise import gelu_exact, gelu_tanh, normalize, quantize_activations, relu
from clearhead.engine.llvm import atomic_write
from clearhead.engine.pages import MOST_QUERIES, PAGE
from clearhead.engine.panel_kernels import read_row
from clearhead.engine.panels import PANEL, padded_columns
from clearhead.engine.products import multiply, tokens_together
from clearhead.engine.scores import combine_blocks, score_blocks, score_targets
from clearhead.engine.threads import MOST_UNEVEN_PIECES, finish, next_job, open_next, pieces_of, take, take_next
from clearhead.utils.jit import entry, inline, kernel

padded, phases_of = inline(padded_columns), inline(layout.phases_of)


@inline
def forward(team: Any, weights: Any, shape: Any, work: Any, scratch: Any) -> None:
    """Run a pass, together with the other threads.

    Afterwards the cache has the new keys and values, scratch.logits the rows that are wanted, and scratch.scores the
    rows that are scored. A pass over no rows takes what the last one left in scratch.x.
    """
    n, n_wanted, n_scored = work.counts[0], work.counts[1], work.counts[2]
    width, ff_width = shape.width, shape.ff_width
    normed, projected = scratch.normed, scratch.projected
    phase = 0
    _embed_all(team, phase, n, weights, shape, work, scratch.x)
    if n > 0:
        groups = _count_groups(n, work)
        for layer in range(shape.n_layers):
            _norm(team, phase + 1, work.row_index, n, weights.norm_1, layer, weights.qkv, 4 * layer, shape, scratch)
            _product(
                team, phase + 2, weights.qkv, layer, 3 * width, width, n, STORE_KV, projected, shape, work, scratch
            )
            _attention(team, phase + 3, n, groups, layer, shape, work, scratch)
            _quantize(team, phase + 4, n, normed, width, weights.out, 4 * layer + 1, scratch)
            _product(team, phase + 5, weights.out, layer, width, width, n, ADD, projected, shape, work, scratch)
            _norm(team, phase + 6, work.row_index, n, weights.norm_2, layer, weights.up, 4 * layer + 2, shape, scratch)
            _product(team, phase + 7, weights.up, layer, ff_width, width, n, ACTIVATE, projected, shape, work, scratch)
            _quantize(team, phase + 8, n, projected, ff_width, weights.down, 4 * layer + 3, scratch)
            _product(team, phase + 9, weights.down, layer, width, ff_width, n, ADD, projected, shape, work, scratch)
            phase += 9
    last = 4 * shape.n_layers
    if n_wanted > 0:
        head, vocab = weights.head, shape.vocab_size
        _norm(team, phase + 1, work.wanted, n_wanted, weights.final_norm, 0, head, last, shape, scratch)
        _product(team, phase + 2, head, 0, vocab, width, n_wanted, STORE, scratch.logits, shape, work, scratch)
        phase += 2
    if n_scored > 0:
        _norm(team, phase + 1, work.scored, n_scored, weights.final_norm, 0, weights.head, last, shape, scratch)
        score_targets(team, phase + 2, n_scored, weights.head, padded(width), work, scratch)
        score_blocks(team, phase + 3, n_scored, weights.head, padded(width), shape.vocab_size, work, scratch)
        combine_blocks(team, phase + 4, n_scored, shape.vocab_size, work, scratch)


# What is done with a product's columns as soon as they are there.
STORE, STORE_KV, ADD, ACTIVATE = range(4)
_FEW_NUMBERS = 1 << 15
"""Results of a product that stay in a core's caches until they are finished."""
_ROW_WORK = 8  # multiplications that one number of a row is worth, in a norm or when it is rounded


@kernel
def _embed_all(team: Any, phase: int, n: int, weights: Any, shape: Any, work: Any, x: Any) -> None:
    """Run the first phase: each token's vector plus its position's."""
    control, number, threads, _ = team
    pieces = pieces_of(n, n * shape.width * _ROW_WORK, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for row in range(n * piece // pieces, n * (piece + 1) // pieces):
            tokens, width, position = weights.tokens, shape.width, work.positions[row]
            read_row(tokens.weights[0], tokens.scales[0], work.tokens[row], padded(width), width, x, row)
            for i in range(width):
                x[row, i] += weights.positions[position, i]
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def _norm(
    team: Any, phase: int, rows: Any, n: int, norm: Norm, layer: int, matrix: Any, index: int, shape: Any, scratch: Any
) -> None:
    """Normalize n rows of the residual stream and quantize them for matrix `index`, one after another from row 0 on."""
    control, number, threads, _ = team
    width, inputs = shape.width, scratch.inputs
    pieces = pieces_of(n, n * width * _ROW_WORK, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for i in range(n * piece // pieces, n * (piece + 1) // pieces):
            row = rows[i]
            normalize(scratch.x, row, width, norm.weight[layer], norm.bias[layer], shape.eps, scratch.normed)
            quantize_activations(
                matrix.weights,
                scratch.normed,
                row,
                width,
                padded(width),
                inputs.numbers,
                inputs.scales,
                inputs.offsets,
                i,
            )
            _record(scratch.recorded, index, i, scratch.normed, row, width)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def _quantize(team: Any, phase: int, n: int, source: Any, width: int, matrix: Any, index: int, scratch: Any) -> None:
    """Quantize n rows for matrix `index`."""
    control, number, threads, _ = team
    inputs = scratch.inputs
    pieces = pieces_of(n, n * width * _ROW_WORK, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for row in range(n * piece // pieces, n * (piece + 1) // pieces):
            quantize_activations(
                matrix.weights, source, row, width, padded(width), inputs.numbers, inputs.scales, inputs.offsets, row
            )
            _record(scratch.recorded, index, row, source, row, width)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@inline
def _record(recorded: Any, index: int, to: int, source: Any, row: int, width: int) -> None:
    """Copy source[row, :width], which matrix `index` is about to be multiplied by, if that is to be recorded."""
    if index < recorded.shape[0] and to < recorded.shape[1]:
        for i in range(width):
            recorded[index, to, i] = source[row, i]


@kernel
def _product(
    team: Any,
    phase: int,
    matrix: Any,
    layer: int,
    rows: int,
    columns: int,
    n: int,
    then: int,
    y: Any,
    shape: Any,
    work: Any,
    scratch: Any,
) -> None:
    """Write y = the quantized inputs times a matrix plus its bias, then do with it what `then` says.

    That is done while what was written is still in the cache: with many tokens for a few columns at a time.
    """
    control, number, threads, thread = team
    panels = (rows + PANEL - 1) // PANEL
    unit = shape.head_panels if then == STORE_KV else 1
    units = (panels + unit - 1) // unit
    pieces = pieces_of(units, n * rows * columns, threads)
    block = tokens_together(matrix, padded(columns), scratch.inputs)
    few = max(
        unit, _FEW_NUMBERS // (PANEL * min(n, block)) // unit * unit
    )  # panels whose results are finished together
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        end = min(panels, units * (piece + 1) // pieces * unit)
        for start in range(0, n, block):
            stop = min(n, start + block)
            for first in range(units * piece // pieces * unit, end, few):
                last = min(end, first + few)
                multiply(matrix, layer, padded(columns), first, last, scratch.inputs, start, stop, y, 0, 0)
                _finish_product(
                    start, stop, first * PANEL, min(rows, last * PANEL), layer, then, y, thread, shape, work, scratch
                )
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@inline
def _finish_product(
    start: int,
    stop: int,
    a: int,
    b: int,
    layer: int,
    then: int,
    y: Any,
    thread: int,
    shape: Any,
    work: Any,
    scratch: Any,
) -> None:
    """Do what follows on a product, with its columns from a to before b, of some rows."""
    if then == ADD:
        _add(scratch.x, y, start, stop, a, b)
    elif then == STORE_KV:
        heads, head_dim = shape.n_heads, shape.width // shape.n_heads
        for row in range(start, stop):
            pages = work.pages[work.sequences[row]]
            numbers = scratch.attention.queries[thread, 0]
            write_kv(y, row, a, b, heads, head_dim, work.positions[row], layer, scratch.stored, pages, numbers)
    elif then == ACTIVATE:
        for row in range(start, stop):
            if shape.activation == 0:
                gelu_tanh(y, row, a, b)
            elif shape.activation == 1:
                gelu_exact(y, row, a, b)
            else:
                relu(y, row, a, b)


@inline
def _add(x: Any, y: Any, start: int, stop: int, first: int, last: int) -> None:
    """Add the columns from `first` to before `last` of some rows of y to x: the shortcut connection."""
    for row in range(start, stop):
        for column in range(first, last):
            i = np.uint64(column)  # an unsigned index needs no check for negative values, so the loop becomes vectors
            x[row, i] += y[row, i]


@inline
def _group_size(row: int, n: int, work: Any) -> int:
    """Return how many rows, this one and those after it, are one sequence's and attend together."""
    rows = 1
    while rows < MOST_QUERIES and row + rows < n and work.sequences[row + rows] == work.sequences[row]:
        rows += 1
    return rows


@inline
def _count_groups(n: int, work: Any) -> int:
    """Return how many such groups the rows are."""
    groups, row = 0, 0
    while row < n:
        row += _group_size(row, n, work)
        groups += 1
    return groups


@kernel
def _attention(team: Any, phase: int, n: int, groups: int, layer: int, shape: Any, work: Any, scratch: Any) -> None:
    """Run attention. A piece is some heads of one group of rows, or if there are many groups, all heads of some.

    Later groups come first: those of a prompt have more tokens to attend to, and the last pieces should be short.
    """
    control, number, threads, thread = team
    heads = shape.n_heads
    head_dim = shape.width // heads
    units = groups * heads  # in the order of the groups
    pieces = pieces_of(units, units * head_dim * 2 * PAGE, threads, MOST_UNEVEN_PIECES)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        row, rows, group = 0, _group_size(0, n, work), 0
        for unit in range(units * (pieces - 1 - piece) // pieces, units * (pieces - piece) // pieces):
            while group < unit // heads:
                row += rows
                rows = _group_size(row, n, work)
                group += 1
            attend(
                scratch.projected,
                row,
                rows,
                unit % heads,
                heads,
                head_dim,
                work.positions[row],
                layer,
                scratch.stored,
                work.pages[work.sequences[row]],
                scratch.attention,
                thread,
                scratch.normed,
            )
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@entry
def worker_loop(
    thread: int, threads: int, control: Any, number: int, weights: Any, shape: Any, work: Any, scratch: Any
) -> int:
    """Run passes as thread number `thread`; the only function that Python calls, so that there is one to compile.

    Thread 0 starts pass `number`, runs its part of it and returns. Any other thread runs its part of each pass after
    `number`, until none has come for a while, and returns the number of the last one.
    """
    patient = True  # this thread was woken for a pass that is about to come
    while True:
        if thread == 0:
            atomic_write(control, layout.JOB, number)
        else:
            job = next_job(control, number, patient)
            if job < 0:
                return number
            number, patient = job, False
        forward((control, number, threads, thread), weights, shape, work, scratch)
        if thread == 0:
            open_next(control, number + 1, phases_of(shape.n_layers))
            return number
