"""The language in which the package speaks to a person.

Every message is written in English, where it arises. A program on top of the package may set a translator of finished
sentences, as the command line does; what is printed further down (progress, notices) goes through `localized`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable


def _unchanged(sentence: str) -> str:
    return sentence


class _Chosen:
    translator: Callable[[str], str] = staticmethod(_unchanged)


def set_translator(translator: Callable[[str], str] | None) -> None:
    """Translate the package's messages with this function from now on; None leaves them in English."""
    _Chosen.translator = staticmethod(translator or _unchanged)


def localized(sentence: str) -> str:
    """Return a finished sentence in the user's language."""
    return _Chosen.translator(sentence)


def localized_phrase(template: str, *parts: str) -> str:
    """Return a phrase made of parts, each of them in the user's language: "{0}: {1}"."""
    return localized(template).format(*map(localized, parts))


def announce(sentence: str) -> None:
    """Print a sentence on standard error, in the user's language."""
    print(localized(sentence), file=sys.stderr, flush=True)
