"""Positions and sizes of the diagram's parts on the page, in pixels; y grows downwards."""

from __future__ import annotations

from dataclasses import dataclass, field

from clearhead.anatomy.diagram.diagram import Arrow, Panel, ParameterShare

NAME, DETAIL, LABEL, TITLE, NOTE, FACT, LARGE = 14.0, 12.0, 11.5, 15.0, 12.0, 13.0, 24.0
"""Font sizes: a box's name and details, a shape, a panel's title and note, a fact about the model, the model's name."""
NAME_LINE, DETAIL_LINE = 19.0, 16.0
"""Line heights of a box's name and details."""


@dataclass(slots=True)
class Rectangle:
    """A rectangle on the page."""

    x: float
    y: float
    width: float
    height: float

    @property
    def cx(self) -> float:
        """The x of its centre."""
        return self.x + self.width / 2

    @property
    def cy(self) -> float:
        """The y of its centre."""
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
        """Shift it."""
        self.x += x
        self.y += y


@dataclass(slots=True)
class ArrowLayout:
    """An arrow with its position.

    Attributes:
        arrow: the arrow.
        path: its path, in SVG's syntax.
        label: the left end of its label's baseline, or the middle if the label is rotated.
        rotated: whether the label runs upwards along the arrow.
        dot: the point where it branches off another arrow; None if it starts at a box.
    """

    arrow: Arrow
    path: str
    label: tuple[float, float]
    rotated: bool = False
    dot: tuple[float, float] | None = None


@dataclass(slots=True)
class PanelLayout:
    """A panel with the positions of its parts.

    Attributes:
        panel: the panel.
        area: the whole panel; for a detail panel, its card.
        boxes: the rectangle of every box, by its key.
        frame: the block's border.
        arrows: its arrows.
        centers: the horizontal center of each column.
    """

    panel: Panel
    area: Rectangle
    boxes: dict[str, Rectangle]
    frame: Rectangle | None = None
    arrows: list[ArrowLayout] = field(default_factory=list)
    centers: list[float] = field(default_factory=list)


@dataclass(slots=True)
class HeadingLayout:
    """The heading: the model's name, facts about it, and a bar of where its parameters are.

    Attributes:
        area: the whole heading.
        lines: kind (`large`, `fact` or `note`), x and y of the baseline's left end, and text.
        bar: the bar.
        shares: each share with x and y of its label's baseline and the label; its swatch is to the left of the label.
    """

    area: Rectangle
    lines: list[tuple[str, float, float, str]]
    bar: Rectangle
    shares: list[tuple[ParameterShare, float, float, str]]


@dataclass(slots=True)
class PageLayout:
    """The whole picture.

    Attributes:
        width, height: its size.
        heading: the heading.
        panels: the model, the attention, the feed-forward layer.
        beams: whether beams lead from the model's boxes to the detail panels next to them.
    """

    width: float
    height: float
    heading: HeadingLayout
    panels: list[PanelLayout]
    beams: bool
