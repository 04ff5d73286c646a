"""The tokenizer against tiktoken, tokenizers and transformers, and against what a user can get wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer

from clearhead.errors import TokenizerError
from clearhead.tokenizer import END_OF_TEXT, Tokenizer, tiktoken_ranks
from clearhead.tokenizer.backends import split_long_white_space
from clearhead.tokenizer.tiktoken_ranks import parts_stay_separate

ORIGINAL_RULE = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""  # OpenAI's encoder.py

CORPUS = [
    "The quick brown fox doesn't jump; it'll rest. " * 3,
    "In 1984 there were 12345 reasons to write\n\n\ttables,   and    none to read them!!! ",
    "Größe, naïveté, žluťoučký kůň, Привет мир, 你好世界, こんにちは 🙂🙂 👩‍👩‍👧 ",
    "aaaaaaaaaaaa bbbbbb abababab aaab baaa          \n\n\n\n\n",
    f"one document{END_OF_TEXT}another document",
]

# Text with the runs, apostrophes, spaces and markers at which tokenizers differ, and any character at all.
_LETTERS = [
    "a",
    "aaa",
    "the",
    " the",
    "'s",
    "'LL",
    "1",
    "½",
    "é",
    "e\u0301",
    "你好",
    "🙂",
    "👩\u200d👩\u200d👧",
    "\U00033480",
]
_SPACES = [" ", "  ", "\n", "\r\n", "\t", "\x1c", "\x85", "\u3000", "\x00", "\ufffd", "\ufeff", "\u200b"]
_MARKS = ["<|endoftext|>", "<|", "|>", "!", "..."]
pieces = st.sampled_from(_LETTERS + _SPACES + _MARKS)
any_text = st.lists(pieces | st.text(max_size=6), max_size=20).map("".join)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(CORPUS, 400)


@pytest.fixture(scope="module")
def saved(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    small.save(folder)
    return folder


def in_library(folder: Path) -> Any:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def write(folder: Path, **files: Any) -> Path:
    """Writes files into a folder; `name_json=value` becomes name.json."""
    folder.mkdir(exist_ok=True)
    for name, value in files.items():
        stem, _, kind = name.rpartition("_")
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / f"{stem}.{kind}").write_text(text, encoding="utf-8")
    return folder


def backend_of(tokenizer: Tokenizer) -> str:
    return type(tokenizer._backend).__name__


# --- the same ids as the peers -------------------------------------------------------------------


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


# --- where tiktoken may stand in -----------------------------------------------------------------


def byte_letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


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


def write_bpe_files(tmp_path: Path, merges: list[str], vocab: dict[str, int] | None = None) -> Path:
    tokens = [*byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    vocab = {token: id for id, token in enumerate(tokens)} if vocab is None else vocab
    return write(tmp_path, vocab_json=vocab, merges_txt="\n".join(["#version: 0.2", *merges, ""]))


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


# --- other kinds of tokenizer.json ---------------------------------------------------------------


def word_piece() -> Any:
    vocab = ["[UNK]", "[SEP]", "he", "##llo", "##l", "wor", "##ld", "a", "##a", ".", ",", "'", "s", "n", "##t", "好"]
    opened = tokenizers.Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    opened.normalizer = normalizers.BertNormalizer()
    opened.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    opened.decoder = decoders.WordPiece()
    opened.add_special_tokens(["[SEP]"])
    return opened


def llama_like() -> Any:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for token in ["▁", "a", "b", "▁a", "ab", "▁ab", "é", "好"]:
        vocab[token] = len(vocab)
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    opened = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    opened.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    opened.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return opened


def metaspace_unigram() -> Any:
    scores = [
        ("<unk>", 0.0),
        ("▁", -2.0),
        ("▁a", -1.0),
        ("a", -2.0),
        ("b", -2.5),
        ("▁ab", -1.5),
        ("é", -3.0),
        ("</s>", -9.0),
    ]
    opened = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    opened.pre_tokenizer = pre_tokenizers.Metaspace()
    opened.decoder = decoders.Metaspace()
    opened.add_special_tokens(["</s>"])
    return opened


def split_byte_level() -> Any:
    opened = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate([*byte_letters(), "ab"])}, [("a", "b")]))
    split = pre_tokenizers.Split(tokenizers.Regex(r"\w+|\W"), "isolated")
    opened.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    opened.decoder = decoders.ByteLevel()
    return opened


def fused_byte_level() -> Any:
    opened = split_byte_level()
    opened.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return opened


def prefixed_byte_level() -> Any:
    opened = split_byte_level()
    opened.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return opened


KINDS: list[Callable[[], Any]] = [
    word_piece,
    llama_like,
    metaspace_unigram,
    split_byte_level,
    fused_byte_level,
    prefixed_byte_level,
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def other_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    library = request.param()
    path = tmp_path_factory.mktemp("kinds") / "tokenizer.json"
    library.enable_truncation(3)
    library.enable_padding(length=3)
    library.save(str(path))
    library.no_truncation()
    library.no_padding()
    return Tokenizer.from_json(path), library


@settings(deadline=None, max_examples=100)
@given(text=st.text(alphabet="ab helowrd.,'é好🙂", max_size=30))
def test_other_kinds_give_the_librarys_ids_and_text(other_kind: tuple[Tokenizer, Any], text: str) -> None:
    ours, library = other_kind
    ids = ours.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    decoded = library.decode(ids, skip_special_tokens=False)
    if "WordPiece" in str(library.decoder):  # which puts spaces between Chinese characters
        decoded = decoded.replace(" 好", "好").replace("好 ", "好")
    assert ours.decode(ids) == decoded
    assert ours.encode_batch([text, "ab"]) == [ids, ours.encode("ab")]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_other_kinds_stream_to_the_same_text(other_kind: tuple[Tokenizer, Any], data: st.DataObject) -> None:
    ours, _ = other_kind
    # Text, so that whole characters come in parts, and among it any ids, so that some never become whole.
    text = st.text(alphabet="ab helo.é好🙂", max_size=4).map(ours.encode)
    parts = data.draw(st.lists(text | st.lists(st.integers(0, ours.vocab_size - 1), max_size=3), max_size=8))
    ids = [id for part in parts for id in part]
    stream = ours.stream()
    assert "".join([stream.push(id) for id in ids]) + stream.finish() == ours.decode(ids)


def test_special_tokens_of_other_kinds_are_text_unless_asked_for(tmp_path: Path) -> None:
    word_piece().save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.end_of_text == 1
    assert ours.special_tokens == {"[SEP]": 1}
    assert ours.encode("a[SEP]", special=True) == [7, 1]
    assert 1 not in ours.encode("a[SEP]")


def test_other_kinds_are_saved_and_opened_by_transformers(other_kind: tuple[Tokenizer, Any], tmp_path: Path) -> None:
    ours, _ = other_kind
    ours.save(tmp_path)
    again, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a hello world.", "ab ab  é好", ""):
        assert again.encode(text) == ours.encode(text) == theirs(text, add_special_tokens=False).input_ids


# --- decoding ------------------------------------------------------------------------------------


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


# --- text that cannot be encoded, or is hard to --------------------------------------------------


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


# --- training ------------------------------------------------------------------------------------


def test_training_lays_ids_out_as_gpt2_does(small: Tokenizer) -> None:
    assert (small.vocab_size, small.end_of_text) == (400, 399)
    assert small.special_tokens == {END_OF_TEXT: 399}
    assert [small.token_bytes(id) for id in range(94)] == [bytes([byte]) for byte in range(33, 127)]
    assert sorted(small.token_bytes(id) for id in range(256)) == [bytes([byte]) for byte in range(256)]
    assert all(len(small.token_bytes(id)) > 1 for id in range(256, 400))
    assert len(small.encode(CORPUS[0])) < len(CORPUS[0]) / 3


def test_the_end_of_text_is_not_learned() -> None:
    texts = [f"{END_OF_TEXT}ab"] * 50
    trained = Tokenizer.train(texts, 258)
    assert trained.token_bytes(256) == b"ab"
    with pytest.raises(TokenizerError, match="a vocabulary of 258 tokens at most, but 259 were asked for"):
        Tokenizer.train(texts, 259)


def test_the_smallest_vocabulary_is_the_bytes_and_the_end() -> None:
    bytes_only = Tokenizer.train([], 257)
    assert (bytes_only.vocab_size, bytes_only.end_of_text) == (257, 256)
    assert len(bytes_only.encode("é 🙂")) == len("é 🙂".encode())
    with pytest.raises(TokenizerError, match="256 was asked for; the least is 257"):
        Tokenizer.train(["text"], 256)


def test_training_is_the_same_in_another_process_with_other_threads(small: Tokenizer) -> None:
    code = (
        "import json, sys; from clearhead.tokenizer import Tokenizer; t = Tokenizer.train(json.load(sys.stdin), 400);"
        "print(json.dumps([t.token_bytes(i).hex() for i in range(400)]))"
    )
    environment = {
        **os.environ,
        "RAYON_NUM_THREADS": "1",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(CORPUS),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert json.loads(run.stdout) == [small.token_bytes(id).hex() for id in range(400)]


# --- files ---------------------------------------------------------------------------------------


def test_saved_files_open_everywhere_with_the_same_ids(small: Tokenizer, saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    ]  # fmt: skip
    text = "".join(CORPUS)
    expected = small.encode(text, special=True)
    from_files = Tokenizer.from_bpe_files(saved / "vocab.json", saved / "merges.txt")
    for ours in (Tokenizer.from_folder(saved), Tokenizer.from_json(saved / "tokenizer.json"), from_files):
        assert ours.encode(text, special=True) == expected
        assert (ours.vocab_size, ours.end_of_text) == (400, 399)
    for theirs in (AutoTokenizer.from_pretrained(saved), GPT2Tokenizer.from_pretrained(saved)):
        assert theirs(text).input_ids == expected
        assert theirs.decode(expected) == text
        assert (len(theirs), theirs.eos_token, theirs.eos_token_id) == (400, END_OF_TEXT, 399)


def test_what_transformers_saves_is_opened(saved: Path, tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(saved)
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    text = "the <pad> fox<|endoftext|>"
    assert ours.encode(text, special=True) == theirs(text).input_ids
    assert (ours.vocab_size, ours.end_of_text) == (401, 399)
    ours.save(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(text).input_ids == theirs(text).input_ids
    assert again.eos_token_id == 399


def test_another_end_of_text(saved: Path, tmp_path: Path) -> None:
    library = in_library(saved)
    library.add_special_tokens(["</s>"])
    library.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_folder(tmp_path).end_of_text == 399
    write(tmp_path, **{"config_json": {"eos_token_id": 400}})
    assert Tokenizer.from_folder(tmp_path).end_of_text == 399  # a name goes before a number
    write(tmp_path, **{"special_tokens_map_json": {"eos_token": {"content": "</s>"}}})
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.end_of_text == 400
    ours.save(tmp_path / "again")
    assert Tokenizer.from_folder(tmp_path / "again").end_of_text == 400
    assert AutoTokenizer.from_pretrained(tmp_path / "again").eos_token_id == 400
    write(tmp_path, **{"special_tokens_map_json": {}, "tokenizer_config_json": {"eos_token": "<none>"}})
    with pytest.raises(TokenizerError, match="'<none>' as the end of text, but the vocabulary has no such token"):
        Tokenizer.from_folder(tmp_path)


def test_no_end_of_text_stays_none(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(write_bpe_files(tmp_path, ["a b"]))
    assert ours.end_of_text is None
    ours.save(tmp_path / "again")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert len(theirs) == 257
    assert theirs.eos_token is None
    assert Tokenizer.from_folder(tmp_path / "again").end_of_text is None
    write(tmp_path, **{"config_json": {"eos_token_id": 50256}})
    assert Tokenizer.from_folder(tmp_path).end_of_text is None


def test_a_leading_space_is_taken_from_the_settings(saved: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    write(tmp_path, **{"tokenizer_config_json": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}})
    ours, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("the fox") == theirs("the fox").input_ids == Tokenizer.from_folder(saved).encode(" the fox")


def test_pickling_keeps_everything(small: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(small))
    assert again.encode("the fox") == small.encode("the fox")
    assert again.end_of_text == small.end_of_text


def test_a_failed_save_leaves_the_old_files(small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(TokenizerError, match="No space left"):
        Tokenizer.train(["other text " * 9], 260).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- broken files --------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer; expected tokenizer\.json, vocab\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match="is not a folder"):
        Tokenizer.from_folder(tmp_path / "absent")
    write(tmp_path, **{"vocab_json": {"a": 0}})
    with pytest.raises(TokenizerError, match=r"has vocab.json but not merges.txt"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match="could not be read"):
        Tokenizer.from_json(tmp_path / "absent.json")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_refused(saved: Path, tmp_path: Path, name: str, share: float) -> None:
    for path in saved.iterdir():
        if path.name != "tokenizer.json" or name == "tokenizer.json":
            data = path.read_bytes()
            (tmp_path / path.name).write_bytes(data[: int(len(data) * share)] if path.name == name else data)
    with pytest.raises(TokenizerError, match=r"cut short|not UTF-8"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("vocab", "merges", "sentence"),
    [
        ({"a": 0, "b": 1}, "a b\n", "merge 1 joins 'a' and 'b', but 'ab' is not in the vocabulary"),
        ({"a": 0, "ab": 1}, "a b\n", "but 'b' is not in the vocabulary"),
        ({"a": 0, "b": 1, "ab": 2, "xyz": 3, "yz": 4}, "a b\n", r"no merge makes 2 of the tokens \(such as 'xyz'\)"),
        ({"a": 0, "b": 1, "ab": 2}, "#version: 0.2\na b c\n", r"line 2 of .* is 'a b c'; two tokens"),
        ({"a": 0, "b": 0}, "", "gives the id 0 to two tokens, 'a' and 'b'"),
        ({"a": 0, "b": "1"}, "", "gives token 'b' the id '1'; a whole number"),
        ({"a": -1}, "", "gives token 'a' the id -1"),
        ({}, "", "has no tokens"),
        ("[1, 2]", "", "has a JSON list"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, vocab: Any, merges: str, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        Tokenizer.from_folder(write(tmp_path, vocab_json=vocab, merges_txt=merges))


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        ({}, "no valid 'model'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}}, "has the merge 'a'; two tokens"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", 3]]}}, "has the merge"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "has no list of merges"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]}}, "'aa' is not in the vocabulary"),
        ({"model": {"type": "Telepathy"}}, "cannot be opened"),
        ({"model": {"type": "WordLevel"}, "added_tokens": [3]}, "has the added token 3"),
        ({"model": {"type": "WordLevel"}, "decoder": []}, "no valid 'decoder'"),
    ],
)
def test_definitions_that_cannot_be(tmp_path: Path, definition: Any, sentence: str) -> None:
    with pytest.raises(TokenizerError, match=sentence):
        Tokenizer.from_folder(write(tmp_path, tokenizer_json=definition))


def test_importing_the_module_loads_no_library() -> None:
    code = (
        "import sys, clearhead.tokenizer; heavy = {'tiktoken', 'tokenizers', 'torch', 'numpy', 'transformers'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == "[]"
