"""The walk as one HTML page: `walk.html` with the numbers and the words put in as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import InputError
from clearhead.lens.words import LANGUAGES, words

_TEMPLATE = Path(__file__).with_name("walk.html")


def page(walk: Mapping[str, Any], language: str = "en") -> str:
    """The page, which needs no network and no other file.

    Args:
        walk: what `lens.walk.walk` gathered, with the model's `name`, `prompt`, and the `block` and `head` to begin at.
        language: the one to begin with; the page can change it.
    """
    spoken = {"first": language, **{name: words(name) for name in LANGUAGES}}
    # Only the template is searched for the marks: the prompt might hold them.
    start, rest = _TEMPLATE.read_text(encoding="utf-8").split("@WALK@")
    middle, end = rest.split("@WORDS@")
    return "".join([start, _json(walk), middle, _json(spoken), end])


def write_page(path: Path, walk: Mapping[str, Any], language: str = "en") -> None:
    """Writes the page to a file, beside it first and then renamed.

    Raises:
        InputError: where the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(page(walk, language), encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"{path} could not be written ({error.strerror}); give the path of a file to make.") from None


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no text in it can end the element, or begin a comment."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
