"""Where the boxes and arrows of the framework diagram go on a page.

Widths come from the words (as they are estimated in `svg.py`), heights from the rows, so that nothing overlaps whatever
the model and the language. Lengths are in pixels, y grows downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clearhead.anatomy.diagram.diagram import Arrow, Box, Diagram, Panel, Share
from clearhead.drawing.svg import text_width, wrap
from clearhead.errors import InputError

LAYOUTS = ("page", "slide", "column")
"""Model and opened layers in two columns, in three (the model in the middle), or one below the other."""

NAME, DETAIL, LABEL, TITLE, NOTE, FACT, LARGE = 14.0, 12.0, 11.5, 15.0, 12.0, 13.0, 24.0
"""Font sizes: of a box's name and detail, a shape, a panel's title and note, a fact about the model, its name."""
NAME_LINE, DETAIL_LINE = 19.0, 16.0
"""Heights of their lines."""

_PAD_X, _PAD_Y = 14.0, 7.0  # inside a box
_GAP, _COLUMN_GAP = 34.0, 22.0  # between two rows, which holds an arrow's label, and between two columns
_PICTURE = 58.0  # at either end of a box with a picture, so that its words stay in the middle
_SUM = 26.0  # a sum's diameter
_PILL = 28.0  # a value's height
_LANE = 46.0  # from the boxes of a block to its shortcut
_FRAME_FOOT, _FRAME_HEAD = 30.0, 46.0  # inside the block's border: room for the shortcut's start, and for its title
_CARD, _CARD_HEAD = 20.0, 58.0  # around an opened panel, and for its title
_MARGIN, _BETWEEN = 28.0, 56.0  # around the page, and between its columns
_TIE = 26.0  # from the model's left edge to the line that ties head and embedding
_CURVE = 10.0  # the radius of an arrow's turn
_SWATCH = 20.0  # a square of colour, with the room to its words


@dataclass(slots=True)
class Place:
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def cx(self) -> float:
        """The middle, from left to right."""
        return self.x + self.width / 2

    @property
    def cy(self) -> float:
        """The middle, from top to bottom."""
        return self.y + self.height / 2

    @property
    def right(self) -> float:
        """The right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.height

    def move(self, x: float, y: float) -> None:
        """Shifts it."""
        self.x += x
        self.y += y


@dataclass(slots=True)
class Line:
    """An arrow on the page.

    Attributes:
        arrow: which one.
        path: what it follows, as SVG writes a path.
        label: where its label stands: the left end of the base line, or the middle of a label that is turned.
        turned: whether the label runs upwards beside the line.
        dot: where it leaves another arrow; None where it starts at its own box.
    """

    arrow: Arrow
    path: str
    label: tuple[float, float]
    turned: bool = False
    dot: tuple[float, float] | None = None


@dataclass(slots=True)
class Laid:
    """A panel with its places.

    Attributes:
        panel: which one.
        area: all of it; for an opened panel its card.
        boxes: the place of every box, by its key.
        frame: the block's border.
        lines: its arrows.
        centers: the horizontal center of each column.
    """

    panel: Panel
    area: Place
    boxes: dict[str, Place]
    frame: Place | None = None
    lines: list[Line] = field(default_factory=list)
    centers: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Heading:
    """What stands above the figure: the model's name, facts, and a bar of the shares of its parameters.

    Attributes:
        area: all of it.
        lines: kind (`large`, `fact` or `note`), left end of the base line, and text.
        bar: the place of the bar.
        shares: the left end of the base line of each share's words, with the words; its square of colour stands before.
    """

    area: Place
    lines: list[tuple[str, float, float, str]]
    bar: Place
    shares: list[tuple[Share, float, float, str]]


@dataclass(slots=True)
class Page:
    """The whole drawing.

    Attributes:
        width, height: its size.
        heading: what stands above.
        panels: the model, the attention, the feed-forward layer.
        beams: whether the opened layers stand beside the boxes that they open.
    """

    width: float
    height: float
    heading: Heading
    panels: list[Laid]
    beams: bool


def lay_out(diagram: Diagram, layout: str = "page") -> Page:
    """Gives everything in a diagram its place.

    Args:
        diagram: what to place.
        layout: one of `LAYOUTS`.

    Raises:
        InputError: where there is no such layout.
    """
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; the layouts are {', '.join(LAYOUTS)}.")
    place = {"page": _two_columns, "slide": _three_columns, "column": _one_column}[layout]
    heading, panels = place(diagram)
    for panel in panels:
        panel.lines = _lines(panel)
    areas = [heading.area, *(panel.area for panel in panels)]
    width, height = max(area.right for area in areas), max(area.bottom for area in areas)
    return Page(width + _MARGIN, height + _MARGIN, heading, panels, layout != "column")


def _two_columns(diagram: Diagram) -> tuple[Heading, list[Laid]]:
    """The heading over all; the model to the left, at the right the feed-forward layer above the attention."""
    laid = [_Grid(panel).lay() for panel in diagram.panels]
    side = max(laid[1].area.width, laid[2].area.width)
    beside = laid[1].area.height + laid[2].area.height + _CARD
    model = laid[0] = _as_high(diagram.panels[0], beside)
    left = _MARGIN + _tie_room(diagram)
    heading = _heading(diagram, _MARGIN, _MARGIN, left + model.area.width + _BETWEEN + side - _MARGIN)
    top = heading.area.bottom + _CARD
    _move(model, left, top)
    bottom = max(model.area.bottom, top + beside)
    for panel in laid[1:]:
        _widen(panel, side)
    x = model.area.right + _BETWEEN
    _move(laid[1], x, bottom - laid[1].area.height)
    _move(laid[2], x, top)
    return heading, laid


def _three_columns(diagram: Diagram) -> tuple[Heading, list[Laid]]:
    """To the left the heading and the feed-forward layer, then the model, then the attention."""
    laid = [_Grid(panel).lay() for panel in diagram.panels]
    model = laid[0] = _as_high(diagram.panels[0], laid[1].area.height)
    _widen(laid[2], max(laid[2].area.width, *(_share_width(diagram, share) for share in diagram.shares)))
    width = laid[2].area.width
    heading = _heading(diagram, _MARGIN, _MARGIN, width)
    left = _MARGIN + width + _BETWEEN + _tie_room(diagram)
    _move(model, left, _MARGIN)
    _move(laid[1], model.area.right + _BETWEEN, _MARGIN + (model.area.height - laid[1].area.height) / 2)
    height = laid[2].area.height
    low, high = heading.area.bottom + 2 * _CARD, model.area.bottom - height
    _move(laid[2], _MARGIN, max(low, min(high, model.boxes["feed_forward"].cy - height / 2)))
    return heading, laid


def _one_column(diagram: Diagram) -> tuple[Heading, list[Laid]]:
    """The heading, the model, the attention, the feed-forward layer."""
    laid = [_Grid(panel).lay() for panel in diagram.panels]
    tie = _tie_room(diagram)
    width = max(laid[0].area.width + tie, laid[1].area.width, laid[2].area.width)
    heading = _heading(diagram, _MARGIN, _MARGIN, width)
    _move(laid[0], _MARGIN + tie + (width - tie - laid[0].area.width) / 2, heading.area.bottom + _CARD)
    y = laid[0].area.bottom + 2 * _CARD
    for panel in laid[1:]:
        _widen(panel, width)
        _move(panel, _MARGIN, y)
        y = panel.area.bottom + _CARD
    return heading, laid


def _as_high(panel: Panel, height: float) -> Laid:
    """A panel with its rows so far apart that it is as high as another."""
    laid = _Grid(panel).lay()
    gaps = len({box.row for box in panel.boxes}) - 1
    return _Grid(panel, max(0.0, (height - laid.area.height) / gaps)).lay()


def _tie_room(diagram: Diagram) -> float:
    return _TIE if any(arrow.route == "tie" for arrow in diagram.panels[0].arrows) else 0.0


def _heading(diagram: Diagram, x: float, y: float, width: float) -> Heading:
    lines, top = [("large", x, y + LARGE * 0.8, diagram.name)], y
    y += LARGE + 18
    for fact in diagram.facts:
        for line in wrap(fact, FACT, width):
            lines.append(("fact", x, y, line))
            y += 19
    bar = Place(x, y - 3, width, 16)
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
    return Heading(Place(x, top, width, y - 17 + 6 - top), lines, bar, shares)


def _share_words(diagram: Diagram, share: Share) -> str:
    part = share.parameters / diagram.total
    return f"{share.name} {share.parameters:,} ({part:.{2 if part < 0.001 else 1}%})"


def _share_width(diagram: Diagram, share: Share) -> float:
    return _SWATCH + text_width(_share_words(diagram, share), DETAIL) + 14


def label_width(label: str) -> float:
    """How wide a shape is beside its arrow."""
    return text_width(label, LABEL, mono=True)


class _Grid:
    """One panel's rows and columns, from the bottom up, with its upper left corner at 0, 0."""

    def __init__(self, panel: Panel, stretch: float = 0) -> None:
        self.panel = panel
        self.gap = _GAP + stretch
        self.fitted = panel.key != "attention"  # boxes no wider than their words, around one line of arrows
        self.opened = panel.key != "model"
        self.columns = self._columns()

    def lay(self) -> Laid:
        panel = self.panel
        across = sum(self.columns) + _COLUMN_GAP * (len(self.columns) - 1)
        common = max(
            _needs(box) for box in panel.boxes if box.kind not in ("value", "sum") and box.span == panel.columns
        )
        width, half = across, 0.0
        if panel.frame:
            title = max(
                text_width(panel.frame.title, TITLE, bold=True), text_width(panel.frame.note, DETAIL)
            )  # to the left of the arrow that leaves the block
            inside = range(panel.frame.first, panel.frame.last + 1)
            side_by_side = any(box.span == 1 and box.row in inside for box in panel.boxes)
            half = max((across if side_by_side else common) / 2 + _LANE + 22, title + 30)
            width = max(across, 2 * half)
        head = _CARD_HEAD if self.opened else 0.0
        if self.opened:
            width = max(
                width + 2 * _CARD,
                *(2 * (label_width(arrow.label) + 20) for arrow in panel.arrows if arrow.column is None),
                text_width(panel.title, TITLE, bold=True) + 3 * _CARD,
                text_width(panel.note, NOTE) + 3 * _CARD,
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
            boxes[box.key] = Place(x + (wide - own) / 2, top + (row_height - tall) / 2, own, tall)
        frame = None
        if panel.frame:
            upper, lower = tops[panel.frame.last][0] - _FRAME_HEAD, sum(tops[panel.frame.first]) + _FRAME_FOOT
            frame = Place(width / 2 - half, upper, 2 * half, lower - upper)
        centers = [start + sum(self.columns[:i]) + _COLUMN_GAP * i + wide / 2 for i, wide in enumerate(self.columns)]
        area = Place(0, 0, width, height + (_CARD if self.opened else 0))
        return Laid(panel, area, boxes, frame, centers=centers)

    def _own_width(self, box: Box, wide: float, common: float) -> float:
        if box.kind == "sum":
            return _SUM
        if box.kind == "value":
            spread = any(a.column is not None for a in self.panel.arrows if a.start == box.key)
            return wide if spread else _needs(box)
        return common if self.fitted and box.span == self.panel.columns else wide

    def _columns(self) -> list[float]:
        """The columns' widths: what single boxes and labels need, then what boxes over several columns need."""
        panel = self.panel
        widths = [0.0] * panel.columns
        for box in panel.boxes:
            if box.span == 1:
                widths[box.column] = max(widths[box.column], _needs(box))
        for arrow in panel.arrows:
            if arrow.column is not None:
                room = label_width(arrow.label) + 16  # from this arrow to the next column's, or to the card's edge
                beyond = _COLUMN_GAP if arrow.column < panel.columns - 1 or self._is_long(arrow) else -room + 2 * _CARD
                widths[arrow.column] = max(widths[arrow.column], room - beyond)
            for column in range(panel.columns if arrow.route == "side" else 0):
                widths[column] = max(widths[column], 2 * label_width(arrow.label) + 20)
        if self.opened and panel.columns > 1:
            widths = [max(widths)] * panel.columns
        for box in panel.boxes:
            within = range(box.column, box.column + box.span)
            lacking = _needs(box) - sum(widths[i] for i in within) - _COLUMN_GAP * (box.span - 1)
            if box.span > 1 and not (self.fitted and box.span == panel.columns) and lacking > 0:
                for i in within:
                    widths[i] += lacking / box.span
        return widths

    def _is_long(self, arrow: Arrow) -> bool:
        """Whether it passes by other rows; its label is then turned to run beside it."""
        rows = {box.key: box.row for box in self.panel.boxes}
        return rows[arrow.end] - rows[arrow.start] > 1

    def _rows(self, top: float) -> tuple[dict[int, tuple[float, float]], float]:
        """Each row's upper edge and height, and the height of all."""
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


def _needs(box: Box) -> float:
    """The width that a box's words need."""
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


def _widen(laid: Laid, width: float) -> None:
    """Makes a card wider, with its contents in the middle."""
    extra = (width - laid.area.width) / 2
    for place in laid.boxes.values():
        place.move(extra, 0)
    laid.centers = [center + extra for center in laid.centers]
    laid.area.width = width


def _move(laid: Laid, x: float, y: float) -> None:
    for place in [laid.area, *laid.boxes.values(), *([laid.frame] if laid.frame else [])]:
        place.move(x, y)
    laid.centers = [center + x for center in laid.centers]


# Arrows ---------------------------------------------------------------------------------------------------------


def _lines(laid: Laid) -> list[Line]:
    return [_line(laid, arrow) for arrow in laid.panel.arrows]


def _line(laid: Laid, arrow: Arrow) -> Line:
    start, end = laid.boxes[arrow.start], laid.boxes[arrow.end]
    if arrow.route == "shortcut":
        return _shortcut(laid, arrow, start, end)
    if arrow.route == "tie":
        return _tie(laid, arrow, start, end)
    if arrow.route == "side":
        return _side(arrow, start, end)
    x = start.cx if arrow.column is None else laid.centers[arrow.column]
    path = f"M{x:.1f} {start.y:.1f} V{end.bottom + 1:.1f}"
    if any(end.bottom < box.y and box.bottom < start.y for box in laid.boxes.values()):  # it passes by other rows
        return Line(arrow, path, (x - 6, (start.y + end.bottom) / 2), True)
    crosses = laid.frame and (start.y > laid.frame.bottom > end.bottom or start.y > laid.frame.y > end.bottom)
    y = start.y - _GAP / 2 if crosses else (start.y + end.bottom) / 2
    return Line(arrow, path, (x + 8, y + 4))


def _shortcut(laid: Laid, arrow: Arrow, start: Place, end: Place) -> Line:
    """Leaves the arrow that goes straight up, runs beside the boxes and comes into the sum from the left."""
    assert laid.frame
    follows = next(a.end for a in laid.panel.arrows if a.start == arrow.start and a.route == "up")
    y = laid.boxes[follows].bottom + 16
    x, lane, r = start.cx, laid.frame.x + 22, _CURVE
    path = (
        f"M{x:.1f} {y:.1f} H{lane + r:.1f} Q{lane:.1f} {y:.1f} {lane:.1f} {y - r:.1f} V{end.cy + r:.1f} "
        f"Q{lane:.1f} {end.cy:.1f} {lane + r:.1f} {end.cy:.1f} H{end.x - 1:.1f}"
    )
    return Line(arrow, path, (lane - 6, (y + end.cy) / 2), True, (x, y))


def _side(arrow: Arrow, start: Place, end: Place) -> Line:
    """Up, and then into the sum from its own side."""
    left = start.cx < end.cx
    x, r = start.cx, _CURVE if left else -_CURVE
    edge = end.x - 1 if left else end.right + 1
    path = f"M{x:.1f} {start.y:.1f} V{end.cy + _CURVE:.1f} Q{x:.1f} {end.cy:.1f} {x + r:.1f} {end.cy:.1f} H{edge:.1f}"
    return Line(arrow, path, (x + 8, start.y - 10))


def _tie(laid: Laid, arrow: Arrow, start: Place, end: Place) -> Line:
    """Beside the whole model, down its left side."""
    lane, r = laid.area.x - _TIE / 2, _CURVE
    path = (
        f"M{start.x:.1f} {start.cy:.1f} H{lane + r:.1f} Q{lane:.1f} {start.cy:.1f} {lane:.1f} {start.cy + r:.1f} "
        f"V{end.cy - r:.1f} Q{lane:.1f} {end.cy:.1f} {lane + r:.1f} {end.cy:.1f} H{end.x - 1:.1f}"
    )
    return Line(arrow, path, (lane - 6, (start.cy + end.cy) / 2), True)
