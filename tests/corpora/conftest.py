"""Fixtures of the tests of corpora: small texts, a vocabulary, and blocks so small that texts have many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clearhead.data import corpus_builder
from clearhead.tokenizer import Tokenizer
from corpora.small_corpora import SEPARATOR, set_block_size, stories


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


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small texts have many blocks."""
    set_block_size(monkeypatch, 300)


@pytest.fixture
def saved(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record after each block how far a build has come."""
    monkeypatch.setattr(corpus_builder, "_SAVE_EVERY", 0.0)
