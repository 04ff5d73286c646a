"""Heat maps: a table of shares as shaded cells with their percentages."""

from __future__ import annotations

from collections.abc import Sequence

from clearhead.drawing.svg import Picture, clean, document, label, rect, text_width

_CELL = 44
_SIGNED_CELL = 24  # without a number inside
_TEXT_WIDTH, _TEXT_HEIGHT = 58, 24  # of a cell with a token's text
_FONT_SIZE = 13.0
_DARK_CELL = 0.55  # from this value on, the number is written in the light colour
_SLOPE = 0.75  # the length of a label at 45 degrees, seen from the side or from above

_RULES = """
.title { font-size: 15px; font-weight: 600; fill: $ink } .label { font-size: 13px; fill: $ink }
.cell { fill: $heat } .below { fill: $series1 } .empty { fill: $empty }
.number { font-size: 12px; fill: $ink } .on { fill: $on_heat }
"""


def heat_map(
    title: str, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, lang: str = "en"
) -> str:
    """Return a heat map as an SVG document, with a percentage in each cell of 0.5% or more.

    Args:
        title: what it shows.
        values: numbers from 0 to 1, one list for each row; a value of exactly 0 gets no cell.
        rows, columns: the labels.
        lang: the language of the title, `en` or `zh`.
    """
    left = 20 + max(text_width(name, _FONT_SIZE) for name in rows) + 12
    top = 44 + max(text_width(name, _FONT_SIZE) for name in columns) * _SLOPE + 14
    shapes = [label("title", 20, 26, title), *_axis_labels(rows, columns, left, top, _CELL)]
    for row, (_, numbers) in enumerate(zip(rows, values, strict=True)):
        y = top + row * _CELL
        for column, value in enumerate(numbers):
            shapes += _cell(value, left + column * _CELL, y)
    ends = [left + (c + 0.5) * _CELL + text_width(name, _FONT_SIZE) * _SLOPE for c, name in enumerate(columns)]
    width = max(*ends, left + len(columns) * _CELL, 20 + text_width(title, 15, bold=True)) + 20
    return document(Picture(width, top + len(rows) * _CELL + 18, title, ", ".join(rows), shapes, lang), _RULES)


def signed_heat_map(
    title: str, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], *, lang: str = "en"
) -> str:
    """Return a heat map of numbers of either sign: one colour above 0, another below, as strong as the number is large.

    Args:
        title: what it shows.
        values: finite numbers, one list for each row.
        rows, columns: the labels.
        lang: the language of the title, `en` or `zh`.
    """
    largest = max((abs(value) for numbers in values for value in numbers), default=0.0) or 1.0
    left = 20 + max((text_width(name, _FONT_SIZE) for name in rows), default=0.0) + 12
    top = 44 + max((text_width(name, _FONT_SIZE) for name in columns), default=0.0) * _SLOPE + 14
    shapes = [label("title", 20, 26, title), *_axis_labels(rows, columns, left, top, _SIGNED_CELL)]
    for row, numbers in enumerate(values):
        for column, value in enumerate(numbers):
            x, y = left + column * _SIGNED_CELL, top + row * _SIGNED_CELL
            kind, strength = ("cell" if value >= 0 else "below"), abs(value) / largest
            about = f"<title>{clean(rows[row])} {clean(columns[column])}: {value:+.4g}</title>"
            shapes.append(f"<g>{about}")
            shapes.append(rect("empty", x + 1, y + 1, _SIGNED_CELL - 2, _SIGNED_CELL - 2, 2))
            shapes.append(
                rect(kind, x + 1, y + 1, _SIGNED_CELL - 2, _SIGNED_CELL - 2, 2, f' fill-opacity="{strength:.3f}"')
            )
            shapes.append("</g>")
    ends = [left + (c + 0.5) * _SIGNED_CELL + text_width(name, _FONT_SIZE) * _SLOPE for c, name in enumerate(columns)]
    width = max(*ends, left + len(columns) * _SIGNED_CELL, 20 + text_width(title, 15, bold=True)) + 20
    scale = f"{-largest:.3g} … {largest:.3g}"
    bottom = top + len(rows) * _SIGNED_CELL
    shapes.append(label("label", left, bottom + 20, scale))
    return document(Picture(width, bottom + 34, title, ", ".join(rows), shapes, lang), _RULES)


def text_grid(
    title: str,
    texts: Sequence[Sequence[str]],
    shades: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    lang: str = "en",
) -> str:
    """Return a grid of short texts as an SVG document, each cell as strongly shaded as its number is large.

    Args:
        title: what it shows.
        texts: one list for each row; white space is made visible, and long texts are cut.
        shades: numbers from 0 to 1, one for each text.
        rows, columns: the labels.
        lang: the language of the title, `en` or `zh`.
    """
    left = 20 + max(text_width(name, _FONT_SIZE) for name in rows) + 12
    top = 44 + max(text_width(name, _FONT_SIZE) for name in columns) * _SLOPE + 14
    middles = [left + (column + 0.5) * _TEXT_WIDTH for column in range(len(columns))]
    shapes = [label("title", 20, 26, title)]
    for x, name in zip(middles, columns, strict=True):
        turn = f' transform="rotate(-45 {x:.1f} {top - 8:.1f})"'
        shapes.append(label("label", x, top - 8, name, attributes=turn))
    for row, name in enumerate(rows):
        y = top + row * _TEXT_HEIGHT
        shapes.append(label("label", left - 10, y + _TEXT_HEIGHT / 2 + 5, name, "end"))
        for x, text, shade in zip(middles, texts[row], shades[row], strict=True):
            about = f"{name}, {columns[middles.index(x)]}: {text!r} {shade:.1%}"
            box = (x - _TEXT_WIDTH / 2 + 1, y + 1, _TEXT_WIDTH - 2, _TEXT_HEIGHT - 2, 2)
            kind = "number on" if shade > _DARK_CELL else "number"
            shapes += [
                f"<g><title>{clean(about)}</title>",
                rect("empty", *box),
                rect("cell", *box, f' fill-opacity="{shade:.3f}"'),
                label(kind, x, y + _TEXT_HEIGHT / 2 + 4, _fitting(text), "middle"),
                "</g>",
            ]
    ends = [x + text_width(name, _FONT_SIZE) * _SLOPE for x, name in zip(middles, columns, strict=True)]
    width = max(*ends, left + len(columns) * _TEXT_WIDTH, 20 + text_width(title, 15, bold=True)) + 20
    picture = Picture(width, top + len(rows) * _TEXT_HEIGHT + 18, title, ", ".join(rows), shapes, lang)
    return document(picture, _RULES)


def _fitting(text: str) -> str:
    """Return a text that fits a cell of a grid: spaces visible, the end cut off."""
    text = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    if text_width(text, 12) <= _TEXT_WIDTH - 6:
        return text
    while text and text_width(text + "…", 12) > _TEXT_WIDTH - 6:
        text = text[:-1]
    return text + "…"


def _axis_labels(rows: Sequence[str], columns: Sequence[str], left: float, top: float, cell: float) -> list[str]:
    shapes = []
    for column, name in enumerate(columns):
        turn = f' transform="rotate(-45 {left + (column + 0.5) * cell:.1f} {top - 8:.1f})"'
        shapes.append(label("label", left + (column + 0.5) * cell, top - 8, name, attributes=turn))
    shapes += [label("label", left - 10, top + (row + 0.5) * cell + 5, name, "end") for row, name in enumerate(rows)]
    return shapes


def _cell(value: float, x: float, y: float) -> list[str]:
    if not value:
        return []
    shapes = [
        rect("empty", x + 1, y + 1, _CELL - 2, _CELL - 2, 3),
        rect("cell", x + 1, y + 1, _CELL - 2, _CELL - 2, 3, f' fill-opacity="{value:.2f}"'),
    ]
    if value >= 0.005:
        kind = "number on" if value > _DARK_CELL else "number"
        shapes.append(label(kind, x + _CELL / 2, y + _CELL / 2 + 4, f"{value:.0%}", "middle"))
    return shapes
