"""Charts of a task's metrics over the words that a model has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clearhead.drawing.chart import LineChart, LineSeries, line_charts
from clearhead.errors import InputError
from clearhead.evaluation.results import Metric, TaskResult
from clearhead.utils.arguments import Language

_WIDTH, _HEIGHT = 620, 230  # of a chart's frame, in pixels


@dataclass(frozen=True, slots=True)
class RevisionResult:
    """The result of a task for one revision of a model.

    Attributes:
        revision: its name.
        words: how many words the model had seen, in millions.
        file: the task's file.
        result: the result.
    """

    revision: str
    words: float
    file: str
    result: TaskResult


def learning_curves_svg(results: Sequence[RevisionResult], lang: Language = "en") -> str:
    """Return charts of each metric over the millions of words, as an SVG document; a line for each file and field.

    Args:
        results: those of one task, in any order.
        lang: the language of the words; tasks and metrics keep their names.

    Raises:
        InputError: if there are fewer than two revisions.
    """
    if len({one.revision for one in results}) < 2:
        raise InputError("curves need two milestones in words, and the run has fewer; train on.")
    task = results[0].result.task
    x_label, colon = ("millions of words seen", ": ") if lang == "en" else ("已训练的词数（百万）", "：")
    charts = []
    for name in [metric.name for metric in results[0].result.metrics]:
        lines: dict[str, list[tuple[float, float]]] = {}
        for one in sorted(results, key=lambda one: one.words):
            for line, metrics in _lines(one).items():
                for metric in metrics:
                    if metric.name == name:
                        lines.setdefault(line, []).append((one.words, metric.value))
        series = [
            LineSeries(line, points, colour=number, dash=number % 4)
            for number, (line, points) in enumerate(lines.items())
        ]
        charts.append(LineChart(f"{task}{colon}{name}", series, x_label, width=_WIDTH, height=_HEIGHT))
    title = f"{task} over training" if lang == "en" else f"{task} 随训练的变化"
    return line_charts(charts, title, ", ".join(chart.title for chart in charts), lang)


def _lines(one: RevisionResult) -> dict[str, Sequence[Metric]]:
    """Return the metrics of the whole task and of its fields, by the name of their line."""
    fields = {name: metrics for name, metrics in one.result.groups.items() if name.startswith("field ")}
    return {one.file: one.result.metrics, **fields}
