"""A run's metrics, or several runs', drawn: an SVG that needs no library, and a PNG of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from clearhead.errors import TrainingError

Lines = Sequence[Mapping[str, Any]]
"""Lines of metrics, as `run_folder.read_metrics` gives them."""
Points = list[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 620, 230, 64, 54, 62  # of a panel, and around it; in pixels
_COLOURS = ("#1f6feb", "#c2410c", "#15803d", "#9333ea", "#b45309", "#0e7490", "#be185d", "#4d7c0f")
_AT_MOST = 600  # points of a line: more would not be seen
_STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif; font-size: 12px;
  fill: #59636e }
.title { font-size: 14px; font-weight: 600; fill: #1b1f24 }
.paper { fill: #ffffff } .frame { fill: none; stroke: #c8d0d9 } .grid { stroke: #e4e8ec }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round } .raw { opacity: 0.25; stroke-width: 1 }
.dashed { stroke-dasharray: 5 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #a2acb7 } .title { fill: #e8ebee } .paper { fill: #12161b }
  .frame { stroke: #3d4752 } .grid { stroke: #262e37 } .line { filter: brightness(1.5) }
}
"""


@dataclass
class _Series:
    """One line of a panel; `raw` ones are faint and stand behind."""

    name: str
    points: Points
    colour: str
    raw: bool = False
    dashed: bool = False


@dataclass
class _Panel:
    title: str
    series: list[_Series] = field(default_factory=list)
    logarithmic: bool = False


def curves_svg(runs: Mapping[str, Lines]) -> str:
    """The curves of one run, or of several above each other, as an SVG document.

    Panels: the training loss (smoothed, its steps faint behind it), the scores on held-out texts, the learning
    rate, the gradient norm, tokens a second. What no run has is left out. The x-axis counts steps.

    Args:
        runs: lines of metrics by the name of the run.

    Raises:
        TrainingError: where no run has anything to draw.
    """
    panels = [panel for panel in _panels(runs) if any(len(series.points) > 1 for series in panel.series)]
    if not panels:
        raise TrainingError("there is nothing to draw yet: no run here has two lines of metrics.")
    return draw(panels, "step")


def find_lr_svg(found: Sequence[tuple[float, float]], suggestion: float) -> str:
    """The curve of a learning-rate search: the loss over the rate, with the suggestion marked."""
    losses = [loss for _, loss in found]
    panel = _Panel("smoothed loss over the learning rate (in powers of ten)")
    panel.series.append(_Series("loss", [(math.log10(rate), loss) for rate, loss in found], _COLOURS[0]))
    mark = [(math.log10(suggestion), min(losses)), (math.log10(suggestion), max(losses))]
    panel.series.append(_Series(f"suggested: {suggestion:.2g}", mark, _COLOURS[1], dashed=True))
    return draw([panel], "log10 of the learning rate")


def png_of(svg: str) -> bytes:
    """An SVG as a PNG, at twice its size.

    Raises:
        TrainingError: where the library for it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise TrainingError(
            'a PNG needs the package resvg-py; install it with: pip install "clearhead[train]", or take the SVG.'
        ) from None
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2))


def save_drawing(svg: str, path: Path) -> None:
    """Writes an SVG, or a PNG of it where the name ends so.

    Raises:
        TrainingError: where the name has another ending, or it cannot be written.
    """
    if path.suffix.lower() not in (".svg", ".png"):
        raise TrainingError(f"{path} ends neither in .svg nor in .png; give the drawing one of these names.")
    data = svg.encode() if path.suffix.lower() == ".svg" else png_of(svg)
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise TrainingError(f"{path} could not be written ({error.strerror}); name another place.") from None


def _panels(runs: Mapping[str, Lines]) -> list[_Panel]:
    loss, rate, norm, speed = (
        _Panel("training loss (nats a token)"),
        _Panel("learning rate (share of its peak)"),
        _Panel("gradient norm before clipping", logarithmic=True),
        _Panel("tokens a second"),
    )
    held_out: dict[str, _Panel] = {}
    for number, (run, lines) in enumerate(runs.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = _points(lines, "loss")
        loss.series += [_Series("", points, colour, raw=True), _Series(run, _smoothed(points), colour)]
        rate.series.append(_Series(run, _points(lines, "rate"), colour))
        norm.series.append(_Series(run, _points(lines, "norm"), colour))
        speed.series.append(_Series(run, _points(lines, "tokens_per_second"), colour))
        for text, found in _scores(lines).items():
            for score, title in (("bits_per_byte", "bits per byte"), ("accuracy", "accuracy"), ("loss", "loss")):
                if score in found:
                    several = f"{text}, " if text else ""
                    panel = held_out.setdefault(f"{several}held out: {title}", _Panel(f"{several}held out: {title}"))
                    panel.series.append(_Series(run, found[score], colour))
                    break
    return [loss, *held_out.values(), rate, norm, speed]


def _points(lines: Lines, key: str) -> Points:
    return [(line["step"], line[key]) for line in lines if _is_finite(line.get(key))]


def _scores(lines: Lines) -> dict[str, dict[str, Points]]:
    """By text and score, the points of all validations and of the last one."""
    found: dict[str, dict[str, Points]] = {}
    for line in lines:
        for text, values in {**line.get("valid", {}), **line.get("final", {})}.items():
            for score, value in values.items():
                if _is_finite(value):
                    found.setdefault(text, {}).setdefault(score, []).append((line["step"], value))
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _smoothed(points: Points) -> Points:
    """A running mean whose memory is a twentieth of the run."""
    memory, mean, smooth = max(1.0, len(points) / 20), 0.0, []
    for number, (x, y) in enumerate(points):
        mean += (y - mean) * max(1 / (number + 1), 1 / memory)
        smooth.append((x, mean))
    return smooth


def draw(panels: Sequence[_Panel], axis: str) -> str:
    """Panels below each other."""
    height = len(panels) * (_HEIGHT + _TOP + _GAP)
    width = _LEFT + _WIDTH + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<style>{_STYLE}</style><rect class="paper" width="{width}" height="{height}"/>',
    ]
    for number, panel in enumerate(panels):
        parts += _draw_panel(panel, number * (_HEIGHT + _TOP + _GAP) + _TOP, axis)
    return "\n".join([*parts, "</svg>\n"])


def _draw_panel(panel: _Panel, top: float, axis: str) -> list[str]:
    bend: Callable[[float], float] = (lambda y: math.log10(max(y, 1e-12))) if panel.logarithmic else (lambda y: y)
    series = [s for s in panel.series if s.points]
    xs = [x for s in series for x, _ in s.points]
    # Faint lines may leave the frame: one wild step must not flatten the rest.
    ys = [bend(y) for s in series if not s.raw for _, y in s.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    left, right = min([*xs, x_ticks[0]]), max([*xs, x_ticks[-1]])
    low, high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        share = (bend(y) - low) / (high - low)
        return _LEFT + (x - left) / ((right - left) or 1) * _WIDTH, top + (1 - share) * _HEIGHT

    parts = [f'<text class="title" x="{_LEFT}" y="{top - 30}">{escape(panel.title)}</text>', *_legend(panel, top - 12)]
    for y in y_ticks:
        at = top + (1 - (y - low) / (high - low)) * _HEIGHT
        label = f"{10**y:.3g}" if panel.logarithmic else _number(y, y_ticks[1] - y_ticks[0])
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}h{_WIDTH}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for x in x_ticks:
        at = _LEFT + (x - left) / ((right - left) or 1) * _WIDTH
        parts.append(f'<text x="{at:.1f}" y="{top + _HEIGHT + 18}" text-anchor="middle">{_number(x, 1)}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{top + _HEIGHT + 36}" text-anchor="end">{escape(axis)}</text>')
    clip = f"panel{round(top)}"
    parts.append(f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}"/></clipPath>')
    for one in sorted(series, key=lambda s: not s.raw):
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in _thinned(one.points))
        kind = f"line{' raw' if one.raw else ''}{' dashed' if one.dashed else ''}"
        parts.append(f'<path class="{kind}" stroke="{one.colour}" clip-path="url(#{clip})" d="M{path}"/>')
    parts.append(f'<rect class="frame" x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}"/>')
    return parts


def _legend(panel: _Panel, y: float) -> list[str]:
    """The names of the lines, one after another; cut where they would leave the drawing."""
    named = [s for s in panel.series if s.name and s.points]
    if len(named) < 2 and not any(s.dashed for s in named):
        return []
    parts, x = [], float(_LEFT)
    room = _WIDTH / len(named)
    for series in named:
        most = max(4, int((room - 34) / 7))
        name = series.name if len(series.name) <= most else f"{series.name[: most - 1]}…"
        parts.append(f'<path class="line" stroke="{series.colour}" d="M{x:.0f} {y - 4}h18"/>')
        parts.append(f'<text x="{x + 24:.0f}" y="{y}">{escape(name)}</text>')
        x += min(room, 34 + 7 * len(name))
    return parts


def _thinned(points: Points) -> Points:
    step = max(1, math.ceil(len(points) / _AT_MOST))
    return [*points[::step], points[-1]] if (len(points) - 1) % step else points[::step]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, at equal distances, from at most `low` to at least `high`.

    Around values that are one but for rounding they stand at a tenth of it to both sides.
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-300):
        margin = size / 10 if size > 1e-300 else 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / about
    power = Fraction(10) ** math.floor(math.log10(raw))
    distance = next(power * m for m in (1, 2, Fraction(5, 2), 5, 10) if power * m >= raw * 0.999)
    # A quotient is rounded, and so says only about where the values lie; a tick is the number nearest to its fraction.
    first, last = (round(Fraction(value) / distance) for value in (low, high))
    first -= float(first * distance) > low
    last += float(last * distance) < high
    return [float(n * distance) for n in range(first, last + 1)]


def _number(value: float, distance: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:,.6g}k"
    digits = max(0, -math.floor(math.log10(distance) + 1e-9)) if distance < 1 else 0
    if distance < 1 and abs(distance * 10**digits - round(distance * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:.{digits}f}" if digits or float(value).is_integer() else f"{value:g}"
