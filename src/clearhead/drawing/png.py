"""SVG to PNG, with resvg and the fonts of this machine, for programs that take no SVG."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path

from clearhead.drawing.svg import FONTS
from clearhead.errors import InputError
from clearhead.utils import atomic
from clearhead.utils.arguments import Language

_SAMPLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="60" height="60">'
    '<text x="5" y="45" font-size="40" font-family="{family}">{letter}</text></svg>'
)


def png(svg: str, scale: float = 2.0) -> bytes:
    """Return an SVG document as a PNG.

    Args:
        svg: the picture. Pixels cannot follow the reader's screen: a picture in the theme `auto` comes out light.
        scale: pixels of the PNG for each pixel of the picture, 0.1 to 10.

    Raises:
        InputError: if resvg-py is not installed, the scale is out of range, or no font here has Chinese characters and
            the picture does.
    """
    if not 0.1 <= scale <= 10:
        raise InputError(f"the scale is {scale:g}, but a PNG has 0.1 to 10 pixels for each pixel of the picture.")
    try:
        import resvg_py
    except ImportError:
        raise InputError(
            "a PNG needs the package resvg-py; install it with: pip install 'clearhead[diagram]', or write an .svg, "
            "which needs no package."
        ) from None
    if re.search("[\u4e00-\u9fff]", svg) and not _has_chinese():
        raise InputError(
            "no font on this machine has Chinese characters for the PNG; install one (such as Noto Sans CJK), or "
            "write an .svg, which uses the reader's own fonts."
        )
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=scale))


def picture_language(path: Path, lang: Language) -> Language:
    """Return the language for a picture of few words: English for a PNG if no font here has Chinese characters.

    Args:
        path: the file that will be written.
        lang: the user's language.
    """
    if lang == "en" or path.suffix.lower() != ".png" or importlib.util.find_spec("resvg_py") is None:
        return lang
    return lang if _has_chinese() else "en"


def save_picture(svg: str, path: Path) -> None:
    """Write a picture to a file whose name ends in `.svg` or `.png`.

    Raises:
        InputError: if the name has another ending, the file cannot be written, or `png` fails.
    """
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".png"):
        raise InputError(f"{path} ends neither in .svg nor in .png; choose a name with one of these endings.")
    data = svg.encode() if suffix == ".svg" else png(svg)
    try:
        atomic.write_bytes(path, data)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror}); choose another path.") from None


@cache
def _has_chinese() -> bool:
    """Tell whether two characters are drawn differently: without a font, both are the same empty box."""
    import resvg_py

    family = FONTS["zh"].replace('"', "'")
    one, other = (resvg_py.svg_to_bytes(svg_string=_SAMPLE.format(family=family, letter=letter)) for letter in "词图")
    return bytes(one) != bytes(other)
