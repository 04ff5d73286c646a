"""Tokenizers of GPT-2's wider family: the ids of `transformers` and of the libraries that wrote the files."""

from __future__ import annotations

import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, T5Tokenizer

import clearhead
from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.errors import TokenizerError
from clearhead.model import GPTModel
from clearhead.tokenizer import Tokenizer

CHINESE = "这是很久之前的事情了，当时的我还是一个孩子。他说：“你好！世界？”在2020年（春天）、我们去北京"
WORDS = ["hello", "world", "##ing", "##s", "play", "ca", "##fe", "café", "the", "a", "##a", "b", "##b", "20", "##20"]
VOCAB = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(CHINESE), *WORDS, ".", "!", "-", "'"]

mixed_text = st.lists(
    st.sampled_from([*CHINESE, *WORDS, "Hello", "CAFÉ", " ", "  ", "\n", "[SEP]", "[MASK]", "##", "龘", "é", "🙂"])
    | st.text(max_size=3),
    max_size=15,
).map("".join)


@pytest.fixture(scope="module", params=[{}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}])
def word_piece(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("word_piece")
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **request.param}))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 50256}))
    return folder


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=mixed_text)
def test_word_piece_gives_the_ids_of_transformers(word_piece: Path, text: str) -> None:
    ours, theirs = _opened(word_piece)
    assert ours.encode(text, special=True) == theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids


_cache: dict[Path, tuple[Tokenizer, Any]] = {}


def _opened(folder: Path) -> tuple[Tokenizer, Any]:
    if folder not in _cache:
        _cache[folder] = Tokenizer.from_folder(folder), BertTokenizer.from_pretrained(folder)
    return _cache[folder]


def test_word_piece_ends_at_the_separator(word_piece: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(word_piece)
    assert ours.end_of_text == VOCAB.index("[SEP]")
    assert set(ours.special_tokens) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    ours.save(tmp_path)
    again, theirs = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.end_of_text == ours.end_of_text
    for text in (CHINESE, "Hello worlds, playing", "[SEP]"):
        assert again.encode(text) == ours.encode(text)
        assert again.encode(text, special=True) == theirs(text, add_special_tokens=False).input_ids


@settings(deadline=None, max_examples=100)
@given(text=st.lists(st.sampled_from([c for c in dict.fromkeys(CHINESE) if c not in "20"]), min_size=1).map("".join))
def test_chinese_text_comes_back_exactly_and_streams_so(chinese: Tokenizer, text: str) -> None:
    ids = chinese.encode(text)
    assert chinese.decode(ids) == text
    stream = chinese.stream()
    shown = ""
    for id in ids:
        shown += stream.push(id)
        assert text.startswith(shown)
    assert shown + stream.finish() == text


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("chinese")
    (folder / "vocab.txt").write_text("\r\n".join(VOCAB), encoding="utf-8-sig")
    return Tokenizer.from_folder(folder)


def test_words_keep_their_spaces_and_pieces_are_joined(chinese: Tokenizer) -> None:
    for text in ("hello worlds", "playing the world!", "他说hello world。", "在2020年"):
        assert chinese.decode(chinese.encode(text)) == text
    assert chinese.decode(chinese.encode("他 说 hello 世界")) == "他说hello世界"


def test_a_chinese_gpt2_writes_and_stops(word_piece: Path, tmp_path: Path) -> None:
    config = GPTConfig(
        vocab_size=len(VOCAB), context_length=32, emb_dim=8, n_heads=2, n_layers=1, qkv_bias=True, tie_weights=True
    )
    tensors = {name: tensor.detach().numpy() for name, tensor in GPTModel(config).state_dict().items()}
    weights.save_huggingface(tmp_path, config, tensors)
    (tmp_path / "vocab.txt").write_bytes((word_piece / "vocab.txt").read_bytes())
    gpt = clearhead.load(tmp_path)
    text = str(gpt.generate("这是很久之前", max_new_tokens=20, seed=3).samples[0].text)
    streamed = "".join(gpt.stream("这是很久之前", max_new_tokens=20, seed=3))
    assert streamed == text and "##" not in text
    assert gpt.tokenizer is not None and gpt.tokenizer.end_of_text == VOCAB.index("[SEP]")
    weights.convert(tmp_path, tmp_path / "copy", "huggingface")
    copied = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert copied(CHINESE, add_special_tokens=False).input_ids == gpt.tokenizer.encode(CHINESE, special=True)


SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "こんにちは世界 今日は良い天気です",
    "naïve café 12345 !?",
    CHINESE,
]


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentence_piece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, vocab_size=130, model_type="unigram",
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return folder


spm_text = st.lists(st.sampled_from([*"".join(SENTENCES), " ", "the", "世界", "ｶﾞ", "①", "龘", "\n"]), max_size=25)


@settings(deadline=None, max_examples=200)
@given(text=spm_text.map("".join))
def test_sentence_piece_gives_the_ids_of_its_own_library(sentence_piece: Path, text: str) -> None:
    ours = Tokenizer.from_folder(sentence_piece)
    own = sentencepiece.SentencePieceProcessor(model_file=str(sentence_piece / "spiece.model"))
    assert ours.encode(text) == own.encode(text)
    assert ours.decode(ours.encode(text)).replace("<unk>", "") == own.decode(own.encode(text)).replace(" \u2047 ", "")


def test_sentence_piece_gives_the_ids_of_transformers(sentence_piece: Path, tmp_path: Path) -> None:
    ours, theirs = Tokenizer.from_folder(sentence_piece), T5Tokenizer.from_pretrained(sentence_piece, extra_ids=0)
    assert ours.end_of_text == theirs.eos_token_id == 1
    ours.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    chance = random.Random(4)
    letters = [*"".join(SENTENCES), " ", "the", "龘", "</s>"]
    for _ in range(200):
        text = "".join(chance.choices(letters, k=20))
        ids = ours.encode(text, special=True)
        assert ids == theirs(text, add_special_tokens=False).input_ids
        assert ids == again(text, add_special_tokens=False).input_ids


BPE_KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "bytes, as Llama's": {
        "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "no space in front": {"add_dummy_prefix": False},
    "symbols": {"user_defined_symbols": ["<sep>", "世界"], "control_symbols": ["<cls>"]},
}  # fmt: skip


@pytest.fixture(scope="module", params=BPE_KINDS)
def sentence_piece_bpe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentence_piece_bpe")
    model = io.BytesIO()
    options: dict[str, Any] = {"vocab_size": 400, "model_type": "bpe", "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=model, **options, **BPE_KINDS[request.param]
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    return folder


SYMBOLS = ["<sep>", "世界"]
bpe_text = st.lists(
    st.sampled_from([*"".join(SENTENCES), " ", "the", "ｶﾞ", "①", "龘", "\n", "<cls>", *SYMBOLS]), max_size=25
)


@settings(deadline=None, max_examples=200)
@given(text=bpe_text.map("".join).filter(lambda text: text.strip() not in SYMBOLS))  # these lose the space in front
def test_sentence_piece_bpe_gives_the_ids_of_its_own_library(sentence_piece_bpe: Path, text: str) -> None:
    ours = Tokenizer.from_folder(sentence_piece_bpe)
    own = sentencepiece.SentencePieceProcessor(model_file=str(sentence_piece_bpe / "spiece.model"))
    ids = ours.encode(text)
    assert ids == own.encode(text)
    assert ours.decode(ids).replace("<unk>", "") == own.decode(ids).replace(" \u2047 ", "")
    stream = ours.stream()
    assert "".join([*(stream.push(id) for id in ids), stream.finish()]) == ours.decode(ids)


@pytest.mark.parametrize(
    "contents",
    [b"", b"\x0a", b"\xff" * 40, b"\x0a\x02\x0a\x00", b"not a model at all", b"\x0a\x09\x0a\x01a\x15\0\0\xc0\x7f"],
)
def test_broken_sentence_piece_files(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "spiece.model").write_bytes(contents)
    with pytest.raises(TokenizerError):
        Tokenizer.from_folder(tmp_path).encode("a")


def test_a_table_of_characters_that_is_cut_off(tmp_path: Path) -> None:
    """It announces 3 GB, which the library would reserve."""
    pieces = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02"
    (tmp_path / "spiece.model").write_bytes(pieces + b"\x1a\x06\x12\x04\x67\x32\x49\xc0")
    with pytest.raises(TokenizerError, match=r"table of characters in .* is cut off"):
        Tokenizer.from_folder(tmp_path)


def test_nanogpt_characters(tmp_path: Path) -> None:
    characters = sorted(set("First Citizen:\nBefore we proceed, hear me."))
    stoi = {character: id for id, character in enumerate(characters)}
    meta = {"vocab_size": len(stoi), "itos": {id: c for c, id in stoi.items()}, "stoi": stoi}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    ours = Tokenizer.from_folder(tmp_path)
    text = "we hear me.\n"
    assert ours.encode(text) == [stoi[c] for c in text]
    assert ours.decode(ours.encode(text)) == text
    assert (ours.vocab_size, ours.end_of_text) == (len(stoi), None)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("harm"), "done")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"stoi": Malicious()}, "refers to"),
        ({"itos": {}}, "no 'stoi'"),
        ({"stoi": {"ab": 0}}, "no 'stoi' from characters"),
        ({"stoi": {"a": 5}}, "without gaps"),
        ({"stoi": {"a": 0, "b": 0}}, "to two tokens"),
        ([1, 2], "no 'stoi'"),
    ],
)
def test_a_pickle_runs_no_code(tmp_path: Path, value: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.from_folder(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_aitextgens_file(tmp_path: Path) -> None:
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator(SENTENCES * 20, vocab_size=300, special_tokens=["<|endoftext|>"])
    library.save(str(tmp_path / "aitextgen.tokenizer.json"))
    ours = Tokenizer.from_folder(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "aitextgen.tokenizer.json"))
    assert ours.end_of_text == 0
    for text in (*SENTENCES, "a<|endoftext|>b"):
        assert ours.encode(text, special=True) == theirs(text).input_ids
        assert ours.decode(ours.encode(text)) == text
