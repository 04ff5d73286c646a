"""The loop against transformers: its generate, its forward pass, its loss."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.inference.continuation import StopFilter
from clearhead.inference.generation import generate, stream
from clearhead.inference.requests import Completion, Request
from clearhead.inference.runner import Slot
from clearhead.tokenizer import Tokenizer

CONTEXT = 48
TEXTS = ["Once upon a time there was a little girl — she said: “über naïve 🙂 cats!” and it was a big day. "] * 4


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 290)


@functools.cache
def peer() -> GPT2LMHeadModel:
    """A random GPT-2 with a wide enough initialization that its text is varied; 7 rows more than tokens."""
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=tokenizer().vocab_size + 7,
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
    )
    return GPT2LMHeadModel(shape).eval()


def config() -> GPTConfig:
    return GPTConfig.from_huggingface(peer().config.to_dict())


def peer_logits(ids: Sequence[int]) -> np.ndarray:
    with torch.no_grad():
        return peer()(torch.tensor([list(ids)])).logits[0].numpy()


@dataclass
class ListSlot:
    ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.ids)


class PeerRunner:
    """A Runner that remembers ids only and lets a function compute each sequence anew."""

    def __init__(self, config: GPTConfig, last_logits: Callable[[list[int]], np.ndarray]) -> None:
        self.config = config
        self.last_logits = last_logits
        self.slots: list[Slot] = []
        self.batches: list[int] = []
        self.seen: list[list[int]] = []

    def open(self) -> Slot:
        self.slots.append(ListSlot())
        return self.slots[-1]

    def fork(self, slot: Slot, length: int | None = None) -> Slot:
        assert isinstance(slot, ListSlot) and any(slot is one for one in self.slots)
        self.slots.append(ListSlot(slot.ids[:length]))
        return self.slots[-1]

    def close(self, slot: Slot) -> None:
        assert any(slot is one for one in self.slots), "closed twice or never opened"
        self.slots = [one for one in self.slots if one is not slot]

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> np.ndarray:
        self.batches.append(len(work))
        rows = []
        for slot, ids in work:
            assert isinstance(slot, ListSlot) and any(slot is one for one in self.slots)
            assert len(ids) >= 1 and slot.length + len(ids) <= self.config.context_length
            slot.ids.extend(ids)
            self.seen.append(list(slot.ids))
            rows.append(self.last_logits(slot.ids))
        return np.stack(rows)


def runner() -> PeerRunner:
    return PeerRunner(config(), lambda ids: peer_logits(ids)[-1])


def script_runner(script: Sequence[int]) -> PeerRunner:
    """A Runner whose model says the ids of a script, one after another, after a prompt of one token."""

    def last_logits(ids: list[int]) -> np.ndarray:
        logits = np.zeros(config().vocab_size, np.float32)
        logits[script[min(len(ids) - 1, len(script) - 1)]] = 50
        return logits

    return PeerRunner(config().replace(context_length=1000), last_logits)


GREEDY: dict[str, Any] = {"temperature": 0}


def only(completions: list[Completion]) -> Any:
    (completion,) = completions
    (sample,) = completion.samples
    return sample


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("prompt", [[5], [5, 80, 41, 200, 7], list(range(30))])
def test_greedy_is_transformers_greedy(prompt: list[int], penalty: float) -> None:
    n_new = CONTEXT - len(prompt)
    ids = torch.tensor([prompt])
    theirs = peer().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=n_new,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=0,
    )
    sample = only(
        generate(runner(), None, [Request(prompt, temperature=0, repetition_penalty=penalty, max_new_tokens=n_new)])
    )
    assert list(sample.ids) == theirs[0, len(prompt) :].tolist()
    assert (sample.finish_reason, sample.text, sample.notices) == ("length", None, ())


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.data())
def test_a_batch_gives_what_each_gives_alone(data: st.DataObject) -> None:
    ids = st.integers(0, tokenizer().vocab_size - 1)
    requests = [
        Request(
            data.draw(st.lists(ids, min_size=1, max_size=CONTEXT + 5)),
            temperature=data.draw(st.sampled_from([0.0, 0.9, 2.0])),
            top_p=0.9,
            seed=data.draw(st.integers(0, 99)),
            max_new_tokens=data.draw(st.integers(1, 12)),
            n=data.draw(st.integers(1, 3)),
            logprobs=data.draw(st.none() | st.integers(0, 3)),
        )
        for _ in range(data.draw(st.integers(2, 4)))
    ]
    together = runner()
    results = generate(together, tokenizer(), requests, max_live=data.draw(st.integers(1, 6)))
    assert not together.slots
    assert results == [generate(runner(), tokenizer(), [request])[0] for request in requests]
    for request, completion in zip(requests, results, strict=True):
        assert [sample.index for sample in completion.samples] == list(range(request.n))


def test_live_sequences_run_in_one_batch_up_to_the_limit() -> None:
    requests = [Request([i], **GREEDY, max_new_tokens=3, n=2) for i in range(3)]
    wide, narrow = runner(), runner()
    generate(wide, None, requests)
    generate(narrow, None, requests, max_live=4)
    # The prompt of each request runs once, and its samples are forks of it.
    assert wide.batches == [3, 6, 6]
    assert max(narrow.batches) == 4 and sum(narrow.batches) == sum(wide.batches)
    assert sum(len(ids) == 1 for ids in wide.seen) == sum(len(ids) == 1 for ids in narrow.seen) == 3
    with pytest.raises(InputError, match="max_live is 0"):
        generate(runner(), None, requests, max_live=0)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 200), start=st.integers(0, 60), length=st.integers(1, 12), decoys=st.lists(st.text(max_size=5))
)
def test_a_stop_string_cuts_the_text_and_is_never_shown(seed: int, start: int, length: int, decoys: list[str]) -> None:
    params: dict[str, Any] = {"seed": seed}
    prompt = [70, 71]
    full = only(generate(runner(), tokenizer(), [Request(prompt, **params, max_new_tokens=40)])).text
    start = min(start, len(full) - 1)
    stop = full[start : start + length]
    stops = [*(decoy for decoy in decoys if decoy and decoy not in full), stop]
    request = Request(prompt, **params, max_new_tokens=40, stop=stops)
    events = [one.event for one in stream(runner(), tokenizer(), [request])]
    shown = "".join(event.text for event in events)
    assert shown == full[: full.index(stop)]
    assert events[-1].finish_reason == "stop" and all(event.finish_reason is None for event in events[:-1])
    sample = only(generate(runner(), tokenizer(), [request]))
    assert (sample.text, sample.finish_reason, sample.stop_reason) == (shown, "stop", stop)
    assert tokenizer().decode(sample.ids).startswith(shown)


def test_stop_filter_holds_back_no_more_than_it_must() -> None:
    texts = StopFilter(["\n\nQ:", "END"])
    assert texts.push("one\n") == "one"
    assert texts.push("\nq") == "\n\nq"
    assert texts.push("\n\n") == ""
    assert texts.push("\nQ") == "\n"
    assert texts.push("E") == "\n\nQ"
    assert texts.push("N") == ""
    assert texts.push("ENDE") == "EN"  # "EN" + "ENDE": the first END begins at 2
    assert texts.matched == "END"
    assert texts.push("more") == "" and texts.flush() == ""


def test_the_earliest_of_several_stop_strings_ends_the_text() -> None:
    texts = StopFilter(["cd", "b"])
    assert texts.push("a-b-cd") == "a-" and texts.matched == "b"


def test_half_a_character_is_never_shown_and_comes_out_as_a_mark_at_the_end() -> None:
    ids = [
        next(i for i in range(tokenizer().vocab_size) if tokenizer().token_bytes(i) == bytes([b]))
        for b in "é🙂".encode()
    ]
    request = Request([3], **GREEDY, max_new_tokens=5, stop=["zzz"])
    events = [one.event for one in stream(script_runner(ids), tokenizer(), [request])]
    assert [event.text for event in events] == ["", "é", "", "", "\ufffd"]
    whole = Request([3], **GREEDY, max_new_tokens=6)
    assert only(generate(script_runner(ids), tokenizer(), [whole])).text == "é🙂"
    stopped = Request([3], **GREEDY, max_new_tokens=6, stop="🙂")
    assert only(generate(script_runner(ids), tokenizer(), [stopped])).text == "é"


def test_what_was_held_back_for_a_stop_string_comes_out_at_the_end() -> None:
    ids = tokenizer().encode("a big E")
    request = Request([3], **GREEDY, max_new_tokens=len(ids), stop=["END"])
    events = [one.event for one in stream(script_runner(ids), tokenizer(), [request])]
    assert "".join(event.text for event in events) == "a big E"
    assert events[-1].text.endswith("E") and events[-1].finish_reason == "length"


def test_end_of_text_ends_the_text_and_is_not_shown() -> None:
    end = tokenizer().end_of_text
    assert end is not None
    ids = [*tokenizer().encode("a day"), end, *tokenizer().encode(" more")]
    ended = only(
        generate(script_runner(ids), tokenizer(), [Request([3], **GREEDY, max_new_tokens=len(ids), logprobs=0)])
    )
    assert (ended.text, ended.finish_reason, ended.stop_reason) == ("a day", "stop", end)
    assert list(ended.ids) == ids[: ids.index(end)]
    assert len(ended.logprobs) == len(ended.ids)
    through = Request([3], **GREEDY, max_new_tokens=len(ids), stop_at_end_of_text=False)
    assert only(generate(script_runner(ids), tokenizer(), [through])).text == tokenizer().decode(ids)
    # Without a tokenizer nobody knows which token it is; it can be given.
    by_id = only(generate(script_runner(ids), None, [Request([3], **GREEDY, max_new_tokens=20, stop_ids=[end])]))
    assert list(by_id.ids) == ids[: ids.index(end)] and by_id.stop_reason == end


def expected_ids_past_the_context(prompt: list[int], n_new: int) -> list[int]:
    """The documented rule, run with nothing but transformers' forward pass."""
    window, new = prompt[-CONTEXT:], []
    for _ in range(n_new):
        token = int(peer_logits(window)[-1][: tokenizer().vocab_size].argmax())
        new.append(token)
        window = [*window, token] if len(window) < CONTEXT else [*window, token][-(CONTEXT // 2) :]
    return new


@pytest.mark.parametrize("n_prompt", [3, CONTEXT - 1, CONTEXT, CONTEXT + 9])
def test_past_the_context_the_newest_half_is_run_again_and_told_once(n_prompt: int) -> None:
    prompt = np.random.default_rng(0).integers(0, 200, n_prompt).tolist()
    used = runner()
    request = Request(prompt, **GREEDY, max_new_tokens=2 * CONTEXT, stop_at_end_of_text=False)
    events = [one.event for one in stream(used, tokenizer(), [request])]
    assert [event.token for event in events] == expected_ids_past_the_context(prompt, 2 * CONTEXT)
    assert not used.slots
    told = [notice for event in events for notice in event.notices]
    assert len(told) == (2 if n_prompt > CONTEXT else 1)
    assert f"reached the {CONTEXT} tokens" in told[-1] and f"last {CONTEXT // 2}" in told[-1]
    if n_prompt > CONTEXT:
        assert f"prompt has {n_prompt} tokens" in told[0] and events[0].notices == (told[0], told[1])
    assert only(generate(runner(), tokenizer(), [request])).notices == tuple(told)


def test_strict_context_refuses_before_anything_runs() -> None:
    used = runner()
    fits = Request([1] * 41, **GREEDY, max_new_tokens=8, strict_context=True)
    for bad in (
        Request([1] * 42, **GREEDY, max_new_tokens=8, strict_context=True),
        Request([1] * 49, **GREEDY, max_new_tokens=1, strict_context=True),
    ):
        with pytest.raises(InputError, match="the model reads 48"):
            generate(used, None, [fits, bad])
    assert not used.batches
    sample = only(generate(used, None, [fits]))
    assert len(sample.ids) == 8 and not sample.notices
    assert max(len(ids) for ids in used.seen) == CONTEXT  # the last new token is never run


def test_a_context_of_one_token_goes_on() -> None:
    one = PeerRunner(config().replace(context_length=1), lambda ids: peer_logits(ids)[-1])
    sample = only(generate(one, None, [Request([4, 9], **GREEDY, max_new_tokens=5)]))
    assert len(sample.ids) == 5 and all(len(ids) == 1 for ids in one.seen)


def test_rows_without_a_token_are_never_chosen() -> None:
    n_tokens = tokenizer().vocab_size
    padded = PeerRunner(config(), lambda ids: np.arange(config().vocab_size, dtype=np.float32))
    request = Request([1], **GREEDY, max_new_tokens=2, logprobs=2, stop_at_end_of_text=False)
    sample = only(generate(padded, tokenizer(), [request]))
    assert sample.ids == (n_tokens - 1, n_tokens - 1)
    assert [token for token, _ in sample.logprobs[0].top] == [n_tokens - 1, n_tokens - 2]
    expected = torch.log_softmax(torch.arange(config().vocab_size).double(), -1)[n_tokens - 1]
    assert sample.logprobs[0].logprob == pytest.approx(float(expected), abs=1e-9)


def test_logprobs_are_the_models_own_whatever_the_sampling() -> None:
    prompt = [9, 8, 7]
    params: dict[str, Any] = {
        "temperature": 0.3, "top_k": 5, "seed": 2, "repetition_penalty": 1.5, "logit_bias": {4: 2.0},
    }  # fmt: skip
    sample = only(generate(runner(), None, [Request(prompt, **params, max_new_tokens=15, logprobs=3)]))
    expected = torch.log_softmax(torch.from_numpy(peer_logits([*prompt, *sample.ids])).double(), -1)[2:-1]
    assert len(sample.logprobs) == 15
    for row, one, token in zip(expected, sample.logprobs, sample.ids, strict=True):
        assert one.id == token and one.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [i for i, _ in one.top] == torch.topk(row, 3).indices.tolist()


def test_seeds_are_reported_and_repeat_the_text() -> None:
    request = Request([3, 4], temperature=1.5, max_new_tokens=12, n=3)
    first = generate(runner(), None, [request])[0].samples
    assert len({sample.ids for sample in first}) == 3
    (seed,) = {sample.seed for sample in first}
    again = Request([3, 4], temperature=1.5, seed=seed, max_new_tokens=12, n=3)
    assert generate(runner(), None, [again])[0].samples == first
    other = Request([3, 4], temperature=1.5, max_new_tokens=12, n=3)
    assert generate(runner(), None, [other])[0].samples != first


def test_streamed_events_name_their_request_and_sample() -> None:
    requests = [Request([i], seed=i, max_new_tokens=4, n=2) for i in range(2)]
    texts = {(r, s): "" for r in range(2) for s in range(2)}
    for one in stream(runner(), tokenizer(), requests):
        texts[one.request, one.sample] += one.event.text
    for r, completion in enumerate(generate(runner(), tokenizer(), requests)):
        for s, sample in enumerate(completion.samples):
            assert texts[r, s] == sample.text


def test_slots_are_closed_when_the_consumer_stops_early() -> None:
    used = runner()
    requests = [Request([i], **GREEDY, max_new_tokens=9) for i in range(3)]
    events = stream(used, None, requests)
    assert not used.slots  # nothing has run yet
    for _ in range(4):
        next(events)
    assert len(used.slots) == 3
    events.close()
    assert not used.slots
    for _ in stream(used, None, requests):
        break  # dropping the iterator is enough
    assert not used.slots


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_slots_are_closed_when_the_runner_is_interrupted(error: type[BaseException]) -> None:
    def last_logits(ids: list[int]) -> np.ndarray:
        if len(ids) == 4:
            raise error
        return peer_logits(ids)[-1]

    used = PeerRunner(config(), last_logits)
    with pytest.raises(error):
        generate(used, None, [Request([1], **GREEDY, n=2)])
    assert not used.slots


def test_broken_weights_are_an_error_and_slots_are_closed() -> None:
    used = PeerRunner(config(), lambda ids: np.full(config().vocab_size, np.nan, np.float32))
    with pytest.raises(WeightsError, match="no token can be chosen"):
        generate(used, None, [Request([1], n=2)])
    assert not used.slots


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"prompt_ids": []}, "the prompt is empty.*end-of-text"),
        ({"prompt_ids": [1.5]}, "the prompt contains 1.5"),
        ({"prompt_ids": [-1]}, "the prompt contains -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": None}, "max_new_tokens is None"),
        ({"n": 0}, "n is 0"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"logprobs": True}, "logprobs is True"),
        ({"stop": [""]}, "stop is"),
        ({"stop": [3]}, "stop is"),
        ({"stop_ids": ["x"]}, "stop_ids contains 'x'"),
        ({"prompt_ids": [999]}, "the prompt contains token 999, which is not in the model's vocabulary"),
        ({"stop_ids": [999]}, "stop_ids contains token 999"),
        ({"logprobs": 1000}, "logprobs is 1000"),
        ({"stop": ["a"]}, "stop strings need a tokenizer"),
        ({"logit_bias": {5000: 1}}, "logit_bias names token 5000"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(bad: dict[str, Any], sentence: str) -> None:
    used = runner()
    with pytest.raises(InputError, match=sentence):
        generate(used, None, [Request(**{"prompt_ids": [1], **bad})])
    assert not used.batches
