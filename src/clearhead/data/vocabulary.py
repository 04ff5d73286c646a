"""Choose the tokenizer of a corpus: an existing one, or one that is learned from its texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clearhead import weights
from clearhead.data.documents import Fragment
from clearhead.data.encoding import CharacterScan
from clearhead.data.manifest import tokenizer_identity
from clearhead.data.ray_workers import RayCluster
from clearhead.data.sources.base import Chunk, Cursor, DocumentSource
from clearhead.data.workers import distribute
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.tokenizer.gpt2 import is_gpt2_name
from clearhead.utils.progress import Progress

_LONGEST_PIECE = 1 << 20  # characters; longer paragraphs are learned from in pieces


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How the tokenizer of a corpus is obtained.

    Attributes:
        kind: `given`, for an existing one; `bytes`; `characters`, for all characters of the texts; `merges`, for a
            byte-level BPE that is learned from the texts.
        tokenizer: the existing one.
        size: the number of tokens to learn.
        sample_bytes: bytes of text to learn merges from, divided by weight.
    """

    kind: Literal["given", "bytes", "characters", "merges"]
    tokenizer: Tokenizer | None = None
    size: int = 0
    sample_bytes: int = 0

    @classmethod
    def from_name(cls, name: str, below: Path | None = None) -> Vocabulary:
        """Resolve `bytes`, `characters`, a folder with a tokenizer's files, a `tokenizer.json`, or a name on the hub.

        Args:
            name: the name that the user gave.
            below: the folder that a path is relative to; None for the current one.

        Raises:
            TokenizerError, TrainingError: if the tokenizer does not exist or is malformed.
            HubError: if it could not be downloaded.
        """
        if name in ("bytes", "characters"):
            return cls("bytes" if name == "bytes" else "characters")
        path = (below or Path()) / Path(name).expanduser()
        if path.is_file():
            return cls("given", Tokenizer.from_json(path))
        if path.is_dir():
            return cls("given", Tokenizer.from_folder(path))
        if weights.looks_like_path(name) or path.suffix:
            raise TrainingError(
                f"there is no tokenizer {path}; give bytes, characters, a tokenizer.json, a folder with a tokenizer's "
                "files, or a name on the hub such as gpt2."
            )
        if is_gpt2_name(name):
            return cls("given", Tokenizer.gpt2())
        return cls("given", Tokenizer.from_folder(weights.fetch_tokenizer(name)))

    @property
    def depends_on_weights(self) -> bool:
        """Whether the result depends on the texts' weights."""
        return self.kind == "merges"

    def to_json(self) -> dict[str, Any]:
        """Return what distinguishes this choice from others."""
        if self.tokenizer is not None:
            return {"kind": self.kind, **tokenizer_identity(self.tokenizer)}
        return {"kind": self.kind, "size": self.size, "sample_bytes": self.sample_bytes}

    def create(
        self, folder: Path, sources: Sequence[tuple[DocumentSource, float]], processes: int | RayCluster
    ) -> list[Cursor]:
        """Learn the tokenizer if necessary, and save it in a folder.

        Args:
            folder: the destination.
            sources: what to learn from, each with its weight.
            processes: the number of processes that read, or a Ray cluster.

        Returns:
            how far the first sources were read.

        Raises:
            TrainingError, InputError, TokenizerError: if the sources cannot be read or have too little text.
        """
        if self.kind == "characters":
            tokenizer, cursors = _learn_characters([source for source, _ in sources], processes)
        elif self.kind == "merges":
            sample = _WeightedSample(sources, self.sample_bytes)
            with Progress("learning the vocabulary", None) as progress:
                tokenizer = Tokenizer.train(sample, self.size)
                progress.note(f"{tokenizer.vocab_size:,} tokens")
            cursors = sample.cursors
        else:
            tokenizer, cursors = self.tokenizer or Tokenizer.of_bytes(), []
        tokenizer.save(folder)
        return cursors


def _learn_characters(sources: Sequence[DocumentSource], processes: int | RayCluster) -> tuple[Tokenizer, list[Cursor]]:
    """Build a tokenizer of all characters, with an end-of-text token if there is more than one document."""
    characters: set[str] = set()
    documents = 0
    cursors = [Cursor()] * len(sources)

    def numbered_chunks() -> Iterator[tuple[int, Chunk]]:
        for number, source in enumerate(sources):
            for chunk in source.chunks(Cursor(), cut_documents=True):
                yield number, chunk

    with Progress("looking for the characters", sum(source.size() for source in sources)) as progress:
        for (number, chunk), (found, begun) in distribute(
            CharacterScan(), numbered_chunks(), lambda item: (sources[item[0]], item[1].content), processes
        ):
            characters.update(found)
            documents += begun
            cursors[number] = chunk.end
            progress.advance(chunk.size, f"{len(characters):,} characters")
    if not characters:
        raise TrainingError(f"{', '.join(source.name for source in sources[:3])}: there is no text in it.")
    return Tokenizer.of_characters(characters, end_of_text=documents > 1), cursors


class _WeightedSample:
    """The beginning of each source, one paragraph at a time; each source gives its weight's share of the bytes.

    A paragraph in which a share ends is cut.

    Attributes:
        cursors: how far each source was read, after the sample has been consumed.
    """

    def __init__(self, sources: Sequence[tuple[DocumentSource, float]], sample_bytes: int) -> None:
        self._sources, self._bytes = sources, sample_bytes
        self._total = sum(weight for _, weight in sources)
        self.cursors: list[Cursor] = []

    def __iter__(self) -> Iterator[str]:
        for number, (source, weight) in enumerate(self._sources):
            self.cursors.append(Cursor())
            left = self._bytes * weight / self._total
            for paragraph in _paragraphs(self._fragments(source, number)):
                size = len(paragraph.encode())
                if size >= left:
                    yield paragraph[: _cut_before_space(paragraph, math.ceil(len(paragraph) * left / size))]
                    break
                yield paragraph
                left -= size

    def _fragments(self, source: DocumentSource, number: int) -> Iterator[Fragment]:
        for chunk in source.chunks(Cursor(), cut_documents=True):
            self.cursors[number] = chunk.end
            yield from source.fragments(chunk.content)


def _paragraphs(fragments: Iterator[Fragment]) -> Iterator[str]:
    """Yield the paragraphs of documents, each with the blank line after it, long ones in pieces.

    The result does not depend on where the fragments begin and end.
    """
    unfinished = ""
    for fragment in fragments:
        if fragment.begins and unfinished:
            yield from _pieces(f"{unfinished}\n\n")
            unfinished = ""
        *complete, unfinished = (unfinished + fragment.text).split("\n\n")
        for paragraph in complete:
            yield from _pieces(f"{paragraph}\n\n")
        *pieces, unfinished = _pieces(unfinished)
        yield from pieces
    if unfinished:
        yield from _pieces(f"{unfinished}\n\n")


def _pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of at most `_LONGEST_PIECE` characters."""
    start = 0
    while len(text) - start > _LONGEST_PIECE:
        cut = _cut_before_space(text, start + _LONGEST_PIECE, start)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _cut_before_space(text: str, end: int, start: int = 0) -> int:
    """Return the last index between `start` and `end` before a line end, else before a space; else `end`."""
    for white in "\n ":
        if (cut := text.rfind(white, start + 1, end + 1)) > 0:
            return cut
    return end
