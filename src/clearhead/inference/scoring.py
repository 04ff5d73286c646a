"""Score given texts: the log-probability, entropy and rank of every token, over any Runner.

One pass of the model over a text gives the distribution after every token at once, so nothing is generated. Many texts
run together, in batches of similar length. A text longer than the context is scored in overlapping windows: each window
has `context_length` tokens and scores those that the one before has not, `stride` of them. With the default stride,
half the context, every token after the first window has at least half the context before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError, WeightsError
from clearhead.inference.declaration import is_whole
from clearhead.inference.logprobs import join_scores
from clearhead.inference.runner import ScoringRunner, TokenScores
from clearhead.inference.shared_prefixes import OpenLimits, ScoreDetails, ScoredSequence, score_sharing
from clearhead.utils.html import html_table

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

_BUFFERED_TOKENS = 1 << 17
_BATCH_SIZE = 128  # sequences in one call of the Runner
_CACHE_NUMBERS = 1 << 28  # keys and values of the sequences that are open at once: 1 GiB in float32
_PAGE_TOKENS = 64  # a sequence's memory grows by this many tokens


# --------------------------------------------------------------------------------------------------------------
# The core: token ids in, scores out
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A sequence of tokens to score.

    Attributes:
        ids: the tokens.
        first: the index of the first token to score, at least 1; those before it are context.
    """

    ids: Sequence[int]
    first: int = 1


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """How sequences are scored.

    Attributes:
        top: how many of the most likely tokens to return at each position.
        n_choices: count only ids below this in ranks and top; None for all rows of the model.
        stride: how many tokens each window after the first scores; None for half the context.
        batch_size: how many sequences run together; it changes the speed, not the numbers.
        groups: sets of tokens, bool [G, V], whose probabilities are wanted at each scored position.
        buffered_tokens: the requests that are sorted together have about so many tokens. More of them have more
            prefixes in common, which run once, and the first results come later.
    """

    top: int = 0
    n_choices: int | None = None
    stride: int | None = None
    batch_size: int = _BATCH_SIZE
    groups: npt.NDArray[np.bool_] | None = None
    buffered_tokens: int = _BUFFERED_TOKENS


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """The scores of one request's tokens from `first` on.

    Attributes:
        scores: N of each.
        cuts: the windows, as `windows` yields them.
    """

    scores: TokenScores
    cuts: tuple[tuple[int, int, int], ...]

    @cached_property
    def contexts(self) -> npt.NDArray[np.int64]:
        """The number of context tokens that each token was predicted from, int64 [N]."""
        return np.concatenate([np.arange(scored, last + 1) - first for first, scored, last in self.cuts])

    @cached_property
    def windows(self) -> npt.NDArray[np.int64]:
        """The index of the window that scored each token, int64 [N]."""
        return np.repeat(np.arange(len(self.cuts)), [last + 1 - scored for _, scored, last in self.cuts])


def score_sequences(
    runner: ScoringRunner,
    requests: Iterable[ScoreRequest],
    options: ScoreOptions = ScoreOptions(),
    on_scored: Callable[[], None] = lambda: None,
) -> Iterator[SequenceScores]:
    """Score many sequences; yield the results in the order of the requests.

    What several of them have in common at their beginnings, as minimal pairs and the endings of a question have, runs
    once.

    Args:
        runner: runs the model.
        requests: may be endless; a limited number is in memory at a time.
        options: how they are scored.
        on_scored: called for each request that has its scores, in the order in which they come: for progress.

    Raises:
        InputError: if a request has no token to score, or an option is out of range.
        WeightsError: if a log-probability is NaN or infinite.
    """
    stride = check_stride(options.stride, runner.config.context_length)
    choices = runner.config.vocab_size if options.n_choices is None else options.n_choices
    if not is_whole(options.top) or not 0 <= options.top <= choices:
        raise InputError(f"top is {options.top!r}; give a number from 0 to the {choices:,} tokens of the vocabulary.")
    buffer: list[ScoreRequest] = []
    tokens = 0
    for request in requests:
        if not 1 <= request.first < len(request.ids):
            raise InputError(
                f"the text has {len(request.ids)} tokens, none of which follows another; give a longer text to score."
            )
        buffer.append(request)
        tokens += len(request.ids)
        if tokens >= options.buffered_tokens:
            yield from _score_buffer(runner, buffer, options, stride, on_scored)
            buffer, tokens = [], 0
    yield from _score_buffer(runner, buffer, options, stride, on_scored)


def check_stride(stride: int | None, context_length: int) -> int:
    """Return the stride, by default half the context.

    Raises:
        InputError: if it is out of range.
    """
    if stride is None:
        return max(1, context_length // 2)
    if not is_whole(stride) or not 1 <= stride <= context_length:
        raise InputError(f"stride is {stride!r}; give a whole number from 1 to the context's {context_length:,}.")
    return stride


def windows(length: int, context_length: int, stride: int, start: int = 1) -> Iterator[tuple[int, int, int]]:
    """Yield how a sequence is cut for scoring, as triples (first, scored, last).

    The model runs over sequence[first:last], at most `context_length` tokens, and scores sequence[scored : last + 1].
    Every token from `start` on is scored exactly once. If all of them fit one window, they get the longest context.
    """
    if length - start <= context_length:
        yield max(0, length - 1 - context_length), start, length - 1
        return
    scored, last = start, min(max(context_length, start - 1 + stride), length - 1)
    while True:
        yield max(0, last - context_length), scored, last
        if last == length - 1:
            return
        scored, last = last + 1, min(last + stride, length - 1)


def _score_buffer(
    runner: ScoringRunner,
    requests: Sequence[ScoreRequest],
    options: ScoreOptions,
    stride: int,
    on_scored: Callable[[], None],
) -> Iterator[SequenceScores]:
    config = runner.config
    cuts = [list(windows(len(one.ids), config.context_length, stride, one.first)) for one in requests]
    found: list[list[TokenScores | None]] = [[None] * len(own) for own in cuts]
    missing = [len(own) for own in cuts]
    pieces = [
        (list(requests[number].ids[first : last + 1]), scored - first, number, index)
        for number, own in enumerate(cuts)
        for index, (first, scored, last) in enumerate(own)
    ]
    pieces.sort(key=lambda piece: piece[0])  # windows with a common prefix are adjacent
    sequences = [ScoredSequence(ids, scored) for ids, scored, _, _ in pieces]
    details = ScoreDetails(options.top, options.n_choices, options.groups)
    most_tokens = max(1, _CACHE_NUMBERS // (2 * config.n_layers * config.emb_dim))
    limits = OpenLimits(options.batch_size, most_tokens, _PAGE_TOKENS)
    for place, scores in score_sharing(runner, sequences, details, limits):
        _, _, number, index = pieces[place]
        found[number][index] = scores
        missing[number] -= 1
        if not missing[number]:
            on_scored()
    for request, parts, own in zip(requests, found, cuts, strict=True):
        yield _joined(request, [part for part in parts if part is not None], own)


def _joined(
    request: ScoreRequest, parts: Sequence[TokenScores], cuts: Sequence[tuple[int, int, int]]
) -> SequenceScores:
    scores = join_scores(parts)
    if not np.isfinite(scores.logprobs).all():
        index = int(np.flatnonzero(~np.isfinite(scores.logprobs))[0])
        raise WeightsError(
            f"the model gives token {request.ids[request.first + index]} of the text the log-probability "
            f"{scores.logprobs[index]}; its weights are broken, or they overflow in this dtype: check the file, or "
            "load it in float32."
        )
    return SequenceScores(scores, tuple(cuts))


# --------------------------------------------------------------------------------------------------------------
# What a user sees
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token of a text, and how likely it is after those before it.

    Attributes:
        id: the token.
        text: the characters that this token completes; joined over all tokens they are the text. None
            without a tokenizer.
        logprob: its log-probability in nats; None for a first token without anything before it.
        entropy: the entropy in nats of the distribution that it comes from.
        rank: how many tokens are more likely; 0 for the most likely one.
        top: the most likely tokens and their log-probabilities, as many as were asked for.
    """

    id: int
    text: str | None
    logprob: float | None
    entropy: float | None = None
    rank: int | None = None
    top: tuple[tuple[int, float], ...] = ()

    @property
    def surprisal(self) -> float | None:
        """-log2 of the probability, in bits."""
        return None if self.logprob is None else -self.logprob / math.log(2)


@dataclass(frozen=True, repr=False)
class Score:
    """How likely a text is.

    Attributes:
        tokens: the scored text's tokens in order.
        bos: the token before the text, which has no score; None if there is none.
        text_bytes: the length in UTF-8 of the text that was given; None for ids without a tokenizer.
    """

    tokens: tuple[ScoredToken, ...]
    bos: int | None = None
    text_bytes: int | None = None

    def __repr__(self) -> str:
        rate = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.3f} bits per byte"
        return f"Score({len(self.tokens):,} tokens, {self.surprisal:.2f} bits{rate})"

    def _repr_html_(self) -> str:
        rows = (
            (
                token.id,
                repr(token.text),
                *("" if number is None else number for number in (token.surprisal, token.rank)),
            )
            for token in self.tokens
        )
        return html_table(["id", "token", "surprisal, bits", "rank"], rows, repr(self))

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
        """exp of the mean surprisal in nats of a scored token; inf if it exceeds a float."""
        try:
            return math.exp(-self.logprob / self.n_scored)
        except OverflowError:
            return math.inf

    @property
    def is_greedy(self) -> bool:
        """Whether every scored token is the most likely one, so that greedy generation would write the text."""
        return all(token.rank == 0 for token in self.tokens if token.logprob is not None)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits of surprisal per byte of the text in UTF-8, by which models with different tokenizers can be compared.

        None without a tokenizer, which knows what the tokens stand for.
        """
        return self.surprisal / self.text_bytes if self.text_bytes else None


@dataclass(frozen=True, slots=True)
class TextToScore:
    """The tokens of a text, with what precedes them.

    Attributes:
        ids: the tokens to score.
        context: the tokens before them, the beginning-of-text token first if there is one.
        bos: that token; None if there is none.
        text_bytes: the length of the text in UTF-8.
    """

    ids: Sequence[int]
    context: Sequence[int] = ()
    bos: int | None = None
    text_bytes: int | None = None


def score_texts(
    runner: ScoringRunner,
    texts: Iterable[TextToScore],
    *,
    options: ScoreOptions = ScoreOptions(),
    tokenizer: Tokenizer | None = None,
) -> Iterator[Score]:
    """Score many texts; yield a `Score` for each, in order.

    Args:
        runner: as `score_sequences`.
        texts: their tokens.
        options: how they are scored.
        tokenizer: gives the tokens' text.

    Raises:
        InputError: if a text has no token to score, or an option is out of range.
        WeightsError: if a log-probability is NaN or infinite.
    """
    given: list[TextToScore] = []  # those whose scores have not come yet

    def requests() -> Iterator[ScoreRequest]:
        for text in texts:
            given.append(text)
            yield ScoreRequest([*text.context, *text.ids], max(1, len(text.context)))

    for found in score_sequences(runner, requests(), options):
        text = given.pop(0)
        yield Score(_tokens(text, found.scores, tokenizer), text.bos, text.text_bytes)


def _tokens(text: TextToScore, scores: TokenScores, tokenizer: Tokenizer | None) -> tuple[ScoredToken, ...]:
    pieces: Sequence[str | None] = [None] * len(text.ids)
    if tokenizer is not None:
        pieces = token_texts(text.ids, tokenizer)
    unscored = len(text.ids) - len(scores.logprobs)  # the first token, if nothing comes before it
    tokens = [ScoredToken(int(token), piece, None) for token, piece in zip(text.ids[:unscored], pieces, strict=False)]
    for index, (token, piece) in enumerate(zip(text.ids[unscored:], pieces[unscored:], strict=True)):
        top = zip(scores.top_ids[index].tolist(), scores.top_logprobs[index].tolist(), strict=True)
        logprob, entropy = float(scores.logprobs[index]), float(scores.entropies[index])
        tokens.append(ScoredToken(int(token), piece, logprob, entropy, int(scores.ranks[index]), tuple(top)))
    return tuple(tokens)


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Return the characters that each token completes; joined they are the decoded text."""
    decoder = tokenizer.stream()
    pieces = [decoder.push(token) for token in ids]
    if pieces:
        pieces[-1] += decoder.finish()
    return pieces
