"""Forks of sequences, in both runners: a copy goes on as if it had been run alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import clearhead
from clearhead.errors import InputError
from clearhead.inference.batching import Batch
from clearhead.inference.continuation import Continuation
from clearhead.inference.requests import Request
from clearhead.inference.runner import ScoreTask, ScoringRunner

IDS = [int(token) for token in np.random.default_rng(0).integers(0, 4000, 150)]


@pytest.fixture(scope="module", params=["engine", "torch"])
def runner(request: pytest.FixtureRequest) -> ScoringRunner:
    return clearhead.load(backend=request.param).runner


def same(runner: ScoringRunner, found: Any, expected: Any) -> None:
    """The engine gives the same bits; PyTorch to rounding."""
    exact = type(runner).__name__ == "EngineRunner"
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if exact else 1e-4)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 128])
def test_a_fork_of_a_beginning_goes_on_as_if_alone(runner: ScoringRunner, length: int) -> None:
    parent = runner.open()
    runner.extend([(parent, IDS[:128])])
    child = runner.fork(parent, length)
    assert (child.length, parent.length) == (length, 128)
    other = IDS[140:]
    found = runner.extend([(child, other), (parent, IDS[128:140])])
    alone = runner.open()
    same(runner, found[0], runner.extend([(alone, [*IDS[:length], *other])])[0])
    whole = runner.open()
    same(runner, found[1], runner.extend([(whole, IDS[:140])])[0])
    runner.close(parent)
    same(runner, runner.extend([(child, [7])])[0], runner.extend([(alone, [7])])[0])
    for slot in (child, alone, whole):
        runner.close(slot)


def test_forks_of_forks_and_of_nothing(runner: ScoringRunner) -> None:
    empty = runner.open()
    first = runner.fork(empty)
    runner.extend([(first, IDS[:70])])
    forks = [runner.fork(first) for _ in range(5)]
    grown = runner.extend([(slot, [index]) for index, slot in enumerate(forks)])
    again = runner.fork(forks[2], 71)
    runner.close(first)
    for slot in [*forks, empty]:
        runner.close(slot)
    for index, row in enumerate(grown):
        alone = runner.open()
        same(runner, row, runner.extend([(alone, [*IDS[:70], index])])[0])
        if index == 2:
            same(runner, runner.extend([(again, [9])])[0], runner.extend([(alone, [9])])[0])
        runner.close(alone)
    runner.close(again)


def test_what_cannot_be_forked_is_refused(runner: ScoringRunner) -> None:
    slot = runner.open()
    runner.extend([(slot, IDS[:5])])
    for length in (6, -1):
        with pytest.raises(InputError, match="the sequence has 5 tokens"):
            runner.fork(slot, length)
    runner.close(slot)
    with pytest.raises(InputError, match="closed"):
        runner.fork(slot)


def test_scores_are_those_of_the_logits_in_one_piece_or_several(runner: ScoringRunner) -> None:
    ids = IDS[:100]
    logits = runner.logits(ids).astype(np.float64)
    logs = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    targets = np.array(ids[1:])
    expected = logs[np.arange(99), targets]
    slot, pieces = runner.open(), []
    for first, last in ((0, 1), (1, 40), (40, 100)):
        final, (part,) = runner.score([ScoreTask(slot, ids[first:last], ids[first + 1 : last + 1])], top=3)
        pieces.append(part)
    same_bits = type(runner).__name__ == "EngineRunner"
    np.testing.assert_allclose(np.concatenate([one.logprobs for one in pieces]), expected, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([one.entropies for one in pieces]), -(np.exp(logs) * logs).sum(-1)[:99], atol=1e-4
    )
    ranks = (logs[:99] > expected[:, None]).sum(-1)
    assert (np.concatenate([one.ranks for one in pieces]) == ranks).mean() > (0.999 if same_bits else 0.95)
    tops = np.concatenate([one.top_ids for one in pieces])
    assert (tops == np.argsort(-logs[:99], axis=-1, kind="stable")[:, :3]).mean() > (0.999 if same_bits else 0.95)
    same(runner, final[0], logits[99].astype(np.float32))
    other = runner.open()
    _, (some,) = runner.score([ScoreTask(other, ids, ids[50:60], start=49)], n_choices=100)
    np.testing.assert_allclose(some.logprobs, expected[49:59], atol=1e-5)
    for task in (ScoreTask(other, [1], [2, 3]), ScoreTask(other, [1], [10**6])):
        with pytest.raises(InputError, match=r"at most one target|not in the model's vocabulary"):
            runner.score([task])
        assert other.length == 100
    runner.close(slot)
    runner.close(other)


def test_samples_that_share_a_prompt_are_what_each_is_alone(runner: ScoringRunner) -> None:
    request = Request(IDS[:70], n=4, seed=5, max_new_tokens=12, logprobs=2)

    def samples(groups: list[list[Continuation]]) -> list[Any]:
        batch = Batch(runner)
        for group in groups:
            batch.add(group)
        while batch.busy:
            batch.step()
        return [one.result() for group in groups for one in group]

    continuations = [Continuation(request, index, runner.config) for index in range(4)]
    alone = [Continuation(request, index, runner.config) for index in range(4)]
    together, apart = samples([continuations]), [samples([[one]])[0] for one in alone]
    assert [one.ids for one in together] == [one.ids for one in apart]
    for one, other in zip(together, apart, strict=True):
        same(runner, [token.logprob for token in one.logprobs], [token.logprob for token in other.logprobs])
