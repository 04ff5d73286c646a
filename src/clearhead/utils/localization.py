"""The language in which the package speaks to a person.

Every message is written in English, where it arises. A program on top of the package may set a translator of finished
sentences, as the command line does; what is printed further down (progress, notices) goes through `localized`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from clearhead.utils.arguments import Language


def _unchanged(sentence: str) -> str:
    return sentence


class _Chosen:
    translator: Callable[[str], str] = staticmethod(_unchanged)
    language: Language = "en"


def set_translator(translator: Callable[[str], str] | None, language: Language = "en") -> None:
    """Translate the package's messages with this function from now on; None leaves them in English.

    Args:
        translator: returns a finished sentence in the user's language.
        language: that language, in which pictures and pages are written too.
    """
    _Chosen.translator = staticmethod(translator or _unchanged)
    _Chosen.language = language


def users_language() -> Language:
    """Return the language of pictures and pages, which have words of their own: English unless a program chose."""
    return _Chosen.language


def localized(sentence: str) -> str:
    """Return a finished sentence in the user's language."""
    return _Chosen.translator(sentence)


def localized_phrase(template: str, *parts: str) -> str:
    """Return a phrase made of parts, each of them in the user's language: "{0}: {1}"."""
    return localized(template).format(*map(localized, parts))


def localized_list(phrases: Iterable[str]) -> str:
    """Return phrases one after another, each of them and the commas in the user's language."""
    return localized(", ").join(map(localized, phrases))


def announce(sentence: str) -> None:
    """Print a sentence on standard error, in the user's language."""
    print(localized(sentence), file=sys.stderr, flush=True)
