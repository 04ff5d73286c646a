"""WindowBatches: every token once an epoch, in an order that the seed and the step decide alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data.batches import WindowBatches
from clearhead.data.permutation import Permutation
from clearhead.data.shards import ShardedTokens
from clearhead.errors import TrainingError


def numbered(*lengths: int) -> dict[str, np.ndarray]:
    """Texts whose every id says which text and which place it is from."""
    return {str(text): np.arange(length) + 100_000 * text for text, length in enumerate(lengths)}


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 3000), key=st.lists(st.integers(0, 2**40), max_size=3))
def test_a_permutation_gives_each_number_once(size: int, key: list[int]) -> None:
    order = Permutation(size, *key)
    assert sorted(order(place) for place in range(size)) == list(range(size))


def test_a_permutation_of_any_size_needs_no_memory() -> None:
    order = Permutation(10**15, 1)
    found = [order(place) for place in range(1000)]
    assert len(set(found)) == 1000
    assert all(0 <= number < 10**15 for number in found)
    # Shuffled: neighbours are a third of the range apart on the average, as of any two numbers that are drawn.
    assert np.abs(np.diff(found)).mean() == pytest.approx(10**15 / 3, rel=0.1)


def test_permutations_of_other_keys_agree_no_more_than_by_chance() -> None:
    first, second = ([Permutation(500, key, 3)(place) for place in range(500)] for key in (1, 2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    # Every place may get every number: over many keys the first place's numbers fill all quarters alike.
    quarters = Counter(4 * Permutation(500, key)(0) // 500 for key in range(400))
    assert all(60 < quarters[quarter] < 140 for quarter in range(4))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(21, 400), min_size=1, max_size=3),
    context=st.integers(1, 20),
    size=st.integers(1, 7),
    seed=st.integers(0, 2**31),
    step=st.integers(0, 200),
)
def test_a_batch_is_windows_of_the_texts_and_depends_on_the_step_alone(
    lengths: list[int], context: int, size: int, seed: int, step: int
) -> None:
    def make() -> WindowBatches:
        return WindowBatches(numbered(*lengths), {str(i): i + 1.0 for i in range(len(lengths))}, context, size, seed)

    inputs, targets = make().draw(step)
    assert inputs.shape == targets.shape == (size, context)
    assert inputs.dtype == targets.dtype == np.int64
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    for given_ids, asked in zip(inputs.tolist(), targets.tolist(), strict=True):
        for before, after in zip(given_ids, asked, strict=True):
            text, place = divmod(before, 100_000)
            assert after == 100_000 * text + (place + 1) % lengths[text]
    used = make()
    for earlier in (3, 0, step + 5):
        used.draw(earlier)
    assert (used.draw(step)[0] == inputs).all()


@settings(deadline=None, max_examples=60)
@given(length=st.integers(21, 300), context=st.integers(1, 20), seed=st.integers(0, 2**31), epochs=st.integers(1, 4))
def test_each_token_goes_in_once_an_epoch_and_is_asked_for_once(
    length: int, context: int, seed: int, epochs: int
) -> None:
    """In so many epochs each token is seen so often; the last window's end is taken from the text's beginning."""
    batches = WindowBatches(numbered(length), {"0": 1.0}, context, 1, seed)
    windows = -(-epochs * length // context)
    found = [batches.draw(step) for step in range(windows)]
    over = windows * context - epochs * length
    assert 0 <= over < context
    for row, shift in ((0, 0), (1, 1)):
        seen = Counter(int(i) for pair in found for i in pair[row][0])
        assert seen == {(i + shift) % length: epochs + (i < over) for i in range(length)}
    assert batches.epochs(windows) == [windows * context / length]


@settings(deadline=None, max_examples=30)
@given(length=st.integers(300, 600), context=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_an_epoch_has_an_order_of_its_own(length: int, context: int, seed: int) -> None:
    batches = WindowBatches(numbered(length), {"0": 1.0}, context, 1, seed)
    starts = [int(batches.draw(step)[0][0, 0]) for step in range(2 * length // context)]
    half = len(starts) // 2
    assert starts[:half] != sorted(starts[:half])
    assert starts[:half] != starts[half : 2 * half]


def test_texts_come_by_their_weights() -> None:
    batches = WindowBatches(numbered(4000, 900, 900), {"0": 5.0, "1": 3.0, "2": 2.0}, 4, 10, seed=7)
    texts = Counter(int(row[0]) // 100_000 for step in range(200) for row in batches.draw(step)[0])
    assert texts == {0: 1000, 1: 600, 2: 400}
    early = Counter(int(row[0]) // 100_000 for step in range(20) for row in batches.draw(step)[0])
    assert 70 <= early[0] <= 130  # the pattern is shuffled, not one text after another


def test_a_text_shorter_than_a_window_is_refused() -> None:
    assert WindowBatches(numbered(17), {"0": 1.0}, 16, 1, 1).draw(0)[0].shape == (1, 16)
    with pytest.raises(TrainingError, match=r"'0' has 16 tokens.*at least 17"):
        WindowBatches(numbered(16), {"0": 1.0}, 16, 1, 1)


@settings(deadline=None, max_examples=40)
@given(length=st.integers(21, 200), each=st.integers(1, 60), step=st.integers(0, 40))
def test_shards_make_no_difference(length: int, each: int, step: int) -> None:
    ids = np.arange(length, dtype=np.uint16)
    tokens = ShardedTokens([ids[first : first + each] for first in range(0, length, each)], ids.dtype)
    assert len(tokens) == length
    whole, cut = (WindowBatches({"0": text}, {}, 20, 3, 5).draw(step)[0] for text in (ids, tokens))
    assert (whole == cut).all()


@settings(deadline=None, max_examples=100)
@given(length=st.integers(0, 60), each=st.integers(1, 20), start=st.integers(-70, 70), stop=st.integers(-70, 70))
def test_tokens_are_sliced_as_an_array(length: int, each: int, start: int, stop: int) -> None:
    ids = np.arange(length, dtype=np.uint32)
    tokens = ShardedTokens([ids[first : first + each] for first in range(0, length, each)], ids.dtype)
    assert tokens[start:stop].tolist() == ids[start:stop].tolist()
    assert tokens[start:stop].dtype == ids.dtype
    assert np.asarray(tokens).tolist() == ids.tolist()
