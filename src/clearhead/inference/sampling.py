"""From logits to a token.

`SamplingParams` says how; a `Sampler` does it for one sequence, token after token, in this order:

1. repetition penalty, presence and frequency penalty, and logit bias change the logits;
2. temperature 0 ends here: the token with the greatest logit, the lowest id if several are equal;
3. otherwise the logits are divided by the temperature, and top-k, then top-p, then min-p leave tokens out, each
   looking at what the one before has left;
4. one of the remaining tokens is drawn with its probability among them.

**How a seed becomes a text.** Every token has its own random number, a function of (seed, sample index, position,
token id) and of nothing else, and the draw is the *Gumbel-max* method (Gumbel 1954, as described by Maddison, Tarlow
and Minka 2014): the token with the greatest `logit / temperature + noise` wins, with noise = -log(-log(u)) and u that
token's uniform number. One uniform number for the whole vocabulary would not have these three consequences. What else
runs in the batch, and in which order, cannot matter. A difference in the last bits of the logits, as between two
backends or two batch sizes, changes the token only if two candidates are that close, not whenever a sum over fifty
thousand probabilities moves past the number drawn. And nothing needs to be summed or sorted to draw.

The random numbers are SplitMix64's (Steele, Lea and Flood 2014): the k-th output for a state s is
mix(s + (k + 1) · 0x9E3779B97F4A7C15), with k the token id and the state the hash of seed, sample index and position
(`stream_key`).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError, WeightsError
from clearhead.inference.filters import Floats, Ids, lowest_logit, remaining_ids, scratch, softmax_weights
from clearhead.inference.options import SamplingParams
from clearhead.utils.machine_code import CompiledFunction
from clearhead.utils.splitmix64 import GAMMA, MASK, mix, mix_in_place

_KERNELS = "clearhead.inference.sampling_kernels"
draw_from_all = CompiledFunction(_KERNELS, "draw_from_all")
heavy_tokens = CompiledFunction(_KERNELS, "heavy_tokens")
draw_in_order = CompiledFunction(_KERNELS, "draw_in_order")


class Sampler:
    """Choose the tokens of one sequence, one after another.

    It remembers what the penalties need (which ids were seen, how often each was generated) and its position, so a
    sampler belongs to one sequence and sees all of it.

    Args:
        params: how to choose.
        vocab_size: the number of logits (V).
        prompt_ids: the tokens before the first one that is chosen, for the repetition penalty.
        sample_index: which of several samples with one seed this is.

    Raises:
        InputError: if `logit_bias` names an id outside the vocabulary.
    """

    def __init__(
        self, params: SamplingParams, *, vocab_size: int, prompt_ids: Iterable[int] = (), sample_index: int = 0
    ) -> None:
        beyond = [token for token in params.bias if token >= vocab_size]
        if beyond:
            raise InputError(
                f"logit_bias names token {beyond[0]}, but the vocabulary has {vocab_size:,} tokens; "
                f"give ids from 0 to {vocab_size - 1}."
            )
        self.params = params
        self.vocab_size = vocab_size
        self.sample_index = sample_index
        self.seed = fresh_seed() if params.seed is None else int(params.seed)
        self.position = 0
        self._bias_ids = np.fromiter(params.bias.keys(), np.int64)
        self._bias = np.fromiter(params.bias.values(), np.float32)
        penalized = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
        # A model may have rows that its tokenizer has no token for. They are never chosen, so nothing lowers them.
        self._history = _History(token for token in prompt_ids if token < vocab_size) if penalized else None

    def sample(self, logits: Floats) -> int:
        """Choose the next token and remember it.

        Args:
            logits: float32 [V], not changed.

        Raises:
            WeightsError: if the logits are NaN or infinite, so that there is nothing to choose by.
            InputError: if `logit_bias` forbids every token.
        """
        adjusted = self._adjusted(logits)
        token = int(np.argmax(adjusted))
        self._check_best(logits, float(adjusted[token]))
        if self.params.temperature > 0:
            key = stream_key(self.seed, self.sample_index, self.position)
            token = self._draw(adjusted, token, float(adjusted[token]), key)
        self.position += 1
        if self._history is not None:
            self._history.add(token)
        return token

    def distribution(self, logits: Floats) -> tuple[Ids, npt.NDArray[np.float64]]:
        """Return what `sample` would choose from now: the tokens left, and the probability of each.

        Args:
            logits: float32 [V], not changed.

        Returns:
            ids int64 [K], ascending, and probabilities float64 [K], which sum to 1.

        Raises:
            WeightsError, InputError: as `sample` does.
        """
        adjusted = self._adjusted(logits)
        token = int(np.argmax(adjusted))
        best = float(adjusted[token])
        self._check_best(logits, best)
        if self.params.temperature == 0:
            return np.array([token]), np.ones(1)
        ids = remaining_ids(adjusted, best, self.params)
        if ids is None:
            ids = np.arange(self.vocab_size)
        weights = np.exp((adjusted[ids].astype(np.float64) - best) / self.params.temperature)
        return ids, weights / weights.sum()

    def _adjusted(self, logits: Floats) -> Floats:
        """Apply penalties and bias; without any, return the logits themselves, else a scratch array."""
        if logits.shape != (self.vocab_size,):
            raise ValueError(f"logits have the shape {logits.shape}; expected ({self.vocab_size},)")
        if self._history is None and not len(self._bias):
            return np.asarray(logits, np.float32)
        adjusted = scratch(self.vocab_size).adjusted
        np.copyto(adjusted, logits)
        if self._history is not None:
            ids, counts = self._history.ids, self._history.counts
            adjusted[ids] = _penalized(adjusted[ids], counts, self.params)
        adjusted[self._bias_ids] += self._bias
        return adjusted

    def _check_best(self, logits: Floats, best: float) -> None:
        # argmax stops at the first NaN, so looking at the best is looking at all of them.
        if math.isfinite(best):
            return
        if np.isneginf(best) and np.isfinite(np.max(logits)):
            raise InputError("logit_bias forbids every token of the vocabulary; leave at least one.")
        raise WeightsError(
            f"the model's greatest logit is {best}, so no token can be chosen; "
            "its weights are broken, or they overflow in this dtype: check the file, or load it in float32."
        )

    def _draw(self, logits: Floats, first: int, best: float, key: int) -> int:
        """Draw among the remaining tokens; `first` is the most likely one and `best` its logit."""
        params, state = self.params, np.uint64(key)
        if params.top_k is None or params.top_k >= len(logits):
            least = lowest_logit(best, params)
            if params.top_p >= 1:
                return int(draw_from_all(logits, least, best, params.temperature, state, first))
            weights = softmax_weights(logits, best, params.temperature, len(logits))
            order = scratch(len(logits)).bits
            count, total = heavy_tokens(weights, weights.view(np.uint32), params.top_p, order)
            order[:count].sort()
            goal = params.top_p * total
            return int(draw_in_order(logits, weights, order[:count], goal, least, best, params.temperature, state))
        ids = remaining_ids(logits, best, params)
        assert ids is not None  # with top_k there is always a choice
        scores = _gumbel_scores(logits[ids], ids, best, params.temperature, key)
        return int(ids[np.argmax(scores)])


def fresh_seed() -> int:
    """Return a seed from the system's randomness, short enough (32 bits) to be typed again."""
    return secrets.randbits(32)


def stream_key(seed: int, sample_index: int, position: int) -> int:
    """Return the 64-bit state of the random numbers for one position; SplitMix64's step mixes in each word."""
    key = 0
    for word in (seed, sample_index, position):
        key = mix(((key ^ word) + GAMMA) & MASK)
    return key


def random_bits(key: int, ids: Ids) -> npt.NDArray[np.uint64]:
    """Return 64 random bits for each token id: SplitMix64's output number `id` (from 0) for the state `key`."""
    bits = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + np.uint64(key)
    mix_in_place(bits, np.empty_like(bits))
    return bits


def _gumbel_scores(logits: Floats, ids: Ids, best: float, temperature: float, key: int) -> npt.NDArray[np.float64]:
    """Return (logit - best) / temperature plus each token's Gumbel noise, [K].

    The upper 53 bits and a half make a uniform number strictly between 0 and 1, so both logarithms are finite.
    """
    uniform = ((random_bits(key, ids) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    scores: npt.NDArray[np.float64] = (logits.astype(np.float64) - best) / temperature - np.log(-np.log(uniform))
    return scores


class _History:
    """Which ids a sequence has seen, and how often each was generated; arrays that grow by doubling."""

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        seen = dict.fromkeys(int(token) for token in prompt_ids)
        self._index = {token: index for index, token in enumerate(seen)}
        self._ids = np.zeros(max(64, 2 * len(seen)), np.int64)
        self._counts = np.zeros(len(self._ids), np.float32)
        self._ids[: len(seen)] = list(seen)

    @property
    def ids(self) -> Ids:
        """int64 [K], each id once."""
        return self._ids[: len(self._index)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """float32 [K]: how often each of `ids` was generated; 0 if only the prompt has it."""
        return self._counts[: len(self._index)]

    def add(self, token: int) -> None:
        """Count a generated token."""
        index = self._index.setdefault(token, len(self._index))
        if index == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[index] = token
        self._counts[index] += 1


def _penalized(logits: Floats, counts: npt.NDArray[np.float32], params: SamplingParams) -> Floats:
    """Apply the three penalties to the logits [K] of tokens seen before; counts [K] says how often each was generated.

    The repetition penalty divides a positive logit and multiplies a negative one. CTRL (Keskar et al. 2019, section
    4.1) always divides, which would favour a token with a negative logit.
    """
    if params.repetition_penalty != 1:
        penalty = np.float32(params.repetition_penalty)
        logits = np.where(logits > 0, logits / penalty, logits * penalty)
    if params.presence_penalty or params.frequency_penalty:
        presence = np.float32(params.presence_penalty) * (counts > 0)
        logits = logits - presence - np.float32(params.frequency_penalty) * counts
    return logits
