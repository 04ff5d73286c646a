"""One sample from its prompt to its end, as a state machine that knows nothing of models or slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.inference.logprobs import TokenLogprob, token_logprob
from clearhead.inference.output_format import FormatMatcher
from clearhead.inference.requests import Event, FinishReason, Request, Sample
from clearhead.inference.sampling import Sampler

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


class Feed(NamedTuple):
    """The ids that a continuation needs run next, and whether they begin a new, empty slot."""

    ids: Sequence[int]
    fresh: bool


class Continuation:
    """One sample of a request, from its prompt to its end.

    To drive it, run `feed.ids` (in a fresh slot if `feed.fresh`), pass the logits after the last of them to `accept`,
    and repeat until its event has a `finish_reason`. Then `result` returns everything.

    Args:
        request: what is wanted.
        sample_index: which of its samples this is.
        config: of the model that will run.
        tokenizer: turns ids into text; None for ids only.

    Attributes:
        ids: the tokens generated so far.
        window: the tokens of the current sequence: prompt and generated ones, as far as the context holds them.
        feed: the ids to run next.
        n_choices: only ids below this are chosen and listed.
        finish_reason: None until generation ends.

    Raises:
        InputError: if the request does not fit the model: an id beyond its vocabulary, stop strings without a
            tokenizer, or more tokens than the context holds with `strict_context`.
    """

    def __init__(
        self, request: Request, sample_index: int, config: GPTConfig, tokenizer: Tokenizer | None = None
    ) -> None:
        request.check_fit(config, tokenizer is not None)
        self.request = request
        self.sample_index = sample_index
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._context_length = config.context_length
        # A model may have more rows than its tokenizer has tokens (a vocabulary padded to a round number);
        # those rows have no text and are never chosen.
        self.n_choices = config.vocab_size if tokenizer is None else min(config.vocab_size, tokenizer.vocab_size)
        self._stop_ids = set(request.stop_ids or ())
        if tokenizer is not None and request.stop_at_end_of_text and tokenizer.end_of_text is not None:
            self._stop_ids.add(tokenizer.end_of_text)
        self._matcher: FormatMatcher | None = None
        if request.output_format is not None and tokenizer is not None:
            self._matcher = FormatMatcher(request.output_format, tokenizer)
            if tokenizer.end_of_text is not None:
                self._stop_ids.add(tokenizer.end_of_text)
        self._stop_reason: str | int | None = None
        self._decoder = None if tokenizer is None else tokenizer.stream()
        self._filter = StopFilter(request.stop_strings)
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._token_bytes = None if tokenizer is None else tokenizer.token_bytes
        self._notices: list[str] = []
        self._n_reported = 0
        self.window = list(request.prompt_ids[-config.context_length :])
        if len(self.window) < len(request.prompt_ids):
            self._notices.append(
                f"The prompt has {len(request.prompt_ids):,} tokens and the model reads {config.context_length:,}; "
                f"only the last {config.context_length:,} were used."
            )
        self._context_moved = False
        self.feed = Feed(list(self.window), fresh=True)
        self._sampler = Sampler(request, vocab_size=self.n_choices, prompt_ids=self.window, sample_index=sample_index)

    def accept(self, logits: npt.NDArray[np.float32]) -> Event:
        """Choose the next token.

        Args:
            logits: float32 [V], after the last id of `feed`.

        Returns:
            what can be shown, and whether it is over; if not, `feed` contains what to run next.

        Raises:
            WeightsError: if the logits are NaN or infinite.
        """
        choices = logits[: self.n_choices]
        token = self._sampler.sample(choices if self._matcher is None else self._matcher.masked(choices))
        if token in self._stop_ids:
            return self._end("stop", token)
        self.ids.append(token)
        logprob = None
        if self.request.logprobs is not None:
            logprob = token_logprob(logits, token, self.request.logprobs, self.n_choices)
            if self._token_bytes is not None:
                logprob = logprob.with_texts(self._token_bytes)
            self._logprobs.append(logprob)
        text = "" if self._decoder is None else self._filter.push(self._decoder.push(token))
        if self._filter.matched is not None:
            return self._event(text, token, logprob, "stop", self._filter.matched)
        if self._matcher is not None:
            self._matcher.accept(token)
            if self._matcher.finished:
                return self._end("stop", None, text, token, logprob)
        if len(self.ids) == self.request.max_new_tokens:
            return self._end("length", None, text, token, logprob)
        self._advance(token)
        return self._event(text, token, logprob)

    def result(self) -> Sample:
        """Return the finished sample; only after an event with a `finish_reason`."""
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
        """Set `feed` to the new token or, if the context is full, to the newest half of all tokens."""
        if len(self.window) < self._context_length:
            self.window.append(token)
            self.feed = Feed([token], fresh=False)
            return
        remaining = max(1, self._context_length // 2)
        self.window = [*self.window, token][-remaining:]
        self.feed = Feed(list(self.window), fresh=True)
        if not self._context_moved:
            self._context_moved = True
            self._notices.append(
                f"The text reached the {self._context_length:,} tokens that the model reads; "
                f"it went on from the last {remaining:,}."
            )

    def _end(
        self,
        reason: FinishReason,
        stop_reason: int | None,
        text: str = "",
        token: int | None = None,
        logprob: TokenLogprob | None = None,
    ) -> Event:
        """Make the last event unless a stop string ended the text: what was held back is released."""
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
        notices = tuple(self._notices[self._n_reported :])
        self._n_reported = len(self._notices)
        return Event(text, token, logprob, notices, reason)


class StopFilter:
    """Pass text through up to the first stop string, and never show part of one.

    The longest end of the text that could still become a stop string is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing is passed through after it."""

    def push(self, piece: str) -> str:
        """Take more text and return what can be shown now."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        found = [(text.index(stop), stop) for stop in self._stop if stop in text]
        if found:
            index, self.matched = min(found, key=lambda pair: pair[0])
            self._held = ""
            return text[:index]
        n_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Return what was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a beginning, not the whole, of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
