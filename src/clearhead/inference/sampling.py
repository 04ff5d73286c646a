"""From logits to a token.

`SamplingParams` says how; a `Sampler` does it for one sequence, token after token, in this order:

1. repetition penalty, presence and frequency penalty, logit bias: they change the logits;
2. temperature 0 ends here: the token with the greatest logit, the lowest id where several are equal;
3. otherwise the logits are divided by the temperature, and tokens are left out by top-k, then top-p,
   then min-p, each looking at what the one before has left;
4. one of the rest is drawn with its probability among the rest.

**How a seed becomes a text.** Every token has its own random number, a function of (seed, sample index,
position, token id) and of nothing else, and the draw is the *Gumbel-max* method (Gumbel 1954, as
told by Maddison, Tarlow and Minka 2014): the token with the greatest `logit / temperature + noise`
wins, where noise = -log(-log(u)) and u is that token's uniform number. This has three consequences that
one uniform number for the whole vocabulary would not have. What else runs in the batch, and in which
order, cannot matter. A difference in the last bits of the logits, as two backends or two batch sizes
make it, changes the token only if two contenders are that close, not whenever a sum over fifty thousand
probabilities moves past the number drawn. And nothing needs to be summed or sorted to draw.

The random numbers are SplitMix64's (Steele, Lea and Flood 2014): the k-th output for a state s is
mix(s + (k + 1) · 0x9E3779B97F4A7C15), where k is the token id, and the state is the hash of
seed, sample index and position (`stream_key`).
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError, WeightsError
from clearhead.utils.splitmix64 import GAMMA, MASK, mix, mix_in_place

Floats = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[np.int64]


# Below this a temperature would overflow float32 and says nothing that 0 does not say.
_LOWEST_TEMPERATURE = 1e-6


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. The defaults draw from the model's own distribution.

    Attributes:
        temperature: divides the logits; 0 is greedy, below 1 is safer, above 1 is wilder.
        top_k: only the k most likely tokens, exactly k also where some are equal (lower ids first);
            None for no limit.
        top_p: only the most likely tokens that together reach this probability, with the one that
            crosses it (nucleus sampling, Holtzman et al. 2020); 1 for no limit.
        min_p: only tokens at least this share as likely as the most likely one (Nguyen et al. 2024);
            0 for no limit.
        repetition_penalty: every token of the prompt and the output has its logit divided by this where
            it is positive and multiplied where it is negative (CTRL, Keskar et al. 2019, section 4.1,
            who divide; dividing a negative logit would favour the token). 1 for none.
        presence_penalty: taken from the logit of every token generated so far, as in OpenAI's API.
        frequency_penalty: taken from it once for each time it was generated, as in OpenAI's API.
        logit_bias: added to the logits of these token ids; -inf forbids a token.
        seed: one seed gives one text, from 0 to 2^63 - 1. None draws a fresh one, which is reported.

    Raises:
        InputError: where a value has the wrong type or is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.top_k is not None and (not is_whole(self.top_k) or self.top_k < 1):
            raise InputError(f"top_k is {self.top_k!r}; give a whole number of at least 1, or None for no limit.")
        if self.seed is not None and (not is_whole(self.seed) or not 0 <= self.seed < 1 << 63):
            raise InputError(f"seed is {self.seed!r}; give a whole number from 0 to 2^63 - 1, or None for a fresh one.")
        if not isinstance(self.logit_bias, Mapping):
            raise InputError(f"logit_bias is {self.logit_bias!r}; give a mapping from token ids to numbers.")
        for token, bias in self.logit_bias.items():
            if not is_whole(token) or token < 0:
                raise InputError(f"logit_bias has the key {token!r}; the keys must be token ids, whole numbers from 0.")
            if not _is_number(bias) or math.isnan(bias) or bias == math.inf:
                raise InputError(
                    f"logit_bias for token {token} is {bias!r}; give a finite number, or -inf to forbid the token."
                )
        object.__setattr__(self, "logit_bias", {int(token): float(b) for token, b in self.logit_bias.items()})

    def _check_numbers(self) -> None:
        value: Any = self.temperature
        if not _is_finite(value) or (value != 0 and value < _LOWEST_TEMPERATURE):
            raise InputError(
                f"temperature is {value!r}; give 0 (always the most likely token) "
                f"or a number of at least {_LOWEST_TEMPERATURE}."
            )
        value = self.top_p
        if not _is_finite(value) or not 0 < value <= 1:
            raise InputError(f"top_p is {value!r}; give a number above 0 and up to 1 (1 for no limit).")
        value = self.min_p
        if not _is_finite(value) or not 0 <= value <= 1:
            raise InputError(f"min_p is {value!r}; give a number from 0 (no limit) to 1.")
        value = self.repetition_penalty
        if not _is_finite(value) or value <= 0:
            raise InputError(f"repetition_penalty is {value!r}; give a number above 0 (1 for none).")
        for name in ("presence_penalty", "frequency_penalty"):
            if not _is_finite(getattr(self, name)):
                raise InputError(f"{name} is {getattr(self, name)!r}; give a finite number (0 for none).")


class Sampler:
    """Chooses the tokens of one sequence, one after another.

    It remembers what the penalties need (which ids were seen, how often each was generated) and its
    position, so a sampler belongs to one sequence and sees all of it.

    Args:
        params: how to choose.
        vocab_size: the number of logits there will be (V).
        prompt_ids: the tokens before the first that is chosen, for the repetition penalty.
        sample_index: which of several samples with one seed this is.

    Raises:
        InputError: where `logit_bias` names an id outside the vocabulary.
    """

    def __init__(
        self, params: SamplingParams, *, vocab_size: int, prompt_ids: Iterable[int] = (), sample_index: int = 0
    ) -> None:
        beyond = [token for token in params.logit_bias if token >= vocab_size]
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
        self._bias_ids = np.fromiter(params.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        penalized = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
        self._history = _History(prompt_ids) if penalized else None

    def sample(self, logits: Floats) -> int:
        """Chooses the next token and remembers it.

        Args:
            logits: float32 [V], not changed.

        Raises:
            WeightsError: where the logits are not numbers, so that there is nothing to choose by.
            InputError: where `logit_bias` forbids every token.
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
        """What `sample` would choose from now: the tokens left, and the probability of each.

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
        ids = self._kept(adjusted, best)
        if ids is None:
            ids = np.arange(self.vocab_size)
        weights = np.exp((adjusted[ids].astype(np.float64) - best) / self.params.temperature)
        return ids, weights / weights.sum()

    def _adjusted(self, logits: Floats) -> Floats:
        """Penalties and bias applied; the logits themselves where there are none, else a scratch array."""
        if logits.shape != (self.vocab_size,):
            raise ValueError(f"logits have the shape {logits.shape}; expected ({self.vocab_size},)")
        if self._history is None and not len(self._bias):
            return np.asarray(logits, np.float32)
        adjusted = _scratch(self.vocab_size).adjusted
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

    def _kept(self, logits: Floats, best: float) -> Ids | None:
        """The ids that top-k, top-p and min-p leave, ascending; None for all of them."""
        params, ids = self.params, None
        if params.top_k is not None and params.top_k < len(logits):
            ids = top_k_ids(logits, params.top_k)
        if params.top_p < 1:
            ids = _nucleus(logits, ids, best, params.temperature, params.top_p)
        if params.min_p > 0:
            lowest = np.float32(best + params.temperature * math.log(params.min_p))
            ids = np.flatnonzero(logits >= lowest) if ids is None else ids[logits[ids] >= lowest]
        return ids

    def _draw(self, logits: Floats, first: int, best: float, key: int) -> int:
        params, state = self.params, np.uint64(key)
        if params.top_k is None or params.top_k >= len(logits):
            from clearhead.inference.sampling_kernels import draw_from_all, draw_in_order, heavy_tokens

            least = np.float32(best + params.temperature * math.log(params.min_p) if params.min_p > 0 else -math.inf)
            if params.top_p >= 1:
                return int(draw_from_all(logits, least, best, params.temperature, state, first))
            weights, order = _weights(logits, best, params.temperature, len(logits)), _scratch(len(logits)).bits
            count, total = heavy_tokens(weights, weights.view(np.uint32), params.top_p, order)
            order[:count].sort()
            goal = params.top_p * total
            return int(draw_in_order(logits, weights, order[:count], goal, least, best, params.temperature, state))
        ids = self._kept(logits, best)
        assert ids is not None  # with top_k there is always a choice
        scores = _gumbel_scores(logits[ids], ids, best, self.params.temperature, key)
        return int(ids[np.argmax(scores)])


def fresh_seed() -> int:
    """A seed from the system's randomness, short enough (32 bits) to be typed again."""
    return secrets.randbits(32)


def stream_key(seed: int, sample_index: int, position: int) -> int:
    """The 64-bit state of the random numbers for one position: each word is mixed in by SplitMix64's step."""
    key = 0
    for word in (seed, sample_index, position):
        key = mix(((key ^ word) + GAMMA) & MASK)
    return key


def random_bits(key: int, ids: Ids) -> npt.NDArray[np.uint64]:
    """64 random bits for each token id: SplitMix64's output number `id` (from 0) for the state `key`."""
    bits = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + np.uint64(key)
    mix_in_place(bits, np.empty_like(bits))
    return bits


def _gumbel_scores(logits: Floats, ids: Ids, best: float, temperature: float, key: int) -> npt.NDArray[np.float64]:
    """(logit - best) / temperature plus each token's Gumbel noise, [K].

    The upper 53 bits and a half make a uniform number strictly between 0 and 1, so both logarithms are finite.
    """
    uniform = ((random_bits(key, ids) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return (logits.astype(np.float64) - best) / temperature - np.log(-np.log(uniform))


def top_k_ids(logits: Floats, k: int) -> Ids:
    """The ids of the k greatest logits, ascending; among equals at the edge the lower ids."""
    values = _scratch(len(logits)).values
    np.copyto(values, logits)
    edge = len(values) - k
    values.partition(edge)
    above = np.flatnonzero(logits > values[edge])
    equal = np.flatnonzero(logits == values[edge])[: k - len(above)]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(logits: Floats, ids: Ids | None, best: float, temperature: float, top_p: float) -> Ids:
    """The ids of the smallest set of most likely tokens, among `ids` or all, whose probability reaches top_p.

    A token lighter than (1 - top_p) · total / V cannot belong to it: all of that kind together weigh less
    than 1 - top_p. So only the others, some hundreds of fifty thousand, need to be sorted.
    """
    values = logits if ids is None else logits[ids]
    weights = _weights(values, best, temperature, len(logits))
    total = float(weights.sum(dtype=np.float64))
    heavy = np.flatnonzero(weights >= (1 - top_p) * total / len(values))
    order = heavy[_descending(weights[heavy])]
    reached = np.cumsum(weights[order], dtype=np.float64)
    inside = np.sort(order[: int(np.searchsorted(reached, top_p * total)) + 1])
    return inside if ids is None else ids[inside]


def _weights(values: Floats, best: float, temperature: float, vocab_size: int) -> npt.NDArray[np.float32]:
    """exp((value - best) / temperature), in scratch memory."""
    weights = _scratch(vocab_size).values[: len(values)]
    np.subtract(values, np.float32(best), out=weights)
    np.divide(weights, np.float32(temperature), out=weights)
    return np.exp(weights, out=weights)


def _descending(weights: npt.NDArray[np.float32]) -> Ids:
    """The places [K] of non-negative numbers from the greatest to the least, the lower place first among equals.

    Such floats are ordered as their bits are. With the bits, turned over, above the place in one
    integer, a plain sort of integers does it, several times as fast as a stable argsort.
    """
    turned = np.uint64(0xFFFFFFFF) - weights.view(np.uint32)
    keys = (turned << np.uint64(32)) | np.arange(len(weights), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


class _History:
    """Which ids a sequence has seen, and how often each was generated; arrays that grow by doubling."""

    def __init__(self, prompt_ids: Iterable[int]) -> None:
        seen = dict.fromkeys(int(token) for token in prompt_ids)
        self._place = {token: place for place, token in enumerate(seen)}
        self._ids = np.zeros(max(64, 2 * len(seen)), np.int64)
        self._counts = np.zeros(len(self._ids), np.float32)
        self._ids[: len(seen)] = list(seen)

    @property
    def ids(self) -> Ids:
        """int64 [K], each id once."""
        return self._ids[: len(self._place)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """float32 [K]: how often each of `ids` was generated; 0 where only the prompt has it."""
        return self._counts[: len(self._place)]

    def add(self, token: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1


def _penalized(logits: Floats, counts: npt.NDArray[np.float32], params: SamplingParams) -> Floats:
    """The logits [K] of tokens seen before, after the three penalties; counts [K] of how often each was generated."""
    if params.repetition_penalty != 1:
        penalty = np.float32(params.repetition_penalty)
        logits = np.where(logits > 0, logits / penalty, logits * penalty)
    if params.presence_penalty or params.frequency_penalty:
        presence = np.float32(params.presence_penalty) * (counts > 0)
        logits = logits - presence - np.float32(params.frequency_penalty) * counts
    return logits


class _Scratch:
    """Arrays as long as the vocabulary, kept between calls because making them costs as much as filling them."""

    def __init__(self, vocab_size: int) -> None:
        self.adjusted = np.empty(vocab_size, np.float32)
        self.values = np.empty(vocab_size, np.float32)
        self.bits = np.empty(vocab_size, np.uint64)


_of_this_thread = threading.local()


def _scratch(vocab_size: int) -> _Scratch:
    kept: _Scratch | None = getattr(_of_this_thread, "scratch", None)
    if kept is None or len(kept.values) != vocab_size:
        kept = _of_this_thread.scratch = _Scratch(vocab_size)
    return kept


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely the model held one token, and what it held most likely there.

    Attributes:
        id: the token.
        logprob: its log-probability in nats, in the model's own distribution: before penalties, bias,
            temperature and filters.
        top: the most likely tokens at this place with their log-probabilities, best first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: Floats, token: int, n_top: int = 0, n_choices: int | None = None) -> TokenLogprob:
    """The log-probability of a token under the log-softmax of the logits, and the best alternatives.

    Args:
        logits: float32 [V], as they come from the model; sums are in float64.
        token: the id that was chosen.
        n_top: how many of the most likely tokens to list (the chosen one is among them where it is one).
        n_choices: list only ids below this, where the tokenizer has fewer tokens than the model; None for all.
    """
    normalizer = float(log_sum_exp(logits[None, :])[0])
    choices = logits[:n_choices]
    ids = top_k_ids(choices, min(n_top, len(choices))) if n_top else np.zeros(0, np.int64)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    top = tuple((int(i), float(logits[i]) - normalizer) for i in ids)
    return TokenLogprob(token, float(logits[token]) - normalizer, top)


def log_sum_exp(logits: Floats) -> npt.NDArray[np.float64]:
    """log(sum(exp(logits))) over the last axis, in float64: [N, V] -> [N]."""
    greatest = logits.max(axis=-1, keepdims=True).astype(np.float64)
    sums = np.exp(logits - greatest).sum(axis=-1)
    return greatest[..., 0] + np.log(sums)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number (Python's or NumPy's) and no truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)
