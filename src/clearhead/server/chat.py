"""`POST /v1/chat/completions`: a conversation, written by the model's chat template or as plain text.

`clearhead.tokenizer.conversation` says how.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fastapi import Request as HTTPRequest
from starlette.responses import Response

from clearhead.errors import InputError
from clearhead.inference.requests import Request
from clearhead.inference.scheduler import Ticket
from clearhead.server.answers import Service, event_stream, merged, sampling_options, submit, timed, usage, watched
from clearhead.server.problems import JSON, ProblemError
from clearhead.server.schemas import ChatRequest, Message
from clearhead.server.token_texts import TokenNames, chat_logprob
from clearhead.tokenizer.conversation import ChatMessage


async def chat(service: Service, body: ChatRequest, http: HTTPRequest) -> Response:
    """Answer a request.

    Raises:
        ProblemError: if it cannot be answered.
        ClearheadError: if it does not fit the model, or too many wait.
    """
    request = _request(service, body)
    tickets = await submit(service, [(request, None)])
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
    ids = _prompt(service, body.messages)
    limit = body.max_completion_tokens or body.max_tokens
    service.room(len(ids), limit or 1, "messages")
    options = sampling_options(service, body)
    options["stop"] = (*options["stop"], *service.conversation.stop)  # type: ignore[misc]
    room = service.config.context_length - len(ids) + 1
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return Request(ids, **options, max_new_tokens=limit or room, n=body.n or 1, logprobs=logprobs)  # type: ignore[arg-type]


def _prompt(service: Service, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation.

    Raises:
        ProblemError: if it cannot be written or encoded.
    """
    written = [
        ChatMessage(
            message.role,
            message.content if isinstance(message.content, str) else "".join(part.text for part in message.content),
        )
        for message in messages
    ]
    try:
        return service.conversation.encode(written)
    except InputError as error:
        raise ProblemError(400, str(error), "messages") from None
    except UnicodeError:
        raise ProblemError(
            400, "a message contains half of a surrogate pair; send valid Unicode.", "messages"
        ) from None


class _ChatAnswer:
    """The response to one body, whole or in chunks."""

    def __init__(self, service: Service, body: ChatRequest, ticket: Ticket) -> None:
        self._service, self._body, self._ticket = service, body, ticket
        self._names = TokenNames(service.tokenizer)

    def whole(self) -> dict[str, object]:
        """Return the response, after all events."""
        samples = [one.result() for one in self._ticket.continuations]
        beginning = self._service.conversation.strip_beginning
        return {
            **self._service.envelope("chatcmpl", "chat.completion"),
            "choices": [
                {
                    "index": sample.index,
                    "message": {"role": "assistant", "content": beginning(sample.text or ""), "refusal": None},
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
                text = event.text if begun[index] else self._service.conversation.strip_beginning(event.text)
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
