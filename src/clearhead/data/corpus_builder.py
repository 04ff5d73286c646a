"""Build a corpus: sources are read in order, encoded by all cores, and written by one process.

A build can be interrupted at any time, in any way. Every few seconds the written tokens are flushed to the disk and
`build.json` records how far the build has come; the next build of the same corpus resumes from there, and its result
is, byte for byte, that of an uninterrupted one. Nothing depends on the number of processes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.data.corpus import Corpus
from clearhead.data.corpus_plan import CorpusPlan, SourceJob, TextPlan, check_plan, check_sources
from clearhead.data.corpus_recipe import CorpusRecipe
from clearhead.data.documents import BLOCK_BYTES, SEPARATOR
from clearhead.data.encoding import COMPILE_FROM, ChunkEncoder, EncodedChunk
from clearhead.data.manifest import (
    JOURNAL,
    MANIFEST,
    VERSION,
    BuildState,
    SourceRecord,
    read_journal,
    tokenizer_identity,
    write_record,
)
from clearhead.data.ray_workers import RayCluster
from clearhead.data.shards import DocumentStarts, ShardedTokens, ShardWriter, TokenSplit, truncate_files, truncated
from clearhead.data.sources.base import HASH_BYTES, Chunk, Cursor, DocumentSource
from clearhead.data.sources.hub_dataset import HubDataset
from clearhead.data.sources.text_file import TextFile
from clearhead.data.workers import distribute
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.atomic import remove_leftovers
from clearhead.utils.localization import announce
from clearhead.utils.locks import LockHeldError, exclusive_lock
from clearhead.utils.progress import Progress
from clearhead.utils.system import usable_cores

_SAVE_EVERY = 5.0  # seconds
_COPY_TOKENS = 1 << 20  # copied at a time
_LOCK = ".build.lock"


def build_corpus(plan: CorpusPlan, folder: Path, *, processes: int | RayCluster | None = None) -> Corpus:
    """Build a corpus, resume its build, or open it if it is complete.

    A complete one is opened if its sources and shards are unchanged.

    Args:
        plan: the corpus to build.
        folder: the destination; it is created if it does not exist.
        processes: the number of processes that encode, or a Ray cluster; None for one for each core. The result does
            not depend on it.

    Raises:
        TrainingError: if the folder contains another corpus, another build is writing it, it cannot be written, or a
            source cannot be read or has changed.
        InputError, TokenizerError: if a source is malformed, or the vocabulary cannot encode it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            with exclusive_lock(folder / _LOCK):
                remove_leftovers(folder)
                # Another build may have ended just before: then its corpus is opened like any other.
                if not (folder / MANIFEST).exists():
                    if processes is None:
                        total = sum(job.source.size() for job in plan.jobs())
                        processes = max(1, min(usable_cores(), total // (4 * BLOCK_BYTES)))
                    _CorpusBuild(plan, folder, processes).run()
                    return Corpus(folder)
    except LockHeldError:
        raise TrainingError(
            f"another process is building a corpus in {folder}; wait for it to end, or name another folder."
        ) from None
    except OSError as error:
        raise TrainingError(f"the folder {folder} could not be made ({error.strerror}); name another.") from None
    corpus = Corpus(folder)
    check_plan(plan.to_json(), corpus.manifest["plan"], folder)
    with Progress("comparing the corpus with its texts", None):
        check_sources(plan.jobs(), corpus.sources)
    check_shards(corpus)
    return corpus


def corpus_of_recipe(recipe: CorpusRecipe, vocab_size: int, data: Path, folder: Path) -> Corpus:
    """Build the corpus that a recipe names, or open it if it was built from the same texts and settings.

    Args:
        recipe: the texts, or the folder of an existing corpus.
        vocab_size: the model's; and, if the recipe names no tokenizer, that of the byte-level BPE to learn.
        data: the folder that the recipe's paths are relative to.
        folder: the corpus's destination.

    Raises:
        TrainingError, InputError, TokenizerError: as `build_corpus`; and if the corpus's vocabulary has more tokens
            than the model.
    """
    if recipe.built:
        corpus = Corpus(corpus_folder(recipe, data, folder))
        check_shards(corpus)
    else:
        corpus = build_corpus(CorpusPlan.from_recipe(recipe, vocab_size, data, folder), folder)
    if corpus.tokenizer.vocab_size > vocab_size:
        raise TrainingError(
            f"the corpus in {corpus.folder} has a vocabulary of {corpus.tokenizer.vocab_size:,} tokens and the model "
            f"has {vocab_size:,}; set vocab_size in [model] to {corpus.tokenizer.vocab_size:,} or more."
        )
    return corpus


def corpus_folder(recipe: CorpusRecipe, data: Path, folder: Path) -> Path:
    """Return the folder of a recipe's corpus, with the arguments of `corpus_of_recipe`."""
    return data / recipe.built if recipe.built else folder


def check_shards(corpus: Corpus) -> None:
    """Compare all shards of a corpus with their checksums, and show the progress.

    Raises:
        TrainingError: if one differs.
    """
    with Progress("checking the corpus", corpus.size()) as progress:
        corpus.check(progress.advance)


class _CorpusBuild:
    """One build of a corpus, from its beginning or from where an earlier one stopped.

    Args:
        plan: the corpus to build.
        folder: the destination. It exists, and no other build is writing it.
        processes: the number of processes that encode, or a Ray cluster.
    """

    def __init__(self, plan: CorpusPlan, folder: Path, processes: int | RayCluster) -> None:
        self.plan, self.folder, self.processes = plan, folder, processes
        self.jobs = plan.jobs()
        self._writers: dict[bool, ShardWriter] = {}
        self._saved = time.monotonic()

    def run(self) -> None:
        """Build; at the end `manifest.json` exists.

        Raises:
            TrainingError, InputError, TokenizerError: if sources or settings do not allow it, or the folder cannot be
                written.
        """
        try:
            self._begin()
            self._encode()
            self._write_manifest()
        except OSError as error:
            raise TrainingError(
                f"{self.folder} could not be written ({error.strerror or error}); what is done is kept: make room or "
                "correct the cause, and run the same command again to resume."
            ) from None
        finally:
            for writer in self._writers.values():
                with contextlib.suppress(OSError):
                    writer.abandon()

    # --- beginning or resuming -------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Restore the state of an earlier build or create a new one, and open the tokenizer."""
        values = self.plan.to_json()
        journal = self.folder / JOURNAL
        if journal.exists() and self._restore(read_journal(journal), values):
            self._check_what_was_read()
        else:
            learned_from = self.plan.vocabulary.create(self.folder, self._learning_sources(), self.processes)
            self.state: BuildState = {
                "plan": values,
                "learned_from": [cursor.to_json() for cursor in learned_from],
                "job": 0,
                "place": Cursor().to_json(),
                "documents": 0,  # of this text, begun so far
                "documents_before": 0,  # the same before this source
                "sources": [],
                "parts": {},
                "texts": {},
            }
            write_record(journal, self.state)
        self.tokenizer = Tokenizer.from_folder(self.folder)
        self.dtype = np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")
        if any(text.validation.kind == "tail" for text in self.plan.texts) and self.tokenizer.byte_lengths() is None:
            raise TrainingError(
                "with this tokenizer a text cannot be cut between any two tokens, as validation = tail does; give a "
                "share of the documents instead."
            )
        for name, text in self.state["texts"].items():
            for part, split in (("train", text["train"]), ("valid", text["valid"])):
                if split is not None:
                    truncate_files(self.folder, f"{name}.{part}", split, self.dtype)

    def _restore(self, state: BuildState, plan: dict[str, Any]) -> bool:
        """Take over the state of an unfinished build, unless that build failed at once and another is wanted now.

        Raises:
            TrainingError: if the state is malformed or belongs to another corpus.
        """
        if state["plan"] != plan and not (state["job"] or state["place"]["at"]):
            return False
        check_plan(plan, state["plan"], self.folder)
        texts = {text.name for text in self.plan.texts}
        parts = {f"{name}.{part}" for name in texts for part in ("train", "valid")}
        read = len(state["sources"])
        known = state["texts"].keys() <= texts and state["parts"].keys() <= parts
        if state["job"] != read or read > len(self.jobs) or not known:
            raise TrainingError(
                f"{self.folder / JOURNAL} does not fit together: it is at source {state['job']:,} and has the records "
                f"of {read:,} of {len(self.jobs):,}; delete the folder and build the corpus again."
            )
        self.state = state
        return True

    def _learning_sources(self) -> list[tuple[DocumentSource, float]]:
        """Return the sources that a vocabulary is learned from, each with its weight.

        Characters are collected from all sources; merges are learned from the training sources.
        """
        with_valid = self.plan.vocabulary.kind == "characters"
        return [(job.source, job.text.weight) for job in self.jobs if with_valid or not job.held_out]

    def _check_what_was_read(self) -> None:
        """Refuse sources that have changed since they were read."""
        cursors = [Cursor.from_json(values) for values in self.state["learned_from"]]
        with Progress("checking what was read before", None):
            for (source, _), cursor in zip(self._learning_sources(), cursors, strict=False):
                source.check(cursor)
            check_sources(self.jobs, self.state["sources"])

    # --- encoding --------------------------------------------------------------------------------------------

    def _encode(self) -> None:
        total = sum(job.source.size() for job in self.jobs)
        encoder = ChunkEncoder.of(self.tokenizer, self.dtype, compiled=total >= COMPILE_FROM)
        with Progress("tokenizing", total) as progress:
            progress.advance(sum(known["bytes"] for known in self.state["sources"]) + self.state["place"]["at"])
            encoded_chunks = distribute(
                encoder, self._chunks(), lambda item: (self.jobs[item[0]].source, item[1].content), self.processes
            )
            with contextlib.closing(encoded_chunks):  # type: ignore[type-var]
                for (job, chunk), encoded in encoded_chunks:
                    while self.state["job"] < job:
                        self._end_source()
                    self._write_chunk(chunk, encoded)
                    progress.advance(chunk.size, f"{self._tokens():,} tokens")
            while self.state["job"] < len(self.jobs):
                self._end_source()
            progress.note(f"{self._tokens():,} tokens")

    def _chunks(self) -> Iterator[tuple[int, Chunk]]:
        """Yield the chunks that are left to read, each with the number of its job."""
        cut = self.tokenizer.may_split != "nowhere"
        start = Cursor.from_json(self.state["place"])
        for number in range(self.state["job"], len(self.jobs)):
            for chunk in self.jobs[number].source.chunks(start, cut_documents=cut):
                yield number, chunk
            start = Cursor()

    def _tokens(self) -> int:
        splits = (split for text in self.state["texts"].values() for split in (text["train"], text["valid"]))
        return sum(one.tokens for one in (*splits, *self._writers.values()) if one is not None)

    def _writer(self, held_out: bool, text: TextPlan) -> ShardWriter:
        if held_out not in self._writers:
            name = f"{text.name}.{'valid' if held_out else 'train'}"
            state = self.state["parts"].get(name)
            self._writers[held_out] = ShardWriter(self.folder, name, self.dtype, self.plan.shard_tokens, state)
        return self._writers[held_out]

    def _write_chunk(self, chunk: Chunk, encoded: EncodedChunk) -> None:
        """Write the tokens of a chunk to the splits that they belong to."""
        job = self.jobs[self.state["job"]]
        # The number of each fragment's document in its text. A chunk may begin inside the document before.
        first = self.state["documents"] - 1
        numbers = first + encoded.begins.cumsum()
        if job.held_out:
            held_out = np.ones(len(numbers), np.bool_)
        else:
            drawn = job.text.validation.draw(self.plan.seed, max(first, 0), int(encoded.begins.sum()) + 2)
            held_out = drawn[numbers - max(first, 0)]
        ends = encoded.tokens.cumsum()
        begins = ends - encoded.tokens
        # Neighbours that belong to the same split are written together.
        turns = np.flatnonzero(np.diff(held_out)) + 1
        for run in np.split(np.arange(len(numbers)), turns) if len(numbers) else []:
            here = slice(run[0], run[-1] + 1)
            starts = begins[here][encoded.begins[here]] - begins[run[0]]
            ids = encoded.ids[begins[run[0]] : ends[run[-1]]]
            self._writer(bool(held_out[run[0]]), job.text).write(ids, starts, int(encoded.text_bytes[here].sum()))
        self.state["documents"] += int(encoded.begins.sum())
        self.state["place"] = chunk.end.to_json()
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        for writer in self._writers.values():
            self.state["parts"][writer.name] = writer.checkpoint()
        write_record(self.folder / JOURNAL, self.state)
        self._saved = time.monotonic()

    # --- the end of a source, of a text, of the build --------------------------------------------------------

    def _end_source(self) -> None:
        """Record a source that has been read completely; end its text if it was the last source of it."""
        number, state = self.state["job"], self.state
        job, cursor = self.jobs[number], Cursor.from_json(state["place"])
        self._refuse_changes(job, cursor)
        if isinstance(job.source, TextFile) and state["documents"] - state["documents_before"] == 1:
            _notice_inline_separator(job.source)
        record: SourceRecord = {
            **job.description(),  # type: ignore[typeddict-item]  # mypy asks for a key that is not required
            "text": job.text.name,
            "part": "valid" if job.held_out else "train",
            "documents": state["documents"] - state["documents_before"],
            "bytes": job.source.size(),
            "read": cursor.consumed,
            "sha256": cursor.digest,
        }
        if isinstance(job.source, HubDataset):
            record["revision"] = job.source.commit()
        state["sources"].append(record)
        state["job"], state["place"] = number + 1, Cursor().to_json()
        state["documents_before"] = state["documents"]
        if number + 1 == len(self.jobs) or self.jobs[number + 1].text is not job.text:
            self._end_text(job.text)

    def _refuse_changes(self, job: SourceJob, cursor: Cursor) -> None:
        """Refuse a source that was changed between two readings or while it was read."""
        learned_from = [
            Cursor.from_json(before)
            for (source, _), before in zip(self._learning_sources(), self.state["learned_from"], strict=False)
            if source is job.source
        ]
        changed = any(before.consumed == cursor.consumed and before.digest != cursor.digest for before in learned_from)
        if changed or (job.source.kind in ("text", "json") and job.source.size() != cursor.consumed):
            raise TrainingError(
                f"{job.source.name} was changed while it was read; delete {self.folder} and build the corpus again."
            )

    def _end_text(self, text: TextPlan) -> None:
        """End the splits of a text and record them."""
        writers = {held_out: self._writer(held_out, text) for held_out in (False, True)}
        train, valid = writers[False].close(), writers[True].close()
        self._writers = {}
        if text.validation.kind == "tail" and train.tokens:
            train, valid = self._cut_tail(text, train)
        if not train.tokens and valid.tokens and not text.valid:
            raise TrainingError(
                f"all documents of {text.name!r} were drawn to be held out (validation = {text.validation}), and none "
                "is left to train on; give a smaller share, or tail:0.1 to cut the text."
            )
        for split, sources in ((train, text.train), (valid, text.valid)):
            if sources and not split.tokens:
                names = ", ".join(source.name for source in sources[:3])
                raise TrainingError(f"{names} has no text in it; leave it out or fill it.")
        self.state["texts"][text.name] = {
            "train": train,
            "valid": valid if valid.tokens else None,
        }
        self.state["documents"] = self.state["documents_before"] = 0
        self.state["parts"] = {}
        self._save()
        truncate_files(self.folder, f"{text.name}.train", train, self.dtype)

    def _cut_tail(self, text: TextPlan, whole: TokenSplit) -> tuple[TokenSplit, TokenSplit]:
        """Copy the last tokens of a text to a held-out split; return both splits. The training files stay whole."""
        cut = int(whole.tokens * (1 - text.validation.share))
        if cut in (0, whole.tokens):
            raise TrainingError(
                f"validation = {text.validation} of the {whole.tokens:,} tokens of {text.name!r} leaves none on one "
                "side; give more text or another share."
            )
        lengths = self.tokenizer.byte_lengths()
        assert lengths is not None  # checked in _begin
        ids, starts = ShardedTokens.open(self.folder, whole, self.dtype), DocumentStarts(self.folder, whole)
        writer = ShardWriter(self.folder, f"{text.name}.valid", self.dtype, self.plan.shard_tokens)
        self._writers[True] = writer
        for first in range(cut, whole.tokens, _COPY_TOKENS):
            copied = ids[first : min(first + _COPY_TOKENS, whole.tokens)]
            writer.write(copied, starts.between(first, first + len(copied)) - first, int(lengths[copied].sum()))
        valid = writer.close()
        self._writers = {}
        cuts_a_document = not len(starts.between(cut, cut + 1))
        train = replace(
            whole,
            tokens=cut,
            documents=whole.documents - valid.documents,
            text_bytes=whole.text_bytes - valid.text_bytes,
            shards=tuple(truncated(self.folder, whole.shards, cut, self.dtype)),
        )
        return train, replace(valid, documents=valid.documents + cuts_a_document)

    def _write_manifest(self) -> None:
        values = {
            "version": VERSION,
            "dtype": self.dtype.str,
            "tokenizer": tokenizer_identity(self.tokenizer),
            "plan": self.state["plan"],
            "sources": self.state["sources"],
            "texts": self.state["texts"],
        }
        write_record(self.folder / MANIFEST, values)
        (self.folder / JOURNAL).unlink()


def _notice_inline_separator(source: TextFile) -> None:
    """Print a notice if a file that is one document has separators inside its lines, where they are text."""
    separator = SEPARATOR.encode()
    with source.path.open("rb") as file:
        tail = b""
        while data := file.read(HASH_BYTES):
            if separator in (data := tail + data):
                announce(
                    f"{source.name} has {SEPARATOR} inside its lines, where it is text, and is one document; put it on "
                    "a line of its own between documents."
                )
                return
            tail = data[-len(separator) :]
