"""What `clearhead params` shows about one model, and about several side by side."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import TYPE_CHECKING, Any

from clearhead.cli.model_argument import ResolvedModel, resolve_model
from clearhead.cli.params_tables import costs_table, describe, intensity, legend, parts_table, relative_to, totals_table
from clearhead.cli.tables import TextTable
from clearhead.utils.units import format_bytes

if TYPE_CHECKING:
    from clearhead.anatomy import CostModel, ModelPart, ParameterTree
    from clearhead.cli.workload import WorkloadOptions

_MODELS_SIDE_BY_SIDE = 4  # as many columns of numbers as 80 characters allow
_NUMBER_WIDTH = 13  # characters of such a column


class ModelReport:
    """Everything that `clearhead params` shows about one model."""

    def __init__(self, model: str, config: str | None, book: bool, workload: WorkloadOptions) -> None:
        from clearhead.anatomy import CostModel

        self.source: ResolvedModel = resolve_model(model, config)
        self.title = self.source.name + (", as in the book" if book else "")
        shape = self.source.config
        if book:
            shape = shape.replace(qkv_bias=False, tie_weights=False)
        self.costs: CostModel = CostModel(shape, workload.dtype, workload.batch, workload.context or 0)
        self.account: ParameterTree = self.costs.parameters
        self.checked = "" if book else self.source.check(self.account)

    def heading(self) -> list[str]:
        account = self.account
        return [f"{self.title}: {account.total:,} parameters", describe(account), legend(account)]

    def tables(self, wide: bool) -> list[TextTable]:
        return [parts_table(self.account, wide), totals_table(self.account), costs_table(self.costs, wide)]

    def as_json(self) -> dict[str, Any]:
        from clearhead.anatomy import BITS, bytes_of

        account, costs = self.account, self.costs
        return {
            "model": self.source.name,
            "config": dataclasses.asdict(account.config),
            "parameters": account.total,
            "parameters_tied": account.tied,
            "parameters_untied": account.untied,
            "tensors": account.tensor_count,
            "bytes": {dtype: bytes_of(account.total, dtype) for dtype in BITS},
            "counted_in_the_weights": self.checked or None,
            "parts": _tree(account, account.root),
            "costs": {
                "dtype": costs.dtype,
                "batch": costs.batch,
                "context": costs.context,
                "bytes_of_cache_a_token": costs.cache_per_token().amount,
                "bytes_to_run": dataclasses.asdict(costs.memory_to_run()),
                "bytes_to_train": None if costs.quantized else dataclasses.asdict(costs.memory_to_train()),
                "bytes_to_train_with_plain_attention": None
                if costs.quantized
                else dataclasses.asdict(costs.memory_to_train(plain=True)),
                "flops_forward_a_token": dataclasses.asdict(costs.forward_flops()),
                "flops_training_a_token": dataclasses.asdict(costs.training_flops()),
                "bytes_moved_a_pass": dataclasses.asdict(costs.decoding_bytes()),
            },
        }


def _tree(account: ParameterTree, part: ModelPart) -> dict[str, Any]:
    return {
        "name": part.name,
        "path": part.path,
        "symbols": part.symbols,
        "numbers": part.numbers,
        "parameters": part.count,
        "times": part.times,
        "share": account.share(part),
        "parts": [_tree(account, inner) for inner in part.parts],
    }


def compare_side_by_side(reports: list[ModelReport]) -> list[TextTable]:
    """Return tables with one column for each model, as many in a table as fit a terminal."""
    size = _MODELS_SIDE_BY_SIDE
    return [_compared(reports[first : first + size]) for first in range(0, len(reports), size)]


def _compared(reports: list[ModelReport]) -> TextTable:
    columns = [_column(report) for report in reports]
    names = ["\n".join(textwrap.wrap(report.title, _NUMBER_WIDTH)) for report in reports]
    table = TextTable(["", *names], headings=True)
    for i, (name, depth, _) in enumerate(columns[0]):
        table.add(name, *(column[i][2] for column in columns), depth=depth)
    return table


def _column(report: ModelReport) -> list[tuple[str, int, str]]:
    """Return one model's lines as (name, depth, value). Every model has the same lines."""
    from clearhead.anatomy import bytes_of

    account, costs, config = report.account, report.costs, report.account.config
    parts = {part.name: part.count for _, part in account.rows()}
    run, moved = costs.memory_to_run(), costs.decoding_bytes()
    lines = [
        ("shape", 0, ""),
        ("blocks", 1, f"{config.n_layers:,}"),
        ("heads", 1, f"{config.n_heads:,}"),
        ("width of a token", 1, f"{config.emb_dim:,}"),
        ("tokens known", 1, f"{config.vocab_size:,}"),
        ("positions", 1, f"{config.context_length:,}"),
        ("parameters", 0, f"{account.total:,}"),
        *((name, 1, f"{parts[name]:,}") for name in ("token", "position", "block", "blocks", "final_norm")),
        ("head", 1, f"{parts['head']:,}" if parts["head"] else "tied"),
        ("with the head tied", 1, f"{account.tied:,}"),
        ("head of its own", 1, f"{account.untied:,}"),
        ("tensors", 1, f"{account.tensor_count:,}"),
        ("bytes in float32", 1, format_bytes(bytes_of(account.total))),
        (f"memory, {costs.dtype}", 0, ""),
        ("sequences × tokens", 1, f"{costs.batch:,} × {costs.context:,}"),
        ("to run", 1, format_bytes(run.amount)),
        ("weights", 2, format_bytes(run.parts[0].amount)),
        ("keys and values", 2, format_bytes(run.parts[1].amount)),
        ("of one token", 3, format_bytes(costs.cache_per_token().amount)),
        *(("activations", 2, format_bytes(part.amount)) for part in run.parts[2:]),
    ]
    if not costs.quantized:
        train = costs.memory_to_train()
        lines.append(("to train", 1, format_bytes(train.amount)))
        lines += [(part.name, 2, format_bytes(part.amount)) for part in train.parts]
    training = costs.training_flops()
    return [
        *lines,
        ("millions of FLOPs", 0, "a token"),
        ("forward", 1, f"{costs.forward_flops().amount / 1e6:,.1f}"),
        ("to train", 1, f"{training.amount / 1e6:,.1f}"),
        *((rule.name, 2, relative_to(rule, training)) for rule in costs.rules_of_thumb()),
        ("bytes moved", 0, format_bytes(moved.amount)),
        ("FLOPs a byte", 1, intensity(costs)),
    ]
