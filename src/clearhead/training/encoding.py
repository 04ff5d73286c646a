"""What becomes of a stretch of a source: ids and where its documents begin, or the characters that it has.

This is the work that many processes share. The classes here are sent to them once, and then called for each stretch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.errors import TokenizerError
from clearhead.texts import Piece
from clearhead.tokenizer import Tokenizer
from clearhead.training.sources import Source


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


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns a stretch into tokens.

    Attributes:
        tokenizer: whose.
        dtype: of the ids.
    """

    tokenizer: Tokenizer
    dtype: np.dtype[Any]

    def __call__(self, source: Source, content: Any) -> Encoded:
        """The tokens of a stretch.

        Raises:
            InputError, TokenizerError: where it holds no text, or one that the vocabulary cannot write.
        """
        pieces = list(source.pieces(content))
        end = self.tokenizer.end_of_text
        start = np.array([] if end is None else [end], self.dtype)
        arrays: list[npt.NDArray[Any]] = []
        tokens = np.zeros(len(pieces), np.int64)
        for number, piece in enumerate(pieces):
            ids = self._ids(source, piece)
            tokens[number] = len(ids)
            if piece.begins:
                arrays.append(start)
                tokens[number] += len(start)
            arrays.append(ids)
        return Encoded(
            ids=np.concatenate(arrays, dtype=self.dtype, casting="unsafe") if arrays else start[:0],
            tokens=tokens,
            text_bytes=np.array([len(piece.text.encode()) for piece in pieces], np.int64),
            begins=np.array([piece.begins for piece in pieces], np.bool_),
        )

    def _ids(self, source: Source, piece: Piece) -> npt.NDArray[np.uint32]:
        try:
            return self.tokenizer.encode_array(piece.text)
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
