"""Text files for training and evaluation: documents, separated by a line `<|endoftext|>`, and their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clearhead.errors import InputError
from clearhead.tokenizer import Tokenizer

SEPARATOR = "<|endoftext|>"
_BATCH = 1 << 20  # characters that are encoded at a time; bounds the memory


def documents(path: Path) -> Iterator[str]:
    """The documents of a text file, whose separator is a line `<|endoftext|>`; blank ones are left out.

    Raises:
        InputError: where the file cannot be read or is not UTF-8.
    """
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in file:
                if line.strip() == SEPARATOR:
                    yield from _document(lines)
                    lines = []
                else:
                    lines.append(line)
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    yield from _document(lines)


def _document(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def encode_documents(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """The tokens of each document of a file, with its length in bytes of UTF-8.

    Each begins with the end-of-text token, so that a model learns to start afresh there; a vocabulary
    without one does without.

    Raises:
        InputError: as `documents`.
    """
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for batch in _batches(path):
        for document, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            yield [*start, *ids], len(document.encode())


def _batches(path: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents(path):
        batch.append(document)
        size += len(document)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch
