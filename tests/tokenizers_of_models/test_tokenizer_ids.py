"""Ids of byte-level BPE, against transformers and tiktoken."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer

from clearhead.tokenizer import END_OF_TEXT, Tokenizer, tiktoken_ranks
from clearhead.tokenizer.tiktoken_ranks import parts_stay_separate
from tokenizers_of_models.tokenizer_files import any_text, byte_letters, in_library, write, write_bpe_files

ORIGINAL_RULE = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # OpenAI's encoder.py


def backend_of(tokenizer: Tokenizer) -> str:
    return type(tokenizer._backend).__name__


@settings(deadline=None, max_examples=200)
@given(text=any_text)
@example("a" * 50 + " " * 50 + "x")
def test_small_vocabulary_gives_transformers_ids_and_the_text_back(small: Tokenizer, saved: Path, text: str) -> None:
    theirs = transformers_of(saved)
    ids = small.encode(text, special=True)
    assert ids == theirs(text).input_ids
    assert small.decode(ids) == text
    plain = small.encode(text)
    assert plain == theirs(text, split_special_tokens=True).input_ids
    assert small.end_of_text not in plain
    assert small.decode(plain) == text


_opened: dict[Path, Any] = {}


def transformers_of(folder: Path) -> Any:
    if folder not in _opened:
        _opened[folder] = AutoTokenizer.from_pretrained(folder)
    return _opened[folder]


@pytest.fixture(scope="module")
def gpt2(gpt2_files: Path) -> Tokenizer:
    return Tokenizer.from_folder(gpt2_files)


@pytest.fixture(scope="module")
def gpt2_in_tiktoken(gpt2_files: Path) -> tiktoken.Encoding:
    ranks = data_gym_to_mergeable_bpe_ranks(str(gpt2_files / "vocab.bpe"), str(gpt2_files / "encoder.json"))
    return tiktoken.Encoding(
        "gpt2",
        pat_str=ORIGINAL_RULE,
        mergeable_ranks=ranks,
        special_tokens={END_OF_TEXT: 50256},
        explicit_n_vocab=50257,
    )


@pytest.fixture(scope="module")
def gpt2_in_transformers(gpt2_files: Path) -> Any:
    return GPT2Tokenizer(vocab=str(gpt2_files / "encoder.json"), merges=str(gpt2_files / "vocab.bpe"))


@settings(deadline=None, max_examples=200)
@given(text=any_text)
def test_gpt2_ids_equal_tiktoken_and_transformers(
    gpt2: Tokenizer, gpt2_in_tiktoken: tiktoken.Encoding, gpt2_in_transformers: Any, text: str
) -> None:
    assert gpt2.encode(text) == gpt2_in_tiktoken.encode_ordinary(text)
    special = gpt2.encode(text, special=True)
    assert special == gpt2_in_tiktoken.encode(text, allowed_special="all") == gpt2_in_transformers(text).input_ids
    assert gpt2.decode(special) == text


def test_gpt2_facts(gpt2: Tokenizer) -> None:
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("Hello, world!") == [15496, 11, 995, 0]
    assert gpt2.encode(END_OF_TEXT, special=True) == [50256]
    assert gpt2.encode(END_OF_TEXT) == [27, 91, 437, 1659, 5239, 91, 29]
    assert backend_of(gpt2) == "TiktokenBackend"


def test_gpt2_merges_are_the_known_ones_and_pass_the_check_that_is_skipped_for_them(
    gpt2: Tokenizer, gpt2_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = gpt2._definition["model"]["merges"]
    assert parts_stay_separate(merges)
    monkeypatch.setattr(tiktoken_ranks, "parts_stay_separate", lambda merges: pytest.fail("the check was not skipped"))
    Tokenizer.from_folder(gpt2_files)


def test_gpt2_every_token_has_the_bytes_tiktoken_gives_it(gpt2: Tokenizer, gpt2_in_tiktoken: tiktoken.Encoding) -> None:
    for id in range(gpt2.vocab_size):
        assert gpt2.token_bytes(id) == gpt2_in_tiktoken.decode_single_token_bytes(id)


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(any_text, max_size=30), special=st.booleans(), threads=st.sampled_from([None, 1, 3]))
def test_batch_is_one_by_one(small: Tokenizer, texts: list[str], special: bool, threads: int | None) -> None:
    expected = [small.encode(text, special=special) for text in texts]
    assert small.encode_batch(iter(texts), special=special, threads=threads) == expected


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32), disorder=st.sampled_from(["none", "none", "ids", "merges"]))
def test_any_order_of_merges_gives_the_librarys_ids(
    tmp_path_factory: pytest.TempPathFactory, seed: int, disorder: str
) -> None:
    """Merges that no training would give: tiktoken alone would often differ, and must then not be used."""
    chance = random.Random(seed)
    # Short words as well as long: tiktoken looks a whole word up before it merges.
    text = "".join(chance.choices("abc ", weights=[4, 2, 2, chance.choice([1, 3])], k=400))
    tokens = byte_letters()
    merges: list[str] = []
    reachable = ["a", "b", "c"]
    for _ in range(chance.randint(1, 12)):
        left, right = chance.choice(reachable), chance.choice(reachable)
        if left + right not in reachable:
            merges.append(f"{left} {right}")
            reachable.append(left + right)
    if disorder == "merges":
        chance.shuffle(merges)
    tokens += [merge.replace(" ", "") for merge in merges]
    if disorder == "ids":
        chance.shuffle(tokens)
    vocab = {token: id for id, token in enumerate(tokens)}
    folder = tmp_path_factory.mktemp("merges")
    write(folder, vocab_json=vocab, merges_txt="\n".join(["#version: 0.2", *merges, ""]))
    library = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ours = Tokenizer.from_folder(folder)
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    assert ours.decode(ids) == text


def test_merges_that_tiktoken_cannot_follow_go_to_the_library(tmp_path: Path) -> None:
    # "abc" is only learned from a + bc, but ab comes first: BPE leaves "abc" as ab, c; tiktoken would join them.
    tokenizer = Tokenizer.from_folder(write_bpe_files(tmp_path, ["a b", "b c", "a bc"]))
    assert backend_of(tokenizer) == "TokenizersBackend"
    assert [tokenizer.token_bytes(id) for id in tokenizer.encode("abc")] == [b"ab", b"c"]


def test_merges_of_letters_that_are_no_bytes_never_happen(tmp_path: Path) -> None:
    tokens = [*byte_letters(), "你", "好", "你好"]
    vocab = {token: id for id, token in enumerate(tokens)}
    library = tokenizers.Tokenizer(models.BPE(vocab, [("你", "好")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_json(tmp_path / "tokenizer.json")
    assert ours.encode("你好") == library.encode("你好").ids
    assert len(ours.encode("你好")) == 6


def test_merges_that_tiktoken_can_follow_go_to_tiktoken(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_bpe_files(tmp_path, ["a a", "aa a", "aa aa", "b c", "a bc"]))
    assert backend_of(tokenizer) == "TiktokenBackend"


def test_ids_that_do_not_follow_the_merges(tmp_path: Path) -> None:
    merges = ["a b", "ab c", "d e"]
    tokens = ["de", *byte_letters(), "abc", "ab"]
    folder = write_bpe_files(tmp_path, merges, {token: id for id, token in enumerate(tokens)})
    tokenizer = Tokenizer.from_folder(folder)
    assert [tokens[id] for id in tokenizer.encode("abcabde")] == ["abc", "ab", "de"]
    assert backend_of(tokenizer) == "TokenizersBackend"


@pytest.mark.parametrize("seed", range(5))
def test_trained_vocabularies_use_tiktoken(seed: int) -> None:
    chance = random.Random(seed)
    texts = ["".join(chance.choices("aab \n'", k=200)) for _ in range(20)]
    assert backend_of(Tokenizer.train(texts, 330)) == "TiktokenBackend"


@settings(deadline=None, max_examples=100)
@given(
    text=st.lists(st.sampled_from(["<a>", "<a><b>", "<b>", "<", "a", ">", " ", END_OF_TEXT]), max_size=12).map("".join)
)
def test_special_tokens_that_begin_alike(saved: Path, tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    library = in_library(saved)
    library.add_special_tokens(["<a>", "<a><b>"])
    path = tmp_path_factory.mktemp("special") / "tokenizer.json"
    library.save(str(path))
    ours = Tokenizer.from_json(path)
    assert backend_of(ours) == "TiktokenBackend"
    assert ours.vocab_size == 402
    assert ours.encode(text, special=True) == library.encode(text).ids
    assert ours.decode(ours.encode(text, special=True)) == text
    assert max(ours.encode(text), default=0) < 399
