"""Which chapters there are, in which languages, and where they lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import InputError

LANGUAGES = {"en": "English", "zh": "中文"}
"""The languages of the tour by their own names. English lies in the tour's folder, the others in folders in it."""

_NUMBERED = re.compile(r"(\d\d)-[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Chapter:
    """One chapter in one language.

    Attributes:
        path: its Markdown file.
        language: one of `LANGUAGES`.
        title: its first heading.
    """

    path: Path
    language: str
    title: str

    @property
    def number(self) -> str:
        """Its two digits, with which the names of its figures begin too."""
        return self.path.name[:2]


def folder() -> Path:
    """The folder of the chapters that come with Clearhead: in the package, or in the checkout that it runs from.

    Raises:
        InputError: where this installation has neither.
    """
    here = Path(__file__).parent
    for place in (here / "chapters", here.parents[2] / "docs" / "tour"):
        if (place / "README.md").is_file():
            return place
    raise InputError("this installation of Clearhead has no tour; name the folder docs/tour of a copy of the project.")


def find(place: Path) -> tuple[Chapter, ...]:
    """The chapters of a tour: all of the first language in their order, then all of the next.

    Args:
        place: a folder such as `docs/tour`, with `01-….md` and so on, and with folders of the other languages.

    Raises:
        InputError: where there is no such folder, or no chapter in it, or one that cannot be read.
    """
    if not place.is_dir():
        raise InputError(f"{place} is no folder; name the folder of a tour, such as docs/tour.")
    found = [
        Chapter(path, language, title_of(path))
        for language in LANGUAGES
        for path in sorted(home(place, language).glob("*.md"))
        if _NUMBERED.fullmatch(path.stem)
    ]
    if not found:
        raise InputError(f"{place} has no chapter; a file such as 01-embedding.md was expected there.")
    return tuple(found)


def home(place: Path, language: str) -> Path:
    """The folder of a language's chapters in a tour's folder."""
    return place if language == "en" else place / language


def title_of(path: Path) -> str:
    """The first heading of a Markdown file, or its name where it has none."""
    heading = re.search(r"^# +(.+?) *$", read(path), re.MULTILINE)
    return heading[1] if heading else path.stem


def read(path: Path) -> str:
    """A chapter's text.

    Raises:
        InputError: where it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (the byte at {error.start:,} cannot stand there).") from None
