"""The architecture diagram as an SVG, light or dark, for a page, a slide or paper."""

from __future__ import annotations

import math
from collections.abc import Callable

from clearhead.anatomy.diagram.diagram import Box, Diagram
from clearhead.anatomy.diagram.geometry import (
    DETAIL,
    DETAIL_LINE,
    FACT,
    LABEL,
    LARGE,
    NAME,
    NAME_LINE,
    NOTE,
    TITLE,
    ArrowLayout,
    HeadingLayout,
    PanelLayout,
    Rectangle,
)
from clearhead.anatomy.diagram.layout import lay_out
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
    """Return the diagram as an SVG document.

    Args:
        diagram: what to draw.
        theme: its colours: `light`, `dark`, or `auto` to follow the reader's screen.
        layout: the arrangement of the panels, one of `layout.LAYOUTS`.

    Raises:
        InputError: if the theme or the layout is unknown.
    """
    page = lay_out(diagram, layout)
    shapes = _heading(page.heading, diagram.total)
    for panel in page.panels[1:]:
        shapes += (_beam(page.panels[0], panel) if page.beams else []) + _card(panel)
    for panel in page.panels:
        shapes += _panel(panel)
    picture = Picture(page.width, page.height, diagram.name, diagram.about, shapes, diagram.lang)
    return document(picture, _RULES, theme)


def _heading(heading: HeadingLayout, total: int) -> list[str]:
    shapes = [label(kind, x, y, line) for kind, x, y, line in heading.lines]
    bar, at = heading.bar, heading.bar.x
    for share, x, y, words in heading.shares:
        width = bar.width * share.parameters / total
        shapes.append(rect(share.kind, at, bar.y, max(width, 1.0), bar.height, 0))
        shapes.append(rect(share.kind, x - 20, y - 10, 12, 12, 3))
        shapes.append(label("detail", x, y, words))
        at += width
    return shapes


def _card(panel: PanelLayout) -> list[str]:
    """Return the background and the title of a detail panel, in the colour of the box that it shows."""
    area = panel.area
    return [
        rect("card", area.x, area.y, area.width, area.height, 12),
        rect(panel.panel.key, area.x + 20, area.y + 20, 12, 12, 3),
        label("title", area.x + 40, area.y + 31, panel.panel.title),
        label("note", area.x + 40, area.y + 49, panel.panel.note),
    ]


def _beam(model: PanelLayout, panel: PanelLayout) -> list[str]:
    """Return the beam from a box of the model to the panel that shows its inside, on either side."""
    box, area = model.boxes[panel.panel.key], panel.area
    near, far = (box.right, area.x) if area.x > box.x else (box.x, area.right)
    corners = f"{near:.1f},{box.y + 4:.1f} {far:.1f},{area.y + 8:.1f} {far:.1f},{area.bottom - 8:.1f}"
    return [f'<polygon class="beam-{panel.panel.key}" points="{corners} {near:.1f},{box.bottom - 4:.1f}"/>']


def _panel(panel: PanelLayout) -> list[str]:
    shapes = []
    if panel.frame and panel.panel.frame:
        frame = panel.frame
        shapes += [
            rect("frame", frame.x, frame.y, frame.width, frame.height, 14),
            label("title", frame.x + 16, frame.y + 25, panel.panel.frame.title),
            label("note", frame.x + 16, frame.y + 43, panel.panel.frame.note),
        ]
    for arrow in panel.arrows:
        shapes += _arrow(arrow)
    for box in panel.panel.boxes:
        shapes += _box(box, panel.boxes[box.key])
    return shapes


def _box(box: Box, area: Rectangle) -> list[str]:
    x, y = area.cx, area.y
    if box.kind == "sum":
        circle = f'<circle class="sum" cx="{x:.1f}" cy="{area.cy:.1f}" r="{area.width / 2:.1f}"/>'
        plus = f'<path class="plus" d="M{x - 6:.1f} {area.cy:.1f} h12 M{x:.1f} {area.cy - 6:.1f} v12"/>'
        return [f"<g{_attributes(box)}><title>+</title>{circle}{plus}</g>"]
    if box.kind == "value":
        shapes = [rect("value", area.x, y, area.width, area.height, area.height / 2)]
        shapes.append(label("detail middle", x, area.cy + 4, box.name))
    else:
        shapes = [rect(box.kind, area.x, y, area.width, area.height, 8)]
        shapes.append(label("name middle", x, y + 7 + NAME_LINE - 5, box.name))
        for i, line in enumerate(box.detail, start=1):
            shapes.append(label("detail middle", x, y + 7 + NAME_LINE + DETAIL_LINE * i - 4, line))
        shapes += _PICTURES[box.key](area) if box.picture else []
    return [f"<g{_attributes(box)}>", *shapes, "</g>"]


def _mask_picture(area: Rectangle) -> list[str]:
    """Return six tokens' rows: each token sees those up to itself."""
    cell, x, y = 5.0, area.x + 14, area.cy - 15
    return [
        rect("seen" if column <= row else "unseen", x + cell * column, y + cell * row, cell - 1, cell - 1, 0.5)
        for row in range(6)
        for column in range(6)
    ]


def _gelu_picture(area: Rectangle) -> list[str]:
    """Return the function from -3 to 2, with its axes."""
    x, y, unit = area.x + 32, area.cy + 8, 6.5
    points = " ".join(f"{x + unit * v:.1f},{y - unit * _gelu(v):.1f}" for v in (i / 4 for i in range(-12, 10)))
    axes = f"M{x - 3 * unit:.1f} {y:.1f} h{5.5 * unit:.1f} M{x:.1f} {y + unit / 2:.1f} v{-3 * unit:.1f}"
    return [f'<path class="axis" d="{axes}"/>', f'<polyline class="curve" points="{points}"/>']


def _gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


_PICTURES: dict[str, Callable[[Rectangle], list[str]]] = {"mask": _mask_picture, "gelu": _gelu_picture}
"""Small pictures at the left end of a box, by its key."""


def _attributes(box: Box) -> str:
    """Return attributes for programs: the box's key, its parameters, and how many such boxes the model has."""
    return f' id="{box.key}" data-parameters="{box.parameters}" data-times="{box.times}"'


def _arrow(route: ArrowLayout) -> list[str]:
    tie = route.arrow.route == "tie"
    x, y = route.label
    look = 'class="tie"' if tie else 'class="flow" marker-end="url(#tip)"'
    shapes = [f'<path {look} d="{route.path}"/>']
    if route.dot:
        shapes.append(f'<circle class="dot" cx="{route.dot[0]:.1f}" cy="{route.dot[1]:.1f}" r="3"/>')
    kind = "label" if tie else "label mono"
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if route.rotated else ""
    shapes.append(label(kind + (" middle" if route.rotated else ""), x, y, route.arrow.label, attributes=turn))
    return shapes
