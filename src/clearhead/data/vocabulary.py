"""Which tokens a corpus is written in: those of a tokenizer that is there, or some that are learned from its texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clearhead import weights
from clearhead.config import HUB_NAMES
from clearhead.data.documents import Piece
from clearhead.data.encoding import Alphabet
from clearhead.data.manifest import identity
from clearhead.data.sources import Place, Source, Stretch
from clearhead.data.workers import results
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.progress import Progress

_LONG = 1 << 20  # characters after which a paragraph is given out in parts


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A way to come to a tokenizer.

    Attributes:
        kind: `given`, for one that is there; `bytes`; `characters`, for all that the texts have; `merges`, for a
            byte-level BPE that is learned from the texts.
        tokenizer: the one that is given.
        size: how many tokens to learn.
        sample_bytes: how many bytes of text to learn merges from, shared out by weight.
    """

    kind: Literal["given", "bytes", "characters", "merges"]
    tokenizer: Tokenizer | None = None
    size: int = 0
    sample_bytes: int = 0

    @classmethod
    def named(cls, name: str, below: Path | None = None) -> Vocabulary:
        """`bytes`, `characters`, a folder with a tokenizer's files, a `tokenizer.json`, or a name on the hub.

        Args:
            name: as a user gives it.
            below: the folder that a path is relative to; the current one where it is left out.

        Raises:
            TokenizerError, TrainingError: where there is none of that name, or it is broken.
            HubError: where it could not be fetched.
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
        hub_name = {size: known for known, size in HUB_NAMES.items()}.get(name, name)
        return cls("given", Tokenizer.from_folder(weights.fetch_tokenizer(hub_name)))

    @property
    def weighs(self) -> bool:
        """Whether it depends on the texts' weights."""
        return self.kind == "merges"

    def values(self) -> dict[str, Any]:
        """What tells it from others, as JSON."""
        if self.tokenizer is not None:
            return {"kind": self.kind, **identity(self.tokenizer)}
        return {"kind": self.kind, "size": self.size, "sample_bytes": self.sample_bytes}

    def make(self, folder: Path, sources: Sequence[tuple[Source, float]], processes: int) -> list[Place]:
        """Saves the tokenizer in a folder.

        Args:
            folder: where it goes.
            sources: what to learn from, each with its weight.
            processes: how many read.

        Returns:
            how far the first sources were read.

        Raises:
            TrainingError, InputError, TokenizerError: where the sources cannot be read or have too little text.
        """
        if self.kind == "characters":
            tokenizer, places = _learn_characters([source for source, _ in sources], processes)
        elif self.kind == "merges":
            sample = _Sample(sources, self.sample_bytes)
            with Progress("learning the vocabulary", None) as progress:
                tokenizer = Tokenizer.train(sample, self.size)
                progress.note(f"{tokenizer.vocab_size:,} tokens")
            places = sample.places
        else:
            tokenizer, places = self.tokenizer or Tokenizer.of_bytes(), []
        tokenizer.save(folder)
        return places


def _learn_characters(sources: Sequence[Source], processes: int) -> tuple[Tokenizer, list[Place]]:
    """All characters of some texts, and the end of text where there is more than one document."""
    characters: set[str] = set()
    documents = 0
    places = [Place()] * len(sources)

    def stretches() -> Iterator[tuple[int, Stretch]]:
        for number, source in enumerate(sources):
            for stretch in source.stretches(Place(), cut_documents=True):
                yield number, stretch

    with Progress("looking for the characters", sum(source.size() for source in sources)) as progress:
        for (number, stretch), (found, begun) in results(
            Alphabet(), stretches(), lambda item: (sources[item[0]], item[1].content), processes
        ):
            characters.update(found)
            documents += begun
            places[number] = stretch.end
            progress.advance(stretch.size, f"{len(characters):,} characters")
    if not characters:
        raise TrainingError(f"{', '.join(source.name for source in sources[:3])}: there is no text in it.")
    return Tokenizer.of_characters(characters, end_of_text=documents > 1), places


class _Sample:
    """The beginning of each source, by its weight's share of the bytes, a paragraph at a time; where the share ends
    inside a paragraph, this is cut.

    Attributes:
        places: how far each source was read, once the sample has been.
    """

    def __init__(self, sources: Sequence[tuple[Source, float]], sample_bytes: int) -> None:
        self._sources, self._bytes = sources, sample_bytes
        self._total = sum(weight for _, weight in sources)
        self.places: list[Place] = []

    def __iter__(self) -> Iterator[str]:
        for number, (source, weight) in enumerate(self._sources):
            self.places.append(Place())
            left = self._bytes * weight / self._total
            for paragraph in _paragraphs(self._pieces(source, number)):
                size = len(paragraph.encode())
                if size >= left:
                    yield paragraph[: _place_to_cut(paragraph, math.ceil(len(paragraph) * left / size))]
                    break
                yield paragraph
                left -= size

    def _pieces(self, source: Source, number: int) -> Iterator[Piece]:
        for stretch in source.stretches(Place(), cut_documents=True):
            self.places[number] = stretch.end
            yield from source.pieces(stretch.content)


def _paragraphs(pieces: Iterator[Piece]) -> Iterator[str]:
    """The paragraphs of documents that come in pieces, each with the blank line after it, long ones in parts.

    What is given out does not depend on where the pieces begin and end.
    """
    begun = ""
    for piece in pieces:
        if piece.begins and begun:
            yield from _parts(f"{begun}\n\n")
            begun = ""
        *whole, begun = (begun + piece.text).split("\n\n")
        for paragraph in whole:
            yield from _parts(f"{paragraph}\n\n")
        *parts, begun = _parts(begun)
        yield from parts
    if begun:
        yield from _parts(f"{begun}\n\n")


def _parts(text: str) -> Iterator[str]:
    """A text in parts of at most `_LONG` characters."""
    start = 0
    while len(text) - start > _LONG:
        cut = _place_to_cut(text, start + _LONG, start)
        yield text[start:cut]
        start = cut
    yield text[start:]


def _place_to_cut(text: str, end: int, start: int = 0) -> int:
    """The last place between `start` and `end` before a line end, else before a space; else `end`."""
    for white in "\n ":
        if (cut := text.rfind(white, start + 1, end + 1)) > 0:
            return cut
    return end
