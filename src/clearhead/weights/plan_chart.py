"""A plan as a flow chart: which stored tensor becomes which, through which operations, with the shapes on both sides.

Rows that differ in their layer only are one, so a model of 48 blocks reads like a model of two. Nothing is left out:
expanded, the chart's rows are the rows of the plan (`PlanChart.rows`). This module has the chart, its JSON and its
Mermaid text; `plan_chart_svg.py` draws it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from clearhead.config import GPTConfig
from clearhead.weights.grouping import NamePattern, layer_of
from clearhead.weights.layouts import LAYOUTS
from clearhead.weights.plan import ConversionPlan, PlanRow
from clearhead.weights.tensors import shape_words

OPERATIONS = {
    "take": "the stored numbers, in stored order",
    "squeeze": "remove a dimension of length 1",
    "split": "take one part of a tensor that holds several: one layer, or one of query, key and value",
    "transpose": "exchange rows and columns",
    "rearrange": "change the order of the axes",
    "reshape": "the same numbers in the same order, with other dimensions",
    "stack": "put several tensors side by side into one",
    "unsqueeze": "add a dimension of length 1",
    "scale": "multiply the queries by the attention scale that the config asks for",
    "cast": "convert the dtype to float32",
    "zeros": "nothing is stored; filled with zeros",
    "tie": "no copy: the same tensor under a second name",
    "ignore": "not used, for the given reason",
}
"""What each operation of a plan does, for the legend."""

PARTS = ("before", "blocks", "after", "ignored")
"""The parts of a chart from top to bottom."""


@dataclass(frozen=True)
class ChartTensor:
    """One tensor of the chart, or one per layer.

    Attributes:
        pattern: its name or names.
        shape: the shape of each.
        dtype: the stored dtype; empty for a target.
    """

    pattern: NamePattern
    shape: tuple[int, ...]
    dtype: str = ""


@dataclass(frozen=True)
class ChartRow:
    """One line of the chart: one row of the plan, or rows that differ in their layer only.

    Attributes:
        part: one of `PARTS`.
        target: the tensor that is made; None if the source is ignored.
        sources: the tensors that it is made of; for a tie, the target that it is tied to.
        operations: as in `PlanRow`.
        reason: as in `PlanRow`.
        layers: the layers of the rows; empty for a single row.
    """

    part: str
    target: ChartTensor | None
    sources: tuple[ChartTensor, ...]
    operations: tuple[str, ...]
    reason: str
    layers: tuple[int, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The operations to show: `take` only if it is the only one."""
        return tuple(name for name in self.operations if name != "take") or self.operations

    def rows(self) -> list[PlanRow]:
        """Return the rows of the plan that it stands for."""
        shape = self.target.shape if self.target else self.sources[0].shape
        return [
            PlanRow(
                self.target.pattern.at(layer) if self.target else "",
                shape,
                _source_names(self.sources, layer) if self.layers else _stacked_names(self.sources),
                self.operations,
                self.reason,
            )
            for layer in self.layers or (0,)
        ]


def _source_names(sources: Sequence[ChartTensor], layer: int) -> tuple[str, ...]:
    return tuple(source.pattern.at(layer) for source in sources)


def _stacked_names(sources: Sequence[ChartTensor]) -> tuple[str, ...]:
    """Return the names of sources that are stacked into one target: layer after layer, as in the plan."""
    layers = sources[0].pattern.layers if sources else ()
    return tuple(source.pattern.at(layer) for layer in layers or (0,) for source in sources)


@dataclass(frozen=True)
class PlanChart:
    """A plan as a flow chart.

    Attributes:
        origin: the layout of the sources, a key of `LAYOUTS`.
        to: the layout of the targets.
        config: the model's shape.
        groups: its rows, part after part.
        n_sources: the number of stored tensors.
    """

    origin: str
    to: str
    config: GPTConfig
    groups: tuple[ChartRow, ...]
    n_sources: int

    def part(self, name: str) -> list[ChartRow]:
        """Return the rows of one part, one of `PARTS`."""
        return [group for group in self.groups if group.part == name]

    def rows(self) -> list[PlanRow]:
        """Return every row of the plan, each once, in the order of the chart."""
        return [row for group in self.groups for row in group.rows()]

    @property
    def operations(self) -> dict[str, str]:
        """The descriptions of the operations in this chart, in the order of `OPERATIONS`."""
        used = {step for group in self.groups for step in group.steps}
        return {name: words for name, words in OPERATIONS.items() if name in used}

    @property
    def counts(self) -> str:
        """A sentence on the number of tensors on both sides."""
        ignored = sum(len(group.layers) or 1 for group in self.part("ignored"))
        tied = sum("tie" in group.operations for group in self.groups)
        made = len(self.rows()) - ignored - tied
        taken = self.n_sources - ignored
        words = f"{_count(taken, 'stored tensor')} {'becomes' if taken == 1 else 'become'} {made:,}"
        words += f"; {tied} more by a tie" if tied else ""
        return words + (f"; {ignored:,} not used." if ignored else "; nothing is left over.")

    @property
    def frame(self) -> str:
        """The label of the blocks: `× 12 blocks`."""
        return f"× {_count(self.config.n_layers, 'block')}"

    def as_json(self) -> dict[str, Any]:
        """Return the chart as JSON values, every name written out with its pattern."""
        return {
            "from": self.origin,
            "to": self.to,
            "config": dataclasses.asdict(self.config),
            "summary": self.counts,
            "operations": self.operations,
            "groups": [
                {
                    "part": group.part,
                    "layers": list(group.layers),
                    "sources": [_tensor_json(source) for source in group.sources],
                    "operations": list(group.operations),
                    "target": _tensor_json(group.target) if group.target else None,
                    "reason": group.reason or None,
                }
                for group in self.groups
            ],
        }

    def as_mermaid(self) -> str:
        """Return the chart as text for Mermaid, which documentation sites and notebooks draw."""
        return "\n".join(_Mermaid(self).lines()) + "\n"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _tensor_json(tensor: ChartTensor) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": tensor.pattern.label,
        "names": list(tensor.pattern.names),
        "shape": list(tensor.shape),
    }
    return found | ({"dtype": tensor.dtype} if tensor.dtype else {})


# --------------------------------------------------------------------------------------------------------------
# From a plan
# --------------------------------------------------------------------------------------------------------------


def make_chart(plan: ConversionPlan) -> PlanChart:
    """Return the chart of a plan; only names and shapes are used, no data is read."""
    layers: dict[tuple[Any, ...], list[int]] = {}
    for row in plan.rows():
        target, sources, layer = _templates(row, plan)
        key = (target, row.shape, sources, row.operations, row.reason, layer is None)
        layers.setdefault(key, []).extend([] if layer is None else [layer])
    groups: list[ChartRow] = []
    for (target, shape, sources, operations, reason, _), found in layers.items():
        bound = tuple(sorted(found))
        made = ChartTensor(NamePattern(target, bound), shape) if target else None
        taken = tuple(
            dataclasses.replace(source, pattern=NamePattern(source.pattern.template, bound)) if per_layer else source
            for source, per_layer in sources
        )
        groups.append(ChartRow(_part(made, taken, groups), made, taken, operations, reason, bound))
    # Zeros for a stack of all blocks name no layer, but lie among the blocks' rows and belong there.
    last = max((index for index, group in enumerate(groups) if group.part == "blocks"), default=0)
    for index, group in enumerate(groups[:last]):
        if group.part == "after":
            groups[index] = dataclasses.replace(group, part="blocks")
    ordered = tuple(group for part in PARTS for group in groups if group.part == part)
    return PlanChart(plan.origin, plan.to, plan.config, ordered, len(plan.sources))


_Sources = tuple[tuple[ChartTensor, bool], ...]  # each with whether its name contains the layer of its row


def _templates(row: PlanRow, plan: ConversionPlan) -> tuple[str, _Sources, int | None]:
    """Return a row's target as a template, its sources, and its layer (None if it belongs to no single layer)."""
    tied = row.operations == ("tie",)
    layout = LAYOUTS[plan.to if tied else plan.origin]
    split = [layer_of(name, layout) for name in row.sources]
    target, layer = layer_of(row.target, LAYOUTS[plan.to]) if row.target else ("", split[0][1])
    if layer is None:
        return target, tuple((source, False) for source in _stacked(row, plan, split, tied)), None
    sources = []
    for name, (template, own) in zip(row.sources, split, strict=True):
        sources.append((_stored(name, template if own == layer else name, (), plan), own == layer))
    return target, tuple(sources), layer


def _stacked(row: PlanRow, plan: ConversionPlan, split: list[tuple[str, int | None]], tied: bool) -> list[ChartTensor]:
    """Return the sources of a target without a single layer; sources that differ in their layer only are one."""
    if tied:
        return [ChartTensor(NamePattern(name), row.shape) for name in row.sources]
    plain = [_stored(name, name, (), plan) for name in row.sources]
    if not split or any(layer is None for _, layer in split):
        return plain
    layers = tuple(sorted({layer for _, layer in split if layer is not None}))
    first = {template: name for name, (template, _) in zip(row.sources[::-1], split[::-1], strict=True)}
    folded = [_stored(first[template], template, layers, plan) for template in dict.fromkeys(t for t, _ in split)]
    alike = len({(source.dtype, source.shape) for source in plain}) == 1
    return folded if alike and _stacked_names(folded) == row.sources else plain


def _stored(name: str, template: str, layers: tuple[int, ...], plan: ConversionPlan) -> ChartTensor:
    info = plan.sources[name]
    return ChartTensor(NamePattern(template, layers), info.shape, info.dtype)


def _part(target: ChartTensor | None, sources: Sequence[ChartTensor], above: Sequence[ChartRow]) -> str:
    """Return the part of a row, given the rows above it; a plan is in the order of the model."""
    if target is None:
        return "ignored"
    if target.pattern.layers or any(source.pattern.layers for source in sources):
        return "blocks"
    return "after" if any(group.part == "blocks" for group in above) else "before"


# --------------------------------------------------------------------------------------------------------------
# Mermaid
# --------------------------------------------------------------------------------------------------------------


class _Mermaid:
    """Builds a chart's lines for Mermaid; a tensor is one node in each part, whatever number of rows it feeds."""

    def __init__(self, chart: PlanChart) -> None:
        self.chart = chart
        self.nodes: dict[tuple[str, str], str] = {}
        self.links: list[str] = []

    def lines(self) -> list[str]:
        parts = {part: self._part(part) for part in PARTS}
        title = f"{LAYOUTS[self.chart.origin].title} to {LAYOUTS[self.chart.to].title}"
        lines = ["flowchart LR", f"  accTitle: {title}"]
        for part, label in zip(PARTS, ("", self.chart.frame, "", "not used"), strict=True):
            if label and parts[part]:
                lines += [f'  subgraph {part}["{label}"]', "    direction LR"]
                lines += ["  " + line for line in parts[part]] + ["  end"]
            else:
                lines += parts[part]
        return lines + self.links

    def _part(self, part: str) -> list[str]:
        lines: list[str] = []
        for group in self.chart.part(part):
            end = self._end(group, lines)
            steps = ", ".join(group.steps)
            for source in group.sources:
                tied = "tie" in group.operations
                start = self._node("made" if tied else part, source, lines)
                self.links.append(
                    f'  {start} {"-." if tied or part == "ignored" else "--"} "{steps}" '
                    f"{'.->' if tied or part == 'ignored' else '-->'} {end}"
                )
            if not group.sources:
                lines.append(f'  {end}_zeros(["{_quoted(group.reason)}"])')
                self.links.append(f'  {end}_zeros -- "{steps}" --> {end}')
        return lines

    def _end(self, group: ChartRow, lines: list[str]) -> str:
        if group.target is not None:
            return self._node("made", group.target, lines)
        key = ("reason", group.reason)
        if key not in self.nodes:
            self.nodes[key] = f"reason{len(self.nodes)}"
            lines.append(f'  {self.nodes[key]}(["{_quoted(group.reason)}"])')
        return self.nodes[key]

    def _node(self, where: str, tensor: ChartTensor, lines: list[str]) -> str:
        key = (where, tensor.pattern.label)
        if key not in self.nodes:
            self.nodes[key] = f"t{len(self.nodes)}"
            lines.append(f'  {self.nodes[key]}["{_quoted(tensor.pattern.label)}<br/>{shape_words(tensor.shape)}"]')
        return self.nodes[key]


def _quoted(text: str) -> str:
    """Return text escaped for a quoted label in Mermaid, where `#` begins a character reference."""
    return text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
