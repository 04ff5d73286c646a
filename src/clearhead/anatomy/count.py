"""Where a GPT-2's parameters are: a tree from the whole model to its smallest parts, each with its formula.

The tree is derived from the config alone; `count_tensors` counts real tensors by the same names, and `check_parameters`
requires the two to agree. The symbols:

    V  vocab_size        T  context_length        C  emb_dim        F  ff_dim, written 4C where it is that
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from clearhead.config import GPTConfig
from clearhead.errors import InputError, WeightsError
from clearhead.utils.html import html_table

BITS: dict[str, int] = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8, "int4": 4}
"""Bits of one parameter in each number format, without the scales of int8 and int4."""


@dataclass(frozen=True, slots=True)
class ModelPart:
    """A part of the model and the number of its parameters.

    Attributes:
        name: the part's name, such as `W_query`.
        path: the canonical name of the module with the part's tensors, with `{i}` for the block's index; empty if the
            part consists of several modules.
        symbols: the formula in symbols, `C × C + C`; the names of its parts if it has any.
        numbers: the same formula in numbers, `768 × 768 + 768`.
        count: the parameters in one such part.
        times: how many such parts the model has: 1, or the number of blocks.
        tensors: the names of the part's own tensors under `path`: `weight`, `bias`.
        parts: the parts that it consists of, in the order of the forward pass.
    """

    name: str
    path: str
    symbols: str
    numbers: str
    count: int
    times: int = 1
    tensors: tuple[str, ...] = ()
    parts: tuple[ModelPart, ...] = ()

    @property
    def total(self) -> int:
        """The parameters in all such parts of the model together."""
        return self.count * self.times


@dataclass(frozen=True, repr=False, slots=True)
class ParameterTree:
    """All parameters of a GPT-2 of one shape, as a tree.

    Attributes:
        config: the model's shape.
        root: the whole model; its count includes a tied head once.
    """

    config: GPTConfig
    root: ModelPart

    def __repr__(self) -> str:
        return f"ParameterTree({self.total:,} parameters in {self.tensor_count:,} tensors)"

    def _repr_html_(self) -> str:
        rows = ((" " * 2 * depth + part.name, part.numbers, part.count) for depth, part in self.rows())
        return html_table(["part", "in numbers", "parameters"], rows, repr(self))

    @property
    def total(self) -> int:
        """The number of parameters, with the head tied if the config says so."""
        return self.root.count

    @property
    def tied(self) -> int:
        """The number of parameters if the head is tied to the token embedding."""
        return self.total - (0 if self.config.tie_weights else self._head_weight)

    @property
    def untied(self) -> int:
        """The number of parameters if the head has its own matrix."""
        return self.tied + self._head_weight

    @property
    def _head_weight(self) -> int:
        return self.config.vocab_size * self.config.emb_dim

    @property
    def tensor_count(self) -> int:
        """The number of tensors, such as 148 for the released 124M."""
        return sum(len(part.tensors) * part.times for _, part in self.rows())

    def rows(self) -> Iterator[tuple[int, ModelPart]]:
        """Yield every part with its depth: the whole model first, at depth 0, and each part before its own parts."""
        yield from _walk(self.root, 0)

    def share(self, part: ModelPart) -> float:
        """Return the fraction of the model's parameters in all such parts together, 0 to 1."""
        return part.total / self.total


def bytes_of(parameters: int, dtype: str = "float32") -> int:
    """Return the bytes of a number of parameters in a number format.

    Raises:
        InputError: if the format is not in `BITS`.
    """
    if dtype not in BITS:
        raise InputError(f"{dtype!r} is not a number format; choose one of {', '.join(BITS)}.")
    return math.ceil(parameters * BITS[dtype] / 8)


def count_parameters(config: GPTConfig) -> ParameterTree:
    """Derive the parameters of a GPT-2 of this shape from its config alone."""
    make = _PartFactory(config)
    embedding = _sum_of(
        "embedding",
        make.module("token", "token_embedding", weight="VC"),
        make.module("position", "position_embedding", weight="TC"),
    )
    block = _sum_of(
        "block",
        make.in_block("norm_1", "norm_1", weight="C", bias="C"),
        _sum_of(
            "attention",
            _qkv(make),
            make.in_block("out", "attention.out", weight="CC", bias="C"),
            path="blocks.{i}.attention",
        ),
        make.in_block("norm_2", "norm_2", weight="C", bias="C"),
        _sum_of(
            "feed_forward",
            make.in_block("up", "feed_forward.up", weight="CF", bias="F"),
            make.in_block("down", "feed_forward.down", weight="FC", bias="C"),
            path="blocks.{i}.feed_forward",
        ),
        path="blocks.{i}",
    )
    blocks = ModelPart(
        name="blocks",
        path="blocks",
        symbols=f"{config.n_layers} × block",
        numbers=f"{config.n_layers} × {block.count:,}",
        count=config.n_layers * block.count,
        parts=(block,),
    )
    output = _sum_of("output", make.module("final_norm", "final_norm", weight="C", bias="C"), _head(make))
    return ParameterTree(config, _sum_of("GPT-2", embedding, blocks, output))


def count_tensors(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Count the elements of real tensors by every prefix of their canonical names.

    Args:
        shapes: canonical name -> shape, such as {"blocks.0.norm_1.weight": (768,), ...}.

    Returns:
        prefix -> number of elements, for `blocks.0.norm_1.weight`, `blocks.0.norm_1`, `blocks.0`, `blocks` and so on,
        and for "", the total.
    """
    counts: dict[str, int] = {"": 0}
    for name, shape in shapes.items():
        size = math.prod(shape)
        steps = name.split(".")
        for end in range(len(steps) + 1):
            prefix = ".".join(steps[:end])
            counts[prefix] = counts.get(prefix, 0) + size
    return counts


def check_parameters(expected: ParameterTree, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that real tensors have as many elements, part by part, as the config says.

    A tied head may be among the tensors or not: it is the token embedding's tensor under a second name.

    Args:
        expected: the parameters derived from the config.
        shapes: canonical name -> shape of every tensor of the model.

    Raises:
        WeightsError: if a part differs, or a tensor belongs to no part; it names the first one.
    """
    if expected.config.tie_weights:
        shapes = {name: shape for name, shape in shapes.items() if name != "head.weight"}
    counted = count_tensors(shapes)
    by_path: dict[str, int] = {}
    for _, part in expected.rows():
        if part.tensors:
            by_path |= {part.path.format(i=i): part.count for i in range(part.times)}
    for path, count in by_path.items():
        if counted.get(path, 0) != count:
            raise WeightsError(
                f"{path} has {counted.get(path, 0):,} elements, but a GPT-2 of this shape has {count:,} there; "
                "the weights do not belong to this config."
            )
    for name in shapes:
        if name.rpartition(".")[0] not in by_path:
            raise WeightsError(
                f"the tensor {name} belongs to no part of a GPT-2 of this shape; "
                "the weights do not belong to this config."
            )
    if counted[""] != expected.total:
        raise WeightsError(
            f"the tensors have {counted['']:,} elements, but the config says {expected.total:,}; "
            "the weights do not belong to this config."
        )


def _walk(part: ModelPart, depth: int) -> Iterator[tuple[int, ModelPart]]:
    yield depth, part
    for inner in part.parts:
        yield from _walk(inner, depth + 1)


class _PartFactory:
    """Makes parts from shapes in symbols: `weight="CF"` is a matrix of C × F elements."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.sizes = {"V": config.vocab_size, "T": config.context_length, "C": config.emb_dim, "F": config.ff_dim}
        self.shown = {**{s: s for s in self.sizes}, "F": "4C" if config.ff_dim == 4 * config.emb_dim else "F"}

    def module(self, name: str, path: str, times: int = 1, **tensors: str) -> ModelPart:
        """Return the part for a module with these tensors."""
        return ModelPart(
            name=name,
            path=path,
            symbols=" + ".join(" × ".join(self.shown[s] for s in shape) for shape in tensors.values()),
            numbers=" + ".join(" × ".join(f"{self.sizes[s]:,}" for s in shape) for shape in tensors.values()),
            count=sum(math.prod(self.sizes[s] for s in shape) for shape in tensors.values()),
            times=times,
            tensors=tuple(tensors),
        )

    def in_block(self, name: str, path: str, **tensors: str) -> ModelPart:
        """Return the part for a module that every block has."""
        return self.module(name, "blocks.{i}." + path, times=self.config.n_layers, **tensors)


def _sum_of(name: str, *parts: ModelPart, path: str = "") -> ModelPart:
    """Return a part that consists of others."""
    return ModelPart(
        name=name,
        path=path,
        symbols=" + ".join(part.name for part in parts),
        numbers=" + ".join(f"{part.count:,}" for part in parts),
        count=sum(part.count for part in parts),
        times=parts[0].times,
        parts=parts,
    )


def _qkv(make: _PartFactory) -> ModelPart:
    """Return the three projections, which are stored as one tensor of three times the height."""
    shapes = {"weight": "CC", "bias": "C"} if make.config.qkv_bias else {"weight": "CC"}
    thirds = [make.in_block(name, "attention.qkv", **shapes) for name in ("W_query", "W_key", "W_value")]
    whole = _sum_of("qkv", *(replace(third, path="", tensors=()) for third in thirds))
    return replace(whole, path="blocks.{i}.attention.qkv", tensors=tuple(shapes))


def _head(make: _PartFactory) -> ModelPart:
    if make.config.tie_weights:
        return ModelPart("head", "head", "the token embedding again", "0", 0)
    return make.module("head", "head", weight="VC")
