"""What cannot be built, and corpora that are there already."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.harness import damage_json, dump
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.cli.corpus.summary import print_summary
from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import build_corpus
from clearhead.data.corpus_plan import CorpusPlan
from clearhead.data.corpus_recipe import CorpusRecipe, SourceRecipe
from clearhead.data.sources import json_lines
from clearhead.errors import ClearheadError, InputError, TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.json_files import record_text
from corpora.small_corpora import SEPARATOR, change_a_byte, documents_in, plan_of, set_block_size


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
        ("t.json", b'[\n{"text": "a"}\n]\n', r"line 1 of .*t\.json begins a JSON array, and an object .* on each line"),
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


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two texts, a corpus of them in `whole`, and in `begun` a build that ended after the first.

    All of the second text is held out, so that its build fails when the first has been recorded.
    """
    folder = tmp_path_factory.mktemp("unfinished")
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(SEPARATOR.join([f"{name} text"] * 5), encoding="utf-8")
    build_corpus(two_texts(folder, "0.4"), folder / "whole", processes=1)
    with pytest.raises(TrainingError, match="all documents of 'b' were drawn"):
        build_corpus(two_texts(folder, "0.999999"), folder / "begun", processes=1)
    return folder


def two_texts(folder: Path, share: str) -> CorpusPlan:
    sources = (
        SourceRecipe(name="a", train="a.txt", validation="0.4"),
        SourceRecipe(name="b", train="b.txt", validation=share),
    )
    return CorpusPlan.from_recipe(CorpusRecipe(source=sources, tokenizer="characters"), 300, folder, folder / "none")


@pytest.mark.parametrize(("corpus", "name"), [("whole", "manifest.json"), ("begun", "build.json")])
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), sealed=st.booleans())
def test_json_of_wrong_types_is_a_sentence(
    corpus: str, name: str, seed: int, sealed: bool, unfinished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands anywhere in a manifest or in an unfinished build's state, also under a right checksum."""
    folder = tmp_path_factory.mktemp("types") / "corpus"
    shutil.copytree(unfinished / corpus, folder)
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    damaged = damage_json(values, random.Random(seed))
    (folder / name).write_bytes(dump(damaged))
    if sealed and isinstance(damaged, dict):
        with contextlib.suppress(RecursionError, UnicodeEncodeError):
            (folder / name).write_text(record_text(damaged), encoding="utf-8")
    with contextlib.suppress(ClearheadError):
        build_corpus(two_texts(unfinished, "0.4" if corpus == "whole" else "0.999999"), folder, processes=1)
        print_summary(Corpus(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sources": ""}, r"build\.json could not be read \(sources is '', and a list was expected\)"),
        ({"learned_from": {}}, "learned_from is {}, and a list was expected"),
        ({"parts": []}, r"parts is \[\], and an object was expected"),
        ({"texts": ""}, "texts is '', and an object was expected"),
        ({"texts": []}, r"texts is \[\], and an object was expected"),
        ({"texts": {"../x": {"train": {}, "valid": None}}}, "texts.*'../x', and the name of a file"),
        ({"parts": {"c.train": {"tokens": 0, "documents": 0, "text_bytes": 0, "shards": []}}}, "does not fit together"),
        ({"place": {"at": -1, "inside": False, "digest": ""}}, "place.at is -1, and a whole number from 0 on was"),
        ({"job": 9}, "does not fit together: it is at source 9 and has the records of 1 of 2"),
    ],
)
def test_a_wrong_state_of_a_build_is_named(
    change: dict[str, Any], words: str, unfinished: Path, tmp_path: Path
) -> None:
    shutil.copytree(unfinished / "begun", tmp_path / "corpus")
    path = tmp_path / "corpus/build.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **change}
    path.write_text(record_text(values), encoding="utf-8")
    with pytest.raises(TrainingError, match=words):
        build_corpus(two_texts(unfinished, "0.999999"), tmp_path / "corpus", processes=1)


def test_one_digit_of_an_unfinished_build_that_changed_is_noticed(unfinished: Path, tmp_path: Path) -> None:
    """With another number of documents, other ones would be drawn to be held out."""
    shutil.copytree(unfinished / "begun", tmp_path / "corpus")
    path = tmp_path / "corpus/build.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, "documents": values["documents"] + 1}), encoding="utf-8")
    with pytest.raises(TrainingError, match=r"build\.json could not be read \(its checksum is not that of"):
        build_corpus(two_texts(unfinished, "0.999999"), tmp_path / "corpus", processes=1)


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
