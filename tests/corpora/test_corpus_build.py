"""What a corpus consists of, and what is held out."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data.corpus_builder import _CorpusBuild, build_corpus, corpus_of_recipe
from clearhead.data.corpus_plan import CorpusPlan, TextPlan, ValidationSplit
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.data.sources.find import find_sources
from clearhead.data.vocabulary import Vocabulary
from clearhead.errors import InputError, TrainingError
from clearhead.tokenizer import Tokenizer
from corpora.small_corpora import (
    SEPARATOR,
    TAKE,
    all_stories,
    documents_in,
    files_in,
    interrupt_at,
    plan_of,
    set_block_size,
    stories,
)


@pytest.mark.parametrize("tokenizer", ["merges", "bytes", "characters"])
def test_a_corpus_is_the_libraries_tokens_of_its_documents(
    tokenizer: str, data: Path, vocabulary: Path, tmp_path: Path, small_blocks: None
) -> None:
    named = vocabulary if tokenizer == "merges" else tokenizer
    corpus = build_corpus(plan_of(data, tokenizer=named, shard_tokens=1024), tmp_path / "corpus", processes=1)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "corpus/tokenizer.json"))
    end = peer.token_to_id("<|endoftext|>")
    part, ids = corpus.train["text"], corpus.tokens(corpus.train["text"])
    assert ids[:].tolist() == [i for text in all_stories() for i in [end, *peer.encode(text).ids]]
    assert documents_in(corpus) == all_stories()
    assert part.text_bytes == sum(len(text.encode()) for text in all_stories())
    assert (part.documents, part.tokens) == (90, len(ids))
    assert [shard.tokens for shard in part.shards[:-1]] == [1024] * (len(part.shards) - 1)
    assert len(part.shards) > 2
    for shard in part.shards:
        raw = (tmp_path / "corpus" / shard.file).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == shard.sha256
        assert np.frombuffer(raw, "<u2").max() < corpus.tokenizer.vocab_size
    for source in corpus.manifest["sources"]:
        raw = Path(source["name"]).read_bytes()
        assert (source["bytes"], source["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert [source["documents"] for source in corpus.manifest["sources"]] == [50, 40]


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["a", "dog", " ", "\n", "\r\n", "  ", "é", "12", "'s", "。", "!?"]), max_size=40).map(
            "".join
        ),
        min_size=1,
        max_size=4,
    ),
    block=st.integers(1, 40),
)
def test_tokens_do_not_depend_on_where_a_document_is_cut(
    texts: list[str], block: int, vocabulary: Path, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (folder / "text.txt").write_text(SEPARATOR.join([*texts, "the end"]), encoding="utf-8", newline="")
    plan = plan_of(folder / "text.txt", tokenizer=vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        set_block_size(patch, block)
        corpus = build_corpus(plan, folder / "corpus", processes=1)
    peer = tokenizers.Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
    expected = [
        i
        for text in [*texts, "the end"]
        if text.strip()
        for i in [peer.token_to_id("<|endoftext|>"), *peer.encode(text.strip()).ids]
    ]
    assert corpus.tokens(corpus.train["text"])[:].tolist() == expected


def test_a_tokenizer_that_cannot_be_cut_gets_whole_documents(tmp_path: Path, small_blocks: None) -> None:
    """One that puts a space before each text would put one before each part."""
    text = " ".join(stories(30, 4))
    Tokenizer.train(text, 300).save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    corpus = build_corpus(plan_of(tmp_path / "text.txt", tokenizer=tmp_path), tmp_path / "corpus", processes=1)
    opened = Tokenizer.from_folder(tmp_path)
    assert opened.may_split == "nowhere"
    assert corpus.tokens(corpus.train["text"])[1:].tolist() == opened.encode(text)


def test_ids_above_65535_take_four_bytes(tmp_path: Path) -> None:
    characters = [chr(point) for point in range(0x20, 0x20000) if not 0xD800 <= point < 0xE000 and chr(point).strip()]
    text = "".join(characters[:66_000])
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    corpus = build_corpus(plan_of(tmp_path / "text.txt", tokenizer="characters"), tmp_path / "corpus")
    ids = corpus.tokens(corpus.train["text"])
    assert (corpus.manifest["dtype"], ids.dtype.itemsize) == ("<u4", 4)
    assert corpus.tokenizer.decode(ids[:].tolist()) == text
    assert ids[:].max() == 65_999


def test_processes_make_no_difference(data: Path, vocabulary: Path, tmp_path: Path, small_blocks: None) -> None:
    plan = plan_of(data, tokenizer=vocabulary, validation="0.2", shard_tokens=1024)
    build_corpus(plan, tmp_path / "1", processes=1)
    build_corpus(plan, tmp_path / "3", processes=3)
    assert files_in(tmp_path / "3") == files_in(tmp_path / "1")


def test_a_parquet_file_gives_what_json_lines_give(data: Path, tmp_path: Path, small_blocks: None) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    texts = stories(40, 2)
    table = pa.table({"id": range(41), "text": [*texts, "  "]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=7)
    expected = build_corpus(plan_of(data / "b.jsonl"), tmp_path / "json")
    found = build_corpus(plan_of(tmp_path / "c.parquet"), tmp_path / "parquet", processes=2)
    assert found.train == expected.train
    assert documents_in(found) == texts
    with pytest.raises(InputError, match="no column 'body'; give one of id, text"):
        build_corpus(
            CorpusPlan(
                (TextPlan("t", tuple(find_sources([str(tmp_path / "c.parquet")], field="body"))),), Vocabulary("bytes")
            ),
            tmp_path / "x",
        )
    with pytest.raises(InputError, match="has int in 'id'"):
        build_corpus(
            CorpusPlan(
                (TextPlan("t", tuple(find_sources([str(tmp_path / "c.parquet")], field="id"))),), Vocabulary("bytes")
            ),
            tmp_path / "y",
        )
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"cut\.parquet is not a complete Parquet file"):
        build_corpus(plan_of(tmp_path / "cut.parquet"), tmp_path / "z")


def test_a_data_set_gives_what_json_lines_give(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: None
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets").disable_progress_bars()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes((data / "b.jsonl").read_bytes())
    loads, load = itertools.count(), __import__("datasets").load_dataset_builder
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *names, **how: (next(loads), load(*names, **how))[1])
    expected = build_corpus(plan_of(data / "b.jsonl"), tmp_path / "json")
    name = f"hf:{folder}"
    plan = plan_of(name)
    interrupt_at(4, "_write_chunk")(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(plan, tmp_path / "set_corpus", processes=1)
    monkeypatch.setattr(_CorpusBuild, "_write_chunk", TAKE)
    assert build_corpus(plan, tmp_path / "set_corpus", processes=1).train == expected.train
    assert next(loads) == 1
    with pytest.raises(TrainingError, match="could not be loaded"):
        find_sources([f"hf:{folder}::nothing"])[0].size()


def test_a_data_set_without_its_library_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TrainingError, match=r"pip install 'clearhead\[eval\]'"):
        build_corpus(plan_of("hf:a/b"), tmp_path / "corpus")


def test_a_folder_is_its_files_sorted(data: Path) -> None:
    (data / "0").mkdir()
    (data / "0/z.md").write_text("z")
    (data / "c.png").write_bytes(b"\x89PNG")
    assert [source.name for source in find_sources([str(data), str(data / "a.txt")])] == [
        str(data / name) for name in ("0/z.md", "a.txt", "b.jsonl", "a.txt")
    ]


def test_a_corpus_below_its_texts_is_none_of_them(data: Path) -> None:
    texts = (SourceRecipe("text", "."),)
    for _ in range(2):
        corpus = corpus_of_recipe(CorpusRecipe(texts, tokenizer="bytes"), 257, data, data / "corpus")
        assert [source["name"] for source in corpus.manifest["sources"]] == ["a.txt", "b.jsonl"]
    with pytest.raises(TrainingError, match=r"cannot go to .*data, where its texts are"):
        find_sources([str(data)], out=data)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_documents_are_drawn_by_the_seed_and_their_number(share: float, tmp_path: Path, small_blocks: None) -> None:
    texts = [f"document {n}" for n in range(1500)]
    (tmp_path / "text.txt").write_text(SEPARATOR.join(texts))
    held_out = []
    for seed in (1, 2):
        plan = plan_of(tmp_path / "text.txt", validation=str(share), seed=seed)
        corpus = build_corpus(plan, tmp_path / str(seed), processes=1)
        valid, train = documents_in(corpus, "valid"), documents_in(corpus)
        assert [text for text in texts if text not in set(valid)] == train
        assert [text for text in texts if text in set(valid)] == valid
        # Four standard deviations of a binomial draw.
        assert abs(len(valid) - 1500 * share) < 4 * (1500 * share * (1 - share)) ** 0.5
        held_out.append(set(valid))
    both = len(held_out[0] & held_out[1])
    assert abs(both - 1500 * share**2) < 4 * (1500 * share**2 * (1 - share**2)) ** 0.5
    # A document's lot does not depend on what stands behind it, nor on the sources' borders.
    (tmp_path / "a.txt").write_text(SEPARATOR.join(texts[:1000]))
    (tmp_path / "b.txt").write_text(SEPARATOR.join(texts[1000:1200]))
    again = build_corpus(
        plan_of(tmp_path / "a.txt", tmp_path / "b.txt", validation=str(share)), tmp_path / "two", processes=1
    )
    assert documents_in(again, "valid") == [text for text in texts[:1200] if text in held_out[0]]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("tokenizer", ["characters", "merges"])
def test_the_tail_is_the_last_tokens(
    share: float, tokenizer: str, data: Path, vocabulary: Path, tmp_path: Path
) -> None:
    named = vocabulary if tokenizer == "merges" else tokenizer
    whole = build_corpus(plan_of(data, tokenizer=named), tmp_path / "whole")
    cut = build_corpus(plan_of(data, tokenizer=named, validation=f"tail:{share}", shard_tokens=1024), tmp_path / "cut")
    ids = whole.tokens(whole.train["text"])[:]
    train, valid = cut.train["text"], cut.valid["text"]
    assert train.tokens == int(len(ids) * (1 - share))
    assert np.concatenate([cut.tokens(train)[:], cut.tokens(valid)[:]]).tolist() == ids.tolist()
    starts = whole.starts(whole.train["text"]).between(0, len(ids))
    assert cut.starts(train).between(0, train.tokens).tolist() == starts[starts < train.tokens].tolist()
    found = cut.starts(valid).between(0, valid.tokens) + train.tokens
    assert found.tolist() == starts[starts >= train.tokens].tolist()
    assert train.documents + valid.documents == 90 + (train.tokens not in starts)
    assert train.text_bytes + valid.text_bytes == whole.train["text"].text_bytes
    tokenizer_of = cut.tokenizer
    tail = [i for i in cut.tokens(valid)[:].tolist() if i != tokenizer_of.end_of_text]
    assert valid.text_bytes == len(tokenizer_of.decode_bytes(tail))
    cut.check()
    assert len(list((tmp_path / "cut").glob("*.bin"))) == len(cut.shards)


def test_a_draw_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one document")
    with pytest.raises(TrainingError, match=r"all documents of 'text' were drawn .*validation = 0\.99"):
        build_corpus(plan_of(tmp_path / "t.txt", validation="0.99"), tmp_path / "corpus")


def test_held_out_sources_stay_apart(data: Path, tmp_path: Path) -> None:
    text = TextPlan("text", tuple(find_sources([str(data / "a.txt")])), tuple(find_sources([str(data / "b.jsonl")])))
    corpus = build_corpus(CorpusPlan((text,), Vocabulary("characters")), tmp_path / "corpus")
    assert documents_in(corpus) == stories(50, 1)
    assert documents_in(corpus, "valid") == stories(40, 2)


@pytest.mark.parametrize("text", ["1.5", "tail", "tail:0", "tail:x", "head:0.1", "-0.1", "nan"])
def test_a_validation_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(TrainingError, match="a share of the documents"):
        ValidationSplit.from_text(text)
