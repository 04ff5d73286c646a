"""The chapters: which ones exist, in which languages, in which folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clearhead.errors import InputError

LANGUAGES = {"en": "English", "zh": "中文"}
"""The languages of the tour by their own names. English is in the tour's folder, the others in subfolders."""

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
        """Its two digits; the names of its figures begin with them too."""
        return self.path.name[:2]


def folder() -> Path:
    """Return the folder of the chapters that come with Clearhead: in the package, or in the checkout that it runs from.

    Raises:
        InputError: if this installation has no chapters.
    """
    here = Path(__file__).parent
    for candidate in (here / "chapters", here.parents[2] / "docs" / "tour"):
        if (candidate / "README.md").is_file():
            return candidate
    raise InputError("this installation of Clearhead has no tour; give the folder docs/tour of a copy of the project.")


def find(root: Path) -> tuple[Chapter, ...]:
    """Return the chapters of a tour in order, one language after another.

    Args:
        root: a folder such as `docs/tour`, with `01-….md` and so on, and a subfolder for each other language.

    Raises:
        InputError: if the folder does not exist or has no chapter, or a chapter cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; give the folder of a tour, such as docs/tour.")
    found = [
        Chapter(path, language, title_of(path))
        for language in LANGUAGES
        for path in sorted(language_folder(root, language).glob("*.md"))
        if _NUMBERED.fullmatch(path.stem)
    ]
    if not found:
        raise InputError(f"{root} has no chapter; a tour has files such as 01-embedding.md.")
    return tuple(found)


def language_folder(root: Path, language: str) -> Path:
    """Return the folder of a language's chapters in a tour's folder."""
    return root if language == "en" else root / language


def title_of(path: Path) -> str:
    """Return the first heading of a Markdown file, or its name if it has none."""
    heading = re.search(r"^# +(.+?) *$", read(path), re.MULTILINE)
    return heading[1] if heading else path.stem


def read(path: Path) -> str:
    """Return a chapter's text.

    Raises:
        InputError: if it cannot be read as UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (invalid byte at offset {error.start:,}); save it as UTF-8."
        ) from None
