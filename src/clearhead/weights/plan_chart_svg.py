"""Draw the flow chart of a plan as SVG; it follows the reader's light or dark color scheme.

There are three columns: stored tensors, operations, and the tensors that are made. Widths come from the longest name
and heights from the contents of a row, so that nothing overlaps in any layout. Lengths are in pixels.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from clearhead.drawing.svg import Picture, document, label, rect
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan_chart import ChartRow, ChartTensor, PlanChart
from clearhead.weights.tensors import shape_words

_NAME, _SMALL, _TITLE = 13.0, 11.5, 20.0  # font sizes
_MONO, _SANS = 0.61, 0.58  # the width of a character relative to the font size: the maximum, on average for sans
_MARGIN, _INSET, _GAP = 24, 16, 76  # around the drawing, inside the frame, and between two columns
_BOX, _PITCH = 42, 52  # the height of a tensor's box, and of a row
_PILL, _ARROW = 24, 18  # the height of an operation's pill, and the space between two pills
_REASON_LINE, _REASON_CHARS = 15, 30

_RULES = """
text { fill: $ink } .name { font-size: 13px }
.small { font-size: 11.5px } .dim { fill: $soft } .title { font-size: 20px; font-weight: 600 }
.head { font-size: 13px; font-weight: 600; fill: $soft } .label { font-size: 14px; font-weight: 600 }
.step { font-size: 12px; text-anchor: middle; fill: $yellow_ink }
.frame { fill: $panel; stroke: $border }
.stored { fill: $blue; stroke: $blue_line } .made { fill: $green; stroke: $green_line }
.absent { fill: none; stroke: $outline; stroke-dasharray: 4 3 } .pill { fill: $yellow; stroke: $yellow_line }
.flow { fill: none; stroke: $flow; stroke-width: 1.5 } .dashed { stroke-dasharray: 5 4 }
"""


def chart_svg(chart: PlanChart, name: str) -> str:
    """Return the chart as an SVG document.

    Args:
        chart: the chart.
        name: the model's name, for the title.
    """
    return _PlanDrawing(chart, name).document()


@dataclass
class _Cluster:
    """Rows that share a source, because a tensor that is split feeds several; their boxes are placed together.

    Attributes:
        groups: the rows.
        sources: the stored tensors that they use, each once.
    """

    groups: list[ChartRow]
    sources: list[ChartTensor]


def _clusters(groups: list[ChartRow]) -> list[_Cluster]:
    found: list[_Cluster] = []
    for group in groups:
        own = [] if "tie" in group.operations else list(group.sources)
        shared = [cluster for cluster in found if any(source in cluster.sources for source in own)]
        home = shared[0] if shared else _Cluster([], [])
        if not shared:
            found.append(home)
        for other in shared[1:]:
            home.groups += other.groups
            home.sources += other.sources
            found.remove(other)
        home.groups.append(group)
        home.sources += [source for source in own if source not in home.sources]
    return found


class _PlanDrawing:
    """Draws from top to bottom; `y` is the top of the next element."""

    def __init__(self, chart: PlanChart, name: str) -> None:
        self.chart = chart
        self.heading = f"{name}: {LAYOUTS[chart.origin].title} → {LAYOUTS[chart.to].title}"
        self.shapes: list[str] = []
        self.y: float = _MARGIN
        self.made_at: dict[str, float] = {}  # the vertical center of every target's box, by its label
        self.ties: list[tuple[str, str]] = []
        self._columns()

    def _columns(self) -> None:
        """Compute where the columns begin and end."""
        chart = self.chart
        sources = [self._box_width(source) for group in chart.groups for source in group.sources]
        targets = [self._box_width(group.target) for group in chart.groups if group.target]
        reasons = [line for group in chart.groups if group.target for line in self._reason(group)]
        middle = [sum(_pill_width(step) + _ARROW for step in group.steps) for group in chart.groups]
        headings = [LAYOUTS[key].title for key in (chart.origin, chart.to)]
        absent = _SMALL * _SANS * 24
        self.left = _MARGIN + _INSET
        self.left_end = self.left + max([*sources, absent, _NAME * _SANS * len(headings[0])])
        self.mid = self.left_end + _GAP
        self.mid_end = self.mid + max([80.0, *middle, *(_SMALL * _SANS * len(line) for line in reasons)])
        self.right = self.mid_end + _GAP
        self.right_end = self.right + max([*targets, _NAME * _SANS * len(headings[1])])
        tied = any("tie" in group.operations for group in chart.groups)
        end = self.right_end + _INSET + (70 if tied else 0)
        legend = [_SMALL * _SANS * (len(words) + 14) for words in chart.operations.values()]
        widest = max(_TITLE * 0.62 * len(self.heading), _NAME * _SANS * len(self._facts()), *legend, 0)
        self.width = max(end, _MARGIN + widest) + _MARGIN

    def document(self) -> str:
        self._title()
        for part in ("before", "blocks", "after"):
            if groups := self.chart.part(part):
                self._part(groups, framed=part == "blocks")
        for one, other in self.ties:
            self._tie(one, other)
        self._ignored()
        self._legend()
        picture = Picture(self.width, self.y + _MARGIN, self.heading, self.chart.counts, self.shapes)
        return document(picture, _RULES)

    # Parts ------------------------------------------------------------------------------------------------------

    def _facts(self) -> str:
        config = self.chart.config
        return (
            f"{config.n_layers} blocks, {config.n_heads} heads, {config.emb_dim:,} numbers per token, "
            f"{config.vocab_size:,} tokens, {config.context_length:,} positions. {self.chart.counts}"
        )

    def _title(self) -> None:
        self._write(_MARGIN, self.y + 18, self.heading, "title")
        self._write(_MARGIN, self.y + 42, self._facts(), "dim", 13)
        self.y += 78
        self._write(self.left, self.y, LAYOUTS[self.chart.origin].title, "head")
        self._write((self.mid + self.mid_end) / 2, self.y, "operations", "head", anchor="middle")
        self._write(self.right, self.y, LAYOUTS[self.chart.to].title, "head")
        self.y += 14

    def _part(self, groups: list[ChartRow], framed: bool) -> None:
        top, below = self.y, len(self.shapes)
        if framed:
            self._write(_MARGIN + 12, self.y + 26, self.chart.frame, "label")
            self.y += 40
        for cluster in _clusters(groups):
            self._cluster(cluster, framed)
        if framed:
            self.y += 8
            frame = rect("frame", _MARGIN, top, self.right_end + _INSET - _MARGIN, self.y - top, 12)
            self.shapes.insert(below, frame)  # drawn first, behind its contents
            self.y += 14

    def _cluster(self, cluster: _Cluster, framed: bool) -> None:
        """Draw rows that share sources; the shorter side is vertically centered on the longer one."""
        heights = [_line_height(self._reason(group)) for group in cluster.groups]
        height = max(sum(heights), _PITCH * len(cluster.sources))
        at = self.y + (height - _PITCH * len(cluster.sources)) / 2
        starts: dict[str, float] = {}
        for source in cluster.sources:
            whole = framed and not source.pattern.layers
            self._box("stored", self.left, self.left_end, at, source, "all blocks in one" if whole else "")
            starts[source.pattern.label] = at + _BOX / 2
            at += _PITCH
        at = self.y + (height - sum(heights)) / 2
        for group, line in zip(cluster.groups, heights, strict=True):
            self._line(group, at, starts)
            at += line
        self.y += height

    def _line(self, group: ChartRow, top: float, starts: dict[str, float]) -> None:
        assert group.target is not None
        centre = top + _BOX / 2
        if "tie" in group.operations:
            self.ties.append((group.sources[0].pattern.label, group.target.pattern.label))
        self._box("made", self.right, self.right_end, top, group.target)
        self.made_at[group.target.pattern.label] = centre
        if not group.sources or "tie" in group.operations:
            self.shapes.append(rect("absent", self.left, top, self.left_end - self.left, _BOX, 7))
            self._write(self.left + 12, centre + 4, "no stored tensor", "dim small")
        first, last = self._steps(group.steps, centre) if "tie" not in group.operations else (0.0, 0.0)
        if first:
            for source in group.sources:
                self._curve(self.left_end, starts[source.pattern.label], self.mid, first, centre)
            self._path(f"M{last:.1f} {centre:.1f} H{self.right - 1:.1f}", tip=True)
        offset = centre + (_PILL / 2 + 14 if first else 4)
        for i, text in enumerate(self._reason(group)):
            middle = (self.mid + self.mid_end) / 2
            self._write(middle, offset + _REASON_LINE * i, text, "dim small", anchor="middle")

    def _steps(self, steps: tuple[str, ...], centre: float) -> tuple[float, float]:
        """Draw the operations side by side in the middle; return where they begin and end."""
        total = sum(_pill_width(step) for step in steps) + _ARROW * (len(steps) - 1)
        first = at = (self.mid + self.mid_end - total) / 2
        for i, step in enumerate(steps):
            if i:
                self._path(f"M{at - _ARROW:.1f} {centre:.1f} h{_ARROW - 1}", tip=True)
            wide = _pill_width(step)
            self._pill(step, at, centre)
            at += wide + _ARROW
        return first, at - _ARROW

    def _tie(self, one: str, other: str) -> None:
        """Draw a dashed line down the right side, from a tensor to the one tied to it."""
        top, bottom = self.made_at[one], self.made_at[other]
        x, out = self.right_end, self.right_end + _INSET + 30
        self._path(
            f"M{x} {top} H{out - 14} Q{out} {top} {out} {top + 14} V{bottom - 14} Q{out} {bottom} {out - 14} {bottom} "
            f"H{x + 1}",
            tip=True,
            dashed=True,
        )
        self._pill("tie", out - _pill_width("tie") / 2, bottom - _PITCH / 2 - 8)

    def _ignored(self) -> None:
        groups = self.chart.part("ignored")
        if not groups:
            return
        self.y += 30
        self._write(_MARGIN + 12, self.y, "Stored but not used", "label")
        self.y += 14
        room = int((self.right_end - self.mid) / (_SMALL * _SANS))
        for group in groups:
            (source,) = group.sources
            centre = self.y + _BOX / 2
            self._box("absent", self.left, self.left_end, self.y, source)
            self._path(f"M{self.left_end:.1f} {centre:.1f} H{self.mid - 10:.1f}", dashed=True)
            lines = textwrap.wrap(group.reason, max(room, 20))
            for i, line in enumerate(lines):
                self._write(self.mid, centre + 4 + _REASON_LINE * (i - (len(lines) - 1) / 2), line, "small")
            self.y += max(_PITCH, _REASON_LINE * len(lines) + 8)

    def _legend(self) -> None:
        self.y += 22
        for name, words in self.chart.operations.items():
            if name != "ignore":
                self._write(self.left, self.y, name, "small")
                self._write(self.left + 84, self.y, words, "dim small")
                self.y += 19
        self.y -= 12

    # Elements -----------------------------------------------------------------------------------------------------

    def _reason(self, group: ChartRow) -> list[str]:
        return textwrap.wrap(group.reason, _REASON_CHARS) if group.reason else []

    def _under(self, tensor: ChartTensor) -> str:
        plain = tensor.dtype in ("", "float32")
        return (shape_words(tensor.shape) if tensor.shape else "one number") + ("" if plain else f" · {tensor.dtype}")

    def _box_width(self, tensor: ChartTensor) -> float:
        under = _SMALL * _SANS * (len(self._under(tensor)) + 20)  # room for a remark
        return max(_NAME * _MONO * len(tensor.pattern.label), under) + 24

    def _box(self, kind: str, x: float, end: float, y: float, tensor: ChartTensor, remark: str = "") -> None:
        under = self._under(tensor) + (f" · {remark}" if remark else "")
        self.shapes.append(rect(kind, x, y, end - x, _BOX, 7))
        self._write(x + 12, y + 18, tensor.pattern.label, "name mono")
        self._write(x + 12, y + 34, under, "dim small")

    def _pill(self, step: str, x: float, centre: float) -> None:
        wide = _pill_width(step)
        self.shapes.append(rect("pill", x, centre - _PILL / 2, wide, _PILL, _PILL / 2))
        self._write(x + wide / 2, centre + 4, step, "step")

    def _curve(self, x: float, y: float, bend: float, end: float, to: float) -> None:
        """Draw a curve from a box to its operation; it bends between the columns only, so it crosses no other pill."""
        half = (bend - x) / 2
        self._path(
            f"M{x:.1f} {y:.1f} C{x + half:.1f} {y:.1f} {bend - half:.1f} {to:.1f} {bend:.1f} {to:.1f} H{end:.1f}"
        )

    def _path(self, d: str, tip: bool = False, dashed: bool = False) -> None:
        marker = ' marker-end="url(#tip)"' if tip else ""
        self.shapes.append(f'<path class="flow{" dashed" if dashed else ""}" d="{d}"{marker}/>')

    def _write(self, x: float, y: float, text: str, kind: str, size: int = 0, anchor: str = "") -> None:
        style = f' font-size="{size}"' if size else ""
        self.shapes.append(label(kind, x, y, text, anchor, style))


def _line_height(reason: list[str]) -> float:
    """Return the height of a row: its box, or its operations with the reason below them."""
    return max(_PITCH, _BOX / 2 + _PILL / 2 + _REASON_LINE * len(reason) + 12)


def _pill_width(step: str) -> float:
    return 12 * _SANS * len(step) + 24
