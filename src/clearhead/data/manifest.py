"""The manifest of a corpus: a JSON file with its tokenizer, sources, shards and checksums; and the state of a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from clearhead.data.shards import TokenSplit
from clearhead.data.sources.base import CursorJson
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.atomic import write_text
from clearhead.utils.json_files import (
    Count,
    FileName,
    MalformedJSONError,
    checked_record,
    read_json_file,
    read_record,
    record_text,
)

MANIFEST = "manifest.json"
JOURNAL = "build.json"
"""The state of an unfinished build, in the corpus's folder."""

_BUILD_AGAIN = "delete the folder and build the corpus again"
VERSION = 2
"""The version of the corpus format."""


class TokenizerIdentity(TypedDict):
    """What identifies a tokenizer."""

    sha256: str
    vocab_size: Count
    end_of_text: Count | None


class SourceIdentity(TypedDict):
    """The name, the kind and the field of a source, as `DocumentSource` has them."""

    name: str
    kind: str
    field: NotRequired[str]


class SourceRecord(SourceIdentity):
    """A source that has been read.

    Attributes:
        text: the name of its text.
        part: the split to which it belongs.
        documents: how many it has.
        bytes: its size.
        read: how much of it was read, in the unit of `Cursor.consumed`.
        sha256: the SHA-256 of the bytes that were read.
        revision: of a data set on the hub, the commit that was read.
    """

    text: str
    part: Literal["train", "valid"]
    documents: Count
    bytes: Count
    read: Count
    sha256: str
    revision: NotRequired[str]


class SplitPair(TypedDict):
    """The splits of a text."""

    train: TokenSplit
    valid: TokenSplit | None


class _VocabularyJson(TypedDict):
    kind: Literal["given", "bytes", "characters", "merges"]


class _PlanJson(TypedDict):
    vocabulary: _VocabularyJson


class Manifest(TypedDict):
    """The contents of `manifest.json`."""

    version: Literal[2]
    dtype: Literal["<u2", "<u4"]
    tokenizer: TokenizerIdentity
    plan: _PlanJson
    sources: list[SourceRecord]
    texts: dict[FileName, SplitPair]
    checksum: str


class BuildState(TypedDict):
    """The state of an unfinished build.

    Attributes:
        plan: the corpus's, as `CorpusPlan.to_json` returns it.
        learned_from: how far each source was read to learn the vocabulary.
        job: the number of the source that is being read.
        place: how far it has been read.
        documents: how many documents of its text have begun so far.
        documents_before: the same before this source.
        sources: those that have been read.
        parts: the shards of its text so far, by the name of the files.
        texts: the splits of the texts that have been read.
    """

    plan: dict[str, Any]
    learned_from: list[CursorJson]
    job: Count
    place: CursorJson
    documents: Count
    documents_before: Count
    sources: list[SourceRecord]
    parts: dict[FileName, TokenSplit]
    texts: dict[FileName, SplitPair]


class _StoredBuild(BuildState):
    """The contents of `build.json`."""

    checksum: str


def tokenizer_identity(tokenizer: Tokenizer) -> TokenizerIdentity:
    """Return what identifies a tokenizer: equal for two that give every text the same ids."""
    return {
        "sha256": tokenizer.sha256(),
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
    }


def write_record(path: Path, values: Mapping[str, object]) -> None:
    """Write a manifest, or the state of a build, without its checksum, which is added.

    Raises:
        OSError: if it cannot be written; an older file is untouched then.
    """
    write_text(path, record_text(values))


def read_manifest(path: Path) -> tuple[dict[str, Any], Manifest]:
    """Read a manifest; return it as it is in the file, and checked.

    Raises:
        TrainingError: if the file is malformed or of another version.
    """
    values = read_json_file(path, dict[str, Any], TrainingError, _BUILD_AGAIN)
    if values.get("version") != VERSION:
        raise TrainingError(
            f"{path.parent} was built by another version of Clearhead in another format; delete it and build it again."
        )
    try:
        return values, checked_record(values, Manifest)
    except MalformedJSONError as error:
        raise TrainingError(f"{path} could not be read ({error}); {_BUILD_AGAIN}.") from None


def read_journal(path: Path) -> BuildState:
    """Read the state of an unfinished build.

    Raises:
        TrainingError: if the file is malformed or of another version.
    """
    return read_record(path, _StoredBuild, TrainingError, _BUILD_AGAIN)
