"""The arrays that a pass works on, as the compiled code receives them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu")
"""The activation functions, as configs name them; a pass knows them by their index."""
TOKENS = 32
"""Tokens whose logits of a block of the vocabulary are in memory at a time, see `scores.py`."""


class Matrix(NamedTuple):
    """The linear layers of one kind, one per row: panels (see `products.py`), scales, and biases."""

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
    head: Matrix  # [1, V rows of C]; the same arrays as `tokens` if they are tied


class Shape(NamedTuple):
    """The numbers that a pass needs from a config."""

    n_layers: int
    n_heads: int
    width: int
    ff_width: int
    vocab_size: int
    eps: float
    head_panels: int  # the least number of panels that are whole heads
    activation: int  # an index of ACTIVATIONS


class Work(NamedTuple):
    """What to run, a row per token. The rows of one sequence are neighbours, in order."""

    tokens: Array  # int64 [rows]
    positions: Array  # int64 [rows]: position in the sequence
    sequences: Array  # int64 [rows]: the sequence's row in `pages`
    pages: Array  # int64 [rows, pages of a sequence]: the addresses of its cache pages
    row_index: Array  # int64 [rows]: 0, 1, 2, ...
    wanted: Array  # int64 [rows]: the rows whose logits are wanted, in order
    scored: Array  # int64 [rows]: the rows that predict targets, in order
    first_target: Array  # int64 [rows + 1]: the index in `targets` of the first target of each scored row, and the end
    targets: Array  # int64 [rows]: the targets, those of a row next to one another
    counts: Array  # int64 [5]: rows, wanted rows, scored rows, top, n_choices


class Vectors(NamedTuple):
    """Tokens' vectors in the form in which a matrix multiplies them."""

    numbers: Array  # float32, int16 or int8 [rows, C or ff_dim]
    scales: Array  # float32 [rows, 1 or groups]
    offsets: Array  # int32 [rows, groups]


class BlockScores(NamedTuple):
    """What is known of each scored row and each block of the vocabulary, and the results for all blocks together.

    A row may have several targets; there are as many at most as rows.
    """

    target_logits: Array  # float32 [targets]
    greatest: Array  # float32 [rows, blocks]: the greatest logit m
    sums: Array  # float32 [rows, blocks]: sum of exp(logit - m)
    products: Array  # float32 [rows, blocks]: sum of logit * exp(logit - m)
    above: Array  # int64 [targets, blocks]: logits greater than the target's
    top_logits: Array  # float32 [rows, blocks, top]: the greatest, the best first
    top_ids: Array  # int64 [rows, blocks, top]
    logits: Array  # float32 [threads, tokens, rows of a block]: scratch
    panel: Array  # float32 [rows, rows of a panel]: scratch
    logprobs: Array  # float64 [targets]
    ranks: Array  # int64 [targets]
    entropies: Array  # float64 [rows]
    best_logprobs: Array  # float64 [rows, top]
    best_ids: Array  # int64 [rows, top]
    groups: Array  # float32 [G, rows of all blocks]: 1 for the tokens of a group
    group_sums: Array  # float32 [rows, blocks, G]: sum of exp(logit - m) of a group's tokens
    group_logprobs: Array  # float64 [rows, G]


class AttentionScratch(NamedTuple):
    """Memory for attention, a part for each thread. Only `scores` and `mixed` are used if it multiplies float32."""

    scores: Array  # float32 [threads, queries, tokens]: scores, then weights
    mixed: Array  # float32 [threads, queries, D]
    queries: Array  # int8, or uint16 for bfloat16 [threads, queries, D]
    starts: Array  # int32 [threads, queries]: what the sums of scores start with
    query_scales: Array  # float32 [threads, queries, 1]
    weights: Array  # uint8, or uint16 for bfloat16 [threads, queries, tokens]
    weight_scales: Array  # float32 [threads, queries, pages]


class Scratch(NamedTuple):
    """Memory for what is between the steps, kept from pass to pass, so that a pass allocates nothing."""

    x: Array  # float32 [rows, C]: the residual stream
    normed: Array  # float32 [rows, C]: a norm's or the attention's output
    projected: Array  # float32 [rows, 3C or ff_dim]: a product's output
    inputs: Vectors  # what is multiplied by a matrix
    logits: Array  # float32 [wanted rows, V]
    attention: AttentionScratch
    stored: Array  # empty, of the type of the cache's numbers
    scores: BlockScores
    recorded: Array  # float32 [matrices, rows, C or ff_dim]: what each matrix was multiplied by; else of length 0


ALIGNMENT = 64
"""Bytes in a cache line, and in the widest vector: a vector that lies across two lines is read twice."""


def aligned_zeros(shape: tuple[int, ...], kind: npt.DTypeLike) -> Array:
    """Return zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(kind).reshape(shape)


def float_rows(rows: int, length: int, kind: npt.DTypeLike) -> Array:
    """Return zeros [rows, at least length] with an odd number of cache lines from one row to the next.

    A cache keeps a line in one of a few slots that the address's lower bits select. A product writes a few columns of
    many rows; if the rows were a multiple of 4096 bytes apart, as 768 * 4 numbers are, all would compete for one slot.
    """
    per_line = ALIGNMENT // np.dtype(kind).itemsize
    lines = -(-length // per_line) | 1
    return aligned_zeros((rows, lines * per_line), kind)
