"""A drawing as pixels, for places that take no SVG: resvg draws it, with the fonts of this machine."""

from __future__ import annotations

import re
from functools import cache

from clearhead.drawing.svg import FONTS
from clearhead.errors import InputError

_SAMPLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="60">'
    '<text x="5" y="45" font-size="40" font-family="{family}">{letter}</text></svg>'
)


def png(svg: str, scale: float = 2.0) -> bytes:
    """An SVG as a PNG.

    Args:
        svg: the drawing, in a theme that does not depend on the screen (`light` or `dark`).
        scale: pixels for each of the drawing's own.

    Raises:
        InputError: where resvg-py is not installed, the scale cannot be, or no font here has the drawing's characters.
    """
    if not 0.1 <= scale <= 10:
        raise InputError(
            f"the scale is {scale:g}; a PNG can be drawn at 0.1 to 10 pixels for each of the drawing's own."
        )
    try:
        import resvg_py
    except ImportError:
        raise InputError(
            "drawing a PNG needs resvg-py; install it with: pip install 'clearhead[diagram]'. An .svg needs nothing."
        ) from None
    if re.search("[\u4e00-\u9fff]", svg) and not _has_chinese():
        raise InputError(
            "no font on this machine has Chinese characters for the PNG; install one (such as Noto Sans CJK), or "
            "write an .svg, which the reader's own fonts draw."
        )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=scale))


@cache
def _has_chinese() -> bool:
    """Whether two characters come out differently: without a font, both are the same empty box."""
    import resvg_py

    family = FONTS["zh"].replace('"', "'")
    one, other = (resvg_py.svg_to_bytes(svg_string=_SAMPLE.format(family=family, letter=letter)) for letter in "词图")
    return bytes(one) != bytes(other)
