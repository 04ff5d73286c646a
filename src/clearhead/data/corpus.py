"""A corpus: token shards on disk, the tokenizer that made them, and a manifest with the checksum of each file.

A corpus is a folder with the tokenizer's files, the shards (`shards.py` says what is in them) and `manifest.json`,
which is written last: a folder without it is not a corpus yet. It holds one text or several, each in a part to train
on and, as a rule, one that is held out. Every document begins with the end-of-text token, so that a model learns to
start afresh there; a vocabulary without one does without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.data.corpus_builder import Build, Plan, Text, Validation, check_plan, check_sources
from clearhead.data.corpus_recipe import CorpusRecipe
from clearhead.data.documents import BLOCK
from clearhead.data.manifest import MANIFEST, VERSION, checksum, identity
from clearhead.data.shards import INDEX, Part, Shard, Starts, Tokens
from clearhead.data.sources import find_sources
from clearhead.data.vocabulary import Vocabulary
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.progress import Progress
from clearhead.utils.system import usable_cores

_PIECE = 1 << 22  # bytes that are hashed at a time


class Corpus:
    """Token shards on disk, and the tokenizer that made them.

    Args:
        folder: where they are.

    Attributes:
        folder: as given.
        tokenizer: theirs.
        train, valid: the parts, by the name of their text; a text of which nothing is held out is not in `valid`.
        manifest: all that is known of it, as in the file.
        key: the checksum of the manifest and so, through the checksums in it, of the whole corpus.

    Raises:
        TrainingError: where the folder holds no corpus, or a broken one.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / MANIFEST
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if self.manifest.get("version") != VERSION:
                raise TrainingError(
                    f"{folder} was built by another version of Clearhead, which wrote corpora in another form; delete "
                    "it and build it again."
                )
            self.key: str = self.manifest["checksum"]
            texts = self.manifest["texts"]
            self.train = {name: Part.from_json(text["train"]) for name, text in texts.items()}
            self.valid = {name: Part.from_json(text["valid"]) for name, text in texts.items() if text["valid"]}
            self._dtype = np.dtype(self.manifest["dtype"])
            wrong = None if self.key == checksum(self.manifest) else "its checksum is not that of its contents"
        except FileNotFoundError:
            begun = (folder / "build.json").exists()
            raise TrainingError(
                f"{folder} is no corpus: it has no {MANIFEST}; "
                + ("its build has not ended, run the same command again to go on." if begun else "build it first.")
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            wrong = str(error)
        if wrong is not None:
            raise TrainingError(
                f"{path} could not be read ({wrong}); delete the folder and build the corpus again."
            ) from None
        self.folder = folder
        self.tokenizer = Tokenizer.from_folder(folder)
        if identity(self.tokenizer) != self.manifest["tokenizer"]:
            raise TrainingError(
                f"the tokenizer in {folder} is not the one that the corpus was built with; put the old files back, or "
                "delete the folder and build the corpus again."
            )

    def tokens(self, part: Part) -> Tokens:
        """A part's ids, unsigned integers [tokens], mapped and not read.

        Raises:
            TrainingError: where a file is missing or has another length than the manifest says.
        """
        return Tokens.open(self.folder, part, self._dtype)

    def starts(self, part: Part) -> Starts:
        """The places in `tokens` where documents begin.

        Raises:
            TrainingError: as `tokens`.
        """
        return Starts(self.folder, part)

    @property
    def shards(self) -> list[Shard]:
        """All shards of all texts."""
        return [shard for parts in (self.train, self.valid) for part in parts.values() for shard in part.shards]

    def size(self) -> int:
        """The bytes of all shards and their indices."""
        return sum(s.tokens * self._dtype.itemsize + s.documents * INDEX.itemsize for s in self.shards)

    def check(self, advance: Callable[[int], None] = lambda size: None) -> None:
        """Reads every shard and compares its checksum with the manifest's.

        Args:
            advance: is told how many bytes were read.

        Raises:
            TrainingError: where a file is missing or is not what was built; the first one is named.
        """
        for shard in self.shards:
            for file, expected in ((shard.file, shard.sha256), (shard.index, shard.index_sha256)):
                if _sha256(self.folder / file, advance) != expected:
                    raise TrainingError(
                        f"{self.folder / file} is not as it was built: its checksum is another than the manifest's. "
                        "Put the old file back, or delete the corpus and build it again."
                    )


def _sha256(path: Path, advance: Callable[[int], None]) -> str:
    hashed = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_PIECE):
                hashed.update(data)
                advance(len(data))
    except OSError as error:
        raise TrainingError(
            f"{path} could not be read ({error.strerror}); put the file back, or delete the corpus and build it again."
        ) from None
    return hashed.hexdigest()


def build_corpus(plan: Plan, folder: Path, *, processes: int | None = None) -> Corpus:
    """Builds a corpus, or goes on with one that was begun, or opens it where it is there.

    One that is there is opened if its sources and its shards are still what they were.

    Args:
        plan: what to build.
        folder: where; made where it is not there.
        processes: how many encode; one for each core where it is left out. The result does not depend on it.

    Raises:
        TrainingError: where the folder holds another corpus, another build is writing it, it cannot be written, or a
            source cannot be read or has changed.
        InputError, TokenizerError: where a source does not hold what it should, or a vocabulary cannot write it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"the folder {folder} could not be made ({error.strerror}); name another.") from None
    ready = (folder / MANIFEST).exists()
    with locked(folder, alone=not ready):
        # Another build may have ended just before this one got the folder: then it is checked as any other.
        if not ready and not (folder / MANIFEST).exists():
            if processes is None:
                total = sum(job.source.size() for job in plan.jobs())
                processes = max(1, min(usable_cores(), total // (4 * BLOCK)))
            Build(plan, folder, processes).run()
            return Corpus(folder)
        corpus = Corpus(folder)
        check_plan(plan.values(), corpus.manifest["plan"], folder)
        with Progress("comparing the corpus with its texts", None):
            check_sources(plan.jobs(), corpus.manifest["sources"])
        with Progress("checking the corpus", corpus.size()) as progress:
            corpus.check(progress.advance)
        return corpus


def build(recipe: CorpusRecipe, vocab_size: int, data: Path, folder: Path) -> Corpus:
    """Makes the corpus that a recipe names, or opens it where it was made from the same texts and settings.

    Args:
        recipe: the texts, or the folder of a corpus that is there.
        vocab_size: of the model; and, where the recipe names no tokenizer, of the byte-level BPE that is learned.
        data: the folder that the recipe's names are relative to.
        folder: where the corpus goes.

    Raises:
        TrainingError, InputError, TokenizerError: as `build_corpus`; and where the corpus has more tokens in its
            vocabulary than the model.
    """
    if recipe.built:
        corpus = Corpus(place(recipe, data, folder))
        with Progress("checking the corpus", corpus.size()) as progress:
            corpus.check(progress.advance)
    else:
        corpus = build_corpus(_plan(recipe, vocab_size, data, folder), folder)
    if corpus.tokenizer.vocab_size > vocab_size:
        raise TrainingError(
            f"the corpus in {corpus.folder} has a vocabulary of {corpus.tokenizer.vocab_size:,} tokens and the model "
            f"has {vocab_size:,}; set vocab_size in [model] to {corpus.tokenizer.vocab_size:,} or more."
        )
    return corpus


def place(recipe: CorpusRecipe, data: Path, folder: Path) -> Path:
    """Where the corpus of a recipe is, with the arguments of `build`."""
    return data / recipe.built if recipe.built else folder


def _plan(recipe: CorpusRecipe, vocab_size: int, data: Path, folder: Path) -> Plan:
    texts = tuple(
        Text(
            source.name,
            tuple(find_sources([source.train], field=source.field, below=data, out=folder)),
            tuple(find_sources([source.valid], field=source.field, below=data, out=folder)) if source.valid else (),
            Validation.from_text(source.validation),
            source.weight,
        )
        for source in recipe.source
    )
    vocabulary = (
        Vocabulary.named(recipe.tokenizer, data)
        if recipe.tokenizer
        else Vocabulary("merges", None, vocab_size, recipe.tokenizer_bytes)
    )
    return Plan(texts, vocabulary, recipe.seed)


@contextlib.contextmanager
def locked(folder: Path, *, alone: bool = True) -> Iterator[None]:
    """Keeps other builds out of a folder; the system lets go of it when this process ends, however it ends.

    Args:
        folder: of the corpus.
        alone: for a build; without it, for reading, which others may do at the same time.

    Raises:
        TrainingError: where another build has it.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"another process is building a corpus in {folder}; wait for it to end, or name another folder."
            ) from None
        yield
    finally:
        os.close(handle)
