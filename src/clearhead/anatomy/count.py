"""Where a GPT-2's parameters are: an account from the whole to the part, every number with its formula.

The account is derived from the config alone; `count_tensors` counts real tensors by the same names, and
`check_account` demands that the two agree. The symbols:

    V  vocab_size        T  context_length        C  emb_dim        F  ff_dim, written 4C where it is that
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError

BITS: dict[str, int] = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
"""Bits that one parameter takes in each number format; the scales that go with int8 and int4 are apart."""


@dataclass(frozen=True, slots=True)
class Part:
    """One row of the account: a part of the model and how many parameters it has.

    Attributes:
        name: the part's name, such as `W_query`.
        path: the canonical name of the module that holds the part's tensors, with `{i}` for the number of
            the block; empty where the part is put together from several modules.
        symbols: the formula in symbols, `C × C + C`; for a part made of parts, their names.
        numbers: the same formula in numbers, `768 × 768 + 768`.
        count: parameters in one such part.
        times: how many such parts the model has (the number of blocks, or 1).
        tensors: the tensors stored for one such part itself, under `path`: of `weight` and `bias`.
        parts: what it is made of, in the order in which a token passes.
    """

    name: str
    path: str
    symbols: str
    numbers: str
    count: int
    times: int = 1
    tensors: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()

    @property
    def in_all(self) -> int:
        """Parameters in all such parts of the model together."""
        return self.count * self.times


@dataclass(frozen=True, slots=True)
class Account:
    """All parameters of a GPT-2 of one shape.

    Attributes:
        config: the shape that was counted.
        whole: the tree of parts; `whole.count` is every parameter of the model, a tied head counted once.
    """

    config: GPTConfig
    whole: Part

    @property
    def total(self) -> int:
        """The model's parameters, as its config ties the head or does not."""
        return self.whole.count

    @property
    def tied(self) -> int:
        """The parameters with the head tied to the token embedding, whatever the config says."""
        return self.total - (0 if self.config.tie_weights else self._head_weight)

    @property
    def untied(self) -> int:
        """The parameters with a head of its own, whatever the config says."""
        return self.tied + self._head_weight

    @property
    def _head_weight(self) -> int:
        return self.config.vocab_size * self.config.emb_dim

    @property
    def tensor_count(self) -> int:
        """How many tensors hold the parameters: 148 for the released 124M."""
        return sum(len(part.tensors) * part.times for _, part in self.rows())

    def rows(self) -> Iterator[tuple[int, Part]]:
        """Every part with its depth in the tree, the whole first (depth 0) and each before its own parts."""
        yield from _walk(self.whole, 0)

    def share(self, part: Part) -> float:
        """The share of the model's parameters, 0 to 1, in all such parts together."""
        return part.in_all / self.total


def bytes_of(parameters: int, dtype: str = "float32") -> int:
    """The bytes that so many parameters take in a number format of `BITS`.

    Raises:
        InputError: where the format is none of them.
    """
    if dtype not in BITS:
        raise InputError(f"there is no number format {dtype!r}; the formats are {', '.join(BITS)}.")
    return math.ceil(parameters * BITS[dtype] / 8)


def count_parameters(config: GPTConfig) -> Account:
    """The account of a GPT-2 of this shape, from its config alone."""
    put = _Counter(config)
    embedding = _together(
        "embedding",
        put.module("token", "token_embedding", weight="VC"),
        put.module("position", "position_embedding", weight="TC"),
    )
    block = _together(
        "block",
        put.in_block("norm_1", "norm_1", weight="C", bias="C"),
        _together(
            "attention",
            _qkv(put),
            put.in_block("out", "attention.out", weight="CC", bias="C"),
            path="blocks.{i}.attention",
        ),
        put.in_block("norm_2", "norm_2", weight="C", bias="C"),
        _together(
            "feed_forward",
            put.in_block("up", "feed_forward.up", weight="CF", bias="F"),
            put.in_block("down", "feed_forward.down", weight="FC", bias="C"),
            path="blocks.{i}.feed_forward",
        ),
        path="blocks.{i}",
    )
    blocks = Part(
        name="blocks",
        path="blocks",
        symbols=f"{config.n_layers} × block",
        numbers=f"{config.n_layers} × {block.count:,}",
        count=config.n_layers * block.count,
        parts=(block,),
    )
    output = _together("output", put.module("final_norm", "final_norm", weight="C", bias="C"), _head(put))
    return Account(config, _together("GPT-2", embedding, blocks, output))


def count_tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Counts real tensors, by every prefix of their canonical names.

    Args:
        shapes: canonical name -> shape, such as {"blocks.0.norm_1.weight": (768,), ...}.

    Returns:
        prefix -> numbers under it: of `blocks.0.norm_1.weight`, `blocks.0.norm_1`, `blocks.0`, `blocks`,
        and of the whole under the empty name.
    """
    counts: dict[str, int] = {"": 0}
    for name, shape in shapes.items():
        size = math.prod(shape)
        steps = name.split(".")
        for end in range(len(steps) + 1):
            prefix = ".".join(steps[:end])
            counts[prefix] = counts.get(prefix, 0) + size
    return counts


def check_account(account: Account, shapes: Mapping[str, Sequence[int]]) -> None:
    """Checks that real tensors hold, part by part, the numbers that the account derives.

    A tied head may stand among the tensors or not: it is the token embedding's tensor under a second name.

    Args:
        account: what the config says.
        shapes: canonical name -> shape of every tensor of the model.

    Raises:
        WeightsError: names the first part that differs, or a tensor that belongs to no part.
    """
    if account.config.tie_weights:
        shapes = {name: shape for name, shape in shapes.items() if name != "head.weight"}
    counted = count_tensors(shapes)
    expected: dict[str, int] = {}
    for _, part in account.rows():
        if part.tensors:
            expected |= {part.path.format(i=i): part.count for i in range(part.times)}
    for path, count in expected.items():
        if counted.get(path, 0) != count:
            raise WeightsError(
                f"{path} holds {counted.get(path, 0):,} numbers, where a GPT-2 of this shape has {count:,}; "
                "the weights do not belong to this config."
            )
    for name in shapes:
        if name.rpartition(".")[0] not in expected:
            raise WeightsError(
                f"the tensor {name} belongs to no part of a GPT-2 of this shape; "
                "the weights do not belong to this config."
            )
    if counted[""] != account.total:
        raise WeightsError(f"the tensors hold {counted['']:,} numbers, where the config derives {account.total:,}.")


def _walk(part: Part, depth: int) -> Iterator[tuple[int, Part]]:
    yield depth, part
    for inner in part.parts:
        yield from _walk(inner, depth + 1)


class _Counter:
    """Makes rows from shapes in symbols: `weight="CF"` is a matrix of C times F numbers."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.sizes = {"V": config.vocab_size, "T": config.context_length, "C": config.emb_dim, "F": config.ff_dim}
        self.shown = {**{s: s for s in self.sizes}, "F": "4C" if config.ff_dim == 4 * config.emb_dim else "F"}

    def module(self, name: str, path: str, times: int = 1, **tensors: str) -> Part:
        """A row for a module that stores these tensors."""
        return Part(
            name=name,
            path=path,
            symbols=" + ".join(" × ".join(self.shown[s] for s in shape) for shape in tensors.values()),
            numbers=" + ".join(" × ".join(f"{self.sizes[s]:,}" for s in shape) for shape in tensors.values()),
            count=sum(math.prod(self.sizes[s] for s in shape) for shape in tensors.values()),
            times=times,
            tensors=tuple(tensors),
        )

    def in_block(self, name: str, path: str, **tensors: str) -> Part:
        """A row for a module that stands in every block."""
        return self.module(name, "blocks.{i}." + path, times=self.config.n_layers, **tensors)


def _together(name: str, *parts: Part, path: str = "") -> Part:
    """A row for a part that is the sum of others."""
    return Part(
        name=name,
        path=path,
        symbols=" + ".join(part.name for part in parts),
        numbers=" + ".join(f"{part.count:,}" for part in parts),
        count=sum(part.count for part in parts),
        times=parts[0].times,
        parts=parts,
    )


def _qkv(put: _Counter) -> Part:
    """Three projections, told apart here, that are stored as one tensor of three times the height."""
    shapes = {"weight": "CC", "bias": "C"} if put.config.qkv_bias else {"weight": "CC"}
    thirds = [put.in_block(name, "attention.qkv", **shapes) for name in ("W_query", "W_key", "W_value")]
    whole = _together("qkv", *(replace(third, path="", tensors=()) for third in thirds))
    return replace(whole, path="blocks.{i}.attention.qkv", tensors=tuple(shapes))


def _head(put: _Counter) -> Part:
    if put.config.tie_weights:
        return Part("head", "head", "the token embedding again", "0", 0)
    return put.module("head", "head", weight="VC")
