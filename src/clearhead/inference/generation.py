"""One token after another, over any Runner.

A `Request` says what is wanted. For each of its samples there is a `Continuation`, a small state machine that says
which ids to run next (`feed`), takes the logits that result (`accept`), and answers with an `Event`. `generate` and
`stream` drive any number of continuations together, one `Runner.extend` per step; the server's scheduler does the
same.

**The end of the context.** GPT-2 has learned positions, so the cache of a full sequence cannot be shifted. When a
sequence has filled `context_length`, the newest half of its tokens is run again as a new sequence and generation goes
on; a prompt longer than the context loses its beginning. Either is reported once, as a notice in the events and in the
result, or is an error with `strict_context`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from clearhead.errors import InputError
from clearhead.inference.continuation import Continuation
from clearhead.inference.declaration import is_whole
from clearhead.inference.requests import Completion, Event, Request
from clearhead.inference.runner import Runner, Slot

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer

MAX_LIVE = 32
"""How many sequences run together unless the caller says otherwise; each has a cache in memory."""


class Streamed(NamedTuple):
    """An event, the index of its request, and the index of the sample."""

    request: int
    sample: int
    event: Event


def generate(
    runner: Runner, tokenizer: Tokenizer | None, requests: Sequence[Request], *, max_live: int = MAX_LIVE
) -> list[Completion]:
    """Generate for all requests together; the results are what each would give alone.

    Args:
        runner: runs the model.
        tokenizer: turns ids into text; None for ids only.
        requests: their prompts may differ in length, and everything else too.
        max_live: how many sequences run together at most.

    Raises:
        InputError: if a request does not fit the model (see `Continuation`); nothing has run then.
        WeightsError: if the model's logits are NaN or infinite.
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
    """Yield the events of all requests as they come; arguments and errors as for `generate`.

    The requests are checked at once; the model runs as the events are consumed. Closing the generator, by `close()`,
    an exception or dropping it, frees the Runner's memory.
    """
    groups = _continuations(runner, tokenizer, requests)
    owners = [(index, one.sample_index) for index, group in enumerate(groups) for one in group]
    steps = _drive(runner, [one for group in groups for one in group], max_live)

    def events() -> Generator[Streamed, None, None]:
        try:
            for index, event in steps:
                yield Streamed(*owners[index], event)
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
    """Run continuations to their ends, at most `max_live` together; yield (index in `work`, event)."""
    if not is_whole(max_live) or max_live < 1:
        raise InputError(f"max_live is {max_live!r}; give a whole number of at least 1.")
    waiting = deque(range(len(work)))
    slots: dict[int, Slot] = {}
    try:
        while waiting or slots:
            while waiting and len(slots) < max_live:
                slots[waiting.popleft()] = runner.open()
            for index in [index for index, slot in slots.items() if work[index].feed.fresh and slot.length]:
                runner.close(slots.pop(index))
                slots[index] = runner.open()
            running = list(slots)
            logits = runner.extend([(slots[index], work[index].feed.ids) for index in running])
            for index, row in zip(running, logits, strict=True):
                event = work[index].accept(row)
                if event.finish_reason is not None:
                    runner.close(slots.pop(index))
                yield index, event
    finally:
        for slot in slots.values():
            runner.close(slot)
