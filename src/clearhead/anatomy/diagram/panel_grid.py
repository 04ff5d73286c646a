"""One panel's boxes in rows and columns.

Widths come from the words, heights from the rows, so that nothing overlaps whatever the model and the language.
"""

from __future__ import annotations

from clearhead.anatomy.diagram.diagram import Arrow, Box, Panel
from clearhead.anatomy.diagram.geometry import (
    DETAIL,
    DETAIL_LINE,
    LABEL,
    NAME,
    NAME_LINE,
    NOTE,
    TITLE,
    PanelLayout,
    Rectangle,
)
from clearhead.drawing.svg import text_width

_PAD_X, _PAD_Y = 14.0, 7.0  # inside a box
ROW_GAP, _COLUMN_GAP = 34.0, 22.0  # between rows (with an arrow's label), and between columns
_PICTURE = 58.0  # at both ends of a box with a picture, so that its words stay in the middle
_SUM = 26.0  # diameter of a sum
_PILL = 28.0  # height of a value
_LANE = 46.0  # from a block's boxes to its shortcut
_FRAME_FOOT, _FRAME_HEAD = 30.0, 46.0  # inside the block's border, for the shortcut's start and the title
CARD_PADDING, _CARD_HEAD = 20.0, 58.0  # inside a detail panel, and for its title
TIE_LANE = 26.0  # from the model's left edge to the arrow between head and embedding


def label_width(label: str) -> float:
    """Return the width of a shape's label."""
    return text_width(label, LABEL, mono=True)


class PanelGrid:
    """One panel's rows and columns, from the bottom up, with its upper left corner at (0, 0)."""

    def __init__(self, panel: Panel, stretch: float = 0) -> None:
        self.panel = panel
        self.gap = ROW_GAP + stretch
        self.fitted = panel.key != "attention"  # boxes are as wide as the widest needs, not as the columns
        self.is_detail = panel.key != "model"
        self.columns = self._columns()

    def layout(self) -> PanelLayout:
        panel = self.panel
        across = sum(self.columns) + _COLUMN_GAP * (len(self.columns) - 1)
        common = max(
            _needed_width(box) for box in panel.boxes if box.kind not in ("value", "sum") and box.span == panel.columns
        )
        width, half = across, 0.0
        if panel.frame:
            title = max(
                text_width(panel.frame.title, TITLE, bold=True), text_width(panel.frame.note, DETAIL)
            )  # left of the arrow that leaves the block
            inside = range(panel.frame.first, panel.frame.last + 1)
            side_by_side = any(box.span == 1 and box.row in inside for box in panel.boxes)
            half = max((across if side_by_side else common) / 2 + _LANE + 22, title + 30)
            width = max(across, 2 * half)
        head = _CARD_HEAD if self.is_detail else 0.0
        if self.is_detail:
            width = max(
                width + 2 * CARD_PADDING,
                common + 2 * CARD_PADDING,
                *(2 * (label_width(arrow.label) + 20) for arrow in panel.arrows if arrow.column is None),
                text_width(panel.title, TITLE, bold=True) + 3 * CARD_PADDING,
                text_width(panel.note, NOTE) + 3 * CARD_PADDING,
            )
        tops, height = self._rows(head)
        boxes = {}
        start = (width - across) / 2
        for box in panel.boxes:
            x = start + sum(self.columns[: box.column]) + _COLUMN_GAP * box.column
            wide = sum(self.columns[box.column : box.column + box.span]) + _COLUMN_GAP * (box.span - 1)
            top, row_height = tops[box.row]
            own = self._own_width(box, wide, common)
            tall = _height(box)
            boxes[box.key] = Rectangle(x + (wide - own) / 2, top + (row_height - tall) / 2, own, tall)
        frame = None
        if panel.frame:
            upper, lower = tops[panel.frame.last][0] - _FRAME_HEAD, sum(tops[panel.frame.first]) + _FRAME_FOOT
            frame = Rectangle(width / 2 - half, upper, 2 * half, lower - upper)
        centers = [start + sum(self.columns[:i]) + _COLUMN_GAP * i + wide / 2 for i, wide in enumerate(self.columns)]
        area = Rectangle(0, 0, width, height + (CARD_PADDING if self.is_detail else 0))
        return PanelLayout(panel, area, boxes, frame, centers=centers)

    def _own_width(self, box: Box, wide: float, common: float) -> float:
        if box.kind == "sum":
            return _SUM
        if box.kind == "value":
            spread = any(a.column is not None for a in self.panel.arrows if a.start == box.key)
            return wide if spread else _needed_width(box)
        return common if self.fitted and box.span == self.panel.columns else wide

    def _columns(self) -> list[float]:
        """Return the columns' widths: what single boxes and labels need, then what boxes over several columns need."""
        panel = self.panel
        widths = [0.0] * panel.columns
        for box in panel.boxes:
            if box.span == 1:
                widths[box.column] = max(widths[box.column], _needed_width(box))
        for arrow in panel.arrows:
            if arrow.column is not None:
                room = label_width(arrow.label) + 16  # from this arrow to the next column's, or to the card's edge
                beyond = (
                    _COLUMN_GAP
                    if arrow.column < panel.columns - 1 or self._is_long(arrow)
                    else -room + 2 * CARD_PADDING
                )
                widths[arrow.column] = max(widths[arrow.column], room - beyond)
            for column in range(panel.columns if arrow.route == "side" else 0):
                widths[column] = max(widths[column], 2 * label_width(arrow.label) + 20)
        if self.is_detail and panel.columns > 1:
            widths = [max(widths)] * panel.columns
        for box in panel.boxes:
            within = range(box.column, box.column + box.span)
            lacking = _needed_width(box) - sum(widths[i] for i in within) - _COLUMN_GAP * (box.span - 1)
            if box.span > 1 and not (self.fitted and box.span == panel.columns) and lacking > 0:
                for i in within:
                    widths[i] += lacking / box.span
        return widths

    def _is_long(self, arrow: Arrow) -> bool:
        """Tell whether it passes other rows; its label then runs along it."""
        rows = {box.key: box.row for box in self.panel.boxes}
        return rows[arrow.end] - rows[arrow.start] > 1

    def _rows(self, top: float) -> tuple[dict[int, tuple[float, float]], float]:
        """Return each row's top and height, and the height of all rows."""
        rows = sorted({box.row for box in self.panel.boxes}, reverse=True)
        tops = {}
        frame = self.panel.frame
        y = top
        for i, row in enumerate(rows):
            if i:
                y += self.gap
            if frame and row == frame.last:
                y += _FRAME_HEAD
            if frame and row == frame.first - 1:
                y += _FRAME_FOOT
            height = max(_height(box) for box in self.panel.boxes if box.row == row)
            tops[row] = (y, height)
            y += height
        return tops, y


def _needed_width(box: Box) -> float:
    """Return the width that a box needs for its words."""
    if box.kind == "sum":
        return _SUM
    if box.kind == "value":
        return text_width(box.name, DETAIL) + 2 * _PAD_X
    lines = [text_width(box.name, NAME, bold=True), *(text_width(line, DETAIL) for line in box.detail)]
    return max(lines) + 2 * (_PICTURE if box.picture else _PAD_X)


def _height(box: Box) -> float:
    if box.kind in ("sum", "value"):
        return _SUM if box.kind == "sum" else _PILL
    return 2 * _PAD_Y + NAME_LINE + DETAIL_LINE * len(box.detail)
