"""Shared parts of HTML pages: the palette as a style sheet, the document's head, and JSON inside a script."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("screen.css")


def screen_css() -> str:
    """Return the style sheet of the palette, light and dark, and of buttons, inputs and tokens."""
    return _STYLE.read_text(encoding="utf-8")


def document_head(title: str, *, policy: str = "", style: str = "", link: str = "") -> str:
    """Return the contents of an HTML document's `head`.

    Args:
        title: the document's title.
        policy: a Content-Security-Policy; none if empty, because the server sends one.
        style: a style sheet to put into the document.
        link: the address of a style sheet.
    """
    lines = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else "",
        '<link rel="icon" href="data:,">',
        f'<link rel="stylesheet" href="{link}">' if link else "",
        f"<title>{html.escape(title)}</title>",
        f"<style>{style}</style>" if style else "",
    ]
    return "\n".join(line for line in lines if line)


def script_json(value: Any) -> str:
    """Return JSON for a script element: no text in it can end the element or begin a comment."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
