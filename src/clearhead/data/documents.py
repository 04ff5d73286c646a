"""Split text files into documents, which a line `<|endoftext|>` separates.

A file may be larger than memory, and so may a document. So a file is read in blocks that end where a document ends or,
inside a long one, before white space, and a block consists of fragments of documents. The documents that are found do
not depend on the size of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from clearhead.errors import InputError
from clearhead.tokenizer import Tokenizer
from clearhead.utils.text import decode_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SEPARATOR = "<|endoftext|>"
BLOCK_BYTES = 1 << 20
"""Bytes that are read and encoded at a time."""

_LONGEST_BLOCK = 1 << 28  # bytes; a file without white space for so long is not text


class TokenIds(Protocol):
    """The tokens of a text, read in slices: an array, or several mapped files."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: slice, /) -> npt.NDArray[np.integer[Any]]: ...


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A byte range of a text file.

    Attributes:
        start, end: offsets in bytes.
        inside: whether the block begins inside a document that an earlier block began.
        closed: whether the block ends where a document ends.
    """

    start: int
    end: int
    inside: bool
    closed: bool


@dataclass(frozen=True, slots=True)
class Fragment:
    """A document, or a part of one.

    Attributes:
        text: the text, without the white space around the document.
        begins: whether the document begins with this fragment.
    """

    text: str
    begins: bool


def read_blocks(
    file: BinaryIO, start: int = 0, inside: bool = False, *, size: int = BLOCK_BYTES, cut_documents: bool = True
) -> Iterator[tuple[TextBlock, bytes]]:
    """Yield the blocks of a text file in order, with their bytes.

    Args:
        file: opened for reading bytes, and positioned at `start`.
        start, inside: to resume: the end of an earlier block, and whether that block was not `closed`.
        size: bytes to read at a time; a block is longer if it contains no point to cut at.
        cut_documents: whether a block may end inside a document, before white space.

    Raises:
        InputError: if no point to cut at is found for so long that the file cannot be text.
    """
    buffer = b""
    while True:
        more = file.read(max(size, len(buffer)))
        buffer += more
        cut, closed = (len(buffer), True) if not more else _find_cut(buffer, inside, cut_documents)
        if cut:
            yield TextBlock(start, start + cut, inside, closed), buffer[:cut]
            start, inside, buffer = start + cut, not closed, buffer[cut:]
        if not more:
            return
        if cut_documents and len(buffer) >= _LONGEST_BLOCK:
            raise InputError(
                f"{file.name} has {len(buffer):,} bytes without a line end or a space, from byte {start:,} on; a text "
                "was expected, with a line <|endoftext|> between documents."
            )


def _find_cut(buffer: bytes, inside: bool, cut_documents: bool) -> tuple[int, bool]:
    """Return how many bytes of a buffer form a block, and whether a document ends there; 0 if it cannot be cut."""
    separator, at = SEPARATOR.encode(), len(buffer)
    while (at := buffer.rfind(separator, 0, at)) >= 0:
        before = buffer[:at].rstrip(b" \t") if at and buffer[at - 1] in b" \t" else buffer[max(at - 1, 0) : at]
        behind = at + len(separator)
        while buffer[behind : behind + 1] in (b" ", b"\t"):
            behind += 1
        line_end = buffer[behind : behind + 2]
        # A "\r" at the end of the buffer may be half of a line end.
        if (before.endswith((b"\n", b"\r")) or not (before or inside)) and (
            line_end[:1] == b"\n" or (line_end[:1] == b"\r" and len(line_end) == 2)
        ):
            return behind + (2 if line_end == b"\r\n" else 1), True
    return (_last_white_space(buffer), False) if cut_documents else (0, False)


def _last_white_space(buffer: bytes) -> int:
    """Return the last offset between a visible character and white space, line ends first; 0 if there is none."""
    for white in (b"\n", b"\r", b" "):
        cut = len(buffer)
        while (cut := buffer.rfind(white, 1, cut)) > 0:
            # The character before it, of one to four bytes. Not after a separator: its line must stay whole.
            before = buffer[max(cut - 4, 0) : cut].decode("utf-8", "ignore")
            if before and not before[-1].isspace() and not buffer.endswith(SEPARATOR.encode(), 0, cut):
                return cut
    return 0


def fragments_in(block: TextBlock, data: bytes, name: str) -> Iterator[Fragment]:
    """Yield the fragments of documents in a block, without blank documents.

    Args:
        block: the block.
        data: its bytes.
        name: the file's name, for errors.

    Raises:
        InputError: if the bytes are not UTF-8.
    """
    text = decode_text(data, name, offset=block.start)
    parts = list(_split(text, not block.inside, block.closed))
    for number, part in enumerate(parts):
        begins = number > 0 or not block.inside
        if begins:
            part = part.lstrip()
        if number < len(parts) - 1 or block.closed:
            part = part.rstrip()
        if part:
            yield Fragment(part, begins)


def _split(text: str, begins: bool, ends: bool) -> Iterator[str]:
    """Yield the text between separators, which are lines of `<|endoftext|>` and white space alone.

    A line ends with "\\n", "\\r\\n" or "\\r", as in Python's text files.

    Args:
        text: the text to split.
        begins, ends: whether the text begins where a line begins, and ends where one ends.
    """
    start = at = 0
    while (at := text.find(SEPARATOR, at)) >= 0:
        first, last = at, at + len(SEPARATOR)
        while first > start and text[first - 1].isspace() and text[first - 1] not in "\r\n":
            first -= 1
        while last < len(text) and text[last].isspace() and text[last] not in "\r\n":
            last += 1
        at += len(SEPARATOR)
        line_begins = text[first - 1] in "\r\n" if first else begins
        line_ends = text[last] in "\r\n" if last < len(text) else ends
        if line_begins and line_ends:
            yield text[start:first]
            start = last
    yield text[start:]


def documents(path: Path) -> Iterator[str]:
    """Yield the documents of a text file, without blank ones.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
    """
    document: list[str] = []
    try:
        with path.open("rb") as file:
            for block, data in read_blocks(file):
                for fragment in fragments_in(block, data, str(path)):
                    if fragment.begins and document:
                        yield "".join(document)
                        document = []
                    document.append(fragment.text)
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); check the path.") from None
    if document:
        yield "".join(document)


def encode_documents(path: Path, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """Yield the tokens of each document of a file, and its length in bytes of UTF-8.

    Each document begins with the end-of-text token, if the vocabulary has one, so that a model learns that a new
    document begins there.

    Raises:
        InputError: if the file cannot be read or is not UTF-8.
    """
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    for batch in _batches_of_documents(path):
        for document, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            yield [*start, *ids], len(document.encode())


def _batches_of_documents(path: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents(path):
        batch.append(document)
        size += len(document)
        if size >= BLOCK_BYTES:
            yield batch
            batch, size = [], 0
    yield batch
