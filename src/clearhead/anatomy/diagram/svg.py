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
from clearhead.drawing.svg import Picture, document, label, rect

_RULES = f"""
text {{ fill: $ink }}
.large {{ font-size: {LARGE:g}px; font-weight: 700 }} .fact {{ font-size: {FACT:g}px; fill: $soft }}
.title {{ font-size: {TITLE:g}px; font-weight: 600 }} .note {{ font-size: {NOTE:g}px; fill: $soft }}
.name {{ font-size: {NAME:g}px; font-weight: 600 }} .detail {{ font-size: {DETAIL:g}px; fill: $body }}
.label {{ font-size: {LABEL:g}px; fill: $soft }} .plus {{ fill: none; stroke: $ink; stroke-width: 1.8 }}
.middle {{ text-anchor: middle }}
.frame {{ fill: $panel; stroke: $border; stroke-width: 1.5 }} .card {{ fill: $card; stroke: $faint_border }}
.embedding {{ fill: $yellow; stroke: $yellow_line }} .norm {{ fill: $green; stroke: $green_line }}
.attention {{ fill: $blue; stroke: $blue_line }} .feed_forward {{ fill: $purple; stroke: $purple_line }}
.head {{ fill: $red; stroke: $red_line }} .step, .sum {{ fill: $surface; stroke: $outline }}
.value {{ fill: none; stroke: $outline; stroke-dasharray: 3 3 }}
.flow {{ fill: none; stroke: $flow; stroke-width: 1.6 }} .dot {{ fill: $flow }}
.tie {{ fill: none; stroke: $yellow_line; stroke-width: 1.4; stroke-dasharray: 5 4 }}
.seen {{ fill: $blue_line }} .unseen {{ fill: $unseen }}
.axis {{ fill: none; stroke: $axis }} .curve {{ fill: none; stroke: $purple_line; stroke-width: 1.8 }}
.beam-attention {{ fill: $blue_line; opacity: .14 }} .beam-feed_forward {{ fill: $purple_line; opacity: .14 }}
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
    page = lay_out(diagram, layout)
    shapes = _heading(page.heading, diagram.total)
    for laid in page.panels[1:]:
        shapes += (_beam(page.panels[0], laid) if page.beams else []) + _card(laid)
    for laid in page.panels:
        shapes += _panel(laid)
    picture = Picture(page.width, page.height, diagram.name, diagram.about, shapes, diagram.lang)
    return document(picture, _RULES, theme)


def _heading(heading: Heading, total: int) -> list[str]:
    shapes = [label(kind, x, y, line) for kind, x, y, line in heading.lines]
    bar, at = heading.bar, heading.bar.x
    for share, x, y, words in heading.shares:
        width = bar.width * share.parameters / total
        shapes.append(rect(share.kind, at, bar.y, max(width, 1.0), bar.height, 0))
        shapes.append(rect(share.kind, x - 20, y - 10, 12, 12, 3))
        shapes.append(label("detail", x, y, words))
        at += width
    return shapes


def _card(laid: Laid) -> list[str]:
    """The ground and the title of an opened layer, in the colour of the box that it opens."""
    area, panel = laid.area, laid.panel
    return [
        rect("card", area.x, area.y, area.width, area.height, 12),
        rect(panel.key, area.x + 20, area.y + 20, 12, 12, 3),
        label("title", area.x + 40, area.y + 31, panel.title),
        label("note", area.x + 40, area.y + 49, panel.note),
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
            label("title", frame.x + 16, frame.y + 25, laid.panel.frame.title),
            label("note", frame.x + 16, frame.y + 43, laid.panel.frame.note),
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
        shapes.append(label("detail middle", x, place.cy + 4, box.name))
    else:
        shapes = [rect(box.kind, place.x, y, place.width, place.height, 8)]
        shapes.append(label("name middle", x, y + 7 + NAME_LINE - 5, box.name))
        for i, line in enumerate(box.detail, start=1):
            shapes.append(label("detail middle", x, y + 7 + NAME_LINE + DETAIL_LINE * i - 4, line))
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
    shapes.append(label(kind + (" middle" if line.turned else ""), x, y, line.arrow.label, attributes=turn))
    return shapes
