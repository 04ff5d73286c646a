"""How vocabulary files write bytes: each of the 256 bytes has a printable letter of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence


def _code_points() -> dict[int, int]:
    """Return the code point of each byte's letter, in the order of GPT-2's ids: first the visible bytes.

    A byte whose Latin-1 character is visible is written as that character. The other 68 (space, controls) take the
    letters from U+0100 on, in order: a space is written Ġ. Source: `bytes_to_unicode` in OpenAI's encoder.py.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: byte for byte in visible} | {byte: 0x100 + n for n, byte in enumerate(hidden)}


LETTER_OF_BYTE = {byte: chr(point) for byte, point in _code_points().items()}
_BYTE_OF_LETTER = {point: byte for byte, point in _code_points().items()}
_ONLY_BYTE_LETTERS = re.compile("[" + re.escape("".join(LETTER_OF_BYTE.values())) + "]*")


def consists_of_byte_letters(text: str) -> bool:
    """Return whether every character of `text` is the letter of a byte."""
    return _ONLY_BYTE_LETTERS.fullmatch(text) is not None


def bytes_of_tokens(tokens: Sequence[str]) -> list[bytes]:
    """Return the bytes that each token of a vocabulary file stands for.

    A token with a character that is no byte's letter (one that was added by hand) stands for its own UTF-8 bytes.
    """
    joined = "".join(tokens)
    if not consists_of_byte_letters(joined):
        return [bytes_of_tokens([t])[0] if consists_of_byte_letters(t) else t.encode("utf-8") for t in tokens]
    data = joined.translate(_BYTE_OF_LETTER).encode("latin-1")
    ends = list(itertools.accumulate(map(len, tokens)))
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def byte_of_fallback_token(token: str) -> bytes | None:
    """Return the byte that a token such as `<0xE4>` stands for; None for any other token.

    SentencePiece vocabularies spell characters that have no token with these.
    """
    match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes.fromhex(match[1]) if match else None
