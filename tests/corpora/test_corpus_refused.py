"""What cannot be built, and corpora that are there already."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import build_corpus
from clearhead.data.sources import json_lines
from clearhead.errors import ClearheadError, InputError, TrainingError
from clearhead.tokenizer import Tokenizer
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


@pytest.mark.parametrize(("key", "wrong"), [("sources", ""), ("learned_from", {}), ("parts", []), ("texts", "")])
def test_an_empty_value_of_another_type_is_refused(key: str, wrong: Any, tmp_path: Path) -> None:
    """An empty string, list or table passes every check of its items."""
    (tmp_path / "a.txt").write_text("some text", encoding="utf-8")
    plan = plan_of(tmp_path / "a.txt")
    build_corpus(plan, tmp_path / "corpus", processes=1)
    manifest = tmp_path / "corpus/manifest.json"
    state = {"plan": json.loads(manifest.read_text())["plan"], "learned_from": [], "job": 0, "documents": 0}
    state |= {"documents_before": 0, "place": {"at": 0, "inside": False, "digest": hashlib.sha256().hexdigest()}}
    state |= {"sources": [], "parts": {}, "texts": {}, key: wrong}
    manifest.unlink()
    (tmp_path / "corpus/build.json").write_text(json.dumps(state))
    with pytest.raises(TrainingError, match=rf"build\.json is malformed .*{key} is .* was expected"):
        build_corpus(plan, tmp_path / "corpus", processes=1)


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
