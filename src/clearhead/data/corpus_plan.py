"""Everything that decides what a corpus contains: its texts, its vocabulary, and what is held out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clearhead.data.corpus_recipe import CorpusRecipe
from clearhead.data.manifest import SourceIdentity, SourceRecord
from clearhead.data.sources.base import Cursor, DocumentSource
from clearhead.data.sources.find import find_sources
from clearhead.data.sources.hub_dataset import HubDataset
from clearhead.data.vocabulary import Vocabulary
from clearhead.errors import TrainingError
from clearhead.utils.splitmix64 import mix

SHARD_TOKENS = 1 << 27
"""Ids in a shard: 256 MiB at two bytes each."""


@dataclass(frozen=True, slots=True)
class ValidationSplit:
    """Which part of a text is held out.

    Attributes:
        kind: `none`; `share`, for documents drawn at random; `tail`, for the last tokens.
        share: the share of the text: of its documents, or of its tokens.
    """

    kind: Literal["none", "share", "tail"] = "none"
    share: float = 0.0

    @classmethod
    def from_text(cls, text: str) -> ValidationSplit:
        """Parse `0.01` (a share of the documents), `tail:0.1` (the last tenth of the tokens) or `none`.

        Raises:
            TrainingError: if the text has another form.
        """
        if text in ("", "none", "0"):
            return cls()
        kind, _, number = text.rpartition(":")
        with contextlib.suppress(ValueError):
            if kind in ("", "tail") and 0 < float(number) < 1:
                return cls("tail" if kind else "share", float(number))
        raise TrainingError(
            f"validation is {text!r}; expected a share of the documents such as 0.01, the last tokens such as "
            "tail:0.1, or none."
        )

    def __str__(self) -> str:
        return {"none": "none", "share": f"{self.share}", "tail": f"tail:{self.share}"}[self.kind]

    def draw(self, seed: int, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Decide which documents are held out, by the seed and each document's number alone.

        Args:
            seed: the seed of the draw.
            first: the number of the first document in its text, from 0.
            count: the number of documents.

        Returns:
            whether each is held out, bool [count].
        """
        if self.kind != "share":
            return np.zeros(count, np.bool_)
        start = mix(seed)
        limit = int(self.share * 2**64)
        return np.array([mix(start + number) < limit for number in range(first, first + count)], np.bool_)


@dataclass(frozen=True, slots=True)
class TextPlan:
    """One text of a corpus.

    Attributes:
        name: the name of its files.
        train: the sources of its documents, in order.
        valid: the sources of its held-out documents, if these are separate.
        validation: which documents of `train` are held out.
        weight: the share of the text that a vocabulary is learned from, relative to the other texts.
    """

    name: str
    train: tuple[DocumentSource, ...]
    valid: tuple[DocumentSource, ...] = ()
    validation: ValidationSplit = field(default_factory=ValidationSplit)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SourceJob:
    """A source, the text that it belongs to, and whether its documents are held out."""

    text: TextPlan
    source: DocumentSource
    held_out: bool

    def description(self) -> SourceIdentity:
        """Return the source's name, kind and field for the manifest."""
        return _describe(self.source)


@dataclass(frozen=True, slots=True)
class CorpusPlan:
    """Everything that decides what a corpus contains.

    Attributes:
        texts: the texts, in order.
        vocabulary: how the tokenizer is obtained.
        seed: the seed of the draw of held-out documents.
        shard_tokens: ids in a shard.
    """

    texts: tuple[TextPlan, ...]
    vocabulary: Vocabulary
    seed: int = 1
    shard_tokens: int = SHARD_TOKENS

    @classmethod
    def from_recipe(cls, recipe: CorpusRecipe, vocab_size: int, data: Path, folder: Path) -> CorpusPlan:
        """Plan the corpus of a recipe.

        Args:
            recipe: the texts.
            vocab_size: the size of the vocabulary to learn, if the recipe names no tokenizer.
            data: the folder that the recipe's paths are relative to.
            folder: the corpus's folder; no text is taken from it.

        Raises:
            TrainingError, TokenizerError, HubError: if a text or the tokenizer cannot be found.
        """
        texts = tuple(
            TextPlan(
                source.name,
                tuple(find_sources([source.train], field=source.field, below=data, out=folder)),
                tuple(find_sources([source.valid], field=source.field, below=data, out=folder)) if source.valid else (),
                ValidationSplit.from_text(source.validation),
                source.weight,
            )
            for source in recipe.source
        )
        vocabulary = (
            Vocabulary.from_name(recipe.tokenizer, data)
            if recipe.tokenizer
            else Vocabulary("merges", None, vocab_size, recipe.tokenizer_bytes)
        )
        return cls(texts, vocabulary, recipe.seed)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as the manifest stores it."""
        return {
            "vocabulary": self.vocabulary.to_json(),
            "seed": self.seed,
            "shard_tokens": self.shard_tokens,
            "texts": [
                {
                    "name": text.name,
                    "validation": str(text.validation),
                    **({"weight": text.weight} if self.vocabulary.depends_on_weights else {}),
                    "train": [_describe(source) for source in text.train],
                    "valid": [_describe(source) for source in text.valid],
                }
                for text in self.texts
            ],
        }

    def jobs(self) -> list[SourceJob]:
        """Return the sources in the order in which they are read."""
        return [
            SourceJob(text, source, held_out)
            for text in self.texts
            for held_out, sources in ((False, text.train), (True, text.valid))
            for source in sources
        ]


def _describe(source: DocumentSource) -> SourceIdentity:
    found = SourceIdentity(name=source.name, kind=source.kind)
    if hasattr(source, "field"):
        found["field"] = source.field
    return found


def check_plan(now: dict[str, Any], then: dict[str, Any], folder: Path) -> None:
    """Compare a plan with the one that a corpus or an unfinished build has.

    Args:
        now, then: both as `CorpusPlan.to_json` returns them.
        folder: the corpus's folder, for the error.

    Raises:
        TrainingError: if they differ; the message says in what.
    """
    if differing := [key for key in now if now[key] != then.get(key)]:
        raise TrainingError(
            f"{folder} was built from other texts or settings than these: {' and '.join(differing)} differ. Delete it "
            "or name another folder."
        )


def check_sources(jobs: Sequence[SourceJob], known: Sequence[SourceRecord]) -> None:
    """Compare sources with their records in a manifest; a data set on the hub, as it was at the recorded commit.

    Raises:
        TrainingError: if one has changed.
    """
    for job, before in zip(jobs, known, strict=False):
        source = job.source
        if isinstance(source, HubDataset) and "revision" in before:
            source = source.at(before["revision"])
        if source.size() != before["bytes"]:
            raise TrainingError(
                f"{source.name} has {source.size():,} bytes and had {before['bytes']:,} when it was read; "
                "restore the old file, or delete the corpus and build it again."
            )
        source.check(Cursor(before["read"], False, before["sha256"]))
