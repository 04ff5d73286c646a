"""Line charts: series of points over two axes, one chart or several below each other.

Lengths are in pixels, rounded to tenths, so that the last bits of a float do not show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clearhead.drawing.palette import SERIES
from clearhead.drawing.svg import Picture, document, label, rect, text_width
from clearhead.drawing.ticks import logarithmic_ticks, power_text, tick_text, ticks

Points = Sequence[tuple[float, float]]

_LEFT, _RIGHT, _MARGIN = 64, 24, 16  # from the frame to the picture's edges; from the edge to the titles
_TITLE, _LINE, _BELOW = 24, 19, 50  # baseline of the title, height of a line above the frame, room below the frame
_FONT_SIZE = 13.0
_MAX_POINTS = 600  # a line of more looks the same
_DASHES = ("", "7 4", "2 3", "10 3 2 3")

_RULES = """
text { font-size: 13px; fill: $soft } .title { font-size: 15px; font-weight: 600; fill: $ink } .label { fill: $ink }
.grid { stroke: $grid } .frame { fill: none; stroke: $border }
.line { fill: none; stroke-width: 2; stroke-linejoin: round } .faint { opacity: 0.3; stroke-width: 1 }
""" + " ".join(f".series{n} {{ stroke: $series{n} }}" for n in range(SERIES))


@dataclass(frozen=True, slots=True)
class LineSeries:
    """One line of a chart.

    Attributes:
        name: its name in the legend; "" leaves it out.
        points: (x, y), with rising x.
        colour: the number of its colour; numbers from `palette.SERIES` on begin again at the first.
        dash: the number of its dash pattern, so that lines can be told apart without colour; 0 is a solid line.
        faint: whether it lies faintly behind the others and may leave the frame.
    """

    name: str
    points: Points
    colour: int = 0
    dash: int = 0
    faint: bool = False


@dataclass(frozen=True, slots=True)
class LineChart:
    """A frame with its series.

    Attributes:
        title, x_label, y_label: its words; empty ones are left out.
        series: at least one that is not faint and has points.
        logarithmic: whether the y-axis is logarithmic; every y must be above 0 then.
        width, height: of the frame.
    """

    title: str
    series: Sequence[LineSeries]
    x_label: str = ""
    y_label: str = ""
    logarithmic: bool = False
    width: float = 480
    height: float = 190


def line_chart(
    title: str, lines: Mapping[str, Points], *, x: str, y: str, logarithmic: bool = False, lang: str = "en"
) -> str:
    """Return one line chart as an SVG document.

    Args:
        title: what it shows.
        lines: the points of each line by its name, with rising x.
        x, y: what the axes count.
        logarithmic: whether the y-axis is logarithmic; every y must be above 0 then.
        lang: the language of the words, `en` or `zh`.
    """
    series = [
        LineSeries(name, line, number, number % len(_DASHES)) for number, (name, line) in enumerate(lines.items())
    ]
    about = f"{y} over {x}" if lang == "en" else f"{x} → {y}"
    return line_charts([LineChart(title, series, x, y, logarithmic)], title, f"{about}: {', '.join(lines)}", lang)


def line_charts(charts: Sequence[LineChart], title: str, description: str, lang: str = "en") -> str:
    """Return several charts below each other as an SVG document.

    Args:
        charts: what to draw, from top to bottom.
        title: the picture's name, for screen readers.
        description: what it shows, for screen readers.
        lang: the language of the words, `en` or `zh`.
    """
    shapes: list[str] = []
    top = 0.0
    for number, chart in enumerate(charts):
        drawn = _DrawnChart(chart, top, f"frame{number}")
        shapes += drawn.shapes()
        top = drawn.bottom + 10
    width = _LEFT + max(chart.width for chart in charts) + _RIGHT
    return document(Picture(width, top - 10, title, description, shapes, lang), _RULES)


class _DrawnChart:
    """One chart at its position in the picture."""

    def __init__(self, chart: LineChart, top: float, clip: str) -> None:
        self.chart, self.clip = chart, clip
        self.series = [series for series in chart.series if series.points]
        self.named = [series for series in self.series if series.name]
        self.has_legend = len(self.named) > 1
        self.title_y = top + _TITLE
        lines = bool(chart.y_label) + self.has_legend
        self.top = self.title_y + _LINE * lines + 12
        self.bottom = self.top + chart.height + _BELOW
        xs = [x for series in self.series for x, _ in series.points]
        self.x_ticks = ticks(min(xs), max(xs))
        self.left, self.right = _bound(min(xs), max(xs), self.x_ticks[0]), _bound(max(xs), min(xs), self.x_ticks[-1])
        self.x_ticks = [x for x in self.x_ticks if self.left <= x <= self.right]
        if all(float(x).is_integer() for x in xs):
            self.x_ticks = [x for x in self.x_ticks if x.is_integer()]  # there is no layer 2.5
        # One wild step must not flatten the rest, so faint lines do not count.
        ys = [self._scaled(y) for series in self.series if not series.faint for _, y in series.points]
        find: Callable[[float, float], list[float]] = logarithmic_ticks if chart.logarithmic else ticks
        self.y_ticks = find(min(ys), max(ys))

    def shapes(self) -> list[str]:
        """Return the chart's elements, the rearmost first."""
        chart = self.chart
        shapes = [label("title", _MARGIN, self.title_y, chart.title)] if chart.title else []
        if chart.y_label:
            shapes.append(label("", _MARGIN, self.title_y + _LINE, chart.y_label))
        shapes += self._legend(self.top - 10) if self.has_legend else []
        shapes += self._axes()
        box = f'<rect x="{_LEFT}" y="{self.top:.1f}" width="{chart.width:g}" height="{chart.height:g}"/>'
        shapes.append(f'<clipPath id="{self.clip}">{box}</clipPath>')
        for series in sorted(self.series, key=lambda series: not series.faint):
            path = "L".join(f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in _thinned(series.points))
            shapes.append(_line(series, f"M{path}", f' clip-path="url(#{self.clip})"'))
        shapes.append(rect("frame", _LEFT, self.top, chart.width, chart.height))
        return shapes

    def _axes(self) -> list[str]:
        chart, shapes = self.chart, []
        texts = self._y_text()
        for y in self.y_ticks:
            level = self._level(y)
            shapes.append(f'<path class="grid" d="M{_LEFT} {level:.1f}h{chart.width:g}"/>')
            text = texts(y)
            shapes.append(label("", _LEFT - 8, level + 4, text, "end"))
        distance = self.x_ticks[1] - self.x_ticks[0] if len(self.x_ticks) > 1 else 1
        foot = self.top + chart.height
        shapes += [label("", self._x(x), foot + 19, tick_text(x, distance), "middle") for x in self.x_ticks]
        if chart.x_label:
            shapes.append(label("", _LEFT + chart.width, foot + 39, chart.x_label, "end"))
        return shapes

    def _legend(self, y: float) -> list[str]:
        """Return the names of the series in one line, each shortened to its part of the frame's width if need be."""
        shapes, x = [], float(_LEFT)
        room = self.chart.width / len(self.named) - 54
        if sum(54 + text_width(series.name, _FONT_SIZE) for series in self.named) <= self.chart.width:
            room = self.chart.width
        for series in self.named:
            name = _shortened(series.name, room)
            shapes.append(_line(series, f"M{x:.1f} {y - 4:.1f}h26"))
            shapes.append(label("label", x + 32, y, name))
            x += 54 + text_width(name, _FONT_SIZE)
        return shapes

    def _y_text(self) -> Callable[[float], str]:
        """Return what writes a tick of the y-axis."""
        distance = self.y_ticks[1] - self.y_ticks[0]
        if not self.chart.logarithmic:
            return lambda y: tick_text(y, distance)
        return power_text if all(y.is_integer() for y in self.y_ticks) else lambda y: f"{10**y:.3g}"

    def _scaled(self, y: float) -> float:
        return math.log10(y) if self.chart.logarithmic else y

    def _x(self, x: float) -> float:
        return _LEFT + (x - self.left) / ((self.right - self.left) or 1) * self.chart.width

    def _y(self, y: float) -> float:
        return self._level(self._scaled(y))

    def _level(self, scaled: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.top + (high - scaled) / (high - low) * self.chart.height


def _bound(end: float, other: float, tick: float) -> float:
    """Return one end of the x-axis: the outermost tick if it is near the outermost value, else that value."""
    return tick if abs(tick - end) < abs(end - other) / 20 else end


def _line(series: LineSeries, path: str, attributes: str = "") -> str:
    dash = f' stroke-dasharray="{_DASHES[series.dash]}"' if series.dash else ""
    faint = " faint" if series.faint else ""
    return f'<path class="line series{series.colour % SERIES}{faint}"{dash} d="{path}"{attributes}/>'


def _shortened(name: str, width: float) -> str:
    """Cut a name to a width, but to no fewer than three characters."""
    if text_width(name, _FONT_SIZE) <= width:
        return name
    while len(name) > 3 and text_width(f"{name}…", _FONT_SIZE) > width:
        name = name[:-1]
    return f"{name}…"


def _thinned(points: Points) -> Points:
    step = max(1, math.ceil(len(points) / _MAX_POINTS))
    return [*points[::step], points[-1]] if (len(points) - 1) % step else points[::step]
