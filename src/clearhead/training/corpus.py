"""From text files to token shards on disk: one flat array of ids for each text, read by memory map.

A corpus is a folder with the tokenizer's files, `<source>.train.bin` and `<source>.valid.bin` (little-endian uint16,
or uint32 for vocabularies above 65,536) and `manifest.json`, which is written last: a folder without it is
not a corpus yet. Every document begins with the end-of-text token, so that a model learns to start afresh there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearhead.errors import TrainingError
from clearhead.progress import Progress
from clearhead.texts import documents, encode_documents
from clearhead.tokenizer import Tokenizer
from clearhead.training.recipe import CorpusRecipe, SourceRecipe


@dataclass(frozen=True, slots=True)
class Shard:
    """One tokenized text.

    Attributes:
        file: its name in the corpus folder.
        tokens: how many ids it holds.
        documents: how many documents they make.
        text_bytes: the documents' length in UTF-8, the separators not counted.
        sha256: of the text file that it was made from.
    """

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str


class Corpus:
    """Token shards on disk, and the tokenizer that made them.

    Attributes:
        folder: where they are.
        tokenizer: theirs.
        train, valid: the shards, by the name of their source.
    """

    def __init__(self, folder: Path) -> None:
        manifest = folder / "manifest.json"
        try:
            values = json.loads(manifest.read_text(encoding="utf-8"))
            self.train = {name: Shard(**shard) for name, shard in values["train"].items()}
            self.valid = {name: Shard(**shard) for name, shard in values["valid"].items()}
            self._dtype = np.dtype(values["dtype"])
            self.key: str = values["key"]
        except FileNotFoundError:
            raise TrainingError(f"{folder} is no corpus: it has no manifest.json; build it first.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{manifest} could not be read ({error}); delete the folder and build the corpus again."
            ) from None
        self.folder = folder
        self.tokenizer = Tokenizer.from_folder(folder)

    def tokens(self, shard: Shard) -> np.ndarray:
        """A shard's ids, unsigned integers [tokens], mapped and not read.

        Raises:
            TrainingError: where the file is missing or has another length than the manifest says.
        """
        path = self.folder / shard.file
        expected = shard.tokens * self._dtype.itemsize
        found = path.stat().st_size if path.exists() else 0
        if found != expected:
            raise TrainingError(
                f"{path} has {found:,} bytes and the manifest says {expected:,}; delete the corpus and build it again."
            )
        return np.memmap(path, self._dtype, mode="r")


def build(recipe: CorpusRecipe, vocab_size: int, data: Path, folder: Path) -> Corpus:
    """Makes the corpus that a recipe names, or opens it where it was made from the same texts and settings.

    Args:
        recipe: the texts.
        vocab_size: of the byte-level BPE that is learned from them.
        data: the folder that the recipe's file names are relative to.
        folder: where the corpus goes.

    Raises:
        TrainingError: where a text is missing or empty, or the folder holds a corpus made from something else.
    """
    hashes = {name: _sha256(data / name) for source in recipe.source for name in (source.train, source.valid) if name}
    key = _key(recipe, vocab_size, hashes)
    if (folder / "manifest.json").exists():
        corpus = Corpus(folder)
        if corpus.key != key:
            raise TrainingError(
                f"{folder} was built from other texts or settings than this recipe's; delete it or name another folder."
            )
        return corpus
    folder.mkdir(parents=True, exist_ok=True)
    with Progress("learning the vocabulary", None) as progress:
        tokenizer = Tokenizer.train(_sample(recipe, data), vocab_size)
        progress.note(f"{tokenizer.vocab_size:,} tokens")
    if tokenizer.vocab_size != vocab_size:
        raise TrainingError(
            f"the texts give a vocabulary of {tokenizer.vocab_size:,} and the model has {vocab_size:,}; "
            "set vocab_size to the former or give more text."
        )
    tokenizer.save(folder)
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    shards: dict[str, dict[str, Any]] = {"train": {}, "valid": {}}
    for source in recipe.source:
        for split, name in (("train", source.train), ("valid", source.valid)):
            if name:
                shard = _write(data / name, tokenizer, dtype, folder / f"{source.name}.{split}.bin", hashes[name])
                shards[split][source.name] = asdict(shard)
    manifest = {"key": key, "dtype": dtype.str, "vocab_size": vocab_size, **shards}
    beside = folder / "manifest.json.part"
    beside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    beside.replace(folder / "manifest.json")
    return Corpus(folder)


def _key(recipe: CorpusRecipe, vocab_size: int, hashes: Mapping[str, str]) -> str:
    """What a corpus depends on; the weights decide the vocabulary's sample too."""
    values = {"recipe": asdict(recipe), "vocab_size": vocab_size, "hashes": dict(hashes)}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TrainingError(
            f"the text {path} could not be read ({error.strerror}); "
            "point --data at the folder that has the recipe's texts."
        ) from None


def _sample(recipe: CorpusRecipe, data: Path) -> Iterator[str]:
    """The beginning of each text, by its share of `tokenizer_bytes`, a paragraph at a time."""
    total = sum(source.weight for source in recipe.source)
    for source in recipe.source:
        left = recipe.tokenizer_bytes * source.weight / total
        for paragraph in _paragraphs(source, data):
            yield paragraph
            left -= len(paragraph.encode())
            if left <= 0:
                break


def _paragraphs(source: SourceRecipe, data: Path) -> Iterator[str]:
    for document in documents(data / source.train):
        yield from (f"{paragraph}\n\n" for paragraph in document.split("\n\n"))


def _write(text: Path, tokenizer: Tokenizer, dtype: np.dtype, path: Path, sha256: str) -> Shard:
    counts = {"tokens": 0, "documents": 0, "text_bytes": 0}
    beside = path.with_name(path.name + ".part")
    with Progress(f"tokenizing {text.name}", None) as progress, beside.open("wb") as file:
        for ids, text_bytes in encode_documents(text, tokenizer):
            np.array(ids, dtype).tofile(file)
            counts["tokens"] += len(ids)
            counts["documents"] += 1
            counts["text_bytes"] += text_bytes
            progress.note(f"{counts['tokens']:,} tokens")
    if not counts["documents"]:
        beside.unlink()
        raise TrainingError(f"{text} has no text in it; leave it out of the recipe or fill it.")
    beside.replace(path)
    return Shard(file=path.name, sha256=sha256, **counts)
