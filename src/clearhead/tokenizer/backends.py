"""What encodes text: `tiktoken`, `tokenizers`, or a table for vocabularies of bytes or characters.

`tokenizers` opens every definition. The others are faster, and are used only if they are certain to give the same ids.
"""

from __future__ import annotations

import contextlib
import functools
import json
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clearhead.errors import TokenizerError
from clearhead.tokenizer.byte_letters import LETTER_OF_BYTE
from clearhead.tokenizer.definition import is_character_level
from clearhead.tokenizer.tiktoken_ranks import mergeable_ranks
from clearhead.utils.text import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# GPT-2's rule for splitting text into pieces, from OpenAI's encoder.py:
#   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
# with possessive quantifiers (`++`), so that the engine does not backtrack over a long run; the pieces are the same.
_SPLIT_PATTERN = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# `\s+(?!\S)` does backtrack, and overflows in tiktoken's regex engine near a million white-space
# characters in a row. White space is Unicode's White_Space property; Python's own \s has four more.
_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_LONG_WHITE = re.compile(rf"(?<![{_WHITE}])[{_WHITE}]{{100000,}}(?=[^{_WHITE}])")


def split_long_white_space(text: str) -> Iterator[str]:
    """Yield the parts of a text, split inside very long runs of white space where GPT-2's rule splits too.

    Before a visible character the rule takes a run of white space except its last character, which it
    then reads together with what follows; the split is there.
    """
    start = 0
    if len(text) > 100_000:
        for run in _LONG_WHITE.finditer(text):
            yield text[start : run.end() - 1]
            start = run.end() - 1
    yield text[start:]


class Backend(Protocol):
    """Encodes text that is known to be valid Unicode.

    Attributes:
        vocabulary: every token and its id.
        special_tokens: those that are found in a text only on request.
    """

    vocabulary: dict[str, int]
    special_tokens: dict[str, int]

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the ids of a text; if `special`, special tokens that it spells out become tokens."""

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text as an array; special tokens that it spells out are encoded as text."""

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        """Return the ids of each text, found with several threads."""


class DirectBackend:
    """What the fast backends share: they find special tokens here, the longest first, as `tokenizers` does."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        self.special_tokens: dict[str, int] = {t["content"]: t["id"] for t in definition["added_tokens"]}
        self.vocabulary: dict[str, int] = definition["model"]["vocab"] | self.special_tokens
        by_length = sorted(self.special_tokens, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, by_length)) + ")") if by_length else None

    def _encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of a text in which nothing is special."""
        return list(self.encode_array(text).tolist())

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text as an array; see `Backend`."""
        import numpy as np

        return np.array(self._encode_ordinary(text), np.uint32)

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the ids of a text; see `Backend`."""
        ids: list[int] = []
        # Splitting at a group in brackets gives text, special token, text, special token, ..., text.
        parts = self._special.split(text) if special and self._special else [text]
        for n, part in enumerate(parts):
            if n % 2:
                ids.append(self.special_tokens[part])
            else:
                ids += self._encode_ordinary(part)
        return ids

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        """Return the ids of each text; see `Backend`."""
        return [self.encode(text, special) for text in texts]


class TiktokenBackend(DirectBackend):
    """Encodes with `tiktoken`."""

    def __init__(self, definition: Mapping[str, Any], ranks: dict[bytes, int]) -> None:
        import tiktoken

        super().__init__(definition)
        self._encoding = tiktoken.Encoding(
            "clearhead", pat_str=_SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in split_long_white_space(text):
            ids += self._encoding.encode_ordinary(part)
        return ids

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        """Return the ids of each text; see `Backend`."""
        threads = threads or os.cpu_count() or 1
        if threads == 1 or len(texts) < 2:
            return [self.encode(text, special) for text in texts]
        from concurrent.futures import ThreadPoolExecutor

        # tiktoken releases the interpreter's lock. Most texts are short, so threads get chunks of them.
        size = -(-len(texts) // (4 * threads))
        chunks = [texts[n : n + size] for n in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            encoded = pool.map(lambda chunk: [self.encode(text, special) for text in chunk], chunks)
            return [ids for chunk in encoded for ids in chunk]


class ByteBackend(DirectBackend):
    """Encodes with a table of the 256 bytes, for a byte-level vocabulary without merges."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        import numpy as np

        super().__init__(definition)
        vocab = definition["model"]["vocab"]
        self._table = np.array([vocab[LETTER_OF_BYTE[byte]] for byte in range(256)], np.uint32)

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text as an array; see `Backend`."""
        import numpy as np

        return self._table[np.frombuffer(text.encode("utf-8"), np.uint8)]


class CharacterBackend(DirectBackend):
    """Encodes with a table of code points, for a vocabulary whose tokens are characters."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        import numpy as np

        super().__init__(definition)
        vocab = definition["model"]["vocab"]
        self._table = np.full(max(map(ord, vocab), default=0) + 1, -1, np.int32)
        for character, id in vocab.items():
            self._table[ord(character)] = id

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text as an array; see `Backend`.

        Raises:
            TokenizerError: if the vocabulary lacks a character.
        """
        import numpy as np

        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        if len(points) and points.max() >= len(self._table):
            self._refuse(int(points[points >= len(self._table)][0]))
        ids = self._table[points]
        if len(points) and ids.min() < 0:
            self._refuse(int(points[ids < 0][0]))
        encoded: npt.NDArray[np.uint32] = ids.astype(np.uint32)
        return encoded

    def _refuse(self, point: int) -> None:
        raise TokenizerError(
            f"the vocabulary has no token for the character {chr(point)!r} (U+{point:04X}), so the text cannot be "
            "encoded; remove the character or use a vocabulary that has it."
        )


# Chinese and Japanese characters and their punctuation, full-width forms among them.
_CHINESE = "\u3001-\u3003\u3005-\u3011\u3014-\u301f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff65"
_CHINESE += "\U00020000-\U0002ebef\U0002f800-\U0002fa1f"
_QUOTES = "\u2014\u2018\u2019\u201c\u201d\u2026"  # of Chinese and of other languages


@functools.cache  # compiling it takes a moment, and most vocabularies do without
def _chinese_space() -> re.Pattern[str]:
    """Return the pattern of the spaces that Chinese text does not have."""
    return re.compile(f"(?<=[{_CHINESE}]) (?=\\S)|(?<=\\S) (?=[{_CHINESE}])|(?<=[{_QUOTES}]) (?=[{_QUOTES}])")


@contextlib.contextmanager
def _library_errors(use: str) -> Iterator[None]:
    """Turn whatever `tokenizers` raises into `TokenizerError`: bare exceptions, and panics, which are BaseExceptions.

    A pattern that would backtrack for ever ends in a panic too.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError, TokenizerError):
        raise
    except BaseException as error:
        raise TokenizerError(
            f"the tokenizer's definition cannot be {use} ({shown(error, 200)}); "
            "a tokenizer.json as the tokenizers library writes it was expected."
        ) from None


class TokenizersBackend:
    """Encodes with `tokenizers`, which opens every kind of `tokenizer.json`."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        with _library_errors("opened"):
            self._json = json.dumps(definition)
        # WordPiece's decoder puts a space between any two words, and Chinese is written without.
        self._separates_words = (definition.get("decoder") or {}).get("type") == "WordPiece"
        self._plain = self._open(special=False)
        self._with_special: Any = None
        with _library_errors("opened"):
            added = self._plain.get_added_tokens_decoder()
            self.vocabulary: dict[str, int] = self._plain.get_vocab(with_added_tokens=True)
        self.special_tokens: dict[str, int] = {token.content: id for id, token in added.items() if token.special}

    def _open(self, special: bool) -> Any:
        import tokenizers

        with _library_errors("opened"):
            opened = tokenizers.Tokenizer.from_str(self._json)
        opened.encode_special_tokens = not special  # true: special tokens in a text are encoded as text
        return opened

    def _library(self, special: bool) -> Any:
        # The switch belongs to the whole object. Two objects, because switching one would disturb other threads.
        if not special:
            return self._plain
        if self._with_special is None:
            self._with_special = self._open(special=True)
        return self._with_special

    def encode(self, text: str, special: bool) -> list[int]:
        """Return the ids of a text; see `Backend`."""
        with _library_errors("used on this text"):
            return list(self._library(special).encode(text, add_special_tokens=False).ids)

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Return the ids of a text as an array; see `Backend`."""
        import numpy as np

        return np.array(self.encode(text, special=False), np.uint32)

    def encode_batch(self, texts: Sequence[str], special: bool, threads: int | None) -> list[list[int]]:
        """Return the ids of each text; see `Backend`."""
        # The library has threads of its own, whose number it takes from RAYON_NUM_THREADS.
        if threads == 1:
            return [self.encode(text, special) for text in texts]
        with _library_errors("used on these texts"):
            encodings = self._library(special).encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def character_ends(self, text: str) -> list[int]:
        """Return the index of the character after each token."""
        return [int(end) for _, end in self._plain.encode(text, add_special_tokens=False).offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids that are in the vocabulary."""
        with _library_errors("used on these ids"):
            text = str(self._plain.decode([operator.index(id) for id in ids], skip_special_tokens=False))
        return _chinese_space().sub("", text) if self._separates_words else text


def choose_backend(definition: Mapping[str, Any]) -> Backend:
    """Return the fastest backend that is certain to give the ids of `tokenizers`.

    Raises:
        TokenizerError: if the definition cannot be opened.
    """
    if is_character_level(definition):
        return CharacterBackend(definition)
    ranks = mergeable_ranks(definition)
    if ranks is None:
        return TokenizersBackend(definition)
    return TiktokenBackend(definition, ranks) if definition["model"]["merges"] else ByteBackend(definition)
