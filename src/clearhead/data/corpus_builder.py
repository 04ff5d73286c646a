"""How a corpus is built: sources are read in order, encoded by all cores, and written by one process.

A build can be stopped at any time, in any way. Every few seconds what is written is brought onto the disk and
`build.json` says how far it came; the next build of the same corpus goes on from there, and what it makes is, byte for
byte, what an undisturbed one makes. Nothing depends on how many processes encode.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clearhead.data.encoding import COMPILE_FROM, Encoded, Encoder
from clearhead.data.manifest import JOURNAL, MANIFEST, VERSION, checksum, identity, read_json, write_json
from clearhead.data.shards import Part, Starts, Tokens, Writer, settle, shorter
from clearhead.data.sources import Place, Source, Stretch
from clearhead.data.vocabulary import Vocabulary
from clearhead.data.workers import results
from clearhead.errors import TrainingError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.progress import Progress
from clearhead.utils.splitmix64 import mix

SHARD_TOKENS = 1 << 27
"""Ids in a shard: 256 MiB of them at two bytes each."""

_SAVE_EVERY = 5.0  # seconds
_PIECE = 1 << 20  # tokens that are copied at a time


@dataclass(frozen=True, slots=True)
class Validation:
    """Which documents of a text are held out.

    Attributes:
        kind: `none`; `share`, for documents drawn at random; `tail`, for the last tokens.
        share: how much of the text: of its documents, or of its tokens.
    """

    kind: Literal["none", "share", "tail"] = "none"
    share: float = 0.0

    @classmethod
    def from_text(cls, text: str) -> Validation:
        """Reads `0.01` (a share of the documents), `tail:0.1` (the last tenth of the tokens) or `none`.

        Raises:
            TrainingError: where it is none of them.
        """
        if text in ("", "none", "0"):
            return cls()
        kind, _, number = text.rpartition(":")
        with contextlib.suppress(ValueError):
            if kind in ("", "tail") and 0 < float(number) < 1:
                return cls("tail" if kind else "share", float(number))
        raise TrainingError(
            f"validation is {text!r}; a share of the documents such as 0.01, the last tokens such as tail:0.1, or none "
            "was expected."
        )

    def __str__(self) -> str:
        return {"none": "none", "share": f"{self.share}", "tail": f"tail:{self.share}"}[self.kind]

    def holds_out(self, seed: int, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Which of some documents are held out, where documents are drawn: decided by the seed and their number.

        Args:
            seed: of the draw.
            first: the number of the first of them in its text, from 0.
            count: how many.

        Returns:
            bool [count].
        """
        if self.kind != "share":
            return np.zeros(count, np.bool_)
        start = mix(seed)
        limit = int(self.share * 2**64)
        return np.array([mix(start + number) < limit for number in range(first, first + count)], np.bool_)


@dataclass(frozen=True, slots=True)
class Text:
    """One text of a corpus.

    Attributes:
        name: what its files are called.
        train: where its documents come from, in this order.
        valid: where the held-out ones come from, where they stand apart.
        validation: which of the first are held out.
        weight: how much of what a vocabulary is learned from comes from here, relative to the other texts.
    """

    name: str
    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()
    validation: Validation = field(default_factory=Validation)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All that decides what a corpus is.

    Attributes:
        texts: what it holds, in order.
        vocabulary: how text becomes ids.
        seed: of the draw of held-out documents.
        shard_tokens: ids in a shard.
    """

    texts: tuple[Text, ...]
    vocabulary: Vocabulary
    seed: int = 1
    shard_tokens: int = SHARD_TOKENS

    def values(self) -> dict[str, Any]:
        """The plan as JSON, in which the sources stand with their sizes."""
        return {
            "vocabulary": self.vocabulary.values(),
            "seed": self.seed,
            "shard_tokens": self.shard_tokens,
            "texts": [
                {
                    "name": text.name,
                    "validation": str(text.validation),
                    **({"weight": text.weight} if self.vocabulary.weighs else {}),
                    "train": [_description(source) for source in text.train],
                    "valid": [_description(source) for source in text.valid],
                }
                for text in self.texts
            ],
        }

    def jobs(self) -> list[Job]:
        """The sources, in the order in which they are read."""
        return [
            Job(text, source, held_out)
            for text in self.texts
            for held_out, sources in ((False, text.train), (True, text.valid))
            for source in sources
        ]


@dataclass(frozen=True, slots=True)
class Job:
    """A source, the text that it belongs to, and whether its documents are held out."""

    text: Text
    source: Source
    held_out: bool


def _has_begun(state: dict[str, Any], values: dict[str, Any]) -> bool:
    """Whether an unfinished build has something to lose: not where it failed at once, and another is wanted now."""
    return bool(state["plan"] == values or state["job"] or state["place"]["at"])


def _description(source: Source) -> dict[str, Any]:
    return {"name": source.name, "kind": source.kind} | ({"field": source.field} if hasattr(source, "field") else {})


def check_plan(now: dict[str, Any], then: dict[str, Any], folder: Path) -> None:
    """Compares a plan with the one that a folder was made or begun by.

    Raises:
        TrainingError: where they differ; the sentence says in what.
    """
    if differing := [key for key in now if now[key] != then.get(key)]:
        raise TrainingError(
            f"{folder} was built from other texts or settings than these: {' and '.join(differing)} differ. Delete it "
            "or name another folder."
        )


def check_sources(jobs: Sequence[Job], known: Sequence[dict[str, Any]]) -> None:
    """Compares sources with what is known of them since they were read to their end.

    Raises:
        TrainingError: where one has changed.
    """
    for job, before in zip(jobs, known, strict=False):
        if job.source.size() != before["bytes"]:
            raise TrainingError(
                f"{job.source.name} has {job.source.size():,} bytes and had {before['bytes']:,} when it was read; put "
                "the old file back, or delete the corpus and build it again."
            )
        job.source.check(Place(before["read"], False, before["sha256"]))


class Build:
    """One build of a corpus, from its beginning or from where an earlier one stopped.

    Args:
        plan: what to build.
        folder: where to. It exists, and no other build is writing it.
        processes: how many encode.
    """

    def __init__(self, plan: Plan, folder: Path, processes: int) -> None:
        self.plan, self.folder, self.processes = plan, folder, processes
        self.jobs = plan.jobs()
        self._writers: dict[bool, Writer] = {}
        self._saved = time.monotonic()

    def run(self) -> None:
        """Builds; at the end `manifest.json` is there.

        Raises:
            TrainingError, InputError, TokenizerError: where sources or settings do not allow it, or the folder cannot
                be written.
        """
        try:
            self._begin()
            self._encode()
            self._write_manifest()
        except OSError as error:
            raise TrainingError(
                f"{self.folder} could not be written ({error.strerror or error}); what is done is kept: make room or "
                "put right what is wrong, and run the same command again, it goes on from there."
            ) from None
        finally:
            for writer in self._writers.values():
                with contextlib.suppress(OSError):
                    writer.abandon()

    # --- the beginning ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """The state to go on from, and the tokenizer."""
        values = self.plan.values()
        journal = self.folder / JOURNAL
        if journal.exists() and (begun := read_json(journal)) and _has_begun(begun, values):
            self.state = begun
            check_plan(values, self.state["plan"], self.folder)
            self._check_what_was_read()
        else:
            learned_from = self.plan.vocabulary.make(self.folder, self._for_learning(), self.processes)
            self.state = {
                "plan": values,
                "learned_from": [asdict(place) for place in learned_from],
                "job": 0,
                "place": asdict(Place()),
                "documents": 0,  # of this text, begun so far
                "documents_before": 0,  # the same before this source
                "sources": [],
                "parts": {},
                "texts": {},
            }
            write_json(journal, self.state)
        self.tokenizer = Tokenizer.from_folder(self.folder)
        self.dtype = np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")
        if any(text.validation.kind == "tail" for text in self.plan.texts) and self.tokenizer.byte_lengths() is None:
            raise TrainingError(
                "with this tokenizer a text cannot be cut between any two tokens, as validation = tail does; give a "
                "share of the documents instead."
            )
        for name, text in self.state["texts"].items():
            for part, values in text.items():
                if values:
                    settle(self.folder, f"{name}.{part}", Part.from_json(values), self.dtype)

    def _for_learning(self) -> list[tuple[Source, float]]:
        """The sources that a vocabulary is learned from, each with its weight.

        Characters are wanted from all; merges, from what is trained on.
        """
        with_valid = self.plan.vocabulary.kind == "characters"
        return [(job.source, job.text.weight) for job in self.jobs if with_valid or not job.held_out]

    def _check_what_was_read(self) -> None:
        """Refuses sources that have changed since they were read."""
        places = [Place(**place) for place in self.state["learned_from"]]
        with Progress("checking what was read before", None):
            for (source, _), place in zip(self._for_learning(), places, strict=False):
                source.check(place)
            check_sources(self.jobs, self.state["sources"])

    # --- encoding --------------------------------------------------------------------------------------------

    def _encode(self) -> None:
        total = sum(job.source.size() for job in self.jobs)
        encoder = Encoder.of(self.tokenizer, self.dtype, compiled=total >= COMPILE_FROM)
        with Progress("tokenizing", total) as progress:
            progress.advance(sum(known["bytes"] for known in self.state["sources"]) + self.state["place"]["at"])
            found = results(
                encoder, self._stretches(), lambda item: (self.jobs[item[0]].source, item[1].content), self.processes
            )
            with contextlib.closing(found):  # type: ignore[type-var]
                for (job, stretch), encoded in found:
                    while self.state["job"] < job:
                        self._end_source()
                    self._take(stretch, encoded)
                    progress.advance(stretch.size, f"{self._tokens():,} tokens")
            while self.state["job"] < len(self.jobs):
                self._end_source()
            progress.note(f"{self._tokens():,} tokens")

    def _stretches(self) -> Iterator[tuple[int, Stretch]]:
        """What is left to read, each stretch with the number of its job."""
        cut = self.tokenizer.may_split != "nowhere"
        start = Place(**self.state["place"])
        for number in range(self.state["job"], len(self.jobs)):
            for stretch in self.jobs[number].source.stretches(start, cut_documents=cut):
                yield number, stretch
            start = Place()

    def _tokens(self) -> int:
        done = sum(part["tokens"] for text in self.state["texts"].values() for part in text.values() if part)
        return done + sum(writer.tokens for writer in self._writers.values())

    def _writer(self, held_out: bool, text: Text) -> Writer:
        if held_out not in self._writers:
            name = f"{text.name}.{'valid' if held_out else 'train'}"
            state = self.state["parts"].get(name)
            self._writers[held_out] = Writer(self.folder, name, self.dtype, self.plan.shard_tokens, state)
        return self._writers[held_out]

    def _take(self, stretch: Stretch, encoded: Encoded) -> None:
        """Writes the tokens of a stretch to the part or parts that they belong to."""
        job = self.jobs[self.state["job"]]
        # The number of each piece's document in its text. A stretch may begin inside the document before.
        first = self.state["documents"] - 1
        numbers = first + encoded.begins.cumsum()
        if job.held_out:
            held_out = np.ones(len(numbers), np.bool_)
        else:
            drawn = job.text.validation.holds_out(self.plan.seed, max(first, 0), int(encoded.begins.sum()) + 2)
            held_out = drawn[numbers - max(first, 0)]
        ends = encoded.tokens.cumsum()
        begins = ends - encoded.tokens
        # Neighbours that go the same way are written together.
        turns = np.flatnonzero(np.diff(held_out)) + 1
        for run in np.split(np.arange(len(numbers)), turns) if len(numbers) else []:
            here = slice(run[0], run[-1] + 1)
            starts = begins[here][encoded.begins[here]] - begins[run[0]]
            ids = encoded.ids[begins[run[0]] : ends[run[-1]]]
            self._writer(bool(held_out[run[0]]), job.text).write(ids, starts, int(encoded.text_bytes[here].sum()))
        self.state["documents"] += int(encoded.begins.sum())
        self.state["place"] = asdict(stretch.end)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        for writer in self._writers.values():
            self.state["parts"][writer.name] = writer.checkpoint()
        write_json(self.folder / JOURNAL, self.state)
        self._saved = time.monotonic()

    # --- what is ended ---------------------------------------------------------------------------------------

    def _end_source(self) -> None:
        """Notes a source that is read to its end, and ends its text where it was the last of it."""
        number, state = self.state["job"], self.state
        job, place = self.jobs[number], Place(**state["place"])
        self._refuse_changes(job.source, place)
        state["sources"].append(
            {
                **_description(job.source),
                "text": job.text.name,
                "part": "valid" if job.held_out else "train",
                "documents": state["documents"] - state["documents_before"],
                "bytes": job.source.size(),
                "read": place.at,
                "sha256": place.digest,
            }
        )
        state["job"], state["place"] = number + 1, asdict(Place())
        state["documents_before"] = state["documents"]
        if number + 1 == len(self.jobs) or self.jobs[number + 1].text is not job.text:
            self._end_text(job.text)

    def _refuse_changes(self, source: Source, place: Place) -> None:
        """Refuses a source that was changed between two readings or while it was read."""
        learned_from = [
            Place(**before)
            for (other, _), before in zip(self._for_learning(), self.state["learned_from"], strict=False)
            if other is source
        ]
        changed = any(before.at == place.at and before.digest != place.digest for before in learned_from)
        if changed or (source.kind in ("text", "json") and source.size() != place.at):
            raise TrainingError(
                f"{source.name} was changed while it was read; delete {self.folder} and build the corpus again."
            )

    def _end_text(self, text: Text) -> None:
        """Ends the parts of a text, and writes down what they are."""
        writers = {held_out: self._writer(held_out, text) for held_out in (False, True)}
        train, valid = writers[False].close(), writers[True].close()
        self._writers = {}
        if text.validation.kind == "tail" and train.tokens:
            train, valid = self._cut_tail(text, train)
        for part, wanted, sources in ((train, True, text.train), (valid, bool(text.valid), text.valid)):
            if wanted and not part.tokens:
                if part is train and valid.tokens and not text.valid:
                    raise TrainingError(
                        f"all documents of {text.name!r} were drawn to be held out (validation = {text.validation}), "
                        "and none is left to train on; give a smaller share, or tail:0.1 to cut the text."
                    )
                names = ", ".join(source.name for source in sources[:3])
                raise TrainingError(f"{names} has no text in it; leave it out or fill it.")
        self.state["texts"][text.name] = {
            "train": asdict(train),
            "valid": asdict(valid) if valid.tokens else None,
        }
        self.state |= {"documents": 0, "documents_before": 0, "parts": {}}
        self._save()
        settle(self.folder, f"{text.name}.train", train, self.dtype)

    def _cut_tail(self, text: Text, whole: Part) -> tuple[Part, Part]:
        """A text without its last tokens, whose files are still whole, and those tokens, written."""
        cut = int(whole.tokens * (1 - text.validation.share))
        if cut in (0, whole.tokens):
            raise TrainingError(
                f"validation = {text.validation} of the {whole.tokens:,} tokens of {text.name!r} leaves none on one "
                "side; give more text or another share."
            )
        lengths = self.tokenizer.byte_lengths()
        assert lengths is not None  # as _begin has seen
        ids, starts = Tokens.open(self.folder, whole, self.dtype), Starts(self.folder, whole)
        writer = Writer(self.folder, f"{text.name}.valid", self.dtype, self.plan.shard_tokens)
        self._writers[True] = writer
        for first in range(cut, whole.tokens, _PIECE):
            piece = ids[first : min(first + _PIECE, whole.tokens)]
            writer.write(piece, starts.between(first, first + len(piece)) - first, int(lengths[piece].sum()))
        valid = writer.close()
        self._writers = {}
        begins_anew = len(starts.between(cut, cut + 1)) > 0
        train = replace(
            whole,
            tokens=cut,
            documents=whole.documents - valid.documents,
            text_bytes=whole.text_bytes - valid.text_bytes,
            shards=tuple(shorter(self.folder, whole.shards, cut, self.dtype)),
        )
        return train, replace(valid, documents=valid.documents + (not begins_anew))

    def _write_manifest(self) -> None:
        values = {
            "version": VERSION,
            "dtype": self.dtype.str,
            "tokenizer": identity(self.tokenizer),
            "plan": self.state["plan"],
            "sources": self.state["sources"],
            "texts": self.state["texts"],
        }
        write_json(self.folder / MANIFEST, {**values, "checksum": checksum(values)})
        (self.folder / JOURNAL).unlink()
