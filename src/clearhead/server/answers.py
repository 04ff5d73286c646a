"""What routes share: running requests, noticing that a client has gone, and writing streams."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from fastapi import Request as HTTPRequest
from starlette.responses import StreamingResponse

from clearhead.errors import ClearheadError
from clearhead.gpt import GPT
from clearhead.inference.options import LARGEST_SEED, SamplingParams
from clearhead.inference.output_format import OutputFormat
from clearhead.inference.requests import Event, Request
from clearhead.inference.scheduler import Scheduler, Ticket
from clearhead.server.metrics import Metrics
from clearhead.server.problems import ProblemError, error_object, problem_of, to_json
from clearhead.server.schemas import SamplingRequest
from clearhead.server.settings import ServerSettings
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.conversation import ConversationFormat

if TYPE_CHECKING:
    from clearhead.config import GPTConfig

DONE = b"data: [DONE]\n\n"

Events = AsyncIterator[tuple[int, int, Event]]
"""The events of several requests: the request's index, the sample's, the event."""


class ClientGoneError(ClearheadError):
    """The client closed the connection before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Service:
    """A loaded model and what answers requests with it.

    Attributes:
        gpt: the model.
        scheduler: runs all requests together.
        settings: of the server.
        metrics: of the server.
        fingerprint: changes with the model, its dtype and Clearhead's version.
        created: when the model was loaded, in seconds since 1970.
        conversation: how the model reads a chat.
    """

    gpt: GPT
    scheduler: Scheduler
    settings: ServerSettings
    metrics: Metrics
    fingerprint: str
    created: int
    conversation: ConversationFormat

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        return self.gpt.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, without which no server starts."""
        assert self.gpt.tokenizer is not None
        return self.gpt.tokenizer

    def check_model(self, name: str | None) -> None:
        """Check that a request means the model that is served.

        Raises:
            ProblemError: if it names another one.
        """
        if name is not None and name != self.settings.model_name:
            raise ProblemError(
                404,
                f"the model {name!r} is not served here; the model is {self.settings.model_name!r}.",
                "model",
                "model_not_found",
            )

    def envelope(self, prefix: str, kind: str) -> dict[str, object]:
        """Return the fields that a response and its chunks begin with."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.settings.model_name,
            "system_fingerprint": self.fingerprint,
        }

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the tokens of a text.

        Raises:
            ProblemError: if it cannot be encoded.
        """
        try:
            return self.tokenizer.encode(text, special=special)
        except UnicodeError:
            raise ProblemError(400, "the text contains half of a surrogate pair; send valid Unicode.") from None

    def room(self, prompt_tokens: int, max_tokens: int, param: str) -> None:
        """Check that a prompt and its continuation fit the context; the last token needs no position.

        Raises:
            ProblemError: if they do not.
        """
        context = self.config.context_length
        if prompt_tokens + max(1, max_tokens) - 1 > context:
            raise ProblemError(
                400,
                f"the model reads {context:,} tokens, but the prompt has {prompt_tokens:,} and up to {max_tokens:,} "
                "new ones are asked for; shorten one of them.",
                param,
                "context_length_exceeded",
            )


def sampling_options(service: Service, body: SamplingRequest) -> dict[str, object]:
    """Return the options of generation that a body sets; the others have OpenAI's defaults, which are the model's own.

    Raises:
        ProblemError: if a key of `logit_bias` is not a token id.
    """
    given = {one.name: getattr(body, one.name, None) for one in fields(SamplingParams) if one.name != "logit_bias"}
    options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if body.logit_bias:
        try:
            options["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
        except ValueError:
            raise ProblemError(400, "logit_bias has a key that is not a token id.", "logit_bias") from None
    stop = body.stop
    options["stop"] = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    options["stop_at_end_of_text"] = not body.ignore_eos
    options["stop_ids"] = () if body.ignore_eos else service.gpt.end_ids
    options["output_format"] = output_format(body)
    return options


def output_format(body: SamplingRequest) -> OutputFormat | None:
    """Return what the text must match.

    Raises:
        ProblemError: if a body asks for several formats, or a schema is missing.
    """
    wanted = body.response_format
    structured = wanted is not None and wanted.type != "text"
    if structured + (body.regex is not None) + (body.choice is not None) > 1:
        raise ProblemError(400, "response_format, regex and choice exclude one another; give one.", "response_format")
    if body.regex is not None:
        return OutputFormat.regex(body.regex)
    if body.choice is not None:
        return OutputFormat.choice(body.choice)
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return OutputFormat.json_schema({"type": "object"})
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ProblemError(400, "response_format has no json_schema.schema; give one.", "response_format")
    return OutputFormat.json_schema(wanted.json_schema.schema_)


def seeded(options: dict[str, object], index: int) -> dict[str, object]:
    """Return the options for one of several prompts; each has a seed of its own, and the first has the one given."""
    seed = options.get("seed")
    if seed is None or index == 0:
        return options
    assert isinstance(seed, int)
    return {**options, "seed": (seed + index) & LARGEST_SEED}


async def submit(service: Service, requests: Sequence[tuple[Request, int | None]]) -> list[Ticket]:
    """Begin several requests, all or none.

    Args:
        service: runs them.
        requests: each with how many alternatives to list for the tokens of its prompt; None for no scores of it.

    Raises:
        InputError: if one does not fit the model.
        OverloadedError: if too many wait.
    """
    tickets: list[Ticket] = []
    try:
        for request, score_top in requests:
            tickets.append(await service.scheduler.begin(request, score_top=score_top))
    except (ClearheadError, asyncio.CancelledError):
        cancel(tickets)
        raise
    return tickets


def cancel(tickets: Sequence[Ticket]) -> None:
    """End requests that nobody waits for."""
    for ticket in tickets:
        ticket.cancel()


async def merged(tickets: Sequence[Ticket]) -> Events:
    """Yield the events of several requests as they come."""
    if len(tickets) == 1:
        async for sample, event in tickets[0]:
            yield 0, sample, event
        return
    queue: asyncio.Queue[tuple[int, int, Event] | ClearheadError | None] = asyncio.Queue()

    async def forward(index: int, ticket: Ticket) -> None:
        try:
            async for sample, event in ticket:
                queue.put_nowait((index, sample, event))
            queue.put_nowait(None)
        except ClearheadError as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(forward(index, ticket)) for index, ticket in enumerate(tickets)]
    try:
        remaining = len(tasks)
        while remaining:
            item = await queue.get()
            if item is None:
                remaining -= 1
            elif isinstance(item, ClearheadError):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        cancel(tickets)


@contextlib.asynccontextmanager
async def watched(http: HTTPRequest, tickets: Sequence[Ticket]) -> AsyncIterator[None]:
    """End requests as soon as their client closes the connection, also before the first token."""

    async def watch() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        for ticket in tickets:
            ticket.cancel()
            while not ticket.events.empty():  # nobody reads what is left
                ticket.events.get_nowait()
            ticket.events.put_nowait(ClientGoneError("the client closed the connection."))

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        cancel(tickets)


async def timed(
    service: Service, events: AsyncIterator[tuple[int, int, Event]]
) -> AsyncIterator[tuple[int, int, Event]]:
    """Pass events on and record when the first and the last one came."""
    start, first = time.monotonic(), True
    async for item in events:
        if first:
            service.metrics.first_token.observe(time.monotonic() - start)
            first = False
        yield item
    service.metrics.latency.observe(time.monotonic() - start)


def usage(tickets: Sequence[Ticket], generated: int, *, scored_only: bool = False) -> dict[str, object]:
    """Return the counts of tokens of a response."""
    prompt = sum(len(ticket.request.prompt_ids) for ticket in tickets)
    completion = 0 if scored_only else generated
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(ticket.cached_tokens for ticket in tickets)},
    }


def event_stream(chunks: AsyncIterator[dict[str, object]]) -> StreamingResponse:
    """Return a response of server-sent events that ends with `[DONE]`; an error on the way is an event too."""

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield b"data: " + to_json(chunk) + b"\n\n"
        except ClientGoneError:
            return
        except ClearheadError as error:
            problem = problem_of(error)
            yield b"data: " + to_json(error_object(problem.status, problem.message)) + b"\n\n"
        yield DONE

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
