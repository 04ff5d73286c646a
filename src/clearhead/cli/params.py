"""`clearhead params`: where a GPT-2's parameters are and what it costs, every number with its formula."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clearhead.cli.sheets import Sheet

if TYPE_CHECKING:
    from collections.abc import Callable

    from clearhead.anatomy import Cost, CostModel, ModelPart, ParameterTree
    from clearhead.cli.source import Source

EPILOG = """
Examples:

[bold]clearhead params 1558M[/]                the largest of the released sizes

[bold]clearhead params 124M --book[/]          the book's: 163,009,536 parameters

[bold]clearhead params my-model/[/]            counted in its weights too

[bold]clearhead params 124M 355M bundled[/]    side by side

[bold]clearhead params 355M --dtype bfloat16 --batch 8[/]    such a batch's costs

[bold]clearhead params gpt2 --markdown[/]      tables for a README or a notebook
"""

_MODELS_SIDE_BY_SIDE = 4  # as many columns of numbers as 80 characters hold
_NUMBER = 13  # the width of such a column


def params(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="A size (124M, 355M, 774M, 1558M), a config file, a model's folder, its name on the hub, or "
            "'bundled'. Several are compared. 124M if left out.",
        ),
    ] = None,
    book: Annotated[
        bool,
        typer.Option(
            "--book",
            help="Count the variant of the book's chapter 4: no bias on query, key and value, and a head of its own.",
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Number format of the costs: float32, bfloat16, float16, int8, int4.")
    ] = "float32",
    batch: Annotated[int, typer.Option("--batch", help="Sequences at once, for the costs.")] = 1,
    context: Annotated[
        int | None,
        typer.Option("--context", help="Tokens in each sequence, for the costs. All that the model takes if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the trees of parts and costs.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Show where the parameters are, and what the model costs.

    Each part stands with the formula of its size. Counts inside the block are for one block, shares for all blocks
    together. Where there are weights, they are counted too and must agree.

    Then the memory to run and to train it, the floating-point operations of a token (a multiply-add is two) and the
    bytes that writing one moves.
    """
    if as_json and markdown:
        raise typer.BadParameter("give --json or --markdown, not both.")
    accounts = [_Report(model, book, dtype, batch, context) for model in models or ["124M"]]
    if as_json:
        found = [account.as_json() for account in accounts]
        typer.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2, ensure_ascii=False))
        return
    remarks = [account.checked for account in accounts if account.checked]
    if len(accounts) == 1:
        heading, sheets = accounts[0].heading(), accounts[0].sheets(wide=markdown)
    else:
        heading, sheets = [], _side_by_side(accounts)
        remarks = [f"{account.title}: {account.checked}" for account in accounts if account.checked]
    (_write_markdown if markdown else _print)(heading, sheets, remarks)


class _Report:
    """All that is shown of one model."""

    def __init__(self, model: str, book: bool, dtype: str, batch: int, context: int | None) -> None:
        from clearhead.anatomy import CostModel
        from clearhead.cli.source import find_source
        from clearhead.errors import InputError

        if context is not None and context < 1:
            raise InputError(f"--context is {context}; it must be at least 1 token.")
        self.source: Source = find_source(model)
        self.title = self.source.name + (", as in the book" if book else "")
        config = self.source.config
        if book:
            config = config.replace(qkv_bias=False, tie_weights=False)
        self.costs: CostModel = CostModel(config, dtype, batch, context or 0)
        self.account: ParameterTree = self.costs.parameters
        self.checked = "" if book else self.source.check(self.account)

    def heading(self) -> list[str]:
        account = self.account
        return [f"{self.title}: {account.total:,} parameters", describe(account), _legend(account)]

    def sheets(self, wide: bool) -> list[Sheet]:
        return [_parts(self.account, wide), _totals(self.account), _costs(self.costs, wide)]

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


# --------------------------------------------------------------------------------------------------------------
# One model
# --------------------------------------------------------------------------------------------------------------


def describe(account: ParameterTree) -> str:
    """The shape in one line."""
    config = account.config
    blocks = "1 block" if config.n_layers == 1 else f"{config.n_layers} blocks"
    heads = "1 head" if config.n_heads == 1 else f"{config.n_heads} heads"
    return (
        f"{blocks} with {heads} of width {config.head_dim:,}; "
        f"{'a' if config.qkv_bias else 'no'} bias on query, key and value"
    )


def _legend(account: ParameterTree) -> str:
    """What the letters of the formulas stand for."""
    config = account.config
    letters = [
        f"V = {config.vocab_size:,} ids",
        f"T = {config.context_length:,} positions",
        f"C = {config.emb_dim:,} per token",
    ]
    if config.ff_dim != 4 * config.emb_dim:
        letters.append(f"F = {config.ff_dim:,} in feed_forward")
    return ", ".join(letters)


def _parts(account: ParameterTree, wide: bool) -> Sheet:
    """Where the parameters are; `wide` gives the symbols and the numbers of a formula a column each."""
    columns = ["formula", "in numbers"] if wide else ["formula"]
    sheet = Sheet(["part", *columns, "parameters", "share"], left=1 + len(columns), headings=True)
    for depth, part in account.rows():
        if depth:
            formulas = [part.symbols, part.numbers] if wide else [_formula(part)]
            share = f"{account.share(part):.1%}" if part.count else "tied"
            sheet.add(part.name, *formulas, f"{part.count:,}", share, depth=depth - 1)
    sheet.footer = ["the model", *("" for _ in columns), f"{account.total:,}", "100.0%"]
    return sheet


def _formula(part: ModelPart) -> str:
    """A part's formula as it stands in a row: symbols and numbers, and of a sum of the rows below the numbers."""
    if part.count == 0:
        return part.symbols
    is_sum = part.parts and part.name != "blocks"
    return part.numbers if is_sum else f"{part.symbols} = {part.numbers}"


def _totals(account: ParameterTree) -> Sheet:
    """The model with its head tied, with a head of its own, and as OpenAI released such a shape."""
    from clearhead.anatomy import bytes_of, count_parameters

    config = account.config
    variants = {
        "head tied": config.replace(tie_weights=True),
        "head of its own": config.replace(tie_weights=False),
        "as released": config.replace(tie_weights=True, qkv_bias=True),
    }
    names: dict[Any, str] = {}
    for name, variant in variants.items():  # two of them may be one
        names[variant] = f"{names[variant]}, {name}" if variant in names else name
    accounts = [count_parameters(variant) for variant in names]
    header = [name + ("\nthis model" if variant == config else "\n") for variant, name in names.items()]
    sheet = Sheet(["\n", *header])
    sheet.add("parameters", *(f"{a.total:,}" for a in accounts))
    sheet.add("tensors", *(f"{a.tensor_count:,}" for a in accounts))
    sheet.add("bytes in float32", *(f"{bytes_of(a.total):,}" for a in accounts))
    sheet.add("", *(binary(bytes_of(a.total)) for a in accounts))
    sheet.add("bfloat16, float16", *(binary(bytes_of(a.total, "float16")) for a in accounts))
    for dtype in ("int8", "int4"):
        sheet.add(f"{dtype}, without scales", *(binary(bytes_of(a.total, dtype)) for a in accounts))
    return sheet


def _costs(costs: CostModel, wide: bool) -> Sheet:
    """What the model costs to run and to train."""
    columns = ["formula", "in numbers"] if wide else ["formula"]
    sheet = Sheet(["cost", *columns, "amount"], left=1 + len(columns), headings=True, title=_work(costs))
    sheet.note = _letters(costs)

    def add(cost: Cost, show: Callable[[int], str], depth: int = 0, opened: int = 1) -> None:
        symbols = cost.symbols if not cost.parts or "×" in cost.symbols else ""  # a sum of names: the rows below say it
        formulas = [symbols, cost.numbers] if wide else [symbols.replace(" × ", "")]
        sheet.add(cost.name, *formulas, show(cost.amount), depth=depth)
        for part in cost.parts[: None if opened else 0]:
            add(part, show, depth + 1, opened - 1)
            if cost.name == "memory to run" and part.name == "keys and values":
                add(costs.cache_per_token(), show, depth + 2)

    add(costs.memory_to_run(), binary, opened=2)
    if not costs.quantized:
        add(costs.memory_to_train(), binary, opened=2)
        plain = costs.activations(plain=True)
        add(dataclasses.replace(plain, name="or, with plain attention"), binary, depth=1, opened=0)
    training = costs.training_flops()
    add(costs.forward_flops(), "{:,}".format)
    add(training, "{:,}".format, opened=0)
    for rule in costs.rules_of_thumb():
        add(dataclasses.replace(rule, name=f"{rule.name} ({_against(rule, training)})"), "{:,}".format, depth=1)
    add(costs.decoding_bytes(), binary)
    sheet.add("FLOPs a byte", *("" for _ in columns), _intensity(costs), depth=1)
    return sheet


def _work(costs: CostModel) -> str:
    """What the costs are for."""
    sequences = "1 sequence" if costs.batch == 1 else f"{costs.batch:,} sequences"
    tokens = "1 token" if costs.context == 1 else f"{costs.context:,} tokens"
    return f"The costs of {sequences} of {tokens} in {costs.dtype}"


def _letters(costs: CostModel) -> str:
    """The letters of their formulas that the parameters' legend does not have, and what is counted."""
    of = costs.values
    number = "a key or value" if costs.quantized else "a number"
    groups = (
        f"; G = {of['G']:,} groups of 32 weights in R = {of['R']:,} rows (c = {of['c']:,} in a token's), "
        f"X = {of['X']:,} biases and norms"
    )
    return (
        f"N = {of['N']:,} parameters, K = {of['K']:,} of the blocks and the final norm, M = {of['M']:,} weights in "
        f"matrices; L = {of['L']:,} (blocks), H = {of['H']:,} (heads), F = {of['F']:,} in feed_forward; "
        f"b = {of['b']:,} (sequences), t = {of['t']:,} (tokens), s = {of['s']} (bytes of {number})"
        f"{groups if costs.quantized else ''}. FLOPs are for one token, a multiply-add being two; "
        "bytes moved are for one more token in each sequence."
    )


def _against(rule: Cost, counted: Cost) -> str:
    return f"{rule.amount / counted.amount - 1:+.1%}"


def _intensity(costs: CostModel) -> str:
    """Operations for each byte that decoding moves: below what the machine can do, memory sets the pace."""
    return f"{costs.batch * costs.forward_flops().amount / costs.decoding_bytes().amount:,.2f}"


def binary(size: int) -> str:
    """A number of bytes with a binary unit: 474.70 MiB."""
    value, unit = float(size), "bytes"
    for bigger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{size:,} bytes" if unit == "bytes" else f"{value:,.2f} {unit}"


# --------------------------------------------------------------------------------------------------------------
# Several models
# --------------------------------------------------------------------------------------------------------------


def _side_by_side(reports: list[_Report]) -> list[Sheet]:
    """The models in columns, as many to a table as a terminal is wide."""
    size = _MODELS_SIDE_BY_SIDE
    return [_compared(reports[first : first + size]) for first in range(0, len(reports), size)]


def _compared(reports: list[_Report]) -> Sheet:
    columns = [_column(report) for report in reports]
    names = ["\n".join(textwrap.wrap(report.title, _NUMBER)) for report in reports]
    sheet = Sheet(["", *names], headings=True)
    for i, (name, depth, _) in enumerate(columns[0]):
        sheet.add(name, *(column[i][2] for column in columns), depth=depth)
    return sheet


def _column(report: _Report) -> list[tuple[str, int, str]]:
    """One model's lines: name, depth, value. Every model has the same ones."""
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
        ("bytes in float32", 1, binary(bytes_of(account.total))),
        (f"memory, {costs.dtype}", 0, ""),
        ("sequences × tokens", 1, f"{costs.batch:,} × {costs.context:,}"),
        ("to run", 1, binary(run.amount)),
        ("weights", 2, binary(run.parts[0].amount)),
        ("keys and values", 2, binary(run.parts[1].amount)),
        ("of one token", 3, binary(costs.cache_per_token().amount)),
        *(("activations", 2, binary(part.amount)) for part in run.parts[2:]),
    ]
    if not costs.quantized:
        train = costs.memory_to_train()
        lines.append(("to train", 1, binary(train.amount)))
        lines += [(part.name, 2, binary(part.amount)) for part in train.parts]
    training = costs.training_flops()
    return [
        *lines,
        ("millions of FLOPs", 0, "a token"),
        ("forward", 1, f"{costs.forward_flops().amount / 1e6:,.1f}"),
        ("to train", 1, f"{training.amount / 1e6:,.1f}"),
        *((rule.name, 2, _against(rule, training)) for rule in costs.rules_of_thumb()),
        ("bytes moved", 0, binary(moved.amount)),
        ("FLOPs a byte", 1, _intensity(costs)),
    ]


# --------------------------------------------------------------------------------------------------------------
# The two forms for people
# --------------------------------------------------------------------------------------------------------------


def _print(heading: list[str], sheets: list[Sheet], remarks: list[str]) -> None:
    from clearhead.cli.console import output

    console = output()
    for i, line in enumerate(heading):
        console.print(line, style="" if i else "bold", soft_wrap=True)
    for i, sheet in enumerate(sheets):
        if heading or i:
            console.print()
        if sheet.title:
            console.print(sheet.title, style="bold")
        if sheet.note:
            console.print(sheet.note)
            console.print()
        console.print(sheet.table())
    for remark in remarks:
        console.print()
        console.print(remark, style="green")


def _write_markdown(heading: list[str], sheets: list[Sheet], remarks: list[str]) -> None:
    top = [f"**{heading[0]}** ({'; '.join(heading[1:])})"] if heading else []
    typer.echo("\n\n".join([*top, *(sheet.markdown() for sheet in sheets), *remarks]))
