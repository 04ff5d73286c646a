"""Streams of ids, refused ids and texts, and long texts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.errors import TokenizerError
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.backends import split_long_white_space
from tokenizers_of_models.tokenizer_files import any_text, byte_letters, in_library, write_bpe_files


@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 255) | st.integers(0, 399), max_size=40))
def test_stream_of_any_ids_is_the_decoded_text(small: Tokenizer, ids: list[int]) -> None:
    stream = small.stream()
    shown = "".join([stream.push(id) for id in ids]) + stream.finish()
    assert shown == small.decode(ids) == small.decode_bytes(ids).decode("utf-8", "replace")
    assert small.decode_bytes(ids) == b"".join(small.token_bytes(id) for id in ids)


@settings(deadline=None, max_examples=200)
@given(text=any_text)
def test_stream_of_a_text_shows_only_beginnings_of_it(small: Tokenizer, text: str) -> None:
    stream, shown = small.stream(), ""
    for id in small.encode(text):
        shown += stream.push(id)
        assert text.startswith(shown)
    assert stream.finish() == ""
    assert shown == text


def test_stream_keeps_a_half_character_back_until_the_end(small: Tokenizer) -> None:
    ids = [id for byte in "🙂".encode() for id in range(256) if small.token_bytes(id) == bytes([byte])]
    stream = small.stream()
    assert [stream.push(id) for id in ids] == ["", "", "", "🙂"]
    assert [stream.push(id) for id in ids[:3]] == ["", "", ""]
    assert stream.finish() == "\ufffd"
    assert stream.push(ids[0]) + stream.finish() == "\ufffd"  # begins anew


@pytest.mark.parametrize("bad", [400, -1, 10**12])
def test_ids_outside_the_vocabulary_are_refused(small: Tokenizer, bad: int) -> None:
    for call in (small.token_bytes, small.stream().push, lambda id: small.decode([65, id])):
        with pytest.raises(TokenizerError, match=rf"no token with the id {bad}; the vocabulary has ids from 0 to 399"):
            call(bad)


def test_an_id_that_no_token_has_is_refused(tmp_path: Path) -> None:
    vocab = {token: 2 * id for id, token in enumerate(byte_letters())}
    tokenizer = Tokenizer.from_folder(write_bpe_files(tmp_path, [], vocab))
    assert tokenizer.vocab_size == 511
    assert tokenizer.decode(tokenizer.encode("ab é")) == "ab é"
    with pytest.raises(TokenizerError, match=r"id 3; .* that one is not used"):
        tokenizer.decode([2, 3])


def test_half_a_surrogate_pair_is_refused(small: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"character 2 of the text .* U\+D83D"):
        small.encode("é\n\ud83d x")
    with pytest.raises(TokenizerError, match=r"in text 1 of the batch .* character 0 of the text .* U\+DE42"):
        small.encode_batch(["fine", "\ude42"])
    with pytest.raises(TokenizerError, match=r"U\+D800"):
        Tokenizer.train(["\ud800"], 300)


def test_a_byte_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    vocab = {token: id for id, token in enumerate("abcdÃ")}
    tokenizer = Tokenizer.from_folder(write_bpe_files(tmp_path, [], vocab))
    assert tokenizer.decode(tokenizer.encode("abcd")) == "abcd"
    with pytest.raises(TokenizerError, match="no token for a byte of 'é'"):
        tokenizer.encode("abé")


@pytest.mark.parametrize("run", ["a", " ", "\n", "\t\u3000", "!", "é", "1"])
def test_a_megabyte_of_one_kind_ends_quickly(small: Tokenizer, run: str) -> None:
    text = run * (1_000_000 // len(run)) + "x" + run * 20 + "y"
    start = time.perf_counter()
    ids = small.encode(text)
    assert time.perf_counter() - start < 60  # quadratic time would be hours
    assert small.decode(ids) == text


@pytest.mark.parametrize("before", ["", "x", "x "])
@pytest.mark.parametrize("after", ["", "x", "!", "\ny", "\x1cz", "'s"])
def test_cuts_in_long_white_space_change_no_id(small: Tokenizer, saved: Path, before: str, after: str) -> None:
    for white in (" ", "\n", "\u3000 "):
        text = before + white * (100_001 // len(white)) + " " + after
        assert len(list(split_long_white_space(text + "x"))) == 2 or after.startswith("\n")
        assert small.encode(text) == in_library(saved).encode(text).ids
