"""What every drawing shares: text that is measured before it is drawn, boxes, colours that follow the reader's screen.

Lengths are in pixels. Text stays text, so that it can be searched, read aloud and set in the reader's own fonts; how
wide it will be is estimated with DejaVu Sans, which is wider than the other fonts that are named here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from xml.sax.saxutils import escape

_LATIN = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", "DejaVu Sans"'
_CHINESE = '"PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei"'
FONTS = {"en": f"{_LATIN}, {_CHINESE}, sans-serif", "zh": f"{_CHINESE}, {_LATIN}, sans-serif"}
"""The fonts of each language. Chinese ones come first for Chinese: some programs take one font for a whole line."""
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'

THEMES = ("auto", "light", "dark")
"""Light, dark, or as the screen is on which the drawing is seen (light on paper)."""

# Advance widths of the characters from the space to the tilde, in hundredths of the font size.
# fmt: off
_WIDTHS = (
    32, 40, 46, 84, 64, 95, 78, 27, 39, 39, 50, 84, 32, 36, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64,
    64, 64, 34, 34, 84, 84, 84, 53, 100, 68, 69, 70, 77, 63, 58, 77, 75, 29, 29, 66, 56, 86, 75, 79,
    60, 79, 69, 63, 61, 73, 68, 99, 69, 61, 69, 39, 34, 39, 84, 50, 50, 61, 63, 55, 63, 62, 35, 63,
    63, 28, 28, 58, 28, 97, 63, 61, 63, 63, 41, 52, 39, 63, 59, 82, 59, 59, 52, 64, 34, 64, 84,
)
# fmt: on
_BOLD = 1.15  # how much wider bold letters are
_MONO = 0.61


def text_width(text: str, size: float, bold: bool = False, mono: bool = False) -> float:
    """How wide a line of text is at most, in the common fonts."""
    widths = (
        1.0
        if unicodedata.east_asian_width(letter) in "WF"
        else _MONO
        if mono
        else _WIDTHS[ord(letter) - 32] / 100
        if " " <= letter <= "~"
        else 0.85
        for letter in text
    )
    return sum(widths) * size * (_BOLD if bold else 1)


def wrap(text: str, size: float, width: float) -> list[str]:
    """A paragraph in lines of a width at most; it breaks at spaces, and between the characters of Chinese."""
    lines = [""]
    for piece in re.findall(r"[ -\u2e7f]+?(?: |(?=[\u2e80-\uffff])|$)|[\u2e80-\uffff]", text):
        leads = piece[0] in "，。；：）、" or not lines[-1]  # what may not begin a line stays with the one before
        if leads or text_width((lines[-1] + piece).rstrip(), size) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines]


def clean(text: str) -> str:
    """Text for XML; the characters that XML does not have (control characters, halves of a pair) become U+FFFD."""
    return escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def rect(kind: str, x: float, y: float, width: float, height: float, corner: float) -> str:
    """A box of a class of the drawing's style."""
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place} rx="{corner:g}"/>'


def themed(light: str, dark: str, theme: str) -> str:
    """The style sheet of a theme, from its light form and what the dark one changes; one of `THEMES`."""
    if theme == "light":
        return light
    if theme == "dark":
        return light + dark
    return f"{light}@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n"


def document(width: float, height: float, title: str, about: str, style: str, shapes: Iterable[str], lang: str) -> str:
    """A whole SVG document on a ground of the class `paper`.

    Args:
        width, height: its size.
        title: its name, which is also read aloud.
        about: what it shows, for those who do not see it.
        style: its style sheet, to which the fonts (and the class `mono`) are added. Arrows may end in the marker
            `tip`, filled by the class `tip`.
        shapes: its elements, the hindmost first.
        lang: the language of its text, of `FONTS`.
    """
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" xml:lang="{lang}">',
            f"<title>{clean(title)}</title>",
            f"<desc>{clean(about)}</desc>",
            f"<style>\ntext {{ font-family: {FONTS[lang]} }} .mono {{ font-family: {MONO} }}\n{style}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
            f'<rect class="paper" width="{width:.0f}" height="{height:.0f}"/>',
            *shapes,
            "</svg>\n",
        ]
    )
