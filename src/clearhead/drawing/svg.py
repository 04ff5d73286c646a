"""SVG documents and their elements, with text that is measured before it is drawn.

Lengths are in pixels. Text stays text, so it can be searched, read aloud and set in the reader's own fonts; its width
is estimated with DejaVu Sans, the widest of the fonts named here.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from clearhead.drawing.palette import stylesheet

_LATIN = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Noto Sans", "DejaVu Sans"'
_CHINESE = '"PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "WenQuanYi Micro Hei"'
FONTS = {"en": f"{_LATIN}, {_CHINESE}, sans-serif", "zh": f"{_CHINESE}, {_LATIN}, sans-serif"}
"""The fonts of each language. For Chinese, Chinese fonts come first: some programs use one font for a whole line."""
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'

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
    """Return the largest width that a line of text has in the common fonts."""
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
    """Break a paragraph into lines of at most a width, at spaces and between Chinese characters."""
    lines = [""]
    for piece in re.findall(r"[ -\u2e7f]+?(?: |(?=[\u2e80-\uffff])|$)|[\u2e80-\uffff]", text):
        leads = piece[0] in "，。；：）、" or not lines[-1]  # punctuation that may not begin a line
        if leads or text_width((lines[-1] + piece).rstrip(), size) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines]


def clean(text: str) -> str:
    """Escape text for XML; characters that XML forbids (control characters, lone surrogates) become U+FFFD."""
    return escape(re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


def rect(kind: str, x: float, y: float, width: float, height: float, corner: float = 0, attributes: str = "") -> str:
    """Return a rectangle of a class of the picture's style sheet."""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    rounded = f' rx="{corner:g}"' if corner else ""
    return f'<rect class="{kind}" {box}{rounded}{attributes}/>'


def label(kind: str, x: float, y: float, words: str, anchor: str = "", attributes: str = "") -> str:
    """Return one line of text; `y` is its baseline, and `anchor` is `start`, `middle` or `end`."""
    style = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text{style} x="{x:.1f}" y="{y:.1f}"{attributes}>{clean(words)}</text>'


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture before it becomes an SVG document.

    Attributes:
        width, height: its size in pixels.
        title: its name, which screen readers read.
        description: what it shows, for readers who cannot see it.
        shapes: its elements, the rearmost first. A path may end in the marker `tip`.
        lang: the language of its text, a key of `FONTS`.
    """

    width: float
    height: float
    title: str
    description: str
    shapes: Iterable[str]
    lang: str = "en"


def document(picture: Picture, rules: str, theme: str = "auto") -> str:
    """Return a picture as an SVG document on the palette's paper.

    Args:
        picture: what to draw.
        rules: the style sheet, with colours as `palette.stylesheet` reads them. The fonts, the class `mono`, the ground
            `paper` and the arrows' `tip` are added.
        theme: one of `palette.THEMES`.

    Raises:
        InputError: if the theme is unknown.
    """
    width, height, lang = f"{picture.width:.0f}", f"{picture.height:.0f}", picture.lang
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    fonts = f"text {{ font-family: {FONTS[lang]} }} .mono {{ font-family: {MONO} }}\n"
    style = stylesheet(".paper { fill: $paper } .tip { fill: $flow }\n" + rules.strip() + "\n", theme)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" xml:lang="{lang}">',
            f"<title>{clean(picture.title)}</title>",
            f"<desc>{clean(picture.description)}</desc>",
            f"<style>\n{fonts}{style}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
            f'<rect class="paper" width="{width}" height="{height}"/>',
            *picture.shapes,
            "</svg>\n",
        ]
    )


def inline(picture: str) -> str:
    """Return an SVG of `document` for use inside an HTML page, with its style sheet limited to this picture.

    The rules are nested under the picture's id; browsers have supported CSS nesting since 2023.
    """
    own = f"picture-{zlib.crc32(picture.encode()):08x}"
    styled = picture.replace("<style>", f"<style>#{own} {{", 1).replace("</style>", "}</style>", 1)
    return re.sub(r'(\bid="|url\(#)tip', rf"\g<1>{own}-tip", styled).replace("<svg ", f'<svg id="{own}" ', 1)


def side_by_side(pictures: Sequence[str], lang: str = "en") -> str:
    """Return one SVG document with several documents of `document` side by side, their tops aligned.

    Each picture's identifiers get a different prefix, so that none appears twice.
    """
    x, height, parts = 0.0, 0.0, []
    for number, picture in enumerate(pictures):
        wide, tall = (float(value) for value in re.findall(r'(?:width|height)="([\d.]+)"', picture)[:2])
        unique = re.sub(r'(\bid="|url\(#)', rf"\g<1>p{number}-", picture)
        unique = re.sub(r'aria-labelledby="[^"]*"', "", unique)
        parts.append(unique.replace("<svg ", f'<svg x="{x:g}" ', 1))
        x, height = x + wide, max(height, tall)
    body = "\n".join(part.strip() for part in parts)
    size = f'width="{x:g}" height="{height:g}" viewBox="0 0 {x:g} {height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} xml:lang="{lang}">\n{body}\n</svg>\n'
