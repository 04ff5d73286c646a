"""Scores of texts and continuations, against a computation with transformers window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import clearhead
from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.gpt import GPT
from clearhead.inference.logprobs import score_rows
from clearhead.inference.runner import ScoreTask, Slot, TokenScores
from clearhead.inference.scoring import ScoreOptions, ScoreRequest, score_sequences, windows
from clearhead.inference.shared_prefixes import (
    OpenLimits,
    ScoreDetails,
    ScoredSequence,
    plan_branches,
    score_sharing,
)
from clearhead.loading import bundled
from clearhead.tokenizer import Tokenizer

ODD = "Once upon a time, e\u0301 naïve 🙂👩‍👩‍👧 \u200bbear — 北京\u00a0\x00\t  cat\r\n\n."


@pytest.fixture(scope="module")
def gpt() -> GPT:
    """The bundled model in float32 on the compiled engine."""
    return clearhead.load(dtype="float32")


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    """The same in transformers."""
    return GPT2LMHeadModel.from_pretrained(bundled(), dtype=torch.float32).eval()


def expected(peer: GPT2LMHeadModel, ids: Sequence[int]) -> torch.Tensor:
    """The log-probabilities after each of some ids, float64 [T, V]."""
    with torch.inference_mode():
        return peer(torch.tensor([list(ids)])).logits[0].double().log_softmax(-1)


class FakeSlot:
    """A sequence that nothing is remembered of."""

    length = 0


class FakeRunner:
    """A Runner whose logits depend on the last token alone."""

    def __init__(self, logits: np.ndarray, context_length: int) -> None:
        self.table = logits
        self.config = GPTConfig(len(logits), context_length, 8, 1, 1)

    def open(self) -> FakeSlot:
        return FakeSlot()

    def fork(self, slot: Slot, length: int | None = None) -> FakeSlot:
        return FakeSlot()

    def close(self, slot: Slot) -> None:
        pass

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> np.ndarray:
        return np.stack([self.table[ids[-1]] for _, ids in work])

    def score(
        self,
        work: Sequence[ScoreTask],
        *,
        top: int = 0,
        n_choices: int | None = None,
        groups: np.ndarray | None = None,
        last_logits: bool = True,
    ) -> tuple[np.ndarray, list[TokenScores]]:
        scores = []
        for task in work:
            rows = [*range(task.start, task.start + len(task.targets)), *(index for index, _ in task.alternatives)]
            targets = [*task.targets, *(token for _, token in task.alternatives)]
            scores.append(score_rows(self.table[[task.ids[row] for row in rows]], targets, top, n_choices, groups))
        return self.extend([(task.slot, task.ids) for task in work]), scores

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self.table[list(ids)]


# --- the core -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 500), st.integers(1, 60), st.data())
def test_windows_score_every_token_once_with_context(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    start = data.draw(st.integers(1, length - 1))
    scored: list[int] = []
    cuts = list(windows(length, context, stride, start))
    for first, begin, last in cuts:
        assert 1 <= last - first <= context and first < begin <= last
        if len(cuts) > 1 and begin > start:
            assert begin - first >= context - stride + 1
        scored += range(begin, last + 1)
    assert scored == list(range(start, length))
    if length - start <= context:  # one window, with all the context that fits
        assert cuts == [(max(0, length - 1 - context), start, length - 1)]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 5))
def test_numbers_from_logits_are_those_of_torch(seed: int, n: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (n, 30)).astype(np.float32)
    logits[:, 7] = logits[:, 3]  # a tie: the lower id comes first
    logits[rng.random((n, 30)) < 0.05] = -np.inf
    targets = rng.integers(0, 30, n)
    groups = rng.random((3, 30)) < 0.5
    found = score_rows(logits, targets.tolist(), top, 20, groups)
    logs = torch.from_numpy(logits).double().log_softmax(-1)
    chosen = logs[torch.arange(n), torch.from_numpy(targets)]
    np.testing.assert_allclose(found.logprobs, chosen, atol=1e-12)
    np.testing.assert_allclose(found.entropies, torch.distributions.Categorical(logits=logs).entropy(), atol=1e-9)
    assert found.ranks.tolist() == (logs[:, :20] > chosen[:, None]).sum(1).tolist()
    best = logs[:, :20].sort(dim=-1, descending=True, stable=True)
    assert found.top_ids.tolist() == best.indices[:, :top].tolist()
    np.testing.assert_allclose(found.top_logprobs, best.values[:, :top], atol=1e-12)
    sums = torch.stack([logs[:, torch.from_numpy(group)].logsumexp(-1) for group in groups], dim=1)
    np.testing.assert_allclose(found.groups, sums, atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.lists(st.integers(0, 4095), min_size=2, max_size=60), min_size=1, max_size=70), st.integers(1, 64))
def test_the_batch_changes_no_bit(gpt: GPT, ids: list[list[int]], batch_size: int) -> None:
    def numbers(size: int) -> list[Any]:
        options = ScoreOptions(top=2, batch_size=size)
        found = score_sequences(gpt.runner, [ScoreRequest(one) for one in ids], options)
        return [
            [getattr(one.scores, name).tolist() for name in ("logprobs", "entropies", "ranks", "top_ids")]
            for one in found
        ]

    assert numbers(1) == numbers(batch_size)


_BEGINNINGS = st.lists(st.integers(0, 2), min_size=2, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(_BEGINNINGS, st.integers(1, 11)), min_size=1, max_size=40), st.integers(1, 8))
def test_common_beginnings_run_once_and_change_no_bit(
    gpt: GPT, cases: list[tuple[list[int], int]], batch_size: int
) -> None:
    """Sequences of three tokens have much in common: equal ones, beginnings of others, and other first targets."""
    requests = [ScoreRequest(ids, min(first, len(ids) - 1)) for ids, first in cases]
    groups = np.arange(4096)[None] % np.array([[2], [3]]) == 0
    options = ScoreOptions(top=1, batch_size=batch_size, groups=groups)
    for request, found in zip(requests, score_sequences(gpt.runner, requests, options), strict=True):
        (alone,) = score_sequences(gpt.runner, [request], options)
        for name in ("logprobs", "entropies", "ranks", "top_ids", "groups"):
            np.testing.assert_array_equal(getattr(found.scores, name), getattr(alone.scores, name))
        assert len(found.scores.logprobs) == len(request.ids) - request.first
        assert (found.contexts == np.arange(request.first, len(request.ids))).all()
    sequences = [ScoredSequence(one.ids, one.first) for one in sorted(requests, key=lambda one: list(one.ids))]
    for index, branch in enumerate(plan_branches(sequences)):
        if branch.parent >= 0:
            assert branch.parent < index and branch.shared > 0
            parent = sequences[branch.parent].ids
            assert list(parent[: branch.shared]) == list(sequences[index].ids[: branch.shared])
            assert branch.shared < len(parent)  # its last token is only a target


@pytest.mark.parametrize("backend", ["engine", "torch"])
def test_a_token_may_have_many_alternatives(gpt: GPT, backend: Any) -> None:
    """More than a pass of the engine scores at once, in any order, some of them the target itself."""
    runner = gpt.runner if backend == "engine" else clearhead.load(backend="torch").runner
    ids = np.random.default_rng(0).integers(0, 4096, 40).tolist()
    alternatives = [(row, token) for token in range(0, 4096, 31) for row in (20, 7)] + [(4, ids[5]), (39, 11)]
    groups = np.arange(4096)[None] % 2 == 0
    slot, other = runner.open(), runner.open()
    task = ScoreTask(slot, ids[:-1], ids[5:30], 4, alternatives)
    with pytest.raises(InputError, match="an alternative follows a token that is not among the 39"):
        runner.score([task])
    tasks = [ScoreTask(other, ids[:9], ids[1:10]), task._replace(alternatives=alternatives[:-1])]
    _, (_, found) = runner.score(tasks, top=2, groups=groups)
    logits = runner.logits(ids[:-1])
    rows = [*range(4, 29), *(row for row, _ in alternatives[:-1])]
    targets = [*ids[5:30], *(token for _, token in alternatives[:-1])]
    peer = score_rows(logits[rows], targets, 2, None, groups)
    assert found.ranks.tolist() == peer.ranks.tolist() and found.top_ids.tolist() == peer.top_ids.tolist()
    for name in ("logprobs", "entropies", "top_logprobs", "groups"):
        np.testing.assert_allclose(getattr(found, name), getattr(peer, name), atol=2e-5)
    assert found.logprobs[-1] == found.logprobs[0] and found.ranks[-1] == found.ranks[0]


def test_pairs_have_the_same_bits_together_and_alone() -> None:
    """Minimal pairs and endings: sentences that part at their ends, at any number of threads and any batch."""
    places = ("house", "garden", "river", "forest", "kitchen")
    pairs = [
        f"The {noun} in the {place} {verb} red."
        for noun in ("cat", "bird")
        for place in places
        for verb in ("is", "are")
    ]
    texts = [*pairs, "The cat", "The cat in", *pairs[:3], "A dog sat", "The cat in the house is red. It"]
    found = []
    for threads in (1, 2, 3):
        gpt = clearhead.load(dtype="float32", threads=threads)
        assert gpt.tokenizer is not None
        requests = [ScoreRequest([0, *gpt.tokenizer.encode(text)]) for text in texts]
        alone = [next(score_sequences(gpt.runner, [request])).scores for request in requests]
        for size in (1, 64):
            together = [one.scores for one in score_sequences(gpt.runner, requests, ScoreOptions(batch_size=size))]
            for name in ("logprobs", "entropies", "ranks"):
                for one, other in zip(alone, together, strict=True):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        found.append([one.logprobs.tolist() for one in alone])
    assert found[0] == found[1] == found[2]


def test_what_texts_have_in_common_runs_once(gpt: GPT) -> None:
    """Each beginning of a text is one token that runs, and texts that are scored from later on run no more."""
    runner: Any = CountingRunner(gpt)
    texts = [(0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 9, 5), (0, 1, 2, 3, 9), (0, 1, 7, 3), (0, 1, 2, 3, 4, 5), (0, 8, 8)]
    beginnings = {text[:length] for text in texts for length in range(1, len(text))}
    for first in (1, 2):
        runner.run = 0
        list(score_sequences(runner, [ScoreRequest(text, first) for text in texts]))
        assert runner.run == len(beginnings)


class CountingRunner:
    """The engine, with a count of the tokens of the open sequences, and of all that ran."""

    def __init__(self, gpt: GPT) -> None:
        self.config, self.runner = gpt.config, gpt.runner
        self.tokens: dict[Any, int] = {}
        self.most = self.run = 0

    def open(self) -> Any:
        return self._count(self.runner.open(), 0)

    def fork(self, slot: Any, length: int) -> Any:
        return self._count(self.runner.fork(slot, length), length)

    def _count(self, slot: Any, length: int) -> Any:
        self.tokens[slot] = length
        return slot

    def close(self, slot: Any) -> None:
        del self.tokens[slot]
        self.runner.close(slot)

    def score(self, work: Any, **options: Any) -> Any:
        for task in work:
            self.tokens[task.slot] += len(task.ids)
            self.run += len(task.ids)
        self.most = max(self.most, sum(self.tokens.values()))
        return self.runner.score(work, **options)


def test_few_tokens_are_open_and_all_are_closed(gpt: GPT) -> None:
    """Forty sequences of ten tokens, each of which three others continue."""
    runner: Any = CountingRunner(gpt)
    texts = [[first, *range(9), *more] for first in range(40) for more in ([7], [8], [8, 5, 5], [8, 5, 6])]
    sequences = [ScoredSequence(ids, 1) for ids in sorted(texts)]
    found = dict(score_sharing(runner, sequences, ScoreDetails(), OpenLimits(64, tokens=60, page=1)))
    assert not runner.tokens and 40 <= runner.most <= 60 + 3 * 13  # at last one sequence and those that it continues
    for index, sequence in enumerate(sequences):
        (alone,) = score_sequences(gpt.runner, [ScoreRequest(sequence.ids)])
        np.testing.assert_array_equal(found[index].logprobs, alone.scores.logprobs)


def test_each_request_is_counted_once(gpt: GPT) -> None:
    counted: list[None] = []
    requests = [ScoreRequest(list(range(length))) for length in (5, 600, 5, 9)]
    found = score_sequences(gpt.runner, requests, ScoreOptions(), lambda: counted.append(None))
    assert [len(one.scores.logprobs) for one in found] == [4, 599, 4, 8] and len(counted) == 4


def test_requests_may_be_endless(gpt: GPT) -> None:
    def requests() -> Any:
        while True:
            yield ScoreRequest(list(range(200)))

    found = score_sequences(gpt.runner, requests())
    assert len(next(found).scores.logprobs) == 199


@pytest.mark.parametrize("stride", [0, 257, 1.5, True])
def test_a_stride_out_of_range_is_refused(gpt: GPT, stride: Any) -> None:
    with pytest.raises(InputError, match="stride is"):
        gpt.score("some text", stride=stride)


def test_scores_that_are_nan_are_an_error() -> None:
    runner = FakeRunner(np.full((9, 9), np.nan, np.float32), 4)
    with pytest.raises(WeightsError, match="gives token 2 of the text"):
        list(score_sequences(runner, [ScoreRequest([1, 2, 3])]))


# --- GPT.score -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=80).filter(lambda text: text.encode("utf-8", "ignore").decode() == text))
def test_any_text_is_scored_as_by_transformers(gpt: GPT, peer: GPT2LMHeadModel, text: str) -> None:
    assert gpt.tokenizer is not None and gpt.tokenizer.end_of_text is not None
    ids = gpt.tokenizer.encode(text)
    logs = expected(peer, [gpt.tokenizer.end_of_text, *ids])
    found = gpt.score(text, top=3)
    assert found.bos == gpt.tokenizer.end_of_text and found.n_scored == len(ids)
    for token, id, row in zip(found.tokens, ids, logs, strict=False):
        assert token.id == id and token.logprob == pytest.approx(float(row[id]), abs=1e-4)
        assert token.entropy == pytest.approx(-float((row.exp() * row).sum()), abs=1e-3)
        assert [logprob for _, logprob in token.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert "".join(token.text or "" for token in found.tokens) == text
    assert found.bits_per_byte == pytest.approx(-found.logprob / math.log(2) / len(text.encode()))


@pytest.mark.parametrize("stride", [None, 1, 100, 256])
def test_long_texts_are_scored_in_windows(gpt: GPT, peer: GPT2LMHeadModel, stride: int | None) -> None:
    n = 262 if stride == 1 else 700
    ids = np.random.default_rng(0).integers(0, 4096, n).tolist()
    found = gpt.score(ids, after_end_of_text=False, stride=stride)
    logprobs: list[float] = []
    step, done = stride or 128, 1
    while done < n:  # each token after the 256 (at most) that its window puts before its last
        until = min(n, 257 if done == 1 else done + step)
        rows = expected(peer, ids[max(0, until - 257) : until - 1])[-(until - done) :]
        logprobs += [float(row[token]) for row, token in zip(rows, ids[done:until], strict=True)]
        done = until
    assert found.tokens[0].logprob is None
    np.testing.assert_allclose([token.logprob for token in found.tokens[1:]], logprobs, atol=1e-4)


def test_continuations(gpt: GPT, peer: GPT2LMHeadModel) -> None:
    context = "Once upon a time there was a little girl. She lived in a small house with her mother and her"
    endings = [" father", " dog and cat", " xylophone."]
    found = gpt.score(context, endings)
    alone = [gpt.score(context, ending) for ending in endings]
    assert [one.tokens for one in found] == [one.tokens for one in alone]
    assert gpt.tokenizer is not None
    before = [gpt.tokenizer.end_of_text or 0, *gpt.tokenizer.encode(context)]
    for one, ending in zip(found, endings, strict=True):
        ids = gpt.tokenizer.encode(ending)
        rows = expected(peer, [*before, *ids])[len(before) - 1 :]
        assert [token.id for token in one.tokens] == ids
        assert one.logprob == pytest.approx(sum(float(row[id]) for row, id in zip(rows, ids, strict=False)), abs=1e-4)
        assert one.is_greedy == all(int(row.argmax()) == id for row, id in zip(rows, ids, strict=False))
        assert one.text_bytes == len(ending)
    greedy = gpt.generate(context, temperature=0, max_new_tokens=5).text
    assert (
        greedy is not None and gpt.score(context, greedy).is_greedy and not gpt.score(context, " xylophone").is_greedy
    )


def test_white_space_before_a_continuation_belongs_to_it(gpt: GPT) -> None:
    assert gpt.score("There was a ", "dog").tokens == gpt.score("There was a", " dog").tokens


def test_a_continuation_may_change_the_last_token_of_its_context(gpt: GPT) -> None:
    """ " ca" and "t" are " cat" together, which holds the continuation's first character."""
    found = gpt.score("The big ca", "t sat")
    assert found.tokens[0].text == " cat" and found.text_bytes == len("t sat")


def test_lists_of_texts_and_contexts(gpt: GPT) -> None:
    texts = ["One day.", ODD, "The end"]
    assert [one.tokens for one in gpt.score(texts)] == [gpt.score(text).tokens for text in texts]
    pairs = gpt.score(["a", "b"], [" c", " d"])
    assert [one.tokens for one in pairs] == [gpt.score("a", " c").tokens, gpt.score("b", " d").tokens]
    with pytest.raises(InputError, match="2 contexts were given for 3 continuations"):
        gpt.score(["a", "b"], ["c", "d", "e"])
    assert gpt.score([]) == []


def test_a_continuation_longer_than_the_context(gpt: GPT) -> None:
    ids = np.random.default_rng(1).integers(0, 4096, 600).tolist()
    found = gpt.score(ids[:40], ids[40:])
    assert found.n_scored == 560 and found.tokens[0].logprob == gpt.score(ids).tokens[40].logprob


def test_an_empty_text_is_refused(gpt: GPT) -> None:
    with pytest.raises(InputError, match="longer text"):
        gpt.score("")


def test_bytes_are_those_of_the_text_that_was_given(tmp_path: Path) -> None:
    """A tokenizer that adds a space when it decodes, as those with add_prefix_space do."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    vocabulary = {"[UNK]": 0, "the": 1, "cat": 2, "##s": 3, ".": 4}
    bert = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    bert.normalizer = normalizers.BertNormalizer()
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.decoder = decoders.WordPiece()
    bert.save(str(tmp_path / "tokenizer.json"))
    runner = FakeRunner(np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32), 16)
    gpt = GPT(lambda: None, Tokenizer.from_json(tmp_path / "tokenizer.json"), runner=runner)  # type: ignore[arg-type,return-value]
    text = "The  CATS .  the\n"
    found = gpt.score(text)
    assert gpt.tokenizer is not None and gpt.tokenizer.decode(gpt.tokenizer.encode(text)) != text
    assert found.bits_per_byte == pytest.approx(found.surprisal / len(text))


@pytest.mark.parametrize("backend", ["engine", "torch"])
def test_a_text_has_the_bits_per_byte_that_evaluate_prints(tmp_path: Path, backend: Any) -> None:
    import json

    from typer.testing import CliRunner

    from clearhead import weights
    from clearhead.cli.app import make_app
    from clearhead.evaluation.provenance import weights_digest

    text = "The little dog went to the river — and came back."
    (tmp_path / "text.txt").write_text("\ufeff" + text, encoding="utf-8")  # the mark is no text
    printed = CliRunner().invoke(make_app(), ["evaluate", str(tmp_path / "text.txt"), "--json", "--threads", "1"])
    found = clearhead.load(dtype="float32", backend=backend).score(text).bits_per_byte
    stated = json.loads(printed.output)
    assert stated["bits_per_byte"] == pytest.approx(found, rel=1e-5)
    assert stated["model"] == "bundled" and stated["weights_sha256"] == weights_digest(weights.open("bundled"))
