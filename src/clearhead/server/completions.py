"""`POST /v1/completions`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import Request as HTTPRequest
from starlette.responses import Response

from clearhead.inference.requests import Event, Request
from clearhead.inference.scheduler import Ticket
from clearhead.server.answers import (
    Service,
    event_stream,
    merged,
    sampling_options,
    seeded,
    submit,
    timed,
    usage,
    watched,
)
from clearhead.server.problems import JSON, ProblemError
from clearhead.server.schemas import CompletionRequest
from clearhead.server.token_texts import CompletionLogprobs, TokenNames

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """What a body asks for, checked.

    Attributes:
        prompts: the tokens of each prompt, and the text that `echo` repeats.
        requests: one for each prompt.
        choices: how many texts to return for each prompt; fewer than run with `best_of`.
        score_top: how many alternatives to list for the prompt's tokens; None if they are not scored.
        scores_only: return no new text (`max_tokens` is 0).
    """

    prompts: list[tuple[list[int], str]]
    requests: list[Request]
    choices: int
    score_top: int | None
    scores_only: bool


async def complete(service: Service, body: CompletionRequest, http: HTTPRequest) -> Response:
    """Answer a request.

    Raises:
        ProblemError: if it cannot be answered.
        ClearheadError: if it does not fit the model, or too many wait.
    """
    plan = _plan(service, body)
    tickets = await submit(service, [(request, plan.score_top) for request in plan.requests])
    answer = _Answer(service, body, plan, tickets)
    if body.stream:
        return event_stream(answer.chunks(http))
    async with watched(http, tickets):
        events = timed(service, merged(tickets))
        async for _ in events:
            pass
        return JSON(answer.whole())


def _plan(service: Service, body: CompletionRequest) -> CompletionPlan:
    service.check_model(body.model)
    settings, n = service.settings, body.n or 1
    if body.suffix:
        raise ProblemError(400, "suffix is not supported: the model only continues a text at its end.", "suffix")
    if body.logprobs is not None and body.logprobs > settings.max_logprobs:
        raise ProblemError(
            400, f"logprobs is {body.logprobs}; this server lists up to {settings.max_logprobs}.", "logprobs"
        )
    best_of = body.best_of or n
    if best_of < n:
        raise ProblemError(400, f"best_of is {best_of}, but n is {n}; give at least as many.", "best_of")
    if best_of > n and body.stream:
        raise ProblemError(400, "best_of cannot be streamed: the best text is known at the end.", "best_of")
    if body.stream_options is not None and not body.stream:
        raise ProblemError(400, "stream_options needs stream to be true.", "stream_options")
    prompts = _prompts(service, body)
    if len(prompts) * best_of > settings.max_choices:
        raise ProblemError(
            400, f"{len(prompts) * best_of:,} texts are asked for; this server gives up to {settings.max_choices}.", "n"
        )
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    for ids, _ in prompts:
        service.room(len(ids), max_tokens, "prompt")
    options = sampling_options(service, body)
    logprobs = body.logprobs if body.logprobs is not None else 0 if best_of > n else None
    requests = [
        Request(ids, **seeded(options, index), max_new_tokens=max(1, max_tokens), n=best_of, logprobs=logprobs)  # type: ignore[arg-type]
        for index, (ids, _) in enumerate(prompts)
    ]
    scored = body.logprobs if body.echo and body.logprobs is not None else None
    return CompletionPlan(prompts, requests, n, scored, max_tokens == 0)


def _prompts(service: Service, body: CompletionRequest) -> list[tuple[list[int], str]]:
    """Return the tokens and the text of each prompt.

    Raises:
        ProblemError: if one is empty.
    """
    given = body.prompt
    if given is None:
        end = service.gpt.end_of_text
        if end is None:
            raise ProblemError(
                400, "prompt is missing, and this model has no end-of-text token to begin with.", "prompt"
            )
        given = [end]
    several: Sequence[str | list[int]] = given  # type: ignore[assignment]
    if isinstance(given, str) or isinstance(given[0], int):
        several = [given]
    found = []
    for one in several:
        ids = service.encode(one, special=body.special) if isinstance(one, str) else list(one)
        if not ids:
            raise ProblemError(400, "the prompt is empty; give some text, or leave it out.", "prompt")
        beyond = [token for token in ids if token >= service.config.vocab_size]
        if beyond:
            raise ProblemError(400, f"the prompt contains token {beyond[0]}, which the model does not have.", "prompt")
        text = (
            one
            if isinstance(one, str)
            else service.tokenizer.decode([t for t in ids if t < service.tokenizer.vocab_size])
        )
        found.append((ids, text))
    return found


class _Answer:
    """The response to one body, whole or in chunks."""

    def __init__(self, service: Service, body: CompletionRequest, plan: CompletionPlan, tickets: list[Ticket]) -> None:
        self._service, self._body, self._plan, self._tickets = service, body, plan, tickets
        self._names = TokenNames(service.tokenizer, body.return_tokens_as_token_ids)
        self._envelope = service.envelope("cmpl", "text_completion")

    def whole(self) -> dict[str, object]:
        """Return the response, after all events."""
        choices: list[dict[str, object]] = []
        generated = 0
        for index, ticket in enumerate(self._tickets):
            samples = [one.result() for one in ticket.continuations]
            generated += sum(len(sample.ids) for sample in samples)
            if len(samples) > self._plan.choices:
                samples.sort(key=lambda sample: -_mean_logprob([one.logprob for one in sample.logprobs or ()]))
            for sample in samples[: self._plan.choices]:
                logprobs = self._echo_logprobs(index)
                text = self._echo(index)
                if not self._plan.scores_only:
                    text += sample.text or ""
                    decoder = self._names.tokenizer.stream()
                    for found in sample.logprobs or () if logprobs is not None else ():
                        logprobs.add_generated(found, len(decoder.push(found.id)))  # type: ignore[union-attr]
                reason = "length" if self._plan.scores_only else sample.finish_reason
                choices.append(self._choice(len(choices), text, logprobs, reason))
        return {
            **self._envelope,
            "choices": choices,
            "usage": usage(self._tickets, generated, scored_only=self._plan.scores_only),
        }

    async def chunks(self, http: HTTPRequest) -> AsyncIterator[dict[str, object]]:
        """Yield the chunks of a stream."""
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        tail: dict[str, object] = {"usage": None} if with_usage else {}
        generated = 0
        started: dict[int, _StreamedChoice] = {}
        async with watched(http, self._tickets):
            async for index, sample, event in timed(self._service, merged(self._tickets)):
                number = index * self._plan.choices + sample
                if number not in started:
                    started[number] = _StreamedChoice(self._echo(index), self._echo_logprobs(index))
                generated += event.token is not None
                chunk = started[number].take(event, scores_only=self._plan.scores_only)
                if chunk is not None:
                    text, logprobs, reason = chunk
                    choice = self._choice(number, text, None, reason)
                    choice["logprobs"] = logprobs
                    yield {**self._envelope, "choices": [choice], **tail}
        if with_usage:
            counts = usage(self._tickets, generated, scored_only=self._plan.scores_only)
            yield {**self._envelope, "choices": [], "usage": counts}

    def _echo(self, index: int) -> str:
        return self._plan.prompts[index][1] if self._body.echo else ""

    def _echo_logprobs(self, index: int) -> CompletionLogprobs | None:
        """Return the log-probabilities of a choice, with the prompt's if it is echoed; None without `logprobs`."""
        if self._body.logprobs is None:
            return None
        found = CompletionLogprobs(self._names)
        if self._body.echo:
            found.add_prompt(self._plan.prompts[index][0], self._tickets[index].prompt_scores)
        return found

    def _choice(
        self, index: int, text: str, logprobs: CompletionLogprobs | None, reason: str | None
    ) -> dict[str, object]:
        return {
            "index": index,
            "text": text,
            "logprobs": None if logprobs is None else logprobs.take(),
            "finish_reason": reason,
        }


class _StreamedChoice:
    """One choice of a stream: what its events add."""

    def __init__(self, echo: str, logprobs: CompletionLogprobs | None) -> None:
        self._pending, self._logprobs = echo, logprobs
        self._decoder = None if logprobs is None else logprobs.names.tokenizer.stream()

    def take(self, event: Event, *, scores_only: bool) -> tuple[str, dict[str, object] | None, str | None] | None:
        """Return the text, the log-probabilities and the finish reason to send; None if there is nothing yet."""
        text, reason = self._pending, event.finish_reason
        if not scores_only:
            text += event.text
            if self._logprobs is not None and self._decoder is not None and event.logprob is not None:
                self._logprobs.add_generated(event.logprob, len(self._decoder.push(event.logprob.id)))
        elif reason is not None:
            reason = "length"
        if not text and reason is None and (self._logprobs is None or not self._logprobs.tokens):
            return None
        self._pending = ""
        return text, None if self._logprobs is None else self._logprobs.take(), reason


def _mean_logprob(logprobs: list[float]) -> float:
    return math.fsum(logprobs) / len(logprobs) if logprobs else 0.0
