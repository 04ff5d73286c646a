"""Small texts, plans and interruptions that the tests of corpora share."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_builder import _CorpusBuild, build_corpus
from clearhead.data.corpus_plan import CorpusPlan, TextPlan, ValidationSplit
from clearhead.data.sources import json_lines, rows, text_file
from clearhead.data.sources.find import find_sources
from clearhead.data.vocabulary import Vocabulary

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


def all_stories() -> list[str]:
    return [*stories(50, 1), *stories(40, 2)]


def set_block_size(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    for module in (text_file, json_lines, rows):
        monkeypatch.setattr(module, "BLOCK_BYTES", size)


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


def interrupted(plan: CorpusPlan, folder: Path, number: int = 20) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(number, "_write_chunk")(patch)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(plan, folder, processes=1)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def clearhead(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clearhead", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=60,
        env={**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"},
    )
