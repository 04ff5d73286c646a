"""How likely a model holds a given text: log-probabilities and surprisal, token by token.

One pass of the model over a text gives the logits after every token at once, so nothing is generated and
no cache is kept. A text longer than the context is scored in overlapping windows: each window has
`context_length` tokens and scores those that the one before has not, `stride` of them. With the default
stride, half the context, every token after the first window has at least half the context before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError, WeightsError
from clearhead.inference.declaration import is_whole
from clearhead.inference.logprobs import log_sum_exp

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

# Rows of logits turned into float64 at a time: 64 x 50,257 x 8 bytes are 25 MiB.
_ROWS = 64


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a text, and how likely the model held it after those before it.

    Attributes:
        id: the token.
        text: the characters that this token completes; joined over all tokens they are the text. None
            without a tokenizer.
        logprob: its log-probability in nats; None for a first token that nothing comes before.
    """

    id: int
    text: str | None
    logprob: float | None

    @property
    def surprisal(self) -> float | None:
        """-log2 of the probability, in bits."""
        return None if self.logprob is None else -self.logprob / math.log(2)


@dataclass(frozen=True)
class Score:
    """How likely a model holds a text.

    Attributes:
        tokens: the tokens in order.
    """

    tokens: tuple[ScoredToken, ...]

    @cached_property
    def n_scored(self) -> int:
        """How many tokens have a log-probability: all, or all but the first."""
        return sum(token.logprob is not None for token in self.tokens)

    @cached_property
    def logprob(self) -> float:
        """The log-probability of the whole text, in nats."""
        return math.fsum(token.logprob for token in self.tokens if token.logprob is not None)

    @property
    def surprisal(self) -> float:
        """The surprisal of the whole text, in bits."""
        return -self.logprob / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp of the mean surprisal in nats of a scored token."""
        return math.exp(-self.logprob / self.n_scored)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of surprisal per byte of UTF-8, by which models with different tokenizers can be compared.

        None without a tokenizer, which knows what the scored tokens stand for.
        """
        n_bytes = sum(len((token.text or "").encode("utf-8")) for token in self.tokens if token.logprob is not None)
        return self.surprisal / n_bytes if n_bytes else None


def score(
    all_logits: Callable[[Sequence[int]], npt.NDArray[np.float32]],
    ids: Sequence[int],
    *,
    context_length: int,
    start: int | None = None,
    stride: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Score:
    """Scores a text that is given as token ids.

    Args:
        all_logits: gives the logits after each of T ids, float32 [T, V]; such as `TorchRunner.logits`.
        ids: the text.
        context_length: how many tokens `all_logits` takes at most.
        start: a token to put before the text, so that its first token is scored too; GPT-2 was trained on
            texts that each follow an end-of-text token. None: the first token is not scored.
        stride: how many tokens each window after the first scores; half the context where it is None.
        tokenizer: gives the tokens' text.

    Raises:
        InputError: where there is no token to score, or the stride is out of range.
        WeightsError: where the model's logits are not numbers.
    """
    sequence = [*([] if start is None else [start]), *ids]
    if len(sequence) < 2 or not len(ids):
        raise InputError(f"the text has {len(ids)} tokens, none of which follows another; give a longer text to score.")
    stride = max(1, context_length // 2) if stride is None else stride
    if not is_whole(stride) or not 1 <= stride <= context_length:
        raise InputError(f"stride is {stride!r}; give a whole number from 1 to the context's {context_length:,}.")
    logprobs = np.concatenate(
        [
            _logprobs(all_logits(sequence[first:last])[scored - 1 - first :], sequence[scored : last + 1])
            for first, scored, last in windows(len(sequence), context_length, stride)
        ]
    )
    if not np.isfinite(logprobs).all():
        place = int(np.flatnonzero(~np.isfinite(logprobs))[0])
        raise WeightsError(
            f"the model gives token {sequence[place + 1]} of the text the log-probability {logprobs[place]}; "
            "its weights are broken, or they overflow in this dtype: check the file, or load it in float32."
        )
    unscored: list[float | None] = [] if start is not None else [None]
    return Score(_tokens(ids, unscored + logprobs.tolist(), tokenizer))


def windows(length: int, context_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """How a sequence is cut for scoring: triples (first, scored, last).

    The model runs over sequence[first:last], at most `context_length` tokens, and what it says of
    sequence[scored : last + 1] counts. Every token but the sequence's first is scored exactly once.
    """
    scored, last = 1, min(context_length, length - 1)
    while True:
        yield max(0, last - context_length), scored, last
        if last == length - 1:
            return
        scored, last = last + 1, min(last + stride, length - 1)


def _logprobs(logits: npt.NDArray[np.float32], targets: Sequence[int]) -> npt.NDArray[np.float64]:
    """log-softmax of each row [N, V] at its target [N], in float64."""
    ids = np.asarray(targets, np.int64)
    chosen = logits[np.arange(len(ids)), ids].astype(np.float64)
    normalizers = [log_sum_exp(logits[row : row + _ROWS]) for row in range(0, len(ids), _ROWS)]
    return chosen - np.concatenate(normalizers)


def _tokens(
    ids: Sequence[int], logprobs: Sequence[float | None], tokenizer: Tokenizer | None
) -> tuple[ScoredToken, ...]:
    texts: list[str | None] = [None] * len(ids)
    if tokenizer is not None:
        decoder = tokenizer.stream()
        pieces = [decoder.push(token) for token in ids]
        pieces[-1] += decoder.finish()
        texts = list(pieces)
    return tuple(
        ScoredToken(int(token), text, logprob) for token, text, logprob in zip(ids, texts, logprobs, strict=True)
    )
