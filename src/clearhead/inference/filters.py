"""Which tokens the filters leave: top-k, top-p and min-p, in the order in which a `Sampler` applies them.

The functions here are plain NumPy. For the two most common cases, no filter and top-p alone, `sampling_kernels.py` has
compiled ones that draw the same tokens.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.inference.options import SamplingParams

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int64]


class SamplingScratch:
    """Arrays as long as the vocabulary, reused between calls: making them costs as much as filling them."""

    def __init__(self, vocab_size: int) -> None:
        self.adjusted = np.empty(vocab_size, np.float32)
        self.values = np.empty(vocab_size, np.float32)
        self.bits = np.empty(vocab_size, np.uint64)


_of_this_thread = threading.local()


def scratch(vocab_size: int) -> SamplingScratch:
    """Return this thread's scratch arrays for a vocabulary of this size."""
    cached: SamplingScratch | None = getattr(_of_this_thread, "scratch", None)
    if cached is None or len(cached.values) != vocab_size:
        cached = _of_this_thread.scratch = SamplingScratch(vocab_size)
    return cached


def remaining_ids(logits: Floats, best: float, params: SamplingParams) -> Ids | None:
    """Return the ids that top-k, top-p and min-p leave, ascending; None if they leave all.

    Args:
        logits: float32 [V], with penalties and bias applied.
        best: the greatest of them.
        params: the temperature, which is above 0, and the filters.
    """
    ids = None
    if params.top_k is not None and params.top_k < len(logits):
        ids = top_k_ids(logits, params.top_k)
    if params.top_p < 1:
        ids = _top_p_ids(logits, ids, best, params.temperature, params.top_p)
    if params.min_p > 0:
        lowest = lowest_logit(best, params)
        ids = np.flatnonzero(logits >= lowest) if ids is None else ids[logits[ids] >= lowest]
    return ids


def lowest_logit(best: float, params: SamplingParams) -> np.float32:
    """Return the logit below which min-p leaves a token out; -inf without min-p."""
    if params.min_p == 0:
        return np.float32(-math.inf)
    return np.float32(best + params.temperature * math.log(params.min_p))


def top_k_ids(logits: Floats, k: int) -> Ids:
    """Return the ids of the k greatest logits, ascending; among equals at the edge the lower ids."""
    values = scratch(len(logits)).values
    np.copyto(values, logits)
    edge = len(values) - k
    values.partition(edge)
    above = np.flatnonzero(logits > values[edge])
    equal = np.flatnonzero(logits == values[edge])[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _top_p_ids(logits: Floats, ids: Ids | None, best: float, temperature: float, top_p: float) -> Ids:
    """Return the ids of the smallest set of most likely tokens, among `ids` or all, that together reach top_p.

    A token lighter than (1 - top_p) · total / V cannot belong to it: all such tokens together weigh less than
    1 - top_p. So only the others, some hundreds of fifty thousand, need to be sorted.
    """
    values = logits if ids is None else logits[ids]
    weights = softmax_weights(values, best, temperature, len(logits))
    total = float(weights.sum(dtype=np.float64))
    heavy = np.flatnonzero(weights >= (1 - top_p) * total / len(values))
    order = heavy[_descending(weights[heavy])]
    reached = np.cumsum(weights[order], dtype=np.float64)
    inside = np.sort(order[: int(np.searchsorted(reached, top_p * total)) + 1])
    return inside if ids is None else ids[inside]


def softmax_weights(values: Floats, best: float, temperature: float, vocab_size: int) -> npt.NDArray[np.float32]:
    """Return exp((value - best) / temperature), in scratch memory."""
    weights = scratch(vocab_size).values[: len(values)]
    np.subtract(values, np.float32(best), out=weights)
    np.divide(weights, np.float32(temperature), out=weights)
    return np.exp(weights, out=weights)


def _descending(weights: npt.NDArray[np.float32]) -> Ids:
    """Return the indices [K] of non-negative numbers from the greatest to the least, the lower index first if equal.

    Such floats are ordered as their bits are. With the inverted bits above the index in one integer, a plain sort of
    integers does it, several times as fast as a stable argsort.
    """
    inverted = np.uint64(0xFFFFFFFF) - weights.view(np.uint32)
    keys = (inverted << np.uint64(32)) | np.arange(len(weights), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
