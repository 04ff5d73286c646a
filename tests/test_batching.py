"""The running batch and its prefix cache: what shares what, and that every slot comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.config import GPTConfig
from clearhead.errors import ClearheadError, InputError, OverloadedError, WeightsError
from clearhead.inference.batching import Batch
from clearhead.inference.continuation import Continuation
from clearhead.inference.generation import generate
from clearhead.inference.prefix_cache import SHORTEST, PrefixCache
from clearhead.inference.requests import Request
from clearhead.inference.runner import Slot
from clearhead.inference.scheduler import Limits, Scheduler

CONFIG = GPTConfig(vocab_size=50, context_length=40, emb_dim=8, n_heads=1, n_layers=1)


class TokenSlot:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    @property
    def length(self) -> int:
        return len(self.ids)


class HashRunner:
    """A Runner with random logits that depend on all tokens of a sequence; it counts the tokens that it runs."""

    config = CONFIG

    def __init__(self) -> None:
        self.slots: list[TokenSlot] = []
        self.ran = 0
        self.largest_prompt = 0
        self.room = 10**9
        self.broken: set[int] = set()
        self.may_run = threading.Event()
        self.may_run.set()

    def open(self) -> Slot:
        return self._add([])

    def fork(self, slot: Slot, length: int | None = None) -> Slot:
        return self._add(self._own(slot).ids[:length])

    def close(self, slot: Slot) -> None:
        self.slots.remove(self._own(slot))

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> npt.NDArray[np.float32]:
        assert self.may_run.wait(60)
        if sum(slot.length for slot in self.slots) + sum(len(ids) for _, ids in work) > self.room:
            raise InputError("the key/value cache is full")
        self.largest_prompt = max(self.largest_prompt, sum(len(ids) for _, ids in work if len(ids) > 1))
        rows = []
        for slot, ids in work:
            own = self._own(slot)
            own.ids.extend(ids)
            self.ran += len(ids)
            assert 0 < len(own.ids) <= CONFIG.context_length
            row = np.random.default_rng(own.ids).standard_normal(CONFIG.vocab_size).astype(np.float32) * 3
            rows.append(np.full_like(row, np.nan) if set(own.ids) & self.broken else row)
        return np.stack(rows)

    def _add(self, ids: list[int]) -> TokenSlot:
        self.slots.append(TokenSlot(ids))
        return self.slots[-1]

    def _own(self, slot: Slot) -> TokenSlot:
        assert isinstance(slot, TokenSlot) and any(slot is one for one in self.slots), "closed twice or never opened"
        return slot


def run(batch: Batch, requests: Sequence[Request]) -> list[Any]:
    """Add requests, one after each step, and return the samples."""
    waiting, groups = list(requests), []
    while waiting or batch.busy:
        if waiting:
            request = waiting.pop(0)
            groups.append([Continuation(request, index, CONFIG) for index in range(request.n)])
            batch.add(groups[-1])
        for outcome in batch.step():
            assert outcome.error is None
    return [[one.result() for one in group] for group in groups]


prompts = st.lists(st.integers(0, 3), min_size=1, max_size=45)


@settings(deadline=None, max_examples=60)
@given(
    prompts=st.lists(prompts, min_size=1, max_size=6),
    n=st.integers(1, 4),
    new=st.integers(1, 30),
    max_live=st.integers(1, 5),
    prompt_tokens=st.none() | st.integers(1, 9),
    cached=st.sampled_from([0, 30, 200]),
)
def test_texts_do_not_depend_on_the_batch(
    prompts: list[list[int]], n: int, new: int, max_live: int, prompt_tokens: int | None, cached: int
) -> None:
    requests = [
        Request(prompt, seed=index, n=n, max_new_tokens=new, logprobs=1) for index, prompt in enumerate(prompts)
    ]
    runner = HashRunner()
    cache = PrefixCache(runner, cached)
    batch = Batch(runner, max_live=max_live, prompt_tokens=prompt_tokens, prefix_cache=cache)
    found = run(batch, requests)
    assert found == [list(generate(HashRunner(), None, [request])[0].samples) for request in requests]
    assert prompt_tokens is None or runner.largest_prompt <= prompt_tokens
    assert cache.tokens <= cached and cache.tokens == sum(slot.length for slot in runner.slots)
    cache.clear()
    assert not runner.slots


def test_samples_of_one_request_run_its_prompt_once() -> None:
    runner = HashRunner()
    generate(runner, None, [Request(list(range(30)), n=8, seed=1, max_new_tokens=1)])
    assert runner.ran == 30 and not runner.slots
    few = HashRunner()
    generate(few, None, [Request(list(range(30)), n=8, seed=1, max_new_tokens=3)], max_live=2)
    assert few.ran == 30 + 8 * 2 and not few.slots


def test_a_conversation_and_a_running_text_give_their_beginning() -> None:
    runner = HashRunner()
    cache = PrefixCache(runner, 500)
    batch = Batch(runner, prefix_cache=cache)
    first = Request(list(range(20)), temperature=0, max_new_tokens=5, stop_at_end_of_text=False)
    ((sample,),) = run(batch, [first])
    ran = runner.ran
    # The last new token was not run, so it is not cached.
    follow = Request([*first.prompt_ids, *sample.ids, 7, 8], temperature=0, max_new_tokens=1)
    run(batch, [follow])
    assert runner.ran - ran == 3
    ran = runner.ran
    other = Request([*range(18), 40, 41], temperature=0, max_new_tokens=1)
    run(batch, [other])
    assert runner.ran - ran == 2
    short = Request([0, 1, 2, 9], temperature=0, max_new_tokens=1)
    run(batch, [short])
    fresh = HashRunner()
    both = Batch(fresh, prefix_cache=PrefixCache(fresh, 500))
    slow = [Continuation(Request([3] * 30, temperature=0, max_new_tokens=8), 0, CONFIG)]
    both.add(slow)
    both.step()
    group = both.add([Continuation(Request([*[3] * 25, 4], temperature=0, max_new_tokens=1), 0, CONFIG)])
    both.step()
    assert group.cached_tokens == 25


def test_the_least_recently_used_sequence_goes_first() -> None:
    runner = HashRunner()
    cache = PrefixCache(runner, 60)
    sequences = [[number] * 20 for number in range(3)]
    for ids in sequences:
        slot = runner.open()
        runner.extend([(slot, ids)])
        cache.add(ids, slot)
    assert cache.find([0] * 20) is not None  # used now
    slot = runner.open()
    runner.extend([(slot, [9] * 20)])
    cache.add([9] * 20, slot)
    assert [cache.find([number] * 21) is not None for number in (0, 1, 2, 9)] == [True, False, True, True]
    longer = runner.fork(slot)
    runner.extend([(longer, [8])])
    cache.add([*[9] * 20, 8], longer)
    assert len(cache) == 2 and cache.tokens == 41  # the one that it continues is not needed any more, and 21 fit
    assert cache.find([0] * SHORTEST) is None
    huge = runner.open()
    runner.extend([(huge, [5] * 40)])
    PrefixCache(runner, 39).add([5] * 40, huge)
    assert not any(one is huge for one in runner.slots)


def test_a_full_cache_drops_prefixes_and_a_text_that_does_not_fit_alone_says_so() -> None:
    runner = HashRunner()
    runner.room = 35
    batch = Batch(runner, prefix_cache=PrefixCache(runner, 45))
    run(batch, [Request([1] * 30, max_new_tokens=1), Request([2] * 30, max_new_tokens=1)])
    batch.add([Continuation(Request([3] * 30, max_new_tokens=20), 0, CONFIG)])
    small = [Continuation(Request([4], seed=1, max_new_tokens=20), 0, CONFIG)]
    batch.add(small)
    errors = []
    while batch.busy:
        errors += [outcome.error for outcome in batch.step() if outcome.error is not None]
    assert len(errors) == 1 and "full" in str(errors[0])
    assert small[0].result() == generate(HashRunner(), None, [small[0].request])[0].samples[0]


@settings(deadline=None, max_examples=60)
@given(
    prompts=st.lists(prompts, min_size=1, max_size=6),
    n=st.integers(1, 4),
    new=st.integers(1, 30),
    room=st.integers(80, 200),
    cached=st.sampled_from([0, 60]),
)
def test_texts_that_wait_for_memory_and_start_again_are_the_same(
    prompts: list[list[int]], n: int, new: int, room: int, cached: int
) -> None:
    requests = [
        Request(prompt, seed=index, n=n, max_new_tokens=new, logprobs=1) for index, prompt in enumerate(prompts)
    ]
    runner = HashRunner()
    runner.room = room
    cache = PrefixCache(runner, cached)
    found = run(Batch(runner, max_live=5, prompt_tokens=7, prefix_cache=cache), requests)
    assert found == [list(generate(HashRunner(), None, [request])[0].samples) for request in requests]
    cache.clear()
    assert not runner.slots


def test_a_broken_text_ends_alone() -> None:
    runner = HashRunner()
    runner.broken = {49}
    batch = Batch(runner)
    good = [Continuation(Request([1], temperature=0, max_new_tokens=3, logit_bias={49: -np.inf}), 0, CONFIG)]
    bad = [Continuation(Request([49], n=2, max_new_tokens=3), index, CONFIG) for index in range(2)]
    batch.add(bad)
    batch.add(good)
    errors = []
    while batch.busy:
        errors += [outcome.error for outcome in batch.step() if outcome.error is not None]
    assert len(errors) == 2 and all(isinstance(error, WeightsError) for error in errors)
    assert good[0].result().ids and not runner.slots


def test_a_fault_in_one_text_ends_it_alone(caplog: pytest.LogCaptureFixture) -> None:
    runner = HashRunner()
    scheduler = Scheduler(runner, None, Limits())
    good = Request([1], seed=1, max_new_tokens=5)
    expected = generate(HashRunner(), None, [good])[0].samples[0]

    async def main() -> None:
        runner.may_run.clear()
        tickets = [scheduler.submit(Request([2], seed=1, max_new_tokens=5)), scheduler.submit(good)]
        tickets[0].continuations[0]._sampler.sample = None  # type: ignore[method-assign, assignment]
        runner.may_run.set()
        with pytest.raises(ClearheadError, match=r"could not run \(TypeError\)"):
            _ = [event async for event in tickets[0]]
        _ = [event async for event in tickets[1]]
        assert tickets[1].continuations[0].result() == expected
        await scheduler.close()

    asyncio.run(main())
    assert not runner.slots and "Traceback" in caplog.text


def test_a_prompt_may_have_tokens_that_are_never_chosen() -> None:
    class Padded:
        vocab_size, end_of_text = 40, None
        token_bytes: tuple[bytes, ...] = (b"a",) * 40

        def stream(self) -> None:
            return None

    request = Request([1, 45], seed=1, max_new_tokens=5, repetition_penalty=1.5)
    continuation = Continuation(request, 0, CONFIG, Padded())  # type: ignore[arg-type]
    assert continuation.accept(np.zeros(50, np.float32)).token in range(40)


def test_the_scheduler_cancels_refuses_reports_and_survives_errors() -> None:
    runner = HashRunner()
    scheduler = Scheduler(runner, None, Limits(max_live=2, max_waiting=1))

    async def collect(ticket: Any) -> list[int]:
        return [event.token async for _, event in ticket]

    async def main() -> None:
        request = Request([1, 2], seed=1, max_new_tokens=20)
        expected = list(generate(HashRunner(), None, [request])[0].samples[0].ids)
        runner.may_run.clear()  # or the first could have ended before the fourth asks
        tickets = [scheduler.submit(request) for _ in range(3)]
        with pytest.raises(OverloadedError, match="try again"):
            scheduler.submit(request)
        tickets[1].cancel()
        runner.may_run.set()
        assert await collect(tickets[0]) == await collect(tickets[2]) == expected
        with pytest.raises(InputError, match="vocabulary"):
            scheduler.submit(Request([99]))
        runner.room = 0
        with pytest.raises(ClearheadError, match="full"):
            await collect(scheduler.submit(request))
        runner.room = 10**9
        assert await collect(scheduler.submit(request)) == expected
        slow = scheduler.submit(Request([1], seed=1, max_new_tokens=10**6))
        assert not await scheduler.close(patience=0.05)
        with pytest.raises(OverloadedError, match="shut down"):
            await collect(slow)
        with pytest.raises(OverloadedError, match="shutting down"):
            scheduler.submit(request)

    asyncio.run(main())
    assert not runner.slots and scheduler.load().running == scheduler.load().waiting == 0
