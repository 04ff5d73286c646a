"""`POST /v1/chat/completions`, for clients that speak only chat.

GPT-2 is a base model: it continues text and was not trained to follow instructions. A conversation is written as a
plain text that it can continue:

    The system message.

    User: the first question
    Assistant: the first answer
    User: the second question
    Assistant:

The answer ends where the model begins a new turn of the user.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import Request as HTTPRequest
from starlette.responses import Response

from clearhead.inference.requests import Request
from clearhead.inference.scheduler import Ticket
from clearhead.server.answers import Service, event_stream, merged, sampling_options, submit, timed, usage, watched
from clearhead.server.problems import JSON, ProblemError
from clearhead.server.schemas import ChatRequest, Message
from clearhead.server.token_texts import TokenNames, chat_logprob

_ROLES = {"user": "User", "assistant": "Assistant"}
STOP = "\nUser:"


def write_conversation(messages: Sequence[Message]) -> str:
    """Return a conversation as the text that the model continues."""
    parts = []
    for message in messages:
        text = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
        role = _ROLES.get(message.role)
        parts.append(f"{role}: {text}\n" if role else f"{text}\n\n")
    return "".join(parts) + "Assistant:"


async def chat(service: Service, body: ChatRequest, http: HTTPRequest) -> Response:
    """Answer a request.

    Raises:
        ProblemError: if it cannot be answered.
        ClearheadError: if it does not fit the model, or too many wait.
    """
    request = _request(service, body)
    tickets = submit(service, [(request, None)])
    answer = _ChatAnswer(service, body, tickets[0])
    if body.stream:
        return event_stream(answer.chunks(http))
    async with watched(http, tickets):
        async for _ in timed(service, merged(tickets)):
            pass
        return JSON(answer.whole())


def _request(service: Service, body: ChatRequest) -> Request:
    service.check_model(body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise ProblemError(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ProblemError(400, "stream_options needs stream to be true.", "stream_options")
    if (body.n or 1) > service.settings.max_choices:
        raise ProblemError(400, f"n is {body.n}; this server gives up to {service.settings.max_choices} texts.", "n")
    ids = service.encode(write_conversation(body.messages))
    limit = body.max_completion_tokens or body.max_tokens
    service.room(len(ids), limit or 1, "messages")
    options = sampling_options(service, body)
    options["stop"] = (*options["stop"], STOP)  # type: ignore[misc]
    room = service.config.context_length - len(ids) + 1
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Request(ids, **options, max_new_tokens=limit or room, n=body.n or 1, logprobs=logprobs)  # type: ignore[arg-type]


class _ChatAnswer:
    """The response to one body, whole or in chunks. The space after `Assistant:` is not part of the answer."""

    def __init__(self, service: Service, body: ChatRequest, ticket: Ticket) -> None:
        self._service, self._body, self._ticket = service, body, ticket
        self._names = TokenNames(service.tokenizer)

    def whole(self) -> dict[str, object]:
        """Return the response, after all events."""
        samples = [one.result() for one in self._ticket.continuations]
        return {
            **self._service.envelope("chatcmpl", "chat.completion"),
            "choices": [
                {
                    "index": sample.index,
                    "message": {"role": "assistant", "content": (sample.text or "").lstrip(" "), "refusal": None},
                    "logprobs": None
                    if sample.logprobs is None
                    else {"content": [chat_logprob(self._names, one) for one in sample.logprobs], "refusal": None},
                    "finish_reason": sample.finish_reason,
                }
                for sample in samples
            ],
            "usage": usage([self._ticket], sum(len(sample.ids) for sample in samples)),
        }

    async def chunks(self, http: HTTPRequest) -> AsyncIterator[dict[str, object]]:
        """Yield the chunks of a stream: the role, the text, the reason for its end, and the usage if it is wanted."""
        envelope = self._service.envelope("chatcmpl", "chat.completion.chunk")
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        tail: dict[str, object] = {"usage": None} if with_usage else {}
        generated = 0
        begun: dict[int, bool] = {}

        def chunk(index: int, delta: dict[str, object], **rest: object) -> dict[str, object]:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **rest}
            return {**envelope, "choices": [choice], **tail}

        async with watched(http, [self._ticket]):
            async for _, index, event in timed(self._service, merged([self._ticket])):
                if index not in begun:
                    begun[index] = False
                    yield chunk(index, {"role": "assistant", "content": ""})
                generated += event.token is not None
                text = event.text if begun[index] else event.text.lstrip(" ")
                begun[index] |= bool(text)
                if event.logprob is not None:
                    logprobs = {"content": [chat_logprob(self._names, event.logprob)], "refusal": None}
                    yield chunk(index, {"content": text}, logprobs=logprobs)
                elif text:
                    yield chunk(index, {"content": text})
                if event.finish_reason is not None:
                    yield chunk(index, {}, finish_reason=event.finish_reason)
        if with_usage:
            yield {**envelope, "choices": [], "usage": usage([self._ticket], generated)}
