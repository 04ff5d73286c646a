"""One token after another, over any Runner.

A `Request` says what is wanted. For each of its samples there is a `Continuation`, a small state machine
that knows nothing of models or slots: it says which ids to run next (`feed`), takes the logits that
come of them (`accept`), and answers with an `Event`. `generate` and `stream` drive any number of
continuations together, one `Runner.extend` a step; a server's scheduler can drive them just as well.

**The end of the context.** GPT-2 has learned positions, so the cache of a full sequence cannot be moved
along. When a sequence has filled `context_length`, the newest half of its tokens is run again as a new
sequence and generation goes on; a prompt longer than the context loses its beginning. Either is told once,
as a notice in the events and in the result, or is an error with `strict_context`.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.runner import Runner, Slot
from clearhead.inference.sampling import Sampler, SamplingParams, TokenLogprob, fresh_seed, is_whole, token_logprob

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]

MAX_LIVE = 32
"""How many sequences run together unless the caller says otherwise; each holds a cache in memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate from one prompt.

    Attributes:
        prompt_ids: the tokens to go on from, at least one.
        params: how tokens are chosen. Without a seed there, the request draws one when it is made.
        max_new_tokens: where to end at the latest.
        stop: strings that end the text where the first of them appears; they are not shown.
        stop_ids: tokens that end the text; they are not shown.
        n: how many samples to draw; they differ, and each is what it would be if the others were not.
        logprobs: None for no log-probabilities; 0 for those of the chosen tokens; N for the N most likely too.
        stop_at_end_of_text: whether the tokenizer's end-of-text token ends the text; it is then not shown.
        strict_context: whether it is an error that prompt and new tokens do not fit the context.

    Raises:
        InputError: where a value has the wrong type or is out of range.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 128
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    n: int = 1
    logprobs: int | None = None
    stop_at_end_of_text: bool = True
    strict_context: bool = False

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise InputError(
                "the prompt is empty, and a GPT-2 needs a token to go on from; "
                "give some text, or the end-of-text token to start a new one."
            )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop is {self.stop!r}; give strings of at least one character.")
        for name, lowest in (("max_new_tokens", 1), ("n", 1), ("logprobs", 0)):
            value = getattr(self, name)
            if not (is_whole(value) and value >= lowest) and not (name == "logprobs" and value is None):
                raise InputError(f"{name} is {value!r}; give a whole number of at least {lowest}.")
        for name in ("prompt_ids", "stop_ids"):
            wrong = [token for token in getattr(self, name) if not is_whole(token) or token < 0]
            if wrong:
                raise InputError(f"{name} holds {wrong[0]!r}; token ids are whole numbers from 0.")
            object.__setattr__(self, name, tuple(int(token) for token in getattr(self, name)))
        object.__setattr__(self, "stop", stop)
        if self.params.seed is None:
            object.__setattr__(self, "params", dataclasses.replace(self.params, seed=fresh_seed()))


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished continuation of a prompt.

    Attributes:
        index: which of the request's samples it is.
        text: what was generated, without prompt and without what ended it; None without a tokenizer.
        ids: the tokens generated. A stop token is not among them; the tokens of a stop string are.
        finish_reason: "stop" where a stop string, a stop token or end-of-text came; "length" at max_new_tokens.
        stop_reason: the stop string, or the id of the token, that ended it; None at max_new_tokens.
        logprobs: one for each of `ids`; None where none were asked for.
        seed: with this seed and index the same text comes again.
        notices: sentences about what the user did not ask for: a prompt cut, a context rerun.
    """

    index: int
    text: str | None
    ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None
    seed: int
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of one request: its prompt as given, and its samples in order."""

    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """What one step of one continuation brought.

    Attributes:
        text: characters that can now be shown; often "", since half a character or what may become a
            stop string is held back. The texts of all events, joined, are the sample's text.
        token: the id generated; None where it was a stop token.
        logprob: of that token, where log-probabilities were asked for.
        notices: new sentences for the user.
        finish_reason: None while it goes on.
    """

    text: str
    token: int | None
    logprob: TokenLogprob | None = None
    notices: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None


class Feed(NamedTuple):
    """The ids that a continuation needs run next, and whether they begin a new, empty slot."""

    ids: Sequence[int]
    fresh: bool


class Streamed(NamedTuple):
    """An event, and whose it is: the request's place in the list and the index of its sample."""

    request: int
    sample: int
    event: Event


class Continuation:
    """One sample of a request, from its prompt to its end.

    Drive it so: run `feed.ids` (in a fresh slot where `feed.fresh`), hand the logits after the last of
    them to `accept`, and go on until its event has a `finish_reason`. Then `result` has everything.

    Args:
        request: what is wanted.
        sample_index: which of its samples this is.
        config: of the model that will run.
        tokenizer: turns ids into text; None for ids only.

    Raises:
        InputError: where the request does not fit the model: an id beyond its vocabulary, stop strings
            without a tokenizer, or more tokens than the context holds with `strict_context`.
    """

    def __init__(
        self, request: Request, sample_index: int, config: GPTConfig, tokenizer: Tokenizer | None = None
    ) -> None:
        _check_fit(request, config, tokenizer)
        self.request = request
        self.sample_index = sample_index
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._context_length = config.context_length
        # A model may have more rows than its tokenizer has tokens (a vocabulary padded to a round number);
        # those rows have no text and are never chosen.
        self._n_choices = config.vocab_size if tokenizer is None else min(config.vocab_size, tokenizer.vocab_size)
        self._stop_ids = set(request.stop_ids)
        if tokenizer is not None and request.stop_at_end_of_text and tokenizer.end_of_text is not None:
            self._stop_ids.add(tokenizer.end_of_text)
        self._stop_reason: str | int | None = None
        self._decoder = None if tokenizer is None else tokenizer.stream()
        self._filter = StopFilter(request.stop)
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._notices: list[str] = []
        self._n_told = 0
        self._window = list(request.prompt_ids[-config.context_length :])
        if len(self._window) < len(request.prompt_ids):
            self._notices.append(
                f"The prompt has {len(request.prompt_ids):,} tokens and the model reads {config.context_length:,}; "
                f"only the last {config.context_length:,} were used."
            )
        self._rerun = False
        self.feed = Feed(list(self._window), fresh=True)
        self._sampler = Sampler(
            request.params, vocab_size=self._n_choices, prompt_ids=self._window, sample_index=sample_index
        )

    def accept(self, logits: np.ndarray) -> Event:
        """Chooses the next token.

        Args:
            logits: float32 [V], after the last id of `feed`.

        Returns:
            What can be shown, and whether it is over; if not, `feed` holds what to run next.

        Raises:
            WeightsError: where the logits are not numbers.
        """
        token = self._sampler.sample(logits[: self._n_choices])
        if token in self._stop_ids:
            return self._end("stop", token)
        self.ids.append(token)
        logprob = None
        if self.request.logprobs is not None:
            logprob = token_logprob(logits, token, self.request.logprobs, self._n_choices)
            self._logprobs.append(logprob)
        text = "" if self._decoder is None else self._filter.push(self._decoder.push(token))
        if self._filter.matched is not None:
            return self._event(text, token, logprob, "stop", self._filter.matched)
        if len(self.ids) == self.request.max_new_tokens:
            return self._end("length", None, text, token, logprob)
        self._advance(token)
        return self._event(text, token, logprob)

    def result(self) -> Sample:
        """The finished sample; only after an event with a `finish_reason`."""
        if self.finish_reason is None:
            raise RuntimeError("the continuation has not come to its end")
        return Sample(
            index=self.sample_index,
            text=None if self._decoder is None else "".join(self._shown),
            ids=tuple(self.ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
            logprobs=None if self.request.logprobs is None else tuple(self._logprobs),
            seed=self._sampler.seed,
            notices=tuple(self._notices),
        )

    def _advance(self, token: int) -> None:
        """Sets `feed` to the new token, or, where the context is full, to the newest half of all."""
        if len(self._window) < self._context_length:
            self._window.append(token)
            self.feed = Feed([token], fresh=False)
            return
        kept = max(1, self._context_length // 2)
        self._window = [*self._window, token][-kept:]
        self.feed = Feed(list(self._window), fresh=True)
        if not self._rerun:
            self._rerun = True
            self._notices.append(
                f"The text reached the {self._context_length:,} tokens that the model reads; "
                f"it went on from the last {kept:,}."
            )

    def _end(
        self,
        reason: FinishReason,
        stop_reason: int | None,
        text: str = "",
        token: int | None = None,
        logprob: TokenLogprob | None = None,
    ) -> Event:
        """The last event where no stop string ended the text: what was held back comes out."""
        if self._decoder is not None:
            text += self._filter.push(self._decoder.finish()) + self._filter.flush()
        if self._filter.matched is not None:
            return self._event(text, token, logprob, "stop", self._filter.matched)
        return self._event(text, token, logprob, reason, stop_reason)

    def _event(
        self,
        text: str,
        token: int | None,
        logprob: TokenLogprob | None,
        reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
    ) -> Event:
        self._shown.append(text)
        self.finish_reason, self._stop_reason = reason, stop_reason
        notices = tuple(self._notices[self._n_told :])
        self._n_told = len(self._notices)
        return Event(text, token, logprob, notices, reason)


class StopFilter:
    """Lets text through up to the first stop string, and never shows part of one.

    The longest end of the text that could still become a stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing comes through after it."""

    def push(self, piece: str) -> str:
        """Takes more text; returns what can be shown now."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        found = [(text.index(stop), stop) for stop in self._stop if stop in text]
        if found:
            place, self.matched = min(found, key=lambda pair: pair[0])
            self._held = ""
            return text[:place]
        n_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that is a beginning, not the whole, of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def generate(
    runner: Runner, tokenizer: Tokenizer | None, requests: Sequence[Request], *, max_live: int = MAX_LIVE
) -> list[Completion]:
    """Generates for all requests together; the results are what each would give alone.

    Args:
        runner: runs the model.
        tokenizer: turns ids into text; None for ids only.
        requests: their prompts may differ in length, and everything else too.
        max_live: how many sequences run together at most.

    Raises:
        InputError: where a request does not fit the model (see `Continuation`); nothing has run then.
        WeightsError: where the model's logits are not numbers.
    """
    groups = _continuations(runner, tokenizer, requests)
    for _ in _drive(runner, [one for group in groups for one in group], max_live):
        pass
    return [
        Completion(tuple(request.prompt_ids), tuple(one.result() for one in group))
        for request, group in zip(requests, groups, strict=True)
    ]


def stream(
    runner: Runner, tokenizer: Tokenizer | None, requests: Sequence[Request], *, max_live: int = MAX_LIVE
) -> Generator[Streamed, None, None]:
    """The events of all requests as they come; arguments and errors as for `generate`.

    The requests are checked at once, the model runs as the events are taken. Whoever stops taking them
    early, by `close()`, by an exception or by dropping the iterator, frees what the Runner holds.
    """
    groups = _continuations(runner, tokenizer, requests)
    owners = [(place, one.sample_index) for place, group in enumerate(groups) for one in group]
    steps = _drive(runner, [one for group in groups for one in group], max_live)

    def events() -> Generator[Streamed, None, None]:
        try:
            for place, event in steps:
                yield Streamed(*owners[place], event)
        finally:
            steps.close()

    return events()


def _continuations(
    runner: Runner, tokenizer: Tokenizer | None, requests: Sequence[Request]
) -> list[list[Continuation]]:
    return [
        [Continuation(request, index, runner.config, tokenizer) for index in range(request.n)] for request in requests
    ]


def _drive(runner: Runner, work: Sequence[Continuation], max_live: int) -> Generator[tuple[int, Event], None, None]:
    """Runs continuations to their ends, at most `max_live` together; yields (place in `work`, event)."""
    if not is_whole(max_live) or max_live < 1:
        raise InputError(f"max_live is {max_live!r}; give a whole number of at least 1.")
    waiting = deque(range(len(work)))
    slots: dict[int, Slot] = {}
    try:
        while waiting or slots:
            while waiting and len(slots) < max_live:
                slots[waiting.popleft()] = runner.open()
            for place in [place for place, slot in slots.items() if work[place].feed.fresh and slot.length]:
                runner.close(slots.pop(place))
                slots[place] = runner.open()
            running = list(slots)
            logits = runner.extend([(slots[place], work[place].feed.ids) for place in running])
            for place, row in zip(running, logits, strict=True):
                event = work[place].accept(row)
                if event.finish_reason is not None:
                    runner.close(slots.pop(place))
                yield place, event
    finally:
        for slot in slots.values():
            runner.close(slot)


def _check_fit(request: Request, config: GPTConfig, tokenizer: Tokenizer | None) -> None:
    for name, ids in (("prompt", request.prompt_ids), ("stop_ids", request.stop_ids)):
        beyond = [token for token in ids if token >= config.vocab_size]
        if beyond:
            raise InputError(
                f"the {name} holds token {beyond[0]}, but the model's vocabulary has {config.vocab_size:,} tokens; "
                "use the tokenizer that belongs to the model."
            )
    if request.logprobs is not None and request.logprobs > config.vocab_size:
        raise InputError(
            f"logprobs is {request.logprobs}, but the vocabulary has {config.vocab_size:,} tokens; ask for fewer."
        )
    if request.stop and tokenizer is None:
        raise InputError("stop strings need a tokenizer; give one, or use stop_ids.")
    n_tokens = len(request.prompt_ids) + request.max_new_tokens
    if request.strict_context and n_tokens > config.context_length:
        raise InputError(
            f"the prompt has {len(request.prompt_ids):,} tokens and up to {request.max_new_tokens:,} new ones are "
            f"asked for, but the model reads {config.context_length:,}; shorten one, or allow the context to move."
        )
