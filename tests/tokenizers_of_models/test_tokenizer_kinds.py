"""Tokenizers of other kinds, against the tokenizers library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from clearhead.tokenizer import Tokenizer
from tokenizers_of_models.tokenizer_files import byte_letters


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
