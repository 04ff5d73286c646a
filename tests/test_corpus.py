"""Corpora: from texts to token shards, whatever happens on the way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data import corpus_builder, shards
from clearhead.data import vocabulary as vocabulary_module
from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import _CorpusBuild, build_corpus, corpus_of_recipe
from clearhead.data.corpus_plan import CorpusPlan, TextPlan, ValidationSplit
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.data.documents import documents, fragments_in, read_blocks
from clearhead.data.sources import json_lines, rows, text_file
from clearhead.data.sources.base import Cursor
from clearhead.data.sources.find import find_sources
from clearhead.data.sources.text_file import TextFile
from clearhead.data.vocabulary import Vocabulary
from clearhead.data.workers import map_in_processes
from clearhead.errors import ClearheadError, InputError, TokenizerError, TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.locks import exclusive_lock

SEPARATOR = "\n<|endoftext|>\n"


def stories(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    names = ["Ada", "Zoë", "小明", "Tom", "the 2 birds"]
    return [
        "\n\n".join(
            f"{draw.choice(names)} {draw.choice(['sings', 'doesn’t sleep', 'runs'])} in the "
            f"{draw.choice(['garden', 'river', 'morning'])}{draw.choice(['.', '!', '…'])}"
            for _ in range(draw.randint(1, 6))
        )
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a byte-level BPE."""
    folder = tmp_path_factory.mktemp("vocabulary")
    Tokenizer.train(stories(80, 0), 300).save(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a text file and JSON lines."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text(SEPARATOR.join(stories(50, 1)), encoding="utf-8")
    rows = [json.dumps({"id": n, "text": text}) for n, text in enumerate(stories(40, 2))]
    (folder / "b.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def all_stories() -> list[str]:
    return [*stories(50, 1), *stories(40, 2)]


def set_block_size(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (text_file, json_lines, rows):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small texts have many blocks."""
    set_block_size(monkeypatch, 300)


@pytest.fixture
def saved(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record after each block how far a build has come."""
    monkeypatch.setattr(corpus_builder, "_SAVE_EVERY", 0.0)


def plan_of(
    *names: str | Path,
    field: str = "text",
    tokenizer: str | Path = "bytes",
    validation: str = "none",
    **settings: Any,
) -> CorpusPlan:
    found = tuple(find_sources([str(name) for name in names], field=field))
    text = TextPlan("text", found, (), ValidationSplit.from_text(validation))
    return CorpusPlan((text,), Vocabulary.from_name(str(tokenizer)), **settings)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def documents_in(corpus: Corpus, part: str = "train", text: str = "text") -> list[str]:
    """What a part says, document by document, from the places where documents begin."""
    found = getattr(corpus, part).get(text)
    if found is None:
        return []
    ids = np.asarray(corpus.tokens(found))
    starts = corpus.starts(found).between(0, found.tokens)
    end = corpus.tokenizer.end_of_text
    assert end is None or (starts == np.flatnonzero(ids == end)).all()
    return [corpus.tokenizer.decode([i for i in ids_of if i != end]) for ids_of in np.split(ids, starts[1:])]


# ---------------------------------------------------------------------------------------------------------------
# Documents of a text file
# ---------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------
# Vocabularies of bytes and of characters
# ---------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------
# What is built
# ---------------------------------------------------------------------------------------------------------------


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
    loads, load = itertools.count(), __import__("datasets").load_dataset
    monkeypatch.setattr("datasets.load_dataset", lambda *names, **how: (next(loads), load(*names, **how))[1])
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
    with pytest.raises(TrainingError, match="pip install datasets"):
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


# ---------------------------------------------------------------------------------------------------------------
# What is held out
# ---------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------
# Stopped and gone on with
# ---------------------------------------------------------------------------------------------------------------

TAKE = _CorpusBuild._write_chunk


def interrupt_at(number: int, method: str, owner: type = _CorpusBuild) -> Callable[[pytest.MonkeyPatch], None]:
    """Makes the n-th call of a method end the build, after it has done its work."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        calls, original = itertools.count(1), getattr(owner, method)

        def interrupted(self: Any, *arguments: Any) -> Any:
            found = original(self, *arguments)
            if next(calls) == number:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(owner, method, interrupted)

    return patch


@pytest.mark.slow
@pytest.mark.parametrize("validation", ["0.2", "tail:0.3"])
def test_a_build_that_stops_anywhere_goes_on_to_the_same_bytes(
    validation: str, data: Path, vocabulary: Path, tmp_path: Path, saved: None
) -> None:
    plan = plan_of(data, tokenizer=vocabulary, validation=validation, shard_tokens=1024)
    build_corpus(plan, tmp_path / "undisturbed", processes=1)
    expected = files_in(tmp_path / "undisturbed")
    stops = 0
    places: list[tuple[type, str]] = [
        *(
            (_CorpusBuild, name)
            for name in ("_write_chunk", "_save", "_end_source", "_end_text", "_cut_tail", "_write_manifest")
        ),
        *((shards._OpenShard, name) for name in ("write", "close")),
        (shards.ShardWriter, "close"),
    ]
    for owner, method in places:
        for number in (1, 7):
            folder = tmp_path / f"{owner.__name__}{method}{number}"
            with pytest.MonkeyPatch.context() as patch:
                interrupt_at(number, method, owner)(patch)
                try:
                    build_corpus(plan, folder, processes=1)
                except KeyboardInterrupt:
                    stops += 1
            build_corpus(plan, folder, processes=1)
            assert files_in(folder) == expected, (method, number)
    assert stops >= 10


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(data: Path, vocabulary: Path, tmp_path: Path) -> None:
    """By SIGKILL, in another process, while two more encode for it."""
    program = (
        "import sys; from pathlib import Path; import time\n"
        "from clearhead.data import corpus_builder, corpus_plan, sources\n"
        "from clearhead.data.sources import find, json_lines, text_file\n"
        "text_file.BLOCK_BYTES, json_lines.BLOCK_BYTES, corpus_builder._SAVE_EVERY = 300, 300, 0.0\n"
        "build = corpus_builder._CorpusBuild\n"
        "write = build._write_chunk\n"
        "build._write_chunk = lambda *arguments: (write(*arguments), time.sleep(0.02))\n"
        "split = corpus_plan.ValidationSplit.from_text('0.2')\n"
        "text = corpus_plan.TextPlan('text', tuple(find.find_sources([sys.argv[1]])), (), split)\n"
        "plan = corpus_plan.CorpusPlan((text,), corpus_plan.Vocabulary.from_name(sys.argv[2]), shard_tokens=1024)\n"
        "corpus_builder.build_corpus(plan, Path(sys.argv[3]), processes=2)\n"
    )
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", program, str(data), str(vocabulary), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.bin"))) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (folder / "build.json").exists()
    with pytest.raises(TrainingError, match="its build has not ended"):
        Corpus(folder)
    subprocess.run(command, check=True, timeout=60, stderr=subprocess.DEVNULL)
    plan = plan_of(data, tokenizer=vocabulary, validation="0.2", shard_tokens=1024)
    build_corpus(plan, tmp_path / "undisturbed", processes=1)
    assert files_in(folder) == files_in(tmp_path / "undisturbed")


def test_a_full_disk_is_a_sentence_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    """A limit of the system on the size of files stands for the disk."""
    (data / "c.txt").write_text("0123456789" * 30_000)
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop()),) * 2)\n"
        "from clearhead.cli import main; main()"
    )
    command = [*("corpus", "build", str(data), "-o", str(tmp_path / "corpus"), "-t", "bytes", "-v", "none")]
    full = subprocess.run(
        [sys.executable, "-c", program, *command, "500000"], capture_output=True, text=True, check=False
    )
    assert full.returncode == 2
    assert (
        full.stderr.strip()
        .splitlines()[-1]
        .startswith(f"clearhead: {tmp_path / 'corpus'} could not be written (File too large)")
    )
    assert "Traceback" not in full.stderr
    build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    build_corpus(plan_of(data), tmp_path / "undisturbed", processes=1)
    assert files_in(tmp_path / "corpus") == files_in(tmp_path / "undisturbed")


def interrupted(plan: CorpusPlan, folder: Path, number: int = 20) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(number, "_write_chunk")(patch)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(plan, folder, processes=1)


@pytest.mark.parametrize("number", [5, 33], ids=["in the source", "after it"])
def test_a_source_that_changed_meanwhile_is_named(number: int, data: Path, tmp_path: Path, saved: None) -> None:
    interrupted(plan_of(data), tmp_path / "corpus", number)
    text = (data / "a.txt").read_bytes()
    (data / "a.txt").write_bytes(text.replace(b"e", b"E", 1))
    with pytest.raises(TrainingError, match=r"a\.txt has changed since"):
        build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    (data / "a.txt").write_bytes(text)
    assert documents_in(build_corpus(plan_of(data), tmp_path / "corpus", processes=1)) == all_stories()


def test_what_learned_characters_were_found_in_may_not_change(data: Path, tmp_path: Path, saved: None) -> None:
    interrupted(plan_of(data, tokenizer="characters"), tmp_path / "corpus", 1)
    (data / "b.jsonl").write_bytes((data / "b.jsonl").read_bytes().replace(b"A", b"E", 1))
    with pytest.raises(TrainingError, match=r"b\.jsonl has changed since"):
        build_corpus(plan_of(data, tokenizer="characters"), tmp_path / "corpus", processes=1)


def test_a_broken_line_can_be_mended_and_the_build_goes_on(data: Path, tmp_path: Path, saved: None) -> None:
    good = (data / "b.jsonl").read_bytes()
    lines = good.split(b"\n")
    (data / "b.jsonl").write_bytes(b"\n".join([*lines[:30], lines[30][:-3], *lines[31:]]))
    with pytest.raises(InputError, match=r"line 31 of .*b\.jsonl is not JSON"):
        build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    (data / "b.jsonl").write_bytes(good)
    takes = []

    def take(*arguments: Any) -> None:
        takes.append(arguments)
        TAKE(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_CorpusBuild, "_write_chunk", take)
        build_corpus(plan_of(data), tmp_path / "corpus", processes=1)
    assert 0 < len(takes) < 15  # what was there was not done again
    build_corpus(plan_of(data), tmp_path / "undisturbed", processes=1)
    assert files_in(tmp_path / "corpus") == files_in(tmp_path / "undisturbed")


def test_a_build_does_not_go_on_as_another(data: Path, tmp_path: Path, saved: None) -> None:
    interrupted(plan_of(data), tmp_path / "corpus")
    others = [
        (plan_of(data, seed=2), "seed differ"),
        (plan_of(data, tokenizer="characters"), "vocabulary differ"),
        (plan_of(data / "b.jsonl"), "texts differ"),
        (plan_of(data, validation="0.1", shard_tokens=2000), "shard_tokens and texts differ"),
    ]
    for plan, words in others:
        with pytest.raises(TrainingError, match=words):
            build_corpus(plan, tmp_path / "corpus", processes=1)


def test_a_build_that_failed_at_once_is_forgotten(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no field 'txt'"):
        build_corpus(
            CorpusPlan(
                (TextPlan("t", tuple(find_sources([str(data / "b.jsonl")], field="txt"))),), Vocabulary("bytes")
            ),
            tmp_path / "corpus",
        )
    assert documents_in(build_corpus(plan_of(data), tmp_path / "corpus")) == all_stories()


def test_two_builds_of_one_folder_keep_out_of_each_others_way(data: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with (
        exclusive_lock(tmp_path / "corpus" / ".build.lock"),
        pytest.raises(TrainingError, match="another process is building"),
    ):
        build_corpus(plan_of(data), tmp_path / "corpus")
    corpus = build_corpus(plan_of(data), tmp_path / "corpus")
    with exclusive_lock(tmp_path / "corpus" / ".build.lock"):  # a complete corpus is read without the lock
        assert build_corpus(plan_of(data), tmp_path / "corpus").key == corpus.key


# ---------------------------------------------------------------------------------------------------------------
# Work among processes
# ---------------------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_work_is_bounded() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(40):
            taken += 1
            yield item

    for done, (item, found) in enumerate(map_in_processes(hex, items(), lambda item: (item,), 3)):
        assert (item, found) == (done, hex(done))
        assert taken - done <= 6


def test_a_process_that_ends_is_a_sentence() -> None:
    with pytest.raises(TrainingError, match=r"ended with status 3.*run the same command again"):
        list(map_in_processes(os._exit, [3], lambda item: (item,), 2))


def test_an_error_in_a_process_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": 1}\n')
    with pytest.raises(InputError, match=r"line 2 of .*bad\.jsonl has int in 'text'"):
        build_corpus(plan_of(tmp_path / "bad.jsonl"), tmp_path / "corpus", processes=2)


# ---------------------------------------------------------------------------------------------------------------
# What cannot be built
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.txt", b"", r"t\.txt has no text in it"),
        ("t.txt", b" \n\n<|endoftext|>\n ", r"t\.txt has no text in it"),
        ("t.txt", b"abc\xff", "not UTF-8 text .*at byte 3"),
        ("t.txt", b"abc\0\0def", "not text: there is a NUL byte at byte 3"),
        ("t.txt", None, r"t\.txt could not be read \(No such file.*hf:NAME"),
        ("t.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', r"line 3 of .*t\.jsonl is not JSON"),
        ("t.jsonl", b'{"text": "a"}\n["b"]\n', r"line 2 of .* is a JSON list"),
        ("t.jsonl", b'{"body": "a", "id": 1}\n', r"line 1 of .* has no field 'text' but 'body', 'id' \(--field"),
        ("t.jsonl", b'{"text": null}', r"line 1 of .* has null in 'text'"),
        ("t.jsonl", b'{"text": "\\ud800"}', r"line 1 of .* half of a surrogate pair"),
        ("t.jsonl", b'{"text": "\xff"}', r"line 1 of .* is not JSON"),
        ("t.csv", b"text,label\n", r"t\.csv is a table, .* convert it to JSON lines"),
        ("t.jsonl.gz", b"\x1f\x8b", "is compressed; unpack it"),
        ("t.parquet", b"PAR1PAR1", "not a complete Parquet file"),
        ("empty", "folder", "has no files that end in"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(
    name: str, content: bytes | str | None, words: str, tmp_path: Path
) -> None:
    if content == "folder":
        (tmp_path / name).mkdir()
    elif isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ClearheadError, match=words):
        build_corpus(plan_of(tmp_path / name), tmp_path / "corpus")
    assert not (tmp_path / "corpus/manifest.json").exists()


def test_separators_inside_lines_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "inline.txt").write_text("one<|endoftext|>\ntwo<|endoftext|>\n")
    (tmp_path / "lines.txt").write_text(SEPARATOR.join(["one", "two <|endoftext|> three"]))
    corpus = build_corpus(plan_of(tmp_path / "inline.txt", tmp_path / "lines.txt"), tmp_path / "corpus")
    assert corpus.train["text"].documents == 3
    said = capsys.readouterr().err
    assert "inline.txt has <|endoftext|> inside its lines" in said
    assert "lines.txt has" not in said


def test_invalid_utf8_in_a_parquet_file_is_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32).tobytes()), pa.py_buffer(b"a\xffb")]
    )
    pyarrow.parquet.write_table(pa.table({"text": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"the column 'text' of .*t\.parquet is not UTF-8 text .*at byte 1"):
        build_corpus(plan_of(tmp_path / "t.parquet"), tmp_path / "corpus")


@pytest.mark.parametrize("name", ["manifest.json", "build.json"])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_json_of_wrong_types_is_a_sentence(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Whatever JSON stands at a key of the manifest or of an unfinished build's state."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "a.txt").write_text("some text", encoding="utf-8")
    plan = plan_of(folder / "a.txt")
    build_corpus(plan, folder / "corpus", processes=1)
    manifest = json.loads((folder / "corpus/manifest.json").read_text())
    values = manifest
    if name == "build.json":
        (folder / "corpus/manifest.json").unlink()
        values = {"plan": manifest["plan"], "learned_from": [], "job": 0, "documents": 0, "documents_before": 0}
        values |= {"place": {"at": 0, "inside": False, "digest": hashlib.sha256().hexdigest()}}
        values |= {"sources": [], "parts": {}, "texts": {}}
    key = data.draw(st.sampled_from(sorted(values)))
    wrong = (
        st.none() | st.integers(-3, 3) | st.text(max_size=2) | st.lists(st.integers(), max_size=2) | st.just({"a": 1})
    )
    (folder / "corpus" / name).write_text(json.dumps({**values, key: data.draw(wrong)}))
    with contextlib.suppress(ClearheadError):
        build_corpus(plan, folder / "corpus", processes=1)


def test_a_text_without_a_place_to_cut_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clearhead.data.documents._LONGEST_BLOCK", 5000)
    set_block_size(monkeypatch, 1000)
    (tmp_path / "text.txt").write_text("x" * 9000)
    with pytest.raises(InputError, match="8,000 bytes without a line end or a space, from byte 0 on"):
        build_corpus(plan_of(tmp_path / "text.txt"), tmp_path / "corpus")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_LONGEST_LINE", 5000)
    set_block_size(monkeypatch, 1000)
    (tmp_path / "t.json").write_text('{"text": "a"}\n[' + "1, " * 9000)
    with pytest.raises(InputError, match=r"line 2 of .* has more than 5,000 bytes; JSON lines were expected"):
        build_corpus(plan_of(tmp_path / "t.json"), tmp_path / "corpus")


def test_a_text_too_short_to_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcd")
    with pytest.raises(TrainingError, match="leaves none on one side"):
        build_corpus(plan_of(tmp_path / "t.txt", tokenizer="characters", validation="tail:0.9"), tmp_path / "corpus")


# ---------------------------------------------------------------------------------------------------------------
# A corpus that is there
# ---------------------------------------------------------------------------------------------------------------


def test_a_corpus_is_not_built_twice(data: Path, tmp_path: Path) -> None:
    first = build_corpus(plan_of(data), tmp_path / "corpus")
    written = (tmp_path / "corpus/manifest.json").stat().st_mtime_ns
    assert build_corpus(plan_of(data), tmp_path / "corpus").key == first.key
    assert (tmp_path / "corpus/manifest.json").stat().st_mtime_ns == written
    (data / "b.jsonl").write_bytes((data / "b.jsonl").read_bytes().replace(b"A", b"E", 1))
    with pytest.raises(TrainingError, match=r"b\.jsonl has changed since"):
        build_corpus(plan_of(data), tmp_path / "corpus")
    (data / "b.jsonl").write_bytes((data / "b.jsonl").read_bytes() + b"\n")
    with pytest.raises(TrainingError, match=r"b\.jsonl has [\d,]+ bytes and had"):
        build_corpus(plan_of(data), tmp_path / "corpus")


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["text.train.00000.bin", "text.train.00000.idx"])
def test_a_changed_shard_is_named(file: str, data: Path, tmp_path: Path) -> None:
    corpus = build_corpus(plan_of(data), tmp_path)
    change_a_byte(tmp_path / file)
    with pytest.raises(TrainingError, match=rf"{file} is not as it was built"):
        corpus.check()
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-4])
    with pytest.raises(TrainingError, match=rf"{file} has [\d,]+ bytes and the manifest says"):
        documents_in(corpus)
    (tmp_path / file).unlink()
    with pytest.raises(TrainingError, match=r"could not be read .*delete the corpus and build it again"):
        corpus.check()


def test_a_changed_manifest_or_tokenizer_is_named(data: Path, tmp_path: Path) -> None:
    corpus = build_corpus(plan_of(data), tmp_path)
    manifest = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(manifest.replace(str(corpus.train["text"].tokens), "77"))
    with pytest.raises(TrainingError, match="its checksum is not that of its contents"):
        Corpus(tmp_path)
    for broken in ('{"version": 2', "[]", '{"version": 2}'):
        (tmp_path / "manifest.json").write_text(broken)
        with pytest.raises(TrainingError, match=r"manifest\.json could not be read"):
            Corpus(tmp_path)
    (tmp_path / "manifest.json").write_text('{"version": 1}')
    with pytest.raises(TrainingError, match="another version of Clearhead"):
        Corpus(tmp_path)
    (tmp_path / "manifest.json").write_text(manifest)
    Tokenizer.of_characters("abc").save(tmp_path)
    with pytest.raises(TrainingError, match="not the one that the corpus was built with"):
        Corpus(tmp_path)


def test_a_folder_without_a_manifest_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not a corpus"):
        Corpus(tmp_path)


# ---------------------------------------------------------------------------------------------------------------
# Corpora of recipes
# ---------------------------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------


def clearhead(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clearhead", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "COLUMNS": "120"},
    )


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
