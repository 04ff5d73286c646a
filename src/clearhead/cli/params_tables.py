"""The tables of `clearhead params` for one model: parameters, totals, costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clearhead.cli.tables import TextTable
from clearhead.utils.units import format_bytes

if TYPE_CHECKING:
    from clearhead.anatomy import Cost, CostModel, ModelPart, ParameterTree


def describe(account: ParameterTree) -> str:
    """Return the shape in one line."""
    config = account.config
    blocks = "1 block" if config.n_layers == 1 else f"{config.n_layers} blocks"
    heads = "1 head" if config.n_heads == 1 else f"{config.n_heads} heads"
    return (
        f"{blocks} with {heads} of width {config.head_dim:,}; "
        f"{'a' if config.qkv_bias else 'no'} bias on query, key and value"
    )


def legend(account: ParameterTree) -> str:
    """Return what the letters of the formulas stand for."""
    config = account.config
    letters = [
        f"V = {config.vocab_size:,} ids",
        f"T = {config.context_length:,} positions",
        f"C = {config.emb_dim:,} per token",
    ]
    if config.ff_dim != 4 * config.emb_dim:
        letters.append(f"F = {config.ff_dim:,} in feed_forward")
    return ", ".join(letters)


def parts_table(account: ParameterTree, wide: bool) -> TextTable:
    """Return the table of parameters; `wide` gives the symbols and the numbers of a formula a column each."""
    columns = ["formula", "in numbers"] if wide else ["formula"]
    table = TextTable(["part", *columns, "parameters", "share"], left=1 + len(columns), headings=True)
    for depth, part in account.rows():
        if depth:
            formulas = [part.symbols, part.numbers] if wide else [_formula(part)]
            share = f"{account.share(part):.1%}" if part.count else "tied"
            table.add(part.name, *formulas, f"{part.count:,}", share, depth=depth - 1)
    table.footer = ["the model", *("" for _ in columns), f"{account.total:,}", "100.0%"]
    return table


def _formula(part: ModelPart) -> str:
    """Return a part's formula with symbols and numbers; for a sum of the rows below it, the numbers alone."""
    if part.count == 0:
        return part.symbols
    is_sum = part.parts and part.name != "blocks"
    return part.numbers if is_sum else f"{part.symbols} = {part.numbers}"


def totals_table(account: ParameterTree) -> TextTable:
    """Return the totals with the head tied, with a head of its own, and for the shape as OpenAI released it."""
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
    table = TextTable(["\n", *header])
    table.add("parameters", *(f"{a.total:,}" for a in accounts))
    table.add("tensors", *(f"{a.tensor_count:,}" for a in accounts))
    table.add("bytes in float32", *(f"{bytes_of(a.total):,}" for a in accounts))
    table.add("", *(format_bytes(bytes_of(a.total)) for a in accounts))
    table.add("bfloat16, float16", *(format_bytes(bytes_of(a.total, "float16")) for a in accounts))
    for dtype in ("int8", "int4"):
        table.add(f"{dtype}, without scales", *(format_bytes(bytes_of(a.total, dtype)) for a in accounts))
    return table


def costs_table(costs: CostModel, wide: bool) -> TextTable:
    """Return the table of what the model costs to run and to train."""
    columns = ["formula", "in numbers"] if wide else ["formula"]
    table = TextTable(["cost", *columns, "amount"], left=1 + len(columns), headings=True, title=_work(costs))
    table.note = _letters(costs)

    def add(cost: Cost, show: Callable[[int], str], depth: int = 0, opened: int = 1) -> None:
        symbols = cost.symbols if not cost.parts or "×" in cost.symbols else ""  # a sum of names: the rows below say it
        formulas = [symbols, cost.numbers] if wide else [symbols.replace(" × ", "")]
        table.add(cost.name, *formulas, show(cost.amount), depth=depth)
        for part in cost.parts[: None if opened else 0]:
            add(part, show, depth + 1, opened - 1)
            if cost.name == "memory to run" and part.name == "keys and values":
                add(costs.cache_per_token(), show, depth + 2)

    add(costs.memory_to_run(), format_bytes, opened=2)
    if not costs.quantized:
        add(costs.memory_to_train(), format_bytes, opened=2)
        plain = costs.activations(plain=True)
        add(dataclasses.replace(plain, name="or, with plain attention"), format_bytes, depth=1, opened=0)
    training = costs.training_flops()
    add(costs.forward_flops(), "{:,}".format)
    add(training, "{:,}".format, opened=0)
    for rule in costs.rules_of_thumb():
        add(dataclasses.replace(rule, name=f"{rule.name} ({relative_to(rule, training)})"), "{:,}".format, depth=1)
    add(costs.decoding_bytes(), format_bytes)
    table.add("FLOPs a byte", *("" for _ in columns), intensity(costs), depth=1)
    return table


def _work(costs: CostModel) -> str:
    """Return the title: the work that the costs are for."""
    sequences = "1 sequence" if costs.batch == 1 else f"{costs.batch:,} sequences"
    tokens = "1 token" if costs.context == 1 else f"{costs.context:,} tokens"
    return f"The costs of {sequences} of {tokens} in {costs.dtype}"


def _letters(costs: CostModel) -> str:
    """Return the letters that only the formulas of costs use, and what is counted."""
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


def relative_to(rule: Cost, counted: Cost) -> str:
    return f"{rule.amount / counted.amount - 1:+.1%}"


def intensity(costs: CostModel) -> str:
    """Return FLOPs per byte that decoding moves. If the machine can do more, memory bandwidth is the limit."""
    return f"{costs.batch * costs.forward_flops().amount / costs.decoding_bytes().amount:,.2f}"
