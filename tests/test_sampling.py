"""Sampling against transformers' processors, SplitMix64's published outputs, and the frequencies it must have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from clearhead.errors import ClearheadError, InputError, WeightsError
from clearhead.inference.filters import top_k_ids
from clearhead.inference.logprobs import log_sum_exp, token_logprob
from clearhead.inference.options import SamplingParams
from clearhead.inference.sampling import Sampler, random_bits, stream_key

FEW = settings(deadline=None, max_examples=60)
V = 50257


def logits_of(seed: int, size: int, spread: float = 3.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def hf_probabilities(
    logits: npt.NDArray[np.float32], params: SamplingParams, seen: list[int]
) -> npt.NDArray[np.float64]:
    """The distribution that transformers' own processors, in generate's order, leave."""
    steps: list[Any] = []
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(MinPLogitsWarper(params.min_p))
    scores = LogitsProcessorList(steps)(torch.tensor([seen], dtype=torch.long), torch.from_numpy(logits.copy())[None])
    return torch.softmax(scores[0].double(), -1).numpy()


def our_probabilities(sampler: Sampler, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    ids, probabilities = sampler.distribution(logits)
    dense = np.zeros(len(logits))
    dense[ids] = probabilities
    return dense


@FEW
@given(
    data_seed=st.integers(0, 2**31),
    size=st.sampled_from([2, 7, 100, 3000]),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 200),
    top_p=st.just(1.0) | st.floats(0.05, 0.999),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.3, 2.0]),
    n_seen=st.integers(1, 30),
)
def test_filters_leave_what_transformers_leaves(
    data_seed: int,
    size: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    n_seen: int,
) -> None:
    logits = logits_of(data_seed, size)
    seen = np.random.default_rng(data_seed + 1).integers(0, size, n_seen).tolist()
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    ours = our_probabilities(Sampler(params, vocab_size=size, prompt_ids=seen), logits)
    theirs = hf_probabilities(logits, params, seen)
    # A token whose cumulative probability is within rounding of the limit may fall on either side.
    differ = np.flatnonzero((ours > 0) != (theirs > 0))
    assert len(differ) <= 1
    assert all(max(ours[i], theirs[i]) < 1e-3 or size < 10 for i in differ)
    if not len(differ):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_filters_on_the_real_vocabulary_size() -> None:
    for seed, params in enumerate(
        [
            SamplingParams(temperature=0.8, top_p=0.95),
            SamplingParams(temperature=1.0, top_k=50),
            SamplingParams(temperature=1.2, top_k=1000, top_p=0.9, min_p=0.01),
            SamplingParams(temperature=0.7, min_p=0.05),
            SamplingParams(temperature=1.0),
        ]
    ):
        logits = logits_of(seed, V)
        ours = our_probabilities(Sampler(params, vocab_size=V), logits)
        np.testing.assert_allclose(ours, hf_probabilities(logits, params, [0]), rtol=0, atol=2e-6)


@FEW
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 40))
def test_top_k_keeps_exactly_k_and_lower_ids_first_among_equals(values: list[int], k: int) -> None:
    logits = np.array(values, np.float32)
    k = min(k, len(values))
    expected = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:k])
    assert top_k_ids(logits, k).tolist() == expected


def test_top_p_keeps_the_token_that_crosses_and_lower_ids_first_among_equals() -> None:
    quarters = np.zeros(4, np.float32)
    for top_p, kept in [
        (0.2, [0]),
        (0.25, [0]),
        (0.26, [0, 1]),
        (0.5, [0, 1]),
        (0.74, [0, 1, 2]),
        (0.99, [0, 1, 2, 3]),
    ]:
        ids, probabilities = Sampler(SamplingParams(top_p=top_p), vocab_size=4).distribution(quarters)
        assert ids.tolist() == kept
        np.testing.assert_allclose(probabilities, 1 / len(kept))


def test_min_p_is_relative_to_the_most_likely() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.2, 0.07, 0.03])).astype(np.float32)
    ids, _ = Sampler(SamplingParams(min_p=0.15), vocab_size=5).distribution(logits)
    assert ids.tolist() == [0, 1, 2]


def test_greedy_takes_the_first_of_equal_maxima() -> None:
    logits = np.array([0, 5, 1, 5, 5], np.float32)
    greedy = Sampler(SamplingParams(temperature=0, top_k=3, top_p=0.1), vocab_size=5)
    assert [greedy.sample(logits) for _ in range(3)] == [1, 1, 1]


def test_presence_and_frequency_follow_openais_formula_over_generated_tokens_only() -> None:
    # mu[j] -> mu[j] - c[j] * frequency - (c[j] > 0) * presence, from OpenAI's API reference.
    params = SamplingParams(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = Sampler(params, vocab_size=3, prompt_ids=[0, 0, 0, 0])
    logits = np.array([1.0, 0.8, 0.1], np.float32)
    # 0 at 1.0; 1 at 0.8; then 0 at 0.25, 1 at 0.05, 2 at 0.1; then 0 at 0.0, 1 at 0.05, 2 at 0.1.
    assert [sampler.sample(logits) for _ in range(4)] == [0, 1, 0, 2]


def test_repetition_penalty_sees_what_was_generated() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=2.0)
    sampler = Sampler(params, vocab_size=200)
    logits = np.linspace(1.0, 1.5, 200, dtype=np.float32)
    drawn = [sampler.sample(logits) for _ in range(200)]
    assert drawn == list(range(199, -1, -1))  # each once, and the history grows past its first size
    assert sampler.sample(logits) == 199


def test_logit_bias_forces_and_forbids() -> None:
    logits = np.array([3, 2, 1], np.float32)
    assert Sampler(SamplingParams(temperature=0, logit_bias={2: 100}), vocab_size=3).sample(logits) == 2
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: -math.inf}), vocab_size=3).sample(logits) == 1
    assert logits.tolist() == [3, 2, 1]
    everything = SamplingParams(logit_bias=dict.fromkeys(range(3), -math.inf))
    with pytest.raises(InputError, match="forbids every token"):
        Sampler(everything, vocab_size=3).sample(logits)
    with pytest.raises(InputError, match="names token 3"):
        Sampler(SamplingParams(logit_bias={3: 1.0}), vocab_size=3)


def test_splitmix64_gives_its_published_outputs() -> None:
    # The first outputs of the reference implementation (Vigna, splitmix64.c) for the states 0 and 1234567.
    assert [hex(x) for x in random_bits(0, np.arange(3))] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]
    assert random_bits(1234567, np.arange(5)).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_stream_keys_differ_wherever_one_word_differs() -> None:
    keys = {stream_key(s, n, p) for s in range(20) for n in range(20) for p in range(50)}
    assert len(keys) == 20 * 20 * 50
    assert stream_key(2**63 - 1, 3, 7) < 2**64


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([1e-6, 0.05, 0.7, 1.0, 2.0, 50.0]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 20.0, -9.0]),
)
def test_a_draw_from_everything_is_the_same_as_from_a_filter_that_leaves_everything(
    seed: int, temperature: float, spread: float
) -> None:
    """Without a filter most tokens are ruled out before their noise is computed; that must not change the winner."""
    logits = logits_of(seed % 1000, 2000, spread)
    if spread < 0:  # one likely token, and many far below it that together are as likely
        logits = np.full(2000, spread * temperature, np.float32)
        logits[seed % 2000] = 0
    free = Sampler(SamplingParams(temperature=temperature, seed=seed), vocab_size=2000)
    # The least min_p that float64 has leaves every token whose weight is above zero, by another path.
    kept = Sampler(SamplingParams(temperature=temperature, min_p=5e-324, seed=seed), vocab_size=2000)
    assert [free.sample(logits) for _ in range(10)] == [kept.sample(logits) for _ in range(10)]


def g_statistic(observed: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """2 * sum(O ln(O / E)), which follows chi-square with (bins - 1) degrees of freedom."""
    some = observed > 0
    return float(2 * np.sum(observed[some] * np.log(observed[some] / expected[some])))


def chi_square_limit(degrees: int) -> float:
    """The value that a chi-square variable passes once in 100,000 times (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 4.265 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.slow
@pytest.mark.parametrize("vary", ["position", "sample index", "seed"])
@pytest.mark.parametrize("filtered", [False, True])
def test_frequencies_are_the_distribution(vary: str, filtered: bool) -> None:
    """Of right samplers one in 100,000 would fail each case; the seeds are fixed, so it passes always or never."""
    draws, size = 20_000, 24
    logits = logits_of(5, size, 1.0)
    params = SamplingParams(temperature=0.9, top_k=12 if filtered else None, seed=11)
    expected = hf_probabilities(logits, params, [0]) * draws
    sampler = Sampler(params, vocab_size=size)
    counts = np.zeros(size, np.int64)
    for i in range(draws):
        if vary != "position":
            sampler.position = 3
            sampler.seed, sampler.sample_index = (i, 0) if vary == "seed" else (11, i)
        counts[sampler.sample(logits)] += 1
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert g_statistic(counts[possible], expected[possible]) < chi_square_limit(int(possible.sum()) - 1)


def test_frequencies_at_the_real_vocabulary_size() -> None:
    """50,257 tokens gathered into 40 bins, one in 100,000 right samplers would fail."""
    draws = 3000
    logits = logits_of(8, V, 2.0)
    probabilities = hf_probabilities(logits, SamplingParams(), [0])
    bins = np.arange(V) % 40
    sampler = Sampler(SamplingParams(seed=1), vocab_size=V)
    counts = np.bincount([bins[sampler.sample(logits)] for _ in range(draws)], minlength=40)
    expected = np.bincount(bins, probabilities, minlength=40) * draws
    assert g_statistic(counts, expected) < chi_square_limit(39)


def test_successive_draws_are_independent() -> None:
    draws, size = 40_000, 5
    logits = logits_of(2, size, 0.5)
    p = hf_probabilities(logits, SamplingParams(), [0])
    sampler = Sampler(SamplingParams(seed=77), vocab_size=size)
    drawn = np.array([sampler.sample(logits) for _ in range(draws)])
    pairs = np.bincount(drawn[:-1] * size + drawn[1:], minlength=size * size)
    # Overlapping pairs: G(pairs) - G(singles) is chi-square with size^2 - size degrees of freedom (Good 1953).
    joint = g_statistic(pairs, np.outer(p, p).ravel() * (draws - 1))
    singles = g_statistic(np.bincount(drawn[:-1], minlength=size), p * (draws - 1))
    assert joint - singles < chi_square_limit(size * size - size)


def test_rounding_in_the_logits_hardly_ever_changes_a_text() -> None:
    """Two backends differ by some 1e-5; a seed must give one text on both. Inverse-CDF sampling fails this."""
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=1.0, seed=5)
    one, other = Sampler(params, vocab_size=V), Sampler(params, vocab_size=V)
    changed = 0
    for i in range(400):
        logits = logits_of(i % 7, V, 2.0)
        noise = (rng.standard_normal(V) * 1e-5).astype(np.float32)
        changed += one.sample(logits) != other.sample(logits + noise)
    assert changed <= 1


def test_one_seed_gives_one_sequence_and_samples_differ() -> None:
    logits = logits_of(0, 1000)

    def drawn(seed: int | None, index: int = 0) -> list[int]:
        sampler = Sampler(SamplingParams(seed=seed), vocab_size=1000, sample_index=index)
        return [sampler.sample(logits) for _ in range(20)]

    assert drawn(4) == drawn(4)
    assert drawn(4) != drawn(5)
    assert drawn(4, 0) != drawn(4, 1)
    assert drawn(None) != drawn(None)
    fresh = Sampler(SamplingParams(), vocab_size=1000)
    assert drawn(fresh.seed) == [fresh.sample(logits) for _ in range(20)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(temperature=0.5, top_k=10, top_p=0.9, min_p=0.1, repetition_penalty=1.1),
    ],
)
def test_logits_that_are_no_numbers_are_an_error(bad: float, params: SamplingParams) -> None:
    logits = logits_of(0, 100)
    logits[63] = bad
    with pytest.raises(WeightsError, match="no token can be chosen"):
        Sampler(params, vocab_size=100).sample(logits)


@FEW
@given(st.integers(0, 10_000), st.integers(2, 400), st.integers(0, 8), st.sampled_from([1.0, 30.0]))
def test_logprobs_are_torchs_log_softmax(seed: int, size: int, n_top: int, spread: float) -> None:
    logits = logits_of(seed, size, spread)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    token = seed % size
    found = token_logprob(logits, token, n_top)
    assert found.id == token
    assert found.logprob == pytest.approx(float(expected[token]), abs=1e-9)
    values, ids = torch.topk(expected, min(n_top, size))
    assert [i for i, _ in found.top] == ids.tolist()
    np.testing.assert_allclose([p for _, p in found.top], values, atol=1e-9)
    np.testing.assert_allclose(log_sum_exp(logits), torch.logsumexp(torch.from_numpy(logits).double(), -1), atol=1e-9)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 0}, "top_k is 0.*None for no limit"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf"),
        ({"frequency_penalty": None}, "frequency_penalty is None"),
        ({"logit_bias": {-1: 1}}, "logit_bias has the key -1"),
        ({"logit_bias": {"5": 1}}, "logit_bias has the key '5'"),
        ({"logit_bias": {5: math.inf}}, "logit_bias for token 5 is inf"),
        ({"logit_bias": [1]}, "logit_bias is \\[1\\]"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 1.0}, "seed is 1.0"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(bad: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as raised:
        SamplingParams(**bad)
    assert isinstance(raised.value, ClearheadError)
    assert str(raised.value).endswith(".")


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**63 - 1),
    vocab_size=st.integers(2, 400),
    temperature=st.floats(0.05, 3),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_the_compiled_draw_takes_the_greatest_score_of_what_is_left(
    seed: int, vocab_size: int, temperature: float, top_p: float, min_p: float
) -> None:
    """`distribution` lists the tokens that are left; the definition of Gumbel-max picks one of them."""
    params = SamplingParams(temperature=temperature, top_p=top_p, min_p=min_p, seed=seed)
    logits = (np.random.default_rng(seed).standard_normal(vocab_size) * 3).astype(np.float32)
    ids, _ = Sampler(params, vocab_size=vocab_size).distribution(logits)
    uniform = ((random_bits(stream_key(seed, 0, 0), ids) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    scores = logits[ids].astype(np.float64) / temperature - np.log(-np.log(uniform))
    assert Sampler(params, vocab_size=vocab_size).sample(logits) == ids[np.argmax(scores)]
