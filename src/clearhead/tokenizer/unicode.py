"""Check that a string is Unicode text: Python's strings can contain half of a surrogate pair, which is no character."""

from __future__ import annotations

from clearhead.errors import TokenizerError
from clearhead.utils.text import type_of


def check_unicode(text: str) -> str:
    """Return the text itself.

    Raises:
        TokenizerError: if it is not a string, or contains half of a surrogate pair.
    """
    if not isinstance(text, str):
        if isinstance(getattr(text, "text", None), str):  # what `generate` returns, for example
            raise TokenizerError(f"the text is {type_of(text)}, not a string; give its text: the attribute `.text`.")
        raise TokenizerError(f"the text is {type_of(text)}; give a string.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"character {error.start} of the text (counted from 0) is U+{ord(text[error.start]):04X}, half of a "
                "surrogate pair and not a character; remove it, or read the text again with errors='replace'."
            ) from None
    return text
