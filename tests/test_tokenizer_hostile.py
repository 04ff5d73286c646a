"""Tokenizer files that were made to do harm, or that the library cannot stand: one sentence, quickly."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import clearhead
from clearhead.errors import TokenizerError
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.validation import MAX_ID

WORD_LEVEL = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<unk>": 2}, "unk_token": "<unk>"}


def write(folder: Path, **parts: Any) -> Path:
    definition = {"version": "1.0", "added_tokens": [], "model": WORD_LEVEL} | parts
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return folder


def replace(text: str, by: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": by}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


def test_a_pattern_that_backtracks_for_ever_ends(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = Tokenizer.from_folder(write(tmp_path, pre_tokenizer=split))
    start = time.monotonic()
    with pytest.raises(TokenizerError, match="cannot be used on this text"):
        tokenizer.encode("a" * 5000 + "b")
    with pytest.raises(TokenizerError, match="cannot be used on these texts"):
        tokenizer.encode_batch(["a" * 5000 + "b", "a"])
    assert time.monotonic() - start < 60  # exponential time would be longer than the universe's age


@pytest.mark.parametrize(
    "normalizer",
    [
        sequence(*[replace("a", "aa")] * 40),
        sequence(replace("a", "b" * 100_000)),
        sequence(replace("", "bbb"), replace("b", "a" * 200)),
        sequence(sequence(*[replace("a", "aaa")] * 4), sequence(*[replace("a", "aaaa")] * 4)),
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000},
        sequence(*[{"type": "ByteLevel"}] * 30),
    ],
)
def test_texts_that_would_explode(tmp_path: Path, normalizer: Any) -> None:
    with pytest.raises(TokenizerError, match="more than 256 times as long"):
        Tokenizer.from_folder(write(tmp_path, normalizer=normalizer))


def test_steps_of_a_usual_length_are_accepted(tmp_path: Path) -> None:
    normalizer = sequence(replace("``", '"'), replace(" ", "\u2581"), replace("b", "aa"), {"type": "NFKC"})
    assert Tokenizer.from_folder(write(tmp_path, normalizer=normalizer)).encode("b") == [2]


def nested(depth: int) -> Any:
    step: Any = {"type": "NFC"}
    for _ in range(depth):
        step = sequence(step)
    return step


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"normalizer": nested(21)}, "more than 20 deep"),
        ({"model": WORD_LEVEL | {"vocab": {"a": 10**9}}}, "the id 1000000000; a whole number"),
        ({"model": WORD_LEVEL | {"vocab": {"a": MAX_ID + 1}}}, "from 0 to 4,194,304"),
        ({"model": WORD_LEVEL | {"vocab": {"\ud800": 0}}}, "half of a surrogate pair"),
        ({"model": {"type": "WordLevel", "unk_token": "<unk>"}}, "has no tokens"),
        ({"model": WORD_LEVEL | {"unk_token": []}}, r"the unknown token \[\]"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]]}}, "a token and its score"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}, "cannot be opened"),
        ({"model": {"type": "Unigram", "vocab": [], "unk_id": None}}, "cannot be|no tokens"),
        ({"added_tokens": [{"id": 10**9, "content": "x"}]}, "the added token"),
        ({"added_tokens": [{"id": 3, "content": ["x"]}]}, "the added token"),
        ({"added_tokens": [{"id": 3, "content": "x", "special": "yes"}]}, "true or false"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "cannot be opened"),
        ({"decoder": {"type": "\x1b[2J"}}, "cannot be opened"),
    ],
)
def test_definitions_that_cannot_be(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    folder = write(tmp_path, **parts)
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.from_folder(folder).encode("a b")
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 600


def test_json_that_is_nested_very_deep(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(TokenizerError, match="not valid JSON"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(("value", "what"), [(b"bytes", "bytes"), (None, "None"), (3, "an int")])
def test_a_text_that_is_no_string_is_refused(value: Any, what: str) -> None:
    with pytest.raises(TokenizerError, match=f"the text is {what}; give a string"):
        Tokenizer.of_bytes().encode(value)


@pytest.mark.parametrize("table", ["////vw==", "AA==", "", "no base64", None, 7])
@pytest.mark.parametrize("inside", [False, True])
def test_a_table_of_characters_that_is_cut_off(tmp_path: Path, table: Any, inside: bool) -> None:
    """The first announces 3 GB, which the library would reserve."""
    step = {"type": "Precompiled", "precompiled_charsmap": table}
    with pytest.raises(TokenizerError, match=r"table of characters in .* is cut off"):
        Tokenizer.from_folder(write(tmp_path, normalizer=sequence(sequence(step)) if inside else step))


def test_the_result_of_generate_is_told_where_its_text_is() -> None:
    gpt = clearhead.load()
    tokenizer, generation = gpt.tokenizer, gpt.generate("One day", max_new_tokens=2)
    assert tokenizer is not None
    with pytest.raises(TokenizerError, match=r"is a Generation, not a string; give its text: the attribute `\.text`"):
        tokenizer.encode(generation)  # type: ignore[arg-type]
