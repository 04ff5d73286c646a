"""Turn chunks of a source into tokens. Each process that encodes has one `ChunkEncoder`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clearhead.data.documents import Fragment
from clearhead.data.sources.base import DocumentSource
from clearhead.errors import TokenizerError
from clearhead.tokenizer import Tokenizer

COMPILE_FROM = 1 << 25
"""Bytes of text from which on compiling an encoder pays for the seconds that it takes."""


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """The tokens of a chunk.

    Attributes:
        ids: unsigned integers [tokens].
        tokens: the number of tokens of each fragment, int64 [fragments]. A fragment with which a document begins has
            the end-of-text token before it, if the vocabulary has one.
        text_bytes: the length of each fragment in UTF-8, int64 [fragments].
        begins: whether a document begins with the fragment, bool [fragments].
    """

    ids: npt.NDArray[np.unsignedinteger[Any]]
    tokens: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]
    begins: npt.NDArray[np.bool_]


class ChunkEncoder:
    """Encode chunks.

    Args:
        encode: maps a text to ids; it is sent to each process.
        start: the ids before each document.
        dtype: the ids' type.
    """

    def __init__(
        self, encode: Callable[[str], npt.NDArray[np.uint32]], start: Sequence[int], dtype: np.dtype[Any]
    ) -> None:
        self.encode, self.start = encode, np.array(start, dtype)

    @classmethod
    def of(cls, tokenizer: Tokenizer, dtype: np.dtype[Any], *, compiled: bool) -> ChunkEncoder:
        """Create an encoder for a tokenizer.

        Args:
            tokenizer: the tokenizer.
            dtype: the ids' type.
            compiled: whether to compile an encoder, if the tokenizer is of GPT-2's kind. That takes seconds, and then
                saves most of the time; the ids do not depend on it.
        """
        encode: Callable[[str], npt.NDArray[np.uint32]] = tokenizer.encode_array
        if compiled and tokenizer.byte_pairs() is not None:
            from clearhead.tokenizer.bulk import BulkEncoder
            from clearhead.utils.machine_code import compile_notice

            with compile_notice("Compiling the encoder, once on this machine …"):
                encode = BulkEncoder(tokenizer)
                encode("a")  # compile now, so that other processes find the result
        return cls(encode, [] if tokenizer.end_of_text is None else [tokenizer.end_of_text], dtype)

    def __call__(self, source: DocumentSource, content: Any) -> EncodedChunk:
        """Encode a chunk.

        Raises:
            InputError, TokenizerError: if it is not text, or has text that the vocabulary cannot encode.
        """
        fragments = list(source.fragments(content))
        arrays: list[npt.NDArray[Any]] = []
        tokens = np.zeros(len(fragments), np.int64)
        for number, fragment in enumerate(fragments):
            ids = self._encode(source, fragment)
            tokens[number] = len(ids)
            if fragment.begins:
                arrays.append(self.start)
                tokens[number] += len(self.start)
            arrays.append(ids)
        return EncodedChunk(
            ids=np.concatenate([self.start[:0], *arrays], dtype=self.start.dtype, casting="unsafe"),
            tokens=tokens,
            text_bytes=np.array([len(fragment.text.encode()) for fragment in fragments], np.int64),
            begins=np.array([fragment.begins for fragment in fragments], np.bool_),
        )

    def _encode(self, source: DocumentSource, fragment: Fragment) -> npt.NDArray[np.uint32]:
        try:
            return self.encode(fragment.text)
        except TokenizerError as error:
            raise TokenizerError(f"in {source.name}: {error}") from None


class CharacterScan:
    """Find the characters of a chunk, and count the documents that begin in it."""

    def __call__(self, source: DocumentSource, content: Any) -> tuple[str, int]:
        """Return the distinct characters and the number of documents.

        Raises:
            InputError: if the chunk is not text.
        """
        characters: set[str] = set()
        documents = 0
        for fragment in source.fragments(content):
            characters.update(fragment.text)
            documents += fragment.begins
        return "".join(characters), documents
