"""The drawings of the tour: curves over an axis, and a grid of shaded squares, as SVGs that follow the reader's screen.

Lengths are in pixels, rounded to tenths, so that the last bits of a float do not show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from clearhead.drawing.svg import clean, document, rect, text_width, themed
from clearhead.training.curves import ticks

_WIDTH, _HEIGHT = 560, 300  # of a curve's whole drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 66, 50  # around the frame of the curves
_SIZE = 13.0  # of the letters
_CELL = 44  # the side of a square in a grid
_SHADED = 0.55  # from here on, a square's number is written in the light colour

_LIGHT = """
text { font-size: 13px; fill: #59636e } .title { font-size: 15px; font-weight: 600; fill: #1b1f24 }
.paper { fill: #ffffff } .rule { stroke: #e1e5ea } .frame { fill: none; stroke: #c8d0d9 }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
.line0 { stroke: #1f5fb0 } .line1 { stroke: #c2410c } .line2 { stroke: #15803d } .line3 { stroke: #8b2fc9 }
.cell { fill: #1f5fb0 } .empty { fill: #f1f3f5 } .label { fill: #1b1f24 }
.number { font-size: 12px; fill: #1b1f24 } .on { fill: #ffffff }
"""
_DARK = """
text { fill: #a2acb7 } .title, .label, .number { fill: #e8ebee }
.paper { fill: #12161b } .rule { stroke: #262e37 } .frame { stroke: #3d4752 }
.line0 { stroke: #6aa8ff } .line1 { stroke: #ff9650 } .line2 { stroke: #58c878 } .line3 { stroke: #c98bf5 }
.cell { fill: #6aa8ff } .empty { fill: #1c222a } .on { fill: #0b0e12 }
"""
_DASHES = ("", "7 4", "2 3", "10 3 2 3")  # lines can be told apart without their colours


def curves(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: str,
    y: str,
    logarithmic: bool = False,
    lang: str = "en",
) -> str:
    """Up to four curves in one frame, as an SVG document.

    Args:
        title: what they show.
        lines: the points of each curve by its name, with rising x.
        x, y: what the axes count.
        logarithmic: whether y grows by factors of ten; every y must be above 0 then.
        lang: the language of the words, en or zh.
    """
    points = [point for line in lines.values() for point in line]
    heights = [math.log10(value) if logarithmic else value for _, value in points]
    across = ticks(min(at for at, _ in points), max(at for at, _ in points))
    if all(float(at).is_integer() for at, _ in points):
        across = [at for at in across if float(at).is_integer()]  # there is no layer 2.5
    up = _powers(heights) if logarithmic else ticks(min(heights), max(heights))
    left, right = min(at for at, _ in points), max(at for at, _ in points)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(at: float, value: float) -> tuple[float, float]:
        return (
            _LEFT + (at - left) / (right - left) * width,
            _TOP + (up[-1] - value) / (up[-1] - up[0]) * height,
        )

    parts = [_text("title", _LEFT - 48, 24, title)]
    for value in up:
        _, level = place(left, value)
        parts.append(f'<path class="rule" d="M{_LEFT} {level:.1f}h{width}"/>')
        parts.append(_text("", _LEFT - 8, level + 4, _power(value) if logarithmic else f"{value:g}", "end"))
    for at in across:
        if left <= at <= right:
            parts.append(_text("", place(at, up[0])[0], _TOP + height + 19, f"{at:g}", "middle"))
    parts.append(_text("", _LEFT + width, _TOP + height + 39, x, "end"))
    parts += _legend(list(lines), y)
    for number, line in enumerate(lines.values()):
        spots = [place(at, math.log10(value) if logarithmic else value) for at, value in line]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        dash = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
        parts.append(f'<path class="line line{number}"{dash} d="M{path}"/>')
    parts.append(rect("frame", _LEFT, _TOP, width, height, 0))
    about = f"{y} over {x}" if lang == "en" else f"{x} → {y}"
    return document(_WIDTH, _HEIGHT, title, f"{about}: {', '.join(lines)}", themed(_LIGHT, _DARK, "auto"), parts, lang)


def grid(
    title: str, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, lang: str = "en"
) -> str:
    """A table of shares as shaded squares, with each of 1% or more as a number, as an SVG document.

    Args:
        title: what it shows.
        values: numbers from 0 to 1, one list for each row; there is no square where one is exactly 0.
        rows, columns: the label of each.
        lang: the language of the title, en or zh.
    """
    left = 20 + max(text_width(name, _SIZE) for name in rows) + 12
    top = 44 + max(text_width(name, _SIZE) for name in columns) * 0.75 + 14
    parts = [_text("title", 20, 26, title)]
    for column, name in enumerate(columns):
        x, y = left + (column + 0.5) * _CELL, top - 8
        parts.append(f'<text class="label" transform="translate({x:.1f} {y:.1f}) rotate(-45)">{clean(name)}</text>')
    for row, (name, numbers) in enumerate(zip(rows, values, strict=True)):
        y = top + row * _CELL
        parts.append(_text("label", left - 10, y + _CELL / 2 + 5, name, "end"))
        for column, value in enumerate(numbers):
            x = left + column * _CELL
            box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{_CELL - 2}" height="{_CELL - 2}" rx="3"'
            if value:
                parts.append(f'<rect class="empty" {box}/><rect class="cell" {box} fill-opacity="{value:.2f}"/>')
            if value >= 0.005:
                kind = "number on" if value > _SHADED else "number"
                parts.append(_text(kind, x + _CELL / 2, y + _CELL / 2 + 4, f"{value:.0%}", "middle"))
    slanted = max(left + (c + 0.5) * _CELL + text_width(name, _SIZE) * 0.75 for c, name in enumerate(columns))
    width = max(slanted, left + len(columns) * _CELL, 20 + text_width(title, 15, bold=True)) + 20
    about = ", ".join(rows)
    return document(width, top + len(rows) * _CELL + 18, title, about, themed(_LIGHT, _DARK, "auto"), parts, lang)


def _legend(names: Sequence[str], y: str) -> list[str]:
    """What the height counts, and below it the names of the curves where there are several."""
    if len(names) < 2:
        return [_text("", _LEFT - 48, _TOP - 14, y)]
    parts, x = [_text("", _LEFT - 48, _TOP - 24, y)], float(_LEFT)
    for number, name in enumerate(names):
        dash = f' stroke-dasharray="{_DASHES[number]}"' if _DASHES[number] else ""
        parts.append(f'<path class="line line{number}"{dash} d="M{x:.1f} {_TOP - 10}h26"/>')
        parts.append(_text("label", x + 32, _TOP - 6, name))
        x += 32 + text_width(name, _SIZE) + 22
    return parts


def _text(kind: str, x: float, y: float, text: str, anchor: str = "") -> str:
    style = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text{style} x="{x:.1f}" y="{y:.1f}">{clean(text)}</text>'


def _powers(exponents: Sequence[float]) -> list[float]:
    """Whole exponents of ten, from at most the least to at least the greatest that is given; about six."""
    low, high = math.floor(min(exponents) + 1e-9), math.ceil(max(exponents) - 1e-9)
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * 5 >= high - low), 100)
    first, last = low // step, max(-(-high // step), low // step + 1)
    return [float(number * step) for number in range(first, last + 1)]


def _power(exponent: float) -> str:
    small = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{small}"
