"""How the arrows run between the boxes of a panel."""

from __future__ import annotations

from clearhead.anatomy.diagram.diagram import Arrow
from clearhead.anatomy.diagram.geometry import ArrowLayout, PanelLayout, Rectangle
from clearhead.anatomy.diagram.panel_grid import ROW_GAP, TIE_LANE

_CURVE = 10.0  # the radius of a turn


def route_arrows(panel: PanelLayout) -> list[ArrowLayout]:
    return [_line(panel, arrow) for arrow in panel.panel.arrows]


def _line(panel: PanelLayout, arrow: Arrow) -> ArrowLayout:
    start, end = panel.boxes[arrow.start], panel.boxes[arrow.end]
    if arrow.route == "shortcut":
        return _shortcut(panel, arrow, start, end)
    if arrow.route == "tie":
        return _tie(panel, arrow, start, end)
    if arrow.route == "side":
        return _side(arrow, start, end)
    x = start.cx if arrow.column is None else panel.centers[arrow.column]
    path = f"M{x:.1f} {start.y:.1f} V{end.bottom + 1:.1f}"
    if any(end.bottom < box.y and box.bottom < start.y for box in panel.boxes.values()):  # it passes other rows
        return ArrowLayout(arrow, path, (x - 6, (start.y + end.bottom) / 2), True)
    crosses = panel.frame and (start.y > panel.frame.bottom > end.bottom or start.y > panel.frame.y > end.bottom)
    y = start.y - ROW_GAP / 2 if crosses else (start.y + end.bottom) / 2
    return ArrowLayout(arrow, path, (x + 8, y + 4))


def _shortcut(panel: PanelLayout, arrow: Arrow, start: Rectangle, end: Rectangle) -> ArrowLayout:
    """Branch off the arrow that goes straight up, run along the boxes and enter the sum from the left."""
    assert panel.frame
    follows = next(a.end for a in panel.panel.arrows if a.start == arrow.start and a.route == "up")
    y = panel.boxes[follows].bottom + 16
    x, lane, r = start.cx, panel.frame.x + 22, _CURVE
    path = (
        f"M{x:.1f} {y:.1f} H{lane + r:.1f} Q{lane:.1f} {y:.1f} {lane:.1f} {y - r:.1f} V{end.cy + r:.1f} "
        f"Q{lane:.1f} {end.cy:.1f} {lane + r:.1f} {end.cy:.1f} H{end.x - 1:.1f}"
    )
    return ArrowLayout(arrow, path, (lane - 6, (y + end.cy) / 2), True, (x, y))


def _side(arrow: Arrow, start: Rectangle, end: Rectangle) -> ArrowLayout:
    """Go up, then enter the sum from the side."""
    left = start.cx < end.cx
    x, r = start.cx, _CURVE if left else -_CURVE
    edge = end.x - 1 if left else end.right + 1
    path = f"M{x:.1f} {start.y:.1f} V{end.cy + _CURVE:.1f} Q{x:.1f} {end.cy:.1f} {x + r:.1f} {end.cy:.1f} H{edge:.1f}"
    return ArrowLayout(arrow, path, (x + 8, start.y - 10))


def _tie(panel: PanelLayout, arrow: Arrow, start: Rectangle, end: Rectangle) -> ArrowLayout:
    """Go down the left side of the whole model."""
    lane, r = panel.area.x - TIE_LANE / 2, _CURVE
    path = (
        f"M{start.x:.1f} {start.cy:.1f} H{lane + r:.1f} Q{lane:.1f} {start.cy:.1f} {lane:.1f} {start.cy + r:.1f} "
        f"V{end.cy - r:.1f} Q{lane:.1f} {end.cy:.1f} {lane + r:.1f} {end.cy:.1f} H{end.x - 1:.1f}"
    )
    return ArrowLayout(arrow, path, (lane - 6, (start.cy + end.cy) / 2), True)
