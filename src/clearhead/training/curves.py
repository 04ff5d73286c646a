"""Charts of training runs: their metrics, or the result of a learning-rate search, as an SVG document."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clearhead.drawing.chart import LineChart, LineSeries, line_charts
from clearhead.errors import TrainingError
from clearhead.utils.arguments import Language

Lines = Sequence[Mapping[str, Any]]
"""Lines of metrics, as `run_folder.read_metrics` returns them."""
Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 620, 230  # of a chart's frame, in pixels
_CHINESE = {
    "Training curves": "训练曲线",
    "training loss (nats per token)": "训练损失（奈特/词元）",
    "held out: {score}": "留出文本：{score}",
    "{text}, held out: {score}": "留出文本 {text}：{score}",
    "bits per byte": "每字节比特数",
    "accuracy": "准确率",
    "loss": "损失",
    "learning rate (relative to its peak)": "学习率（相对于峰值）",
    "gradient norm before clipping": "裁剪前的梯度范数",
    "tokens per second": "每秒词元数",
    "step": "步",
    "Learning-rate search": "学习率搜索",
    "smoothed loss over the learning rate (in powers of ten)": "平滑后的损失随学习率的变化",
    "suggested: {rate}": "建议值：{rate}",
    "log10 of the learning rate": "学习率的 log10",
    ", ": "、",
}
_SMALLEST = 1e-12  # a gradient norm of 0 is drawn here, on a logarithmic axis


def curves_svg(runs: Mapping[str, Lines], lang: Language = "en") -> str:
    """Return charts of one run's metrics, or of several runs' together, as an SVG document.

    They show the training loss (smoothed, with the single steps faint behind it), the scores on held-out texts, the
    learning rate, the gradient norm and the tokens per second over the steps. A metric that no run has is left out.

    Args:
        runs: lines of metrics by the name of the run.
        lang: the language of the words.

    Raises:
        TrainingError: if no run has two lines of metrics.
    """
    word = _words(lang)
    charts = [chart for chart in _charts(runs, word) if any(len(series.points) > 1 for series in chart.series)]
    if not charts:
        raise TrainingError("there is nothing to draw yet: no run here has two lines of metrics.")
    return line_charts(charts, word("Training curves"), word(", ").join(chart.title for chart in charts), lang)


def find_lr_svg(found: Sequence[tuple[float, float]], suggestion: float, lang: Language = "en") -> str:
    """Return the chart of a learning-rate search: the loss over the rate, with the suggested rate marked.

    Args:
        found: learning rates with the smoothed loss there.
        suggestion: the suggested rate.
        lang: the language of the words.
    """
    word = _words(lang)
    losses = [loss for _, loss in found]
    mark = [(math.log10(suggestion), min(losses)), (math.log10(suggestion), max(losses))]
    suggested = word("suggested: {rate}").format(rate=f"{suggestion:.2g}")
    series = [
        LineSeries(word("loss"), [(math.log10(rate), loss) for rate, loss in found]),
        LineSeries(suggested, mark, colour=1, dash=1),
    ]
    title = word("smoothed loss over the learning rate (in powers of ten)")
    chart = LineChart(title, series, word("log10 of the learning rate"), width=_WIDTH, height=_HEIGHT)
    return line_charts([chart], word("Learning-rate search"), f"{title}{word(', ')}{suggested}", lang)


def _words(lang: Language) -> Callable[[str], str]:
    """Return the function that gives an English text of this module in a language."""
    return _CHINESE.__getitem__ if lang == "zh" else str


def _charts(runs: Mapping[str, Lines], word: Callable[[str], str]) -> list[LineChart]:
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
                    heading = word("{text}, held out: {score}" if text else "held out: {score}")
                    series = LineSeries(run, found[score], number)
                    held_out.setdefault(heading.format(text=text, score=word(title)), []).append(series)
                    break

    def chart(title: str, series: list[LineSeries], logarithmic: bool = False) -> LineChart:
        return LineChart(title, series, word("step"), logarithmic=logarithmic, width=_WIDTH, height=_HEIGHT)

    return [
        chart(word("training loss (nats per token)"), loss),
        *(chart(title, series) for title, series in held_out.items()),
        chart(word("learning rate (relative to its peak)"), rate),
        chart(word("gradient norm before clipping"), norm, logarithmic=True),
        chart(word("tokens per second"), speed),
    ]


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
