"""The language in which the command line speaks: English, or Chinese by the tables in `chinese/`.

The English sentences are the keys. What the verbs print goes through `tr`, which fills in the values; what the rest of
the package says (errors, notes) arrives as a finished sentence, and `translate` finds the table's entry that it is made
from. A sentence without an entry stays English.
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise, starmap
from typing import Any, get_args

from clearhead.errors import InputError
from clearhead.utils.arguments import Language
from clearhead.utils.localization import set_translator

LANGUAGES: tuple[Language, ...] = get_args(Language)

_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
_DEPTH = 4
"""How deeply sentences may quote one another."""
_FEW_LETTERS = 6
"""Entries with fewer letters, such as "{0} and {1}", fit many sentences; they hold for names and translated phrases."""
_FEW_WORDS = 3
_QUOTED = re.compile(r"""'[^']*'|"[^"]*"|\{.*\}|\[[^\]]*\]""", re.DOTALL)
"""What a user typed, or JSON: it is shown as it is."""


class _ChosenLanguage:
    language: Language = "en"


def choose(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Choose the language from `--lang`, else from LC_ALL, LC_MESSAGES or LANG, in this order."""
    given = [after for before, after in pairwise(arguments) if before == "--lang"]
    given += [word.removeprefix("--lang=") for word in arguments if word.startswith("--lang=")]
    locale = next((environment[name] for name in _VARIABLES if environment.get(name)), "")
    known = [one for one in given if one in LANGUAGES]  # of another, `check_language` complains in the system's
    _ChosenLanguage.language = "zh" if (known[-1] if known else locale[:2]) == "zh" else "en"
    set_translator(None if language() == "en" else translate, language())


def language() -> Language:
    """Return the chosen language."""
    return _ChosenLanguage.language


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
    if depth == 0 or not re.search(r"[A-Za-z]", sentence) or _QUOTED.fullmatch(sentence):
        return sentence
    for fixed, entry in _patterns():
        if not all(part in sentence for part in fixed):
            continue
        match = re.fullmatch("(.*?)".join(map(re.escape, fixed)), sentence, re.DOTALL)
        if match is None:
            continue
        parts = [_translate(part, depth - 1) for part in match.groups()]
        certain = sum(map(str.isalpha, "".join(fixed))) >= _FEW_LETTERS
        if certain or all(starmap(_is_plausible, zip(match.groups(), parts, strict=True))):
            return _fill(entry, parts)
    if depth < _DEPTH and not sentence.endswith("."):  # a sentence that is quoted without its full stop
        ended = _translate(f"{sentence}.", depth)
        return sentence if ended == f"{sentence}." else ended.removesuffix("。")
    return sentence


def _is_plausible(part: str, translated: str) -> bool:
    """Return whether a part of a sentence is a name or a value, or was a phrase that has an entry."""
    return part != translated or len(part.split()) < _FEW_WORDS


@cache
def _patterns() -> list[tuple[list[str], str]]:
    """Return the entries with fields {0}, {1}, ...: the text around the fields, and the Chinese; longest text first."""
    from clearhead.cli.chinese import TABLE

    found = [(re.split(r"\{\d+\}", key), entry) for key, entry in TABLE.items()]
    return sorted((one for one in found if one[0][1:]), key=lambda one: -sum(map(len, one[0])))


def _fill(entry: str, parts: Sequence[str]) -> str:
    """Fill the fields of a Chinese entry: a space between Chinese and Latin letters, none inside Chinese."""
    text = ""
    for literal, field, _, _ in string.Formatter().parse(entry):
        text = _joined(text, literal)
        if field is not None:
            text = _joined(text, parts[int(field)])
    return text


def _joined(before: str, after: str) -> str:
    if not before or not after:
        return before + after
    if re.search(r"[\u4e00-\u9fff]$", before) and re.match(r"[A-Za-z0-9]", after):
        return f"{before} {after}"
    if re.search(r"[A-Za-z0-9]$", before) and re.match(r"[\u4e00-\u9fff]", after):
        return f"{before} {after}"
    if re.search(r"[\u4e00-\u9fff] $", before) and re.match(r"[\u4e00-\u9fff]", after):
        return before[:-1] + after
    if re.search(r"[\u4e00-\u9fff]$", before) and re.match(r" [\u4e00-\u9fff]", after):
        return before + after[1:]
    return before + after


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
