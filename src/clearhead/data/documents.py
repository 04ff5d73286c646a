"""Text files for training and evaluation: documents, separated by a line `<|endoftext|>`, and their tokens.

A file may be larger than memory, and so may a document. So a file is read in blocks that are cut where a document
ends or, inside a long one, before white space, and a block gives pieces of documents. What is found does not depend
on the size of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from clearhead.errors import InputError
from clearhead.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SEPARATOR = "<|endoftext|>"
BLOCK = 1 << 20
"""How many bytes are read and encoded at a time."""

_MOST = 1 << 28  # bytes without a place to cut, after which a file is taken for something else than text


class Ids(Protocol):
    """The tokens of a text, which are read in slices: an array, or what is mapped from several files."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> npt.NDArray[np.integer[Any]]: ...


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a text file.

    Attributes:
        start, end: where it is, in bytes.
        inside: whether it begins inside a document that the block before it has begun.
        closed: whether it ends where a document ends.
    """

    start: int
    end: int
    inside: bool
    closed: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or a part of one.

    Attributes:
        text: what it says, without the white space around the document.
        begins: whether the document begins with it.
    """

    text: str
    begins: bool


def blocks(
    file: BinaryIO, start: int = 0, inside: bool = False, *, size: int = BLOCK, cut_documents: bool = True
) -> Iterator[tuple[Block, bytes]]:
    """The blocks of a text file in order, with their bytes.

    Args:
        file: opened for reading bytes, and at `start`.
        start, inside: the end of an earlier block and whether it was not `closed`, to go on from there.
        size: how many bytes to read at a time; a block is longer where there is no place to cut.
        cut_documents: whether a block may end inside a document, before white space.

    Raises:
        InputError: where there is no place to cut in so many bytes that this is no text.
    """
    buffer = b""
    while True:
        more = file.read(max(size, len(buffer)))
        buffer += more
        cut, closed = (len(buffer), True) if not more else _place_to_cut(buffer, inside, cut_documents)
        if cut:
            yield Block(start, start + cut, inside, closed), buffer[:cut]
            start, inside, buffer = start + cut, not closed, buffer[cut:]
        if not more:
            return
        if cut_documents and len(buffer) >= _MOST:
            raise InputError(
                f"{file.name} has {len(buffer):,} bytes without a line end or a space, from byte {start:,} on; a text "
                "was expected, with a line <|endoftext|> between documents."
            )


def _place_to_cut(buffer: bytes, inside: bool, cut_documents: bool) -> tuple[int, bool]:
    """How much of a buffer may go on its way, and whether a document ends there; 0 where nothing may."""
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
    return (_before_white_space(buffer), False) if cut_documents else (0, False)


def _before_white_space(buffer: bytes) -> int:
    """The last place between a visible character and a white one, line ends first; 0 where there is none."""
    for white in (b"\n", b"\r", b" "):
        cut = len(buffer)
        while (cut := buffer.rfind(white, 1, cut)) > 0:
            # The character before it, of one to four bytes. Not behind a separator: its line must stay whole.
            before = buffer[max(cut - 4, 0) : cut].decode("utf-8", "ignore")
            if before and not before[-1].isspace() and not buffer.endswith(SEPARATOR.encode(), 0, cut):
                return cut
    return 0


def pieces(block: Block, data: bytes, name: str) -> Iterator[Piece]:
    """What a block holds: pieces of documents, blank documents left out.

    Args:
        block: where it is.
        data: its bytes.
        name: of the file, for errors.

    Raises:
        InputError: where the bytes are not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error.reason} at byte {block.start + error.start:,}).") from None
    parts = list(_split(text, not block.inside, block.closed))
    for number, part in enumerate(parts):
        begins = number > 0 or not block.inside
        if begins:
            part = part.lstrip()
        if number < len(parts) - 1 or block.closed:
            part = part.rstrip()
        if part:
            yield Piece(part, begins)


def _split(text: str, begins: bool, ends: bool) -> Iterator[str]:
    """What stands between the separators: lines of nothing but `<|endoftext|>` and white space.

    A line ends with "\\n", "\\r\\n" or "\\r", as in Python's text files.

    Args:
        text: what to split.
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
        on_the_left = text[first - 1] in "\r\n" if first else begins
        on_the_right = text[last] in "\r\n" if last < len(text) else ends
        if on_the_left and on_the_right:
            yield text[start:first]
            start = last
    yield text[start:]


def documents(path: Path) -> Iterator[str]:
    """The documents of a text file, whose separator is a line `<|endoftext|>`; blank ones are left out.

    Raises:
        InputError: where the file cannot be read or is not UTF-8.
    """
    document: list[str] = []
    try:
        with path.open("rb") as file:
            for block, data in blocks(file):
                for piece in pieces(block, data, str(path)):
                    if piece.begins and document:
                        yield "".join(document)
                        document = []
                    document.append(piece.text)
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); check the path.") from None
    if document:
        yield "".join(document)


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
        if size >= BLOCK:
            yield batch
            batch, size = [], 0
    yield batch
