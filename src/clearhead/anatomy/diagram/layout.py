"""How the diagram's panels and its heading are arranged on a page."""

from __future__ import annotations

from clearhead.anatomy.diagram.arrow_routes import route_arrows
from clearhead.anatomy.diagram.diagram import Diagram, Panel, ParameterShare
from clearhead.anatomy.diagram.geometry import (
    DETAIL,
    FACT,
    LARGE,
    NOTE,
    HeadingLayout,
    PageLayout,
    PanelLayout,
    Rectangle,
)
from clearhead.anatomy.diagram.panel_grid import CARD_PADDING, TIE_LANE, PanelGrid
from clearhead.drawing.svg import text_width, wrap
from clearhead.errors import InputError

LAYOUTS = ("page", "slide", "column")
"""The model and the detail panels in two columns, in three (the model in the middle), or below each other."""

_MARGIN, _BETWEEN = 28.0, 56.0  # around the page, and between its columns
_SWATCH = 20.0  # a colour swatch with the gap to its label


def lay_out(diagram: Diagram, layout: str = "page") -> PageLayout:
    """Compute the position of everything in a diagram.

    Args:
        diagram: the diagram.
        layout: one of `LAYOUTS`.

    Raises:
        InputError: if the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise InputError(f"{layout!r} is not a layout; choose one of {', '.join(LAYOUTS)}.")
    arrange = {"page": _two_columns, "slide": _three_columns, "column": _one_column}[layout]
    heading, panels = arrange(diagram)
    for panel in panels:
        panel.arrows = route_arrows(panel)
    areas = [heading.area, *(panel.area for panel in panels)]
    width, height = max(area.right for area in areas), max(area.bottom for area in areas)
    return PageLayout(width + _MARGIN, height + _MARGIN, heading, panels, layout != "column")


def _two_columns(diagram: Diagram) -> tuple[HeadingLayout, list[PanelLayout]]:
    """Put the heading at the top, the model on the left, and the details on the right, feed-forward above attention."""
    panels = [PanelGrid(panel).layout() for panel in diagram.panels]
    side = max(panels[1].area.width, panels[2].area.width)
    beside = panels[1].area.height + panels[2].area.height + CARD_PADDING
    model = panels[0] = _stretched(diagram.panels[0], beside)
    left = _MARGIN + _tie_room(diagram)
    heading = _heading(diagram, _MARGIN, _MARGIN, left + model.area.width + _BETWEEN + side - _MARGIN)
    top = heading.area.bottom + CARD_PADDING
    _move(model, left, top)
    bottom = max(model.area.bottom, top + beside)
    for panel in panels[1:]:
        _widen(panel, side)
    x = model.area.right + _BETWEEN
    _move(panels[1], x, bottom - panels[1].area.height)
    _move(panels[2], x, top)
    return heading, panels


def _three_columns(diagram: Diagram) -> tuple[HeadingLayout, list[PanelLayout]]:
    """Put the heading and the feed-forward layer on the left, the model in the middle, the attention on the right."""
    panels = [PanelGrid(panel).layout() for panel in diagram.panels]
    model = panels[0] = _stretched(diagram.panels[0], panels[1].area.height)
    _widen(panels[2], max(panels[2].area.width, *(_share_width(diagram, share) for share in diagram.shares)))
    width = panels[2].area.width
    heading = _heading(diagram, _MARGIN, _MARGIN, width)
    left = _MARGIN + width + _BETWEEN + _tie_room(diagram)
    _move(model, left, _MARGIN)
    _move(panels[1], model.area.right + _BETWEEN, _MARGIN + (model.area.height - panels[1].area.height) / 2)
    height = panels[2].area.height
    low, high = heading.area.bottom + 2 * CARD_PADDING, model.area.bottom - height
    _move(panels[2], _MARGIN, max(low, min(high, model.boxes["feed_forward"].cy - height / 2)))
    return heading, panels


def _one_column(diagram: Diagram) -> tuple[HeadingLayout, list[PanelLayout]]:
    """Put the heading, the model, the attention and the feed-forward layer below each other."""
    panels = [PanelGrid(panel).layout() for panel in diagram.panels]
    tie = _tie_room(diagram)
    width = max(panels[0].area.width + tie, panels[1].area.width, panels[2].area.width)
    heading = _heading(diagram, _MARGIN, _MARGIN, width)
    _move(panels[0], _MARGIN + tie + (width - tie - panels[0].area.width) / 2, heading.area.bottom + CARD_PADDING)
    y = panels[0].area.bottom + 2 * CARD_PADDING
    for panel in panels[1:]:
        _widen(panel, width)
        _move(panel, _MARGIN, y)
        y = panel.area.bottom + CARD_PADDING
    return heading, panels


def _stretched(panel: Panel, height: float) -> PanelLayout:
    """Lay out a panel with its rows spread to a height."""
    natural = PanelGrid(panel).layout()
    gaps = len({box.row for box in panel.boxes}) - 1
    return PanelGrid(panel, max(0.0, (height - natural.area.height) / gaps)).layout()


def _tie_room(diagram: Diagram) -> float:
    return TIE_LANE if any(arrow.route == "tie" for arrow in diagram.panels[0].arrows) else 0.0


def _heading(diagram: Diagram, x: float, y: float, width: float) -> HeadingLayout:
    lines, top = [("large", x, y + LARGE * 0.8, diagram.name)], y
    y += LARGE + 18
    for fact in diagram.facts:
        for line in wrap(fact, FACT, width):
            lines.append(("fact", x, y, line))
            y += 19
    bar = Rectangle(x, y - 3, width, 16)
    y = bar.bottom + 20
    at, shares = x, []
    for share in diagram.shares:
        wide = _share_width(diagram, share)
        if at > x and at + wide > x + width:
            at, y = x, y + 20
        shares.append((share, at + _SWATCH, y, _share_words(diagram, share)))
        at += wide
    y += 24
    for line in wrap(" · ".join(diagram.legend), NOTE, width):
        lines.append(("note", x, y, line))
        y += 17
    return HeadingLayout(Rectangle(x, top, width, y - 17 + 6 - top), lines, bar, shares)


def _share_words(diagram: Diagram, share: ParameterShare) -> str:
    part = share.parameters / diagram.total
    return f"{share.name} {share.parameters:,} ({part:.{2 if part < 0.001 else 1}%})"


def _share_width(diagram: Diagram, share: ParameterShare) -> float:
    return _SWATCH + text_width(_share_words(diagram, share), DETAIL) + 14


def _widen(panel: PanelLayout, width: float) -> None:
    """Widen a card and keep its contents in the middle."""
    extra = (width - panel.area.width) / 2
    for rectangle in panel.boxes.values():
        rectangle.move(extra, 0)
    panel.centers = [center + extra for center in panel.centers]
    panel.area.width = width


def _move(panel: PanelLayout, x: float, y: float) -> None:
    for rectangle in [panel.area, *panel.boxes.values(), *([panel.frame] if panel.frame else [])]:
        rectangle.move(x, y)
    panel.centers = [center + x for center in panel.centers]
