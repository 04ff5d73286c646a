"""Charts of training runs: their metrics, or the result of a learning-rate search, as an SVG document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from clearhead.drawing.chart import LineChart, LineSeries, line_charts
from clearhead.errors import TrainingError

Lines = Sequence[Mapping[str, Any]]
"""Lines of metrics, as `run_folder.read_metrics` returns them."""
Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 620, 230  # of a chart's frame, in pixels
_SMALLEST = 1e-12  # a gradient norm of 0 is drawn here, on a logarithmic axis


def curves_svg(runs: Mapping[str, Lines]) -> str:
    """Return charts of one run's metrics, or of several runs' together, as an SVG document.

    They show the training loss (smoothed, with the single steps faint behind it), the scores on held-out texts, the
    learning rate, the gradient norm and the tokens per second over the steps. A metric that no run has is left out.

    Args:
        runs: lines of metrics by the name of the run.

    Raises:
        TrainingError: if no run has two lines of metrics.
    """
    charts = [chart for chart in _charts(runs) if any(len(series.points) > 1 for series in chart.series)]
    if not charts:
        raise TrainingError("there is nothing to draw yet: no run here has two lines of metrics.")
    return line_charts(charts, "Training curves", ", ".join(chart.title for chart in charts))


def find_lr_svg(found: Sequence[tuple[float, float]], suggestion: float) -> str:
    """Return the chart of a learning-rate search: the loss over the rate, with the suggested rate marked."""
    losses = [loss for _, loss in found]
    mark = [(math.log10(suggestion), min(losses)), (math.log10(suggestion), max(losses))]
    series = [
        LineSeries("loss", [(math.log10(rate), loss) for rate, loss in found]),
        LineSeries(f"suggested: {suggestion:.2g}", mark, colour=1, dash=1),
    ]
    title = "smoothed loss over the learning rate (in powers of ten)"
    chart = LineChart(title, series, "log10 of the learning rate", width=_WIDTH, height=_HEIGHT)
    return line_charts([chart], "Learning-rate search", f"{title}; suggested: {suggestion:.2g}")


def _charts(runs: Mapping[str, Lines]) -> list[LineChart]:
    loss: list[LineSeries] = []
    rate: list[LineSeries] = []
    norm: list[LineSeries] = []
    speed: list[LineSeries] = []
    held_out: dict[str, list[LineSeries]] = {}
    for number, (run, lines) in enumerate(runs.items()):
        points = _points(lines, "loss")
        loss += [LineSeries("", points, number, faint=True), LineSeries(run, _smoothed(points), number)]
        rate.append(LineSeries(run, _points(lines, "rate"), number))
        norm.append(LineSeries(run, [(x, max(y, _SMALLEST)) for x, y in _points(lines, "norm")], number))
        speed.append(LineSeries(run, _points(lines, "tokens_per_second"), number))
        for text, found in _scores(lines).items():
            for score, title in (("bits_per_byte", "bits per byte"), ("accuracy", "accuracy"), ("loss", "loss")):
                if score in found:
                    prefix = f"{text}, " if text else ""
                    series = LineSeries(run, found[score], number)
                    held_out.setdefault(f"{prefix}held out: {title}", []).append(series)
                    break
    return [
        _chart("training loss (nats per token)", loss),
        *(_chart(title, series) for title, series in held_out.items()),
        _chart("learning rate (relative to its peak)", rate),
        _chart("gradient norm before clipping", norm, logarithmic=True),
        _chart("tokens per second", speed),
    ]


def _chart(title: str, series: list[LineSeries], logarithmic: bool = False) -> LineChart:
    return LineChart(title, series, "step", logarithmic=logarithmic, width=_WIDTH, height=_HEIGHT)


def _points(lines: Lines, key: str) -> Points:
    return [(line["step"], line[key]) for line in lines if _is_finite(line.get(key))]


def _scores(lines: Lines) -> dict[str, dict[str, Points]]:
    """Return the points of all validations and of the final one, by text and score."""
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
    """Return the running mean over about a twentieth of the run."""
    memory, mean, smooth = max(1.0, len(points) / 20), 0.0, []
    for number, (x, y) in enumerate(points):
        mean += (y - mean) * max(1 / (number + 1), 1 / memory)
        smooth.append((x, mean))
    return smooth
