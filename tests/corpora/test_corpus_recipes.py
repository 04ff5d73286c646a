"""Corpora of recipes, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from clearhead.data import vocabulary as vocabulary_module
from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import build_corpus, corpus_of_recipe
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.data.documents import documents
from clearhead.data.sources.base import Cursor
from clearhead.data.sources.find import find_sources
from clearhead.data.sources.text_file import TextFile
from clearhead.errors import InputError, TrainingError
from clearhead.tokenizer import Tokenizer
from corpora.small_corpora import all_stories, change_a_byte, clearhead, documents_in, plan_of, set_block_size, stories


def recipe_of(**changes: Any) -> CorpusRecipe:
    texts = (SourceRecipe("plain", "a.txt", weight=3.0), SourceRecipe("lines", "b.jsonl", validation="0.2"))
    return CorpusRecipe(**{"source": texts, **changes})


def test_a_recipes_corpus_has_its_texts_and_learns_its_vocabulary(data: Path, tmp_path: Path) -> None:
    corpus = corpus_of_recipe(recipe_of(), 300, data, tmp_path / "corpus")
    assert list(corpus.train) == ["plain", "lines"]
    assert list(corpus.valid) == ["lines"]
    assert corpus.tokenizer.vocab_size == 300
    assert documents_in(corpus, "train", "plain") == stories(50, 1)
    assert sorted(documents_in(corpus, "train", "lines") + documents_in(corpus, "valid", "lines")) == sorted(
        stories(40, 2)
    )
    # The merges are those of the texts, a paragraph at a time.
    paragraphs = [f"{paragraph}\n\n" for text in all_stories() for paragraph in text.split("\n\n")]
    expected = Tokenizer.train(paragraphs, 300)
    assert corpus.tokenizer.encode(" ".join(all_stories())) == expected.encode(" ".join(all_stories()))


@pytest.mark.parametrize("block", [50, 100_000])
def test_a_sample_of_the_texts_is_shared_out_by_weight(
    block: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block_size(monkeypatch, block)
    corpus = corpus_of_recipe(recipe_of(tokenizer_bytes=2000), 280, data, tmp_path / "corpus")
    paragraphs, left = [], {1: 1500, 2: 500}
    for seed, number in ((1, 50), (2, 40)):
        for paragraph in (f"{p}\n\n" for text in stories(number, seed) for p in text.split("\n\n")):
            if left[seed] > 0:
                size = len(paragraph.encode())
                end = math.ceil(len(paragraph) * left[seed] / size)
                cut = next((c for white in "\n " if (c := paragraph.rfind(white, 1, end + 1)) > 0), end)
                paragraphs.append(paragraph if size < left[seed] else paragraph[:cut])
                left[seed] -= size
    expected = Tokenizer.train(paragraphs, 280)
    assert corpus.tokenizer.encode(" ".join(all_stories())) == expected.encode(" ".join(all_stories()))


@pytest.mark.parametrize("block", [30, 100_000])
def test_a_text_without_blank_lines_is_learned_from_in_parts(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_block_size(monkeypatch, block)
    monkeypatch.setattr(vocabulary_module, "_LONGEST_PIECE", 100)
    lines = "\n".join(text.replace("\n\n", " ") for text in stories(60, 7))
    (tmp_path / "lines.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "one.txt").write_text("x" * 990, encoding="utf-8")
    source, one = find_sources([str(tmp_path / "lines.txt"), str(tmp_path / "one.txt")])
    whole = list(vocabulary_module._WeightedSample([(source, 1.0)], 1 << 20))
    assert "".join(whole) == f"{lines}\n\n"
    assert max(map(len, whole)) <= 100
    assert all(part[0].isspace() for part in whole[1:])
    sample = list(vocabulary_module._WeightedSample([(source, 1.0)], 1000))
    assert f"{lines}\n\n".startswith("".join(sample))
    assert abs(len("".join(sample).encode()) - 1000) < 100
    if block > 990:  # a block ends where there is a space
        assert [*map(len, vocabulary_module._WeightedSample([(one, 1.0)], 250))] == [100, 100, 50]


def test_a_recipe_with_other_weights_or_texts_is_another_corpus(data: Path, tmp_path: Path) -> None:
    corpus_of_recipe(recipe_of(), 300, data, tmp_path / "corpus")
    other = (SourceRecipe("plain", "a.txt", weight=4.0), SourceRecipe("lines", "b.jsonl", validation="0.2"))
    for recipe, size in ((recipe_of(source=other), 300), (recipe_of(), 301), (recipe_of(tokenizer="bytes"), 300)):
        with pytest.raises(TrainingError, match="built from other texts or settings"):
            corpus_of_recipe(recipe, size, data, tmp_path / "corpus")


def test_a_corpus_for_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="vocabulary of 257 tokens and the model has 256; set vocab_size"):
        corpus_of_recipe(recipe_of(tokenizer="bytes"), 256, data, tmp_path / "corpus")
    # Rows of the model that no token uses are no harm.
    assert corpus_of_recipe(recipe_of(tokenizer="bytes"), 320, data, tmp_path / "corpus").tokenizer.vocab_size == 257


def test_a_recipe_may_name_a_corpus_that_is_there(data: Path, tmp_path: Path) -> None:
    built = build_corpus(plan_of(data), data / "corpus")
    found = corpus_of_recipe(CorpusRecipe(built="corpus"), 257, data, tmp_path / "unused")
    assert found.key == built.key
    assert not (tmp_path / "unused").exists()
    change_a_byte(data / "corpus/text.train.00000.bin")
    with pytest.raises(TrainingError, match="not as it was built"):
        corpus_of_recipe(CorpusRecipe(built="corpus"), 257, data, tmp_path / "unused")


@pytest.mark.parametrize(
    ("write", "words"),
    [(None, r"b\.jsonl could not be read"), (b"  \n", "has no text"), (b"\xff\xfe", "not JSON")],
    ids=["missing", "empty", "binary"],
)
def test_a_recipes_text_that_cannot_be_used_is_named(
    data: Path, tmp_path: Path, write: bytes | None, words: str
) -> None:
    (data / "b.jsonl").unlink()
    if write is not None:
        (data / "b.jsonl").write_bytes(write)
    with pytest.raises((TrainingError, InputError), match=words):
        corpus_of_recipe(recipe_of(), 280, data, tmp_path / "corpus")
    assert not (tmp_path / "corpus/manifest.json").exists()


@pytest.mark.slow
def test_the_command_builds_and_inspects(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    done = clearhead("corpus", "build", data, "-o", folder, "-t", "characters", "-v", "tail:0.1")
    assert (done.returncode, done.stderr) == (0, "")
    corpus = Corpus(folder)
    shown = clearhead("corpus", "inspect", folder, "--documents", 1)
    assert f"{corpus.train['text'].tokens:,}" in shown.stdout
    assert "all 4 files have the checksums" in shown.stdout
    assert stories(50, 1)[0][:50] in shown.stdout
    assert json.loads(clearhead("corpus", "inspect", folder, "--json", "--quick").stdout) == corpus.manifest
    change_a_byte(folder / "text.valid.00000.bin")
    broken = clearhead("corpus", "inspect", folder)
    assert broken.returncode == 2
    assert "text.valid.00000.bin is not as it was built" in broken.stderr
    assert clearhead("corpus", "inspect", folder, "--quick").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.txt", "-t", "./nowhere"], "there is no tokenizer"),
        (["a.txt", "-t", "bytes", "-v", "2"], "a share of the documents"),
        (["a.txt", "-t", "bytes", "-v", "0.1", "--valid", "b.jsonl"], "give only one of --validation and --valid"),
        (["a.txt", "-t", "bytes", "--name", "../x"], "cannot be part of a file name"),
        (["c.txt", "-t", "bytes"], "c.txt could not be read"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments: list[str], words: str, data: Path, tmp_path: Path) -> None:
    named = [str(data / a) if (data / a).suffix in (".txt", ".jsonl") else a for a in arguments]
    done = clearhead("corpus", "build", *named, "-o", tmp_path / "corpus")
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "corpus").exists()


def test_a_missing_text_is_named_before_a_missing_option() -> None:
    done = clearhead("corpus", "build", "nothing_here.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the text nothing_here.txt could not be read" in done.stderr and "--out" not in done.stderr


def test_a_drawn_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one document")
    done = clearhead("corpus", "build", tmp_path / "t.txt", "-o", tmp_path / "corpus", "-t", "bytes")
    assert done.returncode == 0
    assert "no document was drawn for validation" in done.stderr


def test_a_text_file_is_read_by_its_bytes_alone(tmp_path: Path) -> None:
    """What another process reads of a file that became shorter meanwhile is not taken."""
    (tmp_path / "t.txt").write_text("one two")
    source = TextFile("t.txt", tmp_path / "t.txt")
    chunk = next(iter(source.chunks(Cursor(), cut_documents=True)))
    (tmp_path / "t.txt").write_text("on")
    with pytest.raises(TrainingError, match="has changed since"):
        list(source.fragments(chunk.content))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """With and without one, a file has the same documents; inside a text the character stays."""
    (tmp_path / "plain.txt").write_text("one\n<|endoftext|>\ntwo \ufeff 2\n", encoding="utf-8")
    (tmp_path / "marked.txt").write_text("\ufeffone\n<|endoftext|>\ntwo \ufeff 2\n", encoding="utf-8")
    assert (
        list(documents(tmp_path / "marked.txt")) == list(documents(tmp_path / "plain.txt")) == ["one", "two \ufeff 2"]
    )
