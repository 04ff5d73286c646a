"""Scores inside a pass: each target's log-probability, entropy, rank and the best tokens, without [T, V] logits.

A row, a token of the pass, may predict several targets, as where texts with a common prefix part.

The vocabulary is cut into blocks. For each token and block the pass computes the logits, in the same way and so with
the same bits as when they are returned, and keeps what is known about them: the greatest, the sum of exponentials. The
blocks are combined in order, so a result does not depend on which thread did what.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clearhead.engine.arrays import TOKENS
from clearhead.engine.elementwise import exponential
from clearhead.engine.llvm import row_sum
from clearhead.engine.panels import BLOCK, BLOCK_PANELS, PANEL
from clearhead.engine.products import multiply
from clearhead.engine.threads import finish, pieces_of, take, take_next
from clearhead.engine.variants import LANES
from clearhead.utils.jit import inline, kernel


@kernel
def score_targets(team: Any, phase: int, n: int, head: Any, columns: int, work: Any, scratch: Any) -> None:
    """Compute the logit of each target."""
    control, number, threads, _ = team
    pieces = pieces_of(n, n * columns * PANEL, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for i in range(n * piece // pieces, n * (piece + 1) // pieces):
            for index in range(work.first_target[i], work.first_target[i + 1]):
                target = work.targets[index]
                panel = target // PANEL
                multiply(
                    head, 0, columns, panel, panel + 1, scratch.inputs, i, i + 1, scratch.scores.panel, 0, panel * PANEL
                )
                scratch.scores.target_logits[index] = scratch.scores.panel[i, target % PANEL]
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def score_blocks(
    team: Any, phase: int, n: int, head: Any, columns: int, vocab_size: int, work: Any, scratch: Any
) -> None:
    """Fill the block scores of n rows. A piece is some blocks."""
    control, number, threads, thread = team
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    logits = scratch.scores.logits[thread]
    pieces = pieces_of(blocks, n * vocab_size * columns, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for block in range(blocks * piece // pieces, blocks * (piece + 1) // pieces):
            first = block * BLOCK
            last = min(vocab_size, first + BLOCK)
            panels = (last - first + PANEL - 1) // PANEL
            for start in range(0, n, TOKENS):
                stop = min(n, start + TOKENS)
                panel = block * BLOCK_PANELS
                multiply(head, 0, columns, panel, panel + panels, scratch.inputs, start, stop, logits, start, first)
                for token in range(start, stop):
                    _top_of_block(logits, token - start, first, last, token, block, work, scratch.scores)
                    _rank_in_block(logits, token - start, first, last, token, block, work, scratch.scores)
                    _score_block(logits, token - start, last - first, token, block, scratch.scores)
                    _score_groups(logits, token - start, last - first, token, block, scratch.scores)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@kernel
def _rank_in_block(
    logits: Any, row: int, first: int, last: int, token: int, block: int, work: Any, scores: Any
) -> None:
    """Count the logits of a block that are greater than that of each of a token's targets."""
    for index in range(work.first_target[token], work.first_target[token + 1]):
        target = scores.target_logits[index]
        above = 0
        for i in range(min(last, work.counts[4]) - first):
            above += 1 if logits[row, np.uint64(i)] > target else 0
        scores.above[index, block] = above


@kernel
def _score_block(logits: Any, row: int, n: int, token: int, block: int, scores: Any) -> None:
    """Sum up logits[row, :n] for a token, and overwrite them."""
    greatest = np.float32(-np.inf)
    for i in range(n):
        greatest = max(greatest, logits[row, np.uint64(i)])
    padded = (n + LANES - 1) // LANES * LANES
    for i in range(n):
        logits[row, np.uint64(i)] = logits[row, np.uint64(i)] - greatest
    scores.greatest[token, block] = greatest
    # The buffer's second half takes the exponentials, its first half their products with (logit - greatest).
    for i in range(n):
        power = exponential(logits[row, np.uint64(i)])
        logits[row, np.uint64(BLOCK + i)] = power
        logits[row, np.uint64(i)] *= power
    for i in range(n, padded):
        logits[row, i] = logits[row, BLOCK + i] = np.float32(0)
    scores.products[token, block] = row_sum(logits, row, padded)
    for i in range(padded):
        logits[row, np.uint64(i)] = logits[row, np.uint64(BLOCK + i)]
    scores.sums[token, block] = row_sum(logits, row, padded)


@kernel
def _score_groups(logits: Any, row: int, n: int, token: int, block: int, scores: Any) -> None:
    """Sum up the exponentials of each group's tokens, which `_score_block` left in the buffer's second half."""
    padded = (n + LANES - 1) // LANES * LANES
    for group in range(len(scores.groups)):
        for i in range(padded):
            column = np.uint64(block * BLOCK + i)
            logits[row, np.uint64(i)] = logits[row, np.uint64(BLOCK + i)] * scores.groups[group, column]
        scores.group_sums[token, block, group] = row_sum(logits, row, padded)


@kernel
def _top_of_block(logits: Any, row: int, first: int, last: int, token: int, block: int, work: Any, scores: Any) -> None:
    """Keep the greatest logits of a block, the best first and of equal ones the lower id first."""
    top = min(work.counts[3], BLOCK)
    found = 0
    values, ids = scores.top_logits[token, block], scores.top_ids[token, block]
    if top > 0:
        for id in range(first, min(last, work.counts[4])):
            value = logits[row, id - first]
            if found == top and not value > values[top - 1]:
                continue
            i = found if found < top else top - 1
            while i > 0 and value > values[i - 1]:
                values[i], ids[i] = values[i - 1], ids[i - 1]
                i -= 1
            values[i], ids[i] = value, id
            found = min(found + 1, top)
        for i in range(found, top):
            values[i], ids[i] = np.float32(-np.inf), -1


@kernel
def combine_blocks(team: Any, phase: int, n: int, vocab_size: int, work: Any, scratch: Any) -> None:
    """Turn the block scores of each row into its results."""
    control, number, threads, _ = team
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    pieces = pieces_of(n, n * blocks * 64, threads)
    piece = take(control, number, phase, pieces)
    while piece >= 0:
        for token in range(n * piece // pieces, n * (piece + 1) // pieces):
            _combine(token, blocks, work, scratch.scores)
        piece = take_next(control, number, phase, pieces)
    finish(control, number, phase, pieces)


@inline
def _combine(token: int, blocks: int, work: Any, scores: Any) -> None:
    top, greatest = work.counts[3], -np.inf
    for block in range(blocks):
        greatest = max(greatest, np.float64(scores.greatest[token, block]))
    total, product = 0.0, 0.0
    for block in range(blocks):
        shift = np.float64(scores.greatest[token, block]) - greatest
        share = math.exp(shift)
        total += share * scores.sums[token, block]
        product += share * (np.float64(scores.products[token, block]) + shift * scores.sums[token, block])
    log_total = math.log(total)
    # A logit that is NaN or infinite makes the product NaN, and must not be lost in the log-probability.
    for index in range(work.first_target[token], work.first_target[token + 1]):
        scores.logprobs[index] = np.float64(scores.target_logits[index]) - greatest - log_total + 0.0 * product
        above = 0
        for block in range(blocks):
            above += scores.above[index, block]
        scores.ranks[index] = above
    scores.entropies[token] = log_total - product / total
    for group in range(len(scores.groups)):
        share = 0.0
        for block in range(blocks):
            shift = np.float64(scores.greatest[token, block]) - greatest
            share += math.exp(shift) * scores.group_sums[token, block, group]
        scores.group_logprobs[token, group] = math.log(share) - log_total if share > 0.0 else -np.inf
    for i in range(top):
        # Each block's list is sorted, so its next candidate is the first that was not taken: marked by id -2.
        best, best_block, best_index = np.float32(-np.inf), -1, 0
        for block in range(blocks):
            for j in range(min(top, BLOCK)):
                if scores.top_ids[token, block, j] != -2:
                    if scores.top_ids[token, block, j] >= 0 and (
                        best_block < 0 or scores.top_logits[token, block, j] > best
                    ):
                        best, best_block, best_index = scores.top_logits[token, block, j], block, j
                    break
        if best_block < 0:
            scores.best_ids[token, i], scores.best_logprobs[token, i] = -1, -np.inf
        else:
            scores.best_ids[token, i] = scores.top_ids[token, best_block, best_index]
            scores.best_logprobs[token, i] = np.float64(best) - greatest - log_total
            scores.top_ids[token, best_block, best_index] = -2
