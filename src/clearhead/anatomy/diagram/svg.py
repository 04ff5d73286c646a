"""The framework diagram as a drawing: an SVG that is text throughout, light or dark, for a page, a slide or paper."""

from __future__ import annotations

import math
from collections.abc import Callable

from clearhead.anatomy.diagram.diagram import Box, Diagram
from clearhead.anatomy.diagram.layout import (
    DETAIL,
    DETAIL_LINE,
    FACT,
    LABEL,
    LARGE,
    NAME,
    NAME_LINE,
    NOTE,
    TITLE,
    Heading,
    Laid,
    Line,
    Place,
    lay_out,
)
from clearhead.drawing.svg import THEMES, clean, document, rect, themed
from clearhead.errors import InputError

_LIGHT = f"""
text {{ fill: #1b2230 }} .paper {{ fill: #ffffff }}
.large {{ font-size: {LARGE:g}px; font-weight: 700 }} .fact {{ font-size: {FACT:g}px; fill: #586274 }}
.title {{ font-size: {TITLE:g}px; font-weight: 600 }} .note {{ font-size: {NOTE:g}px; fill: #586274 }}
.name {{ font-size: {NAME:g}px; font-weight: 600 }} .detail {{ font-size: {DETAIL:g}px; fill: #434d5f }}
.label {{ font-size: {LABEL:g}px; fill: #586274 }} .plus {{ fill: none; stroke: #1b2230; stroke-width: 1.8 }}
.middle {{ text-anchor: middle }} .end {{ text-anchor: end }}
.frame {{ fill: #f5f7fa; stroke: #c3ccd8; stroke-width: 1.5 }} .card {{ fill: #fbfcfd; stroke: #d3dae3 }}
.embedding {{ fill: #fcefd0; stroke: #d3a24a }} .norm {{ fill: #e2f3e6; stroke: #74b087 }}
.attention {{ fill: #e0ecfc; stroke: #6797d8 }} .feed_forward {{ fill: #eee6fb; stroke: #a283cf }}
.head {{ fill: #fde4e3; stroke: #d98480 }} .step, .sum {{ fill: #ffffff; stroke: #aab4c2 }}
.value {{ fill: none; stroke: #aab4c2; stroke-dasharray: 3 3 }}
.flow {{ fill: none; stroke: #7a8698; stroke-width: 1.6 }} .tip, .dot {{ fill: #7a8698 }}
.tie {{ fill: none; stroke: #d3a24a; stroke-width: 1.4; stroke-dasharray: 5 4 }}
.seen {{ fill: #6797d8 }} .unseen {{ fill: #e3e7ed }}
.axis {{ fill: none; stroke: #c3ccd8 }} .curve {{ fill: none; stroke: #a283cf; stroke-width: 1.8 }}
.beam-attention {{ fill: #6797d8; opacity: .13 }} .beam-feed_forward {{ fill: #a283cf; opacity: .13 }}
"""
_DARK = """
text { fill: #e7ebf1 } .plus { stroke: #e7ebf1 }
.paper { fill: #0f131a } .fact, .note, .label { fill: #9ca7b8 } .detail { fill: #bcc5d2 }
.frame { fill: #161c25; stroke: #38434f } .card { fill: #131820; stroke: #2c3541 }
.embedding { fill: #3a2e12; stroke: #a9853c } .norm { fill: #15301f; stroke: #4f8d63 }
.attention { fill: #142a45; stroke: #4d7fc2 } .feed_forward { fill: #2a2042; stroke: #8669b9 }
.head { fill: #3d1e20; stroke: #b5666a } .step, .sum { fill: #1b222c; stroke: #525e6d }
.value { stroke: #525e6d } .flow { stroke: #8c97a8 } .tip, .dot { fill: #8c97a8 } .tie { stroke: #a9853c }
.unseen { fill: #303a47 } .axis { stroke: #414c5a } .beam-attention, .beam-feed_forward { opacity: .16 }
"""


def diagram_svg(diagram: Diagram, theme: str = "auto", layout: str = "page") -> str:
    """The figure as an SVG document.

    Args:
        diagram: what to draw.
        theme: its colours, `light`, `dark`, or `auto` for those of the screen on which it is seen.
        layout: where the opened layers stand, one of `diagram_layout.LAYOUTS`.

    Raises:
        InputError: where there is no such theme or layout.
    """
    if theme not in THEMES:
        raise InputError(f"there is no theme {theme!r}; the themes are {', '.join(THEMES)}.")
    page = lay_out(diagram, layout)
    shapes = _heading(page.heading, diagram.total)
    for laid in page.panels[1:]:
        shapes += (_beam(page.panels[0], laid) if page.beams else []) + _card(laid)
    for laid in page.panels:
        shapes += _panel(laid)
    style = themed(_LIGHT, _DARK, theme)
    return document(page.width, page.height, diagram.name, diagram.about, style, shapes, diagram.lang)


def _heading(heading: Heading, total: int) -> list[str]:
    shapes = [_text(kind, x, y, line) for kind, x, y, line in heading.lines]
    bar, at = heading.bar, heading.bar.x
    for share, x, y, words in heading.shares:
        width = bar.width * share.parameters / total
        shapes.append(rect(share.kind, at, bar.y, max(width, 1.0), bar.height, 0))
        shapes.append(rect(share.kind, x - 20, y - 10, 12, 12, 3))
        shapes.append(_text("detail", x, y, words))
        at += width
    return shapes


def _card(laid: Laid) -> list[str]:
    """The ground and the title of an opened layer, in the colour of the box that it opens."""
    area, panel = laid.area, laid.panel
    return [
        rect("card", area.x, area.y, area.width, area.height, 12),
        rect(panel.key, area.x + 20, area.y + 20, 12, 12, 3),
        _text("title", area.x + 40, area.y + 31, panel.title),
        _text("note", area.x + 40, area.y + 49, panel.note),
    ]


def _beam(model: Laid, laid: Laid) -> list[str]:
    """From a box of the model to the panel that opens it, on either side."""
    box, area = model.boxes[laid.panel.key], laid.area
    near, far = (box.right, area.x) if area.x > box.x else (box.x, area.right)
    corners = f"{near:.1f},{box.y + 4:.1f} {far:.1f},{area.y + 8:.1f} {far:.1f},{area.bottom - 8:.1f}"
    return [f'<polygon class="beam-{laid.panel.key}" points="{corners} {near:.1f},{box.bottom - 4:.1f}"/>']


def _panel(laid: Laid) -> list[str]:
    shapes = []
    if laid.frame and laid.panel.frame:
        frame = laid.frame
        shapes += [
            rect("frame", frame.x, frame.y, frame.width, frame.height, 14),
            _text("title", frame.x + 16, frame.y + 25, laid.panel.frame.title),
            _text("note", frame.x + 16, frame.y + 43, laid.panel.frame.note),
        ]
    for line in laid.lines:
        shapes += _arrow(line)
    for box in laid.panel.boxes:
        shapes += _box(box, laid.boxes[box.key])
    return shapes


def _box(box: Box, place: Place) -> list[str]:
    x, y = place.cx, place.y
    if box.kind == "sum":
        circle = f'<circle class="sum" cx="{x:.1f}" cy="{place.cy:.1f}" r="{place.width / 2:.1f}"/>'
        plus = f'<path class="plus" d="M{x - 6:.1f} {place.cy:.1f} h12 M{x:.1f} {place.cy - 6:.1f} v12"/>'
        return [f"<g{_about(box)}><title>+</title>{circle}{plus}</g>"]
    if box.kind == "value":
        shapes = [rect("value", place.x, y, place.width, place.height, place.height / 2)]
        shapes.append(_text("detail middle", x, place.cy + 4, box.name))
    else:
        shapes = [rect(box.kind, place.x, y, place.width, place.height, 8)]
        shapes.append(_text("name middle", x, y + 7 + NAME_LINE - 5, box.name))
        for i, line in enumerate(box.detail, start=1):
            shapes.append(_text("detail middle", x, y + 7 + NAME_LINE + DETAIL_LINE * i - 4, line))
        shapes += _PICTURES[box.key](place) if box.picture else []
    return [f"<g{_about(box)}>", *shapes, "</g>"]


def _mask_picture(place: Place) -> list[str]:
    """Six tokens' rows: each sees those up to itself."""
    cell, x, y = 5.0, place.x + 14, place.cy - 15
    return [
        rect("seen" if column <= row else "unseen", x + cell * column, y + cell * row, cell - 1, cell - 1, 0.5)
        for row in range(6)
        for column in range(6)
    ]


def _gelu_picture(place: Place) -> list[str]:
    """The function from -3 to 2, with its axes."""
    x, y, unit = place.x + 32, place.cy + 8, 6.5
    points = " ".join(f"{x + unit * v:.1f},{y - unit * _gelu(v):.1f}" for v in (i / 4 for i in range(-12, 10)))
    axes = f"M{x - 3 * unit:.1f} {y:.1f} h{5.5 * unit:.1f} M{x:.1f} {y + unit / 2:.1f} v{-3 * unit:.1f}"
    return [f'<path class="axis" d="{axes}"/>', f'<polyline class="curve" points="{points}"/>']


def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


_PICTURES: dict[str, Callable[[Place], list[str]]] = {"mask": _mask_picture, "gelu": _gelu_picture}
"""Small pictures at the left end of a box."""


def _about(box: Box) -> str:
    """What a program may read of a box: its name in the diagram, its parameters, and how many such boxes there are."""
    return f' id="{box.key}" data-parameters="{box.parameters}" data-times="{box.times}"'


def _arrow(line: Line) -> list[str]:
    tie = line.arrow.route == "tie"
    x, y = line.label
    look = 'class="tie"' if tie else 'class="flow" marker-end="url(#tip)"'
    shapes = [f'<path {look} d="{line.path}"/>']
    if line.dot:
        shapes.append(f'<circle class="dot" cx="{line.dot[0]:.1f}" cy="{line.dot[1]:.1f}" r="3"/>')
    kind = "label" if tie else "label mono"
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if line.turned else ""
    shapes.append(_text(kind + (" middle" if line.turned else ""), x, y, line.arrow.label, turn))
    return shapes


def _text(kind: str, x: float, y: float, text: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{more}>{clean(text)}</text>'
