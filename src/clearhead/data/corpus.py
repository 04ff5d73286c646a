"""Open a corpus: token shards on disk, their tokenizer, and a manifest with the checksum of each file.

A corpus is a folder with the tokenizer's files, the shards (`shards.py` describes them) and `manifest.json`, which is
written last: a folder without it is not a corpus yet. It contains one text or several, each with a training split and,
usually, a held-out split. Every document begins with the end-of-text token, if the vocabulary has one, so that a model
learns that a new document begins there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clearhead.data.manifest import JOURNAL, MANIFEST, read_manifest, tokenizer_identity
from clearhead.data.shards import INDEX, DocumentStarts, Shard, ShardedTokens, TokenSplit
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer

_HASH_BYTES = 1 << 22  # hashed at a time


class Corpus:
    """Token shards on disk, and the tokenizer that made them.

    Args:
        folder: the corpus's folder.

    Attributes:
        folder: the corpus's folder.
        tokenizer: the tokenizer that made the tokens.
        train, valid: the splits, by the name of their text; a text without held-out documents is not in `valid`.
        sources: what was read.
        manifest: the contents of `manifest.json`.
        key: the checksum of the manifest and so, through the checksums in it, of the whole corpus.

    Raises:
        TrainingError: if the folder contains no corpus, or a malformed one.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / MANIFEST
        if not path.exists():
            begun = (folder / JOURNAL).exists()
            raise TrainingError(
                f"{folder} is not a corpus: it has no {MANIFEST}; "
                + ("its build has not ended, run the same command again to resume." if begun else "build it first.")
            )
        self.manifest, checked = read_manifest(path)
        self.key: str = checked["checksum"]
        self.train = {name: text["train"] for name, text in checked["texts"].items()}
        self.valid = {name: text["valid"] for name, text in checked["texts"].items() if text["valid"] is not None}
        self.sources = checked["sources"]
        self._dtype = np.dtype(checked["dtype"])
        self.folder = folder
        self.tokenizer = Tokenizer.from_folder(folder)
        if tokenizer_identity(self.tokenizer) != checked["tokenizer"]:
            raise TrainingError(
                f"the tokenizer in {folder} is not the one that the corpus was built with; restore the old files, or "
                "delete the folder and build the corpus again."
            )

    def tokens(self, split: TokenSplit) -> ShardedTokens:
        """Map the ids of a split, unsigned integers [tokens].

        Raises:
            TrainingError: if a file is missing or its length is not the manifest's.
        """
        return ShardedTokens.open(self.folder, split, self._dtype)

    def starts(self, split: TokenSplit) -> DocumentStarts:
        """Map the indices of `tokens` at which documents begin.

        Raises:
            TrainingError: as `tokens`.
        """
        return DocumentStarts(self.folder, split)

    @property
    def shards(self) -> list[Shard]:
        """All shards of all texts."""
        return [shard for splits in (self.train, self.valid) for split in splits.values() for shard in split.shards]

    def size(self) -> int:
        """Return the bytes of all shards and their index files."""
        return sum(s.tokens * self._dtype.itemsize + s.documents * INDEX.itemsize for s in self.shards)

    def check(self, advance: Callable[[int], None] = lambda size: None) -> None:
        """Read every shard and compare its checksum with the manifest's.

        Args:
            advance: is called with the number of bytes after each read.

        Raises:
            TrainingError: if a file is missing or has changed; the first one is named.
        """
        for shard in self.shards:
            for file, expected in ((shard.file, shard.sha256), (shard.index, shard.index_sha256)):
                if _sha256(self.folder / file, advance) != expected:
                    raise TrainingError(
                        f"{self.folder / file} is not as it was built: its checksum differs from the manifest's. "
                        "Restore the old file, or delete the corpus and build it again."
                    )


def _sha256(path: Path, advance: Callable[[int], None]) -> str:
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_HASH_BYTES):
                hashed.update(data)
                advance(len(data))
    except OSError as error:
        raise TrainingError(
            f"{path} could not be read ({error.strerror}); restore the file, or delete the corpus and build it again."
        ) from None
    return hashed.hexdigest()
