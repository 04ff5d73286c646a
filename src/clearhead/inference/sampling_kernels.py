"""The draw of a token, compiled: what `sampling.Sampler` does at each position for fifty thousand candidates.

`sampling.py` explains what is drawn and why; the random numbers and the scores are the same here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from clearhead.utils import splitmix64
from clearhead.utils.jit import entry, inline

_GAMMA = np.uint64(splitmix64.GAMMA)
_MIX_1 = np.uint64(splitmix64.MIX_1)
_MIX_2 = np.uint64(splitmix64.MIX_2)
_30, _27, _31, _11, _32 = (np.uint64(n) for n in (30, 27, 31, 11, 32))


@inline
def _bits(key: Any, token: Any) -> Any:
    """Return the 64 random bits of a token: SplitMix64's output number `token` (from 0) for the state `key`."""
    z = key + (np.uint64(token) + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@inline
def _score(logit: Any, bits: Any, best: float, temperature: float) -> float:
    """Return (logit - best) / temperature plus Gumbel noise from 53 of the bits."""
    uniform = (np.float64(bits >> _11) + 0.5) * 2.0**-53
    return (np.float64(logit) - best) / temperature - math.log(-math.log(uniform))


@entry
def draw_from_all(logits: Any, least: Any, best: float, temperature: float, key: Any, first: int) -> int:
    """Return the token with the greatest score among those with a logit of at least `least`.

    Args:
        logits: float32 [V]
        least: float32; -inf for no limit.
        best: the greatest logit, that of token `first`.
        temperature: above 0.
        key: uint64, the state of this position's random numbers.
        first: the token that the others are compared with first.
    """
    found, greatest = first, _score(logits[first], _bits(key, first), best, temperature)
    # No logit is above the best, so only noise above the greatest score so far can win: a comparison of whole numbers.
    # 1e-9 is more than the rounding error.
    enough = np.uint64(max(0.0, math.exp(-math.exp(min(700.0, -greatest))) - 1e-9) * 2.0**53) << _11
    for token in range(len(logits)):
        bits = _bits(key, token)
        if bits >= enough and logits[token] >= least:
            score = _score(logits[token], bits, best, temperature)
            if score > greatest:
                found, greatest = token, score
                enough = np.uint64(max(0.0, math.exp(-math.exp(min(700.0, -score))) - 1e-9) * 2.0**53) << _11
    return found


@entry
def heavy_tokens(weights: Any, weight_bits: Any, top_p: float, order: Any) -> tuple[int, float]:
    """Find the tokens that can belong to the most likely ones that together reach top_p.

    A token lighter than (1 - top_p) · total / V cannot: all such tokens together weigh less than 1 - top_p.

    Args:
        weights: float32 [V], exp((logit - best) / temperature)
        weight_bits: the same memory as uint32; non-negative numbers are ordered as their bits are.
        top_p: below 1.
        order: uint64 [V]; filled with a sort key for each such token; the most likely token has the smallest.

    Returns:
        the number of such tokens, and the sum of all weights.
    """
    n = len(weights)
    a, b, c, d = 0.0, 0.0, 0.0, 0.0  # four independent sums
    for i in range(0, n - 3, 4):
        a += np.float64(weights[i])
        b += np.float64(weights[i + 1])
        c += np.float64(weights[i + 2])
        d += np.float64(weights[i + 3])
    for i in range(n - n % 4, n):
        a += np.float64(weights[i])
    total = (a + b) + (c + d)
    lightest = (1 - top_p) * total / n
    count = 0
    for i in range(n):
        if weights[i] >= lightest:
            order[count] = (np.uint64(np.uint32(0xFFFFFFFF) - weight_bits[i]) << _32) | np.uint64(i)
            count += 1
    return count, total


@entry
def draw_in_order(
    logits: Any, weights: Any, order: Any, goal: float, least: Any, best: float, temperature: float, key: Any
) -> int:
    """Return the token with the greatest score among the first in `order` whose weights together reach `goal`.

    Args:
        logits, weights: float32 [V]
        order: uint64, as `heavy_tokens` made it, sorted.
        goal: the weight to reach.
        least, best, temperature, key: as for `draw_from_all`.
    """
    reached, found, greatest = 0.0, -1, -np.inf
    for index in range(len(order)):
        token = int(order[index] & np.uint64(0xFFFFFFFF))
        if logits[token] >= least:
            score = _score(logits[token], _bits(key, token), best, temperature)
            if score > greatest:
                found, greatest = token, score
        reached += np.float64(weights[token])
        if reached >= goal:
            break
    return found
