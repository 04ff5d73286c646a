"""The walk as one HTML page: `walk.html` with the numbers and the words inserted as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearhead.drawing.screen import document_head, screen_css, script_json
from clearhead.errors import InputError
from clearhead.lens.words import LANGUAGES, words
from clearhead.utils import atomic

_TEMPLATE = Path(__file__).with_name("walk.html")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(walk: Mapping[str, Any], language: str = "en") -> str:
    """Return the page, which needs no network and no other file.

    Args:
        walk: the result of `lens.walk.walk`, with the model's `name`, the `prompt`, and the initial `block` and `head`.
        language: the initial language; the page can switch.
    """
    spoken = {"first": language, **{name: words(name) for name in LANGUAGES}}
    # Split the template first: the prompt might contain the marks.
    head = document_head("clearhead walk", policy=_POLICY, style=screen_css())
    start, rest = _TEMPLATE.read_text(encoding="utf-8").replace("@HEAD@", head).split("@WALK@")
    middle, end = rest.split("@WORDS@")
    return "".join([start, script_json(walk), middle, script_json(spoken), end])


def write_page(path: Path, walk: Mapping[str, Any], language: str = "en") -> None:
    """Write the page to a file.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        atomic.write_text(path, page(walk, language))
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror}); give the path of a file to make.") from None
