"""The compiled encoder gives the ids of the libraries for every text."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.errors import TokenizerError
from clearhead.tokenizer import Tokenizer, bulk
from clearhead.tokenizer.bulk import BulkEncoder

TEXT = (
    "It's the dog's 1st bone, and they'll've eaten 12,500 of them! 'Tis “odd” — isn't it?\n\n  The naïve Zoë said: "
    "don't!!  \t\r\n 你好，世界。 Ещё раз… \u00a0\u3000 ½ ² Ⅳ ٣\n" * 3
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT, "the there then 1234 'll ''' ...... !!! \n\n\n      "] * 3, 380)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> BulkEncoder:
    return BulkEncoder(tokenizer)


@pytest.fixture(scope="module")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def count(encoder: BulkEncoder, text: str) -> int:
    """Return how many ids the compiled code finds; -1 if it leaves the text to the tokenizer."""
    data = np.frombuffer(text.encode(), np.uint8)
    out = np.empty(len(data), np.uint32)
    return int(bulk._encode(data, *encoder._tables, encoder._words, encoder._count, *encoder._scratch, out))


@pytest.mark.slow
def test_ids_are_the_librarys(encoder: BulkEncoder, peer: tokenizers.Tokenizer) -> None:
    expected = peer.encode(TEXT).ids
    for _ in range(2):  # first merged, then remembered
        assert encoder(TEXT).tolist() == expected
    assert encoder(TEXT).dtype == np.uint32
    assert count(encoder, TEXT) == len(expected)  # and none of it is left to the tokenizer
    assert encoder("").tolist() == []


PARTS = st.sampled_from(
    [
        *("'", "'s", "'ll", "'v", "'re", "l", "the", "The", "é", "你", "Ж", "ab"),
        *("1", "23", "½", "٣", ".", "!!", "—", "…", "😀", "\ufe0f", "\u0301", "\u0000", "\U000e0001", "\u0cbc"),
        *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\u200b", "\u180e", "\x1c", "\x85"),
        *("abcdefgh" * 4, "x" * 39, "x" * 40, " " * 38, "<|endoftext|>"),
    ]
)


@settings(deadline=None, max_examples=400)
@given(text=st.lists(PARTS, max_size=20).map("".join))
def test_any_mixture_has_the_librarys_ids(text: str, encoder: BulkEncoder, peer: tokenizers.Tokenizer) -> None:
    peer.encode_special_tokens = True
    assert encoder(text).tolist() == peer.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_has_the_librarys_ids(text: str, encoder: BulkEncoder, peer: tokenizers.Tokenizer) -> None:
    peer.encode_special_tokens = True
    assert encoder(text).tolist() == peer.encode(text, add_special_tokens=False).ids


def test_every_character_is_cut_as_the_tokenizer_cuts_it(encoder: BulkEncoder, tokenizer: Tokenizer) -> None:
    points = [point for point in range(0x20000) if not 0xD800 <= point < 0xE000]
    known = 0
    for first in range(0, len(points), 64):
        some = [point for point in points[first : first + 64] if encoder._tables[0][point] != bulk._UNKNOWN]
        text = "".join(f"a{c}1{c}. {c}{c} \n{c}" for c in map(chr, some))
        known += len(some)
        assert encoder(text).tolist() == tokenizer.encode(text)
        assert count(encoder, text) >= 0
    assert known > 50_000


@pytest.mark.parametrize("length", [399, 400, 401, 5000])
def test_long_pieces_have_the_tokenizers_ids(length: int, encoder: BulkEncoder, tokenizer: Tokenizer) -> None:
    for text in ("the" * (length // 3 + 1), " " * length + "x", "!" * length, "é" * (length // 2)):
        assert encoder(text).tolist() == tokenizer.encode(text)


def test_a_copy_encodes_alike(encoder: BulkEncoder, tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(encoder))))
    for text in (TEXT, "left to the tokenizer: \U000e0001", "!" * 5000):
        assert copy(text).tolist() == tokenizer.encode(text)


def test_a_full_memory_changes_nothing(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_WORDS", 16)
    small = BulkEncoder(tokenizer)
    for _ in range(2):
        assert small(TEXT).tolist() == tokenizer.encode(TEXT)
    assert small._count[0] == 8


def test_what_the_tokenizer_refuses_is_refused(encoder: BulkEncoder) -> None:
    with pytest.raises(TokenizerError, match="half of a surrogate pair"):
        encoder("a\ud800")


def test_other_vocabularies_have_no_pairs() -> None:
    assert Tokenizer.of_bytes().byte_pairs() is None
    assert Tokenizer.of_characters("abc").byte_pairs() is None


def test_gpt2s_own_ids(gpt2_files: Path) -> None:
    tokenizer = Tokenizer.from_folder(gpt2_files)
    encoder = BulkEncoder(tokenizer)
    chance = random.Random(1)
    words = [tokenizer.decode([id]) for id in range(tokenizer.vocab_size - 1)]
    for text in (TEXT, *("".join(chance.choices(words, k=500)) for _ in range(200))):
        assert encoder(text).tolist() == tokenizer.encode(text)
