"""The colours of every picture, for light screens, dark screens and paper.

Style sheets name colours as `$ink`; `stylesheet` puts the values in, so a sheet is written once for both themes.
"""

from __future__ import annotations

import re

from clearhead.errors import InputError

THEMES = ("auto", "light", "dark")
"""The themes of a picture; `auto` follows the reader's screen and is light on paper."""

SERIES = 8
"""How many lines of a chart have a colour of their own: `$series0` to `$series7`."""

# name: (light, dark)
_COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1b2230", "#e7ebf1"),  # titles, names
    "body": ("#434d5f", "#bcc5d2"),  # details below a name
    "soft": ("#586274", "#9ca7b8"),  # notes, labels, ticks
    "paper": ("#ffffff", "#0f131a"),
    "card": ("#fbfcfd", "#131820"),
    "panel": ("#f5f7fa", "#161c25"),
    "surface": ("#ffffff", "#1b222c"),  # boxes without a colour of their own
    "border": ("#c3ccd8", "#38434f"),
    "faint_border": ("#d3dae3", "#2c3541"),
    "outline": ("#aab4c2", "#525e6d"),  # of boxes without a colour of their own
    "axis": ("#c3ccd8", "#414c5a"),
    "grid": ("#e3e7ed", "#262e37"),
    "empty": ("#eff2f5", "#1c222a"),  # a cell of a heat map at 0
    "unseen": ("#e3e7ed", "#303a47"),
    "flow": ("#7a8698", "#8c97a8"),  # arrows
    "heat": ("#1f5fb0", "#6aa8ff"),  # a cell of a heat map at 1
    "on_heat": ("#ffffff", "#0b0e12"),  # text on it
    "yellow": ("#fcefd0", "#3a2e12"),
    "yellow_line": ("#d3a24a", "#a9853c"),
    "yellow_ink": ("#5c4300", "#f3d78f"),
    "green": ("#e2f3e6", "#15301f"),
    "green_line": ("#74b087", "#4f8d63"),
    "blue": ("#e0ecfc", "#142a45"),
    "blue_line": ("#6797d8", "#4d7fc2"),
    "purple": ("#eee6fb", "#2a2042"),
    "purple_line": ("#a283cf", "#8669b9"),
    "red": ("#fde4e3", "#3d1e20"),
    "red_line": ("#d98480", "#b5666a"),
    "series0": ("#1f5fb0", "#6aa8ff"),
    "series1": ("#c2410c", "#ff9650"),
    "series2": ("#15803d", "#58c878"),
    "series3": ("#8b2fc9", "#c98bf5"),
    "series4": ("#a16207", "#e5b84b"),
    "series5": ("#0e7490", "#4cc3de"),
    "series6": ("#be185d", "#f783b0"),
    "series7": ("#4d7c0f", "#a3d24f"),
}


def colour(name: str, theme: str = "light") -> str:
    """Return the value of a colour, such as `#1b2230`, in the light or the dark theme."""
    return _COLOURS[name][theme == "dark"]


def stylesheet(rules: str, theme: str = "auto") -> str:
    """Return CSS with the colours of a theme.

    Args:
        rules: CSS rules without at-rules, with colours as `$name`.
        theme: one of `THEMES`. With `auto`, the dark values of every declaration that names a colour follow in a media
            query.

    Raises:
        InputError: if the theme is unknown.
    """
    if theme not in THEMES:
        raise InputError(f"{theme!r} is not a theme; choose one of {', '.join(THEMES)}.")
    if theme != "auto":
        return _with_colours(rules, theme)
    dark = "".join(_coloured_rules(rules))
    media = f"@media screen and (prefers-color-scheme: dark) {{\n{_with_colours(dark, 'dark')}}}\n"
    return _with_colours(rules, "light") + media


def _with_colours(rules: str, theme: str) -> str:
    return re.sub(r"\$(\w+)", lambda name: colour(name[1], theme), rules)


def _coloured_rules(rules: str) -> list[str]:
    """Return the rules that name a colour, each with only the declarations that do."""
    found = []
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", rules):
        declarations = [part.strip() for part in body.split(";") if "$" in part]
        if declarations:
            found.append(f"{selector.strip()} {{ {'; '.join(declarations)} }}\n")
    return found
