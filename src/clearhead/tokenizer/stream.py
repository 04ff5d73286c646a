"""Decode ids that come one at a time, showing only whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol

from clearhead.tokenizer.byte_letters import byte_of_fallback_token


class TokenDecoder(Protocol):
    """What decoding a stream needs of a tokenizer."""

    def token_bytes(self, id: int) -> bytes: ...

    def token_name(self, id: int) -> str: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class StreamDecoder:
    """Decodes ids one at a time and returns only whole characters.

    The texts that `push` returned and that `finish` returns at the end make up `decode(ids)`.
    U+FFFD appears only for bytes that no further token can complete. After `finish` it can be used again.
    """

    def __init__(self, tokenizer: TokenDecoder) -> None:
        self._tokenizer = tokenizer
        # Holds back the bytes of a character that has begun and is not yet complete.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Return the text that this id completes; often empty, if a character takes several tokens.

        Raises:
            TokenizerError: if the id is not in the vocabulary.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """Return the rest: U+FFFD for a character that was begun and never completed, otherwise nothing."""
        return self._decoder.decode(b"", final=True)


class WindowDecoder(StreamDecoder):
    """For vocabularies whose decoder looks at neighbours: at the first token of a text, at runs of bytes.

    New ids are decoded together with those shown last, whose text is then removed from the front.
    """

    def __init__(self, tokenizer: TokenDecoder) -> None:
        super().__init__(tokenizer)
        self._shown: list[int] = []
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        """Return the text that this id completes; see `StreamDecoder.push`."""
        name = self._tokenizer.token_name(id)
        self._waiting.append(id)
        # A run of bytes is decoded as a whole, and all of it is invalid if any of it is.
        if byte_of_fallback_token(name) is not None:
            return ""
        new = self._new_text()
        if not new or new.endswith("\ufffd"):
            return ""
        self._shown, self._waiting = self._waiting, []
        return new

    def finish(self) -> str:
        """Return the rest; see `StreamDecoder.finish`."""
        new = self._new_text()
        self._shown, self._waiting = [], []
        return new

    def _new_text(self) -> str:
        if not self._waiting:
            return ""
        before = self._tokenizer.decode(self._shown) if self._shown else ""
        return self._tokenizer.decode(self._shown + self._waiting)[len(before) :]
