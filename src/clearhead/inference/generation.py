"""One token after another, over any Runner.

A `Request` says what is wanted. For each of its samples there is a `Continuation`, a small state machine that says
which ids to run next (`feed`), takes the logits that result (`accept`), and answers with an `Event`. `generate` and
`stream` drive any number of continuations together in a `Batch`, one `Runner.extend` per step. The samples of one
request share its prompt, which runs once.

**The end of the context.** GPT-2 has learned positions, so the cache of a full sequence cannot be shifted. When a
sequence has filled `context_length`, the newest half of its tokens is run again as a new sequence and generation goes
on; a prompt longer than the context loses its beginning. Either is reported once, as a notice in the events and in the
result, or is an error with `strict_context`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from clearhead.inference.batching import MAX_LIVE, Batch
from clearhead.inference.continuation import Continuation
from clearhead.inference.requests import Completion, Event, Request
from clearhead.inference.runner import Runner

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


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
    for _ in _drive(runner, groups, max_live):
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
    indices = {id(one): (index, one.sample_index) for index, group in enumerate(groups) for one in group}
    steps = _drive(runner, groups, max_live)

    def events() -> Generator[Streamed, None, None]:
        try:
            for continuation, event in steps:
                yield Streamed(*indices[id(continuation)], event)
        finally:
            steps.close()

    return events()


def _continuations(
    runner: Runner, tokenizer: Tokenizer | None, requests: Sequence[Request]
) -> list[list[Continuation]]:
    return [
        [Continuation(request, index, runner.config, tokenizer) for index in range(request.n)] for request in requests
    ]


def _drive(
    runner: Runner, groups: Sequence[Sequence[Continuation]], max_live: int
) -> Generator[tuple[Continuation, Event], None, None]:
    """Run continuations to their ends, at most `max_live` together; yield their events."""
    batch = Batch(runner, max_live=max_live)
    for group in groups:
        batch.add(group)
    try:
        while batch.busy:
            for outcome in batch.step():
                if outcome.error is not None:
                    raise outcome.error
                assert outcome.event is not None
                yield outcome.entry.continuation, outcome.event
    finally:
        batch.close()
