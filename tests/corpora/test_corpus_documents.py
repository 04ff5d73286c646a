"""Documents of a text file, and vocabularies of bytes and of characters."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data.documents import documents, fragments_in, read_blocks
from clearhead.errors import TokenizerError
from clearhead.tokenizer import Tokenizer
from corpora.small_corpora import SEPARATOR


def by_lines(text: str) -> list[str]:
    """The documents of a text as its lines tell them."""
    found = [""]
    for line in io.StringIO(text, newline=""):
        if line.strip() == "<|endoftext|>":
            found.append("")
        else:
            found[-1] += line
    return [document.strip() for document in found if document.strip()]


WORDS = [
    "<|endoftext|>",
    "<|endof",
    "text|>",
    "\n",
    "\r",
    "\r\n",
    " ",
    "\t",
    "\u3000",
    "\x85",
    "a",
    "bc",
    "é",
    "。",
    "x y",
]


class Named(io.BytesIO):
    name = "text"


@settings(deadline=None, max_examples=300)
@given(
    text=st.lists(st.sampled_from(WORDS), max_size=30).map("".join), size=st.integers(1, 9), cut_documents=st.booleans()
)
def test_documents_do_not_depend_on_how_a_file_is_read(text: str, size: int, cut_documents: bool) -> None:
    data, found, at = text.encode(), list[str](), 0
    for block, part in read_blocks(Named(data), size=size, cut_documents=cut_documents):
        assert block.start == at
        assert part == data[block.start : block.end]
        at = block.end
        for piece in fragments_in(block, part, "text"):
            if piece.begins:
                found.append(piece.text)
            else:
                assert cut_documents
                assert piece.text[0] in " \n\r"
                assert not found[-1][-1].isspace()
                found[-1] += piece.text
    assert at == len(data)
    assert found == by_lines(text)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20), max_size=6))
def test_documents_are_what_stands_between_the_separators(tmp_path_factory: Any, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("documents") / "text.txt"
    path.write_text(SEPARATOR.join(texts), encoding="utf-8", newline="")
    assert list(documents(path)) == [text.strip() for text in texts if text.strip()]


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), end_of_text=st.booleans())
def test_characters_are_those_of_the_library(tmp_path_factory: Any, text: str, end_of_text: bool) -> None:
    folder = tmp_path_factory.mktemp("characters")
    Tokenizer.of_characters(text, end_of_text=end_of_text).save(folder)
    opened = Tokenizer.from_folder(folder)
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert opened.vocab_size == len(set(text)) + end_of_text
    assert opened.encode(text) == peer.encode(text).ids == opened.encode_array(text).tolist()
    assert opened.encode(text) == [sorted(set(text)).index(character) for character in text]
    assert opened.decode(opened.encode(text)) == peer.decode(opened.encode(text)) == text
    stream = opened.stream()
    assert "".join([*map(stream.push, opened.encode(text)), stream.finish()]) == text


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_are_those_of_the_library(tmp_path_factory: Any, text: str) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    Tokenizer.of_bytes().save(folder)
    opened = Tokenizer.from_folder(folder)
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert opened.encode(text) == peer.encode(text).ids == list(text.encode())
    assert opened.decode(opened.encode(text)) == text
    assert (opened.vocab_size, opened.end_of_text) == (257, 256)
    assert opened.encode("<|endoftext|>", special=True) == [256]


@pytest.mark.slow
def test_transformers_opens_characters(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    ours = Tokenizer.of_characters("to be, or not\n 你", end_of_text=True)
    ours.save(tmp_path)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    assert peer("not to be\n你")["input_ids"] == ours.encode("not to be\n你")
    assert peer.decode(ours.encode("not to be\n你")) == "not to be\n你"
    assert peer.eos_token_id == ours.end_of_text == ours.vocab_size - 1


def test_a_character_that_is_not_in_the_vocabulary_is_named() -> None:
    tokenizer = Tokenizer.of_characters("abc")
    for text in ("abß", "ab\U0001f600"):
        with pytest.raises(TokenizerError, match=rf"no token for the character '{text[2]}'"):
            tokenizer.encode(text)
    with pytest.raises(TokenizerError, match="no character"):
        Tokenizer.of_characters([])
