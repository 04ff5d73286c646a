"""The language in which the command line speaks: English, or Chinese by the tables in `chinese/`.

The English sentences are the keys. What the verbs print goes through `tr`, which fills in the values; what the rest of
the package says (errors, notes) arrives as a finished sentence, and `translate` finds the table's entry that it is made
from. A sentence without an entry stays English.
"""

from __future__ import annotations

import itertools
import re
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_args

from clearhead.errors import InputError
from clearhead.utils.arguments import Language

LANGUAGES: tuple[Language, ...] = get_args(Language)

_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
_DEPTH = 3
"""How deeply sentences may quote one another."""


class _Chosen:
    language: Language = "en"


def choose(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Choose the language from `--lang`, else from LC_ALL, LC_MESSAGES or LANG, in this order."""
    given = [after for before, after in itertools.pairwise(arguments) if before == "--lang"]
    given += [word.removeprefix("--lang=") for word in arguments if word.startswith("--lang=")]
    locale = next((environment[name] for name in _VARIABLES if environment.get(name)), "")
    _Chosen.language = "zh" if (given[-1] if given else locale[:2]) == "zh" else "en"


def language() -> Language:
    """Return the chosen language."""
    return _Chosen.language


def check_language(given: str | None) -> Language:
    """Return the language that `--lang` names, or the chosen one if `--lang` was left out.

    Raises:
        InputError: if there is no such language.
    """
    if not given:
        return language()
    for known in LANGUAGES:
        if given == known:
            return known
    raise InputError(f"--lang is {given!r}; give {' or '.join(LANGUAGES)}.")


def translation(text: str) -> str:
    """Return the entry of a text in the table of the chosen language; the text itself if there is none."""
    if language() == "en":
        return text
    from clearhead.cli.chinese import TABLE

    return TABLE.get(text, text)


def tr(template: str, /, **values: object) -> str:
    """Return a text of a verb in the chosen language.

    Args:
        template: the English text, as `str.format` takes it; the key of the table.
        values: what fills its fields.
    """
    return translation(template).format(**values)


def translate(sentence: str) -> str:
    """Return a finished sentence in the chosen language, with what it quotes; in English if no entry matches."""
    return sentence if language() == "en" else _translate(sentence, _DEPTH)


def _translate(sentence: str, depth: int) -> str:
    from clearhead.cli.chinese import TABLE

    if (exact := TABLE.get(sentence)) is not None:
        return exact
    if depth == 0 or not re.search(r"[A-Za-z]{2}", sentence):
        return sentence
    for pattern, entry in _patterns():
        if (match := pattern.fullmatch(sentence)) is not None:
            return string.Formatter().vformat(entry, [_translate(part, depth - 1) for part in match.groups()], {})
    return sentence


@cache
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """Return the entries with fields {0}, {1}, ... as patterns, those with the longest fixed text first."""
    from clearhead.cli.chinese import TABLE

    found = []
    for key, entry in TABLE.items():
        parts = re.split(r"\{\d+\}", key)
        if len(parts) > 1:
            pattern = "(.*?)".join(re.escape(part) for part in parts)
            found.append((sum(map(len, parts)), re.compile(pattern, re.DOTALL), entry))
    return [(pattern, entry) for _, pattern, entry in sorted(found, key=lambda one: -one[0])]


# What typer itself says, by the names of its constants.
_TYPER = {
    "DEFAULT_STRING": "[default: {}]",
    "ENVVAR_STRING": "[env var: {}]",
    "REQUIRED_LONG_STRING": "[required]",
    "ARGUMENTS_PANEL_TITLE": "Arguments",
    "OPTIONS_PANEL_TITLE": "Options",
    "COMMANDS_PANEL_TITLE": "Commands",
    "ERRORS_PANEL_TITLE": "Error",
    "RICH_HELP": "Try [blue]'{command_path} {help_option}'[/] for help.",
}


def localize_typer() -> None:
    """Let typer's own headings follow the language."""
    if language() == "en" and "typer.rich_utils" not in sys.modules:
        return  # typer's own headings are English
    from typer import rich_utils

    for name, english in _TYPER.items():
        if hasattr(rich_utils, name):
            setattr(rich_utils, name, translation(english))
    highlighter = getattr(rich_utils, "highlighter", None)
    if callable(highlighter) and not hasattr(highlighter, "folds"):
        setattr(rich_utils, "highlighter", _fold(highlighter))  # noqa: B010


def _fold(highlighter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make all of typer's texts break anywhere: Chinese has no spaces, and rich would cut off a line without any."""

    def fold(text: Any) -> Any:
        found = highlighter(text)
        found.overflow = "fold"
        return found

    setattr(fold, "folds", True)  # noqa: B010
    return fold
