"""Texts and files that the tests of tokenizers share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from clearhead.tokenizer import END_OF_TEXT

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


def byte_letters() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def write_bpe_files(tmp_path: Path, merges: list[str], vocab: dict[str, int] | None = None) -> Path:
    tokens = [*byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    vocab = {token: id for id, token in enumerate(tokens)} if vocab is None else vocab
    return write(tmp_path, vocab_json=vocab, merges_txt="\n".join(["#version: 0.2", *merges, ""]))
