"""Held-out texts as a model reads them: text files, and the held-out splits of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clearhead.data.corpus import Corpus
from clearhead.data.documents import TokenIds, encode_documents
from clearhead.data.manifest import MANIFEST, tokenizer_identity
from clearhead.errors import InputError
from clearhead.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """A text to evaluate on.

    Attributes:
        name: the name of a corpus's text; None for a file.
        ids: its tokens.
        text_bytes: its length in UTF-8.
    """

    name: str | None
    ids: TokenIds
    text_bytes: int


def held_out_texts(path: Path, tokenizer: Tokenizer) -> Iterator[HeldOutText]:
    """Yield the text of a file, or the held-out texts of a corpus, one after another.

    Raises:
        InputError: if the file cannot be read, has no text or is not UTF-8, or if a folder is not a corpus, has nothing
            held out, or was built with another tokenizer.
        TrainingError: if the corpus is malformed.
    """
    if path.is_dir():
        yield from _of_corpus(path, tokenizer)
        return
    ids: list[int] = []
    text_bytes = 0
    for tokens, size in encode_documents(path, tokenizer):
        ids += tokens
        text_bytes += size
    if len(ids) < 2:
        raise InputError(f"{path} has no text in it; give a file with some.")
    yield HeldOutText(None, np.array(ids), text_bytes)


def _of_corpus(folder: Path, tokenizer: Tokenizer) -> Iterator[HeldOutText]:
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is a folder and not a corpus; give text files, or the folder of a corpus.")
    corpus = Corpus(folder)
    if tokenizer_identity(tokenizer) != tokenizer_identity(corpus.tokenizer):
        raise InputError(
            f"the corpus in {folder} has the tokens of another tokenizer than the model's; give its texts as files."
        )
    found = {name: split for name, split in corpus.valid.items() if split.tokens > 1 and split.text_bytes}
    if not found:
        raise InputError(f"the corpus in {folder} has no held-out texts; build one with --validation, or give files.")
    for name, split in found.items():
        yield HeldOutText(name, corpus.tokens(split), split.text_bytes)
