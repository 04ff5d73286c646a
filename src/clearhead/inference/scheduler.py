"""Many requests at once from asynchronous code: one thread runs them together, token by token.

A `Scheduler` is what `GPT.astream` and the server share. Requests join the running batch between two tokens and leave
it when they end or are cancelled; each gets the same text as if it ran alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clearhead.errors import ClearheadError, OverloadedError
from clearhead.inference.batching import MAX_LIVE, Batch, Group, Outcome
from clearhead.inference.continuation import Continuation
from clearhead.inference.prefix_cache import PrefixCache
from clearhead.inference.requests import Event, Request
from clearhead.inference.runner import Runner, TokenScores

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

log = logging.getLogger("clearhead.scheduler")

PROMPT_TOKENS = 256
"""How many tokens of prompts run in a step at most: enough for fast products, and short compared with the time of a
token."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a scheduler takes on.

    Attributes:
        max_live: how many sequences run together.
        max_waiting: how many samples may wait; a request beyond that is refused.
        prompt_tokens: how many tokens of prompts run in a step.
        cached_tokens: how many tokens of ended sequences are kept for prompts that begin alike; 0 for none.
    """

    max_live: int = MAX_LIVE
    max_waiting: int = 256
    prompt_tokens: int = PROMPT_TOKENS
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a scheduler does now, and has done since it was made."""

    running: int
    waiting: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    prefix_tokens: int


@dataclass(eq=False)
class Ticket:
    """A request on its way. Iterating over it asynchronously yields pairs of a sample's index and its event.

    Attributes:
        request: as submitted.
        continuations: one for each sample; finished ones have results.
        group: the request in the batch, with the scores of its prompt.
        submitted: when it was submitted, as `time.monotonic` counts.
    """

    request: Request
    continuations: list[Continuation]
    score_top: int | None
    scheduler: Scheduler
    loop: asyncio.AbstractEventLoop
    group: Group | None = None
    submitted: float = field(default_factory=time.monotonic)
    events: asyncio.Queue[tuple[int, Event] | ClearheadError] = field(default_factory=asyncio.Queue)
    unfinished: int = 0

    def __post_init__(self) -> None:
        self.unfinished = len(self.continuations)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield events until each sample has ended.

        Leaving the loop early does not cancel the request: call `cancel`.

        Raises:
            ClearheadError: if a sample cannot go on.
        """
        remaining = len(self.continuations)
        while remaining:
            item = await self.events.get()
            if isinstance(item, ClearheadError):
                raise item
            yield item
            remaining -= item[1].finish_reason is not None

    def cancel(self) -> None:
        """End the request; its memory is freed before the next token of others."""
        self.scheduler.cancel(self)

    @property
    def prompt_scores(self) -> list[TokenScores]:
        """The scores of the prompt's tokens from the second on; complete when the first event comes."""
        return [] if self.group is None else self.group.prompt_scores

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompt did not have to run."""
        return 0 if self.group is None else self.group.cached_tokens


class Scheduler:
    """Run requests from asynchronous code in one thread, which exists while there is something to run.

    Args:
        runner: runs the model; nothing else may use it meanwhile, except through its own locks.
        tokenizer: turns ids into text; None for ids only.
        limits: how much to take on.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer | None, limits: Limits | None = None) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.limits = limits or Limits()
        self._prefixes = PrefixCache(runner, self.limits.cached_tokens)
        self._batch = Batch(
            runner,
            max_live=self.limits.max_live,
            prompt_tokens=self.limits.prompt_tokens,
            prefix_cache=self._prefixes if self.limits.cached_tokens else None,
        )
        self._lock = threading.Lock()
        self._new: deque[Ticket] = deque()
        self._cancelled: deque[Ticket] = deque()
        self._tickets: dict[int, Ticket] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    def submit(self, request: Request, *, score_top: int | None = None) -> Ticket:
        """Begin a request; call it from a running event loop.

        Args:
            request: what to generate.
            score_top: score the prompt too, and list this many of the most likely tokens at each position; None for no
                scores.

        Raises:
            InputError: if the request does not fit the model.
            OverloadedError: if too many requests wait, or the scheduler was closed.
        """
        with self._lock:
            self._check_room(request)
        return self._enter(request, self._continuations(request), score_top)

    async def begin(self, request: Request, *, score_top: int | None = None) -> Ticket:
        """Begin a request as `submit` does, and compile its output format in a thread if it has one.

        Raises:
            InputError: if the request does not fit the model.
            OverloadedError: if too many requests wait, or the scheduler was closed.
        """
        if request.output_format is None:
            return self.submit(request, score_top=score_top)
        with self._lock:
            self._check_room(request)
        return self._enter(request, await asyncio.to_thread(self._continuations, request), score_top)

    def _continuations(self, request: Request) -> list[Continuation]:
        return [Continuation(request, index, self.runner.config, self.tokenizer) for index in range(request.n)]

    def _check_room(self, request: Request) -> None:
        """Check that a request may be accepted now.

        Raises:
            OverloadedError: if too many requests wait, or the scheduler was closed.
        """
        if self._closed:
            raise OverloadedError("the server is shutting down; try again in a moment.")
        running, waiting = self._running_and_waiting()
        if running + waiting + request.n > self.limits.max_live + self.limits.max_waiting:
            raise OverloadedError(f"{running:,} texts are being generated and {waiting:,} wait; try again in a moment.")

    def _running_and_waiting(self) -> tuple[int, int]:
        """Return how many texts run and how many wait; their sum counts every accepted text that has not ended."""
        accepted = sum(ticket.unfinished for ticket in self._tickets.values())
        running = min(self._batch.running, accepted)  # the batch may be in the middle of a step
        return running, accepted - running

    def _enter(self, request: Request, continuations: list[Continuation], score_top: int | None) -> Ticket:
        ticket = Ticket(request, continuations, score_top, self, asyncio.get_running_loop())
        with self._lock:
            self._check_room(request)
            self._tickets[id(ticket)] = ticket
            self._new.append(ticket)
            self._prompt_tokens += len(request.prompt_ids)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="clearhead-scheduler")
                self._thread.start()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request before the next token; does nothing if it has ended."""
        with self._lock:
            if id(ticket) in self._tickets:
                self._cancelled.append(ticket)

    def load(self) -> LoadReport:
        """Return what is running and waiting, and the totals so far."""
        with self._lock:
            running, waiting = self._running_and_waiting()
            return LoadReport(
                running=running,
                waiting=waiting,
                prompt_tokens=self._prompt_tokens,
                cached_prompt_tokens=self._cached_tokens,
                generated_tokens=self._generated_tokens,
                prefix_tokens=self._prefixes.tokens,
            )

    async def close(self, patience: float = 0.0) -> bool:
        """Take no more requests, let the accepted ones end, and cancel those that take too long.

        Args:
            patience: how many seconds to wait for them.

        Returns:
            whether all of them ended by themselves.
        """
        self._closed = True
        until = time.monotonic() + patience
        while self._tickets and time.monotonic() < until:
            await asyncio.sleep(0.02)
        complete = not self._tickets
        for ticket in list(self._tickets.values()):
            self._deliver([(ticket, OverloadedError("the server shut down before the text was complete."))])
            self.cancel(ticket)
        while self._thread is not None:
            await asyncio.sleep(0.005)
        self._prefixes.clear()
        return complete

    def _run(self) -> None:
        """Run steps until there is nothing to do; the thread's function."""
        while True:
            with self._lock:
                new, cancelled = list(self._new), list(self._cancelled)
                self._new.clear()
                self._cancelled.clear()
                if not new and not cancelled and not self._batch.busy:
                    self._thread = None
                    return
                for ticket in new:
                    ticket.group = self._batch.add(ticket.continuations, ticket.score_top)
                for ticket in cancelled:
                    if ticket.group is not None:
                        self._batch.cancel(ticket.group)
                    self._tickets.pop(id(ticket), None)
            try:
                outcomes = self._batch.step()
            except Exception as error:  # nothing may end the thread while requests wait for it
                self._fail(error)
                continue
            self._report(outcomes)

    def _report(self, outcomes: list[Outcome]) -> None:
        with self._lock:
            by_group = {id(ticket.group): ticket for ticket in self._tickets.values() if ticket.group is not None}
        items: list[tuple[Ticket, tuple[int, Event] | ClearheadError]] = []
        for outcome in outcomes:
            ticket = by_group.get(id(outcome.entry.group))
            if ticket is None:
                continue
            if outcome.error is not None:
                items.append((ticket, _client_error(outcome.error)))
                self.cancel(ticket)
                continue
            assert outcome.event is not None
            self._generated_tokens += outcome.event.token is not None
            items.append((ticket, (outcome.entry.continuation.sample_index, outcome.event)))
            if outcome.event.finish_reason is not None:
                ticket.unfinished -= 1
                if not ticket.unfinished:
                    self._cached_tokens += ticket.cached_tokens
                    with self._lock:
                        self._tickets.pop(id(ticket), None)
        self._deliver(items)

    def _fail(self, error: Exception) -> None:
        """End every request that runs, with the error."""
        failure = _client_error(error)
        self._batch.close()  # first, so that a request's memory is free before the request is no longer counted
        with self._lock:
            failed = [ticket for ticket in self._tickets.values() if ticket.group is not None]
            for ticket in failed:
                del self._tickets[id(ticket)]
        self._deliver([(ticket, failure) for ticket in failed])

    def _deliver(self, items: list[tuple[Ticket, tuple[int, Event] | ClearheadError]]) -> None:
        """Hand items over to the event loops of their requests, with one call for each loop."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, tuple[int, Event] | ClearheadError]]] = {}
        for item in items:
            loops.setdefault(item[0].loop, []).append(item)
        for loop, ours in loops.items():
            try:
                loop.call_soon_threadsafe(_enqueue, ours)
            except RuntimeError:  # the loop was closed: nobody waits any more
                for ticket, _ in ours:
                    self.cancel(ticket)


def _client_error(error: Exception) -> ClearheadError:
    """Return the error for a request, and log an unexpected one with its traceback.

    Its message stays in the log: it may be about another request of the batch.
    """
    if isinstance(error, ClearheadError):
        return error
    log.error("the model could not run", exc_info=error)
    return ClearheadError(f"the model could not run ({type(error).__name__}); the log has the details.")


def _enqueue(items: list[tuple[Ticket, tuple[int, Event] | ClearheadError]]) -> None:
    for ticket, item in items:
        ticket.events.put_nowait(item)
