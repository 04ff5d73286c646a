"""The settings that say what a corpus is made of: the `[corpus]` table of a recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceRecipe:
    """One text of a corpus, as a recipe's `[[corpus.source]]` names it.

    Attributes:
        name: the text's name in metrics and shards.
        train: the training text, relative to the data folder: a text file (a line `<|endoftext|>` separates
            documents), JSON lines, a Parquet file, a folder of them, or a data set on the hub (`hf:NAME`).
        valid: the held-out text, in the same forms; empty for none.
        validation: if `valid` is empty, the part of `train` to hold out: a share of the documents (`0.01`) or the
            last share of the tokens (`tail:0.1`).
        field: the field of a JSON line, or the column of a table, that is the document.
        weight: the share of the training tokens, relative to the other sources' weights.
    """

    name: str
    train: str
    valid: str = ""
    validation: str = ""
    field: str = "text"
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class CorpusRecipe:
    """A recipe's `[corpus]` table: the texts, and the vocabulary that is learned from them.

    Attributes:
        source: the texts.
        built: instead of texts, the folder of a corpus from `clearhead corpus build`, relative to the data folder.
        tokenizer: `bytes`, `characters`, or a tokenizer's file, folder or name on the hub; if empty, a byte-level BPE
            is learned from the texts.
        seed: the seed of the draw of held-out documents.
        tokenizer_bytes: bytes of text that the vocabulary is learned from, divided by weight.
    """

    source: tuple[SourceRecipe, ...] = ()
    built: str = ""
    tokenizer: str = ""
    seed: int = 1
    tokenizer_bytes: int = 20_000_000
