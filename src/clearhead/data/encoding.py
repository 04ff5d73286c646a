"""What becomes of a stretch of a source: ids and where its documents begin, or the characters that it has.

This is the work that many processes share. The classes here are sent to them once, and then called for each stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.data.documents import Piece
from clearhead.data.sources import Source
from clearhead.errors import TokenizerError
from clearhead.tokenizer import Tokenizer

COMPILE_FROM = 1 << 25
"""Bytes of text from which on a compiled encoder is worth the seconds that it takes to compile."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a stretch.

    Attributes:
        ids: unsigned integers [tokens].
        tokens: how many of them each piece has, int64 [pieces]. A piece with which a document begins has the
            end-of-text token before it, where the vocabulary has one.
        text_bytes: the length of each piece in UTF-8, int64 [pieces].
        begins: whether a document begins with it, bool [pieces].
    """

    ids: npt.NDArray[np.unsignedinteger[Any]]
    tokens: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]
    begins: npt.NDArray[np.bool_]


class Encoder:
    """Turns a stretch into tokens.

    Args:
        encode: a text to ids; sent to each process.
        start: the ids before each document.
        dtype: of the ids.
    """

    def __init__(
        self, encode: Callable[[str], npt.NDArray[np.uint32]], start: Sequence[int], dtype: np.dtype[Any]
    ) -> None:
        self.encode, self.start = encode, np.array(start, dtype)

    @classmethod
    def of(cls, tokenizer: Tokenizer, dtype: np.dtype[Any], *, compiled: bool) -> Encoder:
        """One for a tokenizer.

        Args:
            tokenizer: whose.
            dtype: of the ids.
            compiled: whether to compile for it where the tokenizer is of GPT-2's kind, which takes seconds and then
                saves most of the time. The ids do not depend on it.
        """
        encode: Callable[[str], npt.NDArray[np.uint32]] = tokenizer.encode_array
        if compiled and tokenizer.byte_pairs() is not None:
            from clearhead.tokenizer.bulk import BulkEncoder
            from clearhead.utils.jit import compile_notice

            with compile_notice("Compiling the encoder, once on this machine …"):
                encode = BulkEncoder(tokenizer)
                encode("a")  # so that other processes find it compiled
        return cls(encode, [] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype)

    def __call__(self, source: Source, content: Any) -> Encoded:
        """The tokens of a stretch.

        Raises:
            InputError, TokenizerError: where it holds no text, or one that the vocabulary cannot write.
        """
        pieces = list(source.pieces(content))
        arrays: list[npt.NDArray[Any]] = []
        tokens = np.zeros(len(pieces), np.int64)
        for number, piece in enumerate(pieces):
            ids = self._ids(source, piece)
            tokens[number] = len(ids)
            if piece.begins:
                arrays.append(self.start)
                tokens[number] += len(self.start)
            arrays.append(ids)
        return Encoded(
            ids=np.concatenate([self.start[:0], *arrays], dtype=self.start.dtype, casting="unsafe"),
            tokens=tokens,
            text_bytes=np.array([len(piece.text.encode()) for piece in pieces], np.int64),
            begins=np.array([piece.begins for piece in pieces], np.bool_),
        )

    def _ids(self, source: Source, piece: Piece) -> npt.NDArray[np.uint32]:
        try:
            return self.encode(piece.text)
        except TokenizerError as error:
            raise TokenizerError(f"in {source.name}: {error}") from None


class Alphabet:
    """Finds the characters of a stretch, and how many documents begin in it."""

    def __call__(self, source: Source, content: Any) -> tuple[str, int]:
        """The characters, each once, and the number.

        Raises:
            InputError: where the stretch holds no text.
        """
        characters: set[str] = set()
        documents = 0
        for piece in source.pieces(content):
            characters.update(piece.text)
            documents += piece.begins
        return "".join(characters), documents
