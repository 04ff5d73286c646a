"""The architecture of GPT-2 as boxes and arrows, for any shape of model, independent of how it is drawn.

A diagram has three panels: the whole model, and the insides of the attention and of the feed-forward layer. Boxes are
in rows (0 at the bottom, since a token travels upwards) and columns; arrows are labelled with the shape of their data.
`layout.py` computes the positions on a page and `svg.py` draws them; `mermaid.py` leaves both to Mermaid.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from clearhead.anatomy.count import ModelPart, ParameterTree, count_parameters
from clearhead.anatomy.diagram.words import LANGUAGES
from clearhead.config import GPTConfig
from clearhead.errors import InputError

Kind = Literal["embedding", "norm", "attention", "feed_forward", "head", "step", "value", "sum"]
"""What a box is: a part with parameters, a step without any, an input or output value, or an addition."""

Route = Literal["up", "shortcut", "side", "tie"]
"""How an arrow runs: straight up; around the boxes into a sum; up and sideways into a sum; along the whole model."""


@dataclass(frozen=True, slots=True)
class Box:
    """One box.

    Attributes:
        key: its unique name in the diagram.
        kind: what it is.
        name: its title; empty for a sum.
        row, column: its position, from the bottom and from the left.
        span: its width in columns.
        detail: the lines below the title.
        parameters: the parameters in one such box.
        times: how many such boxes the model has.
        picture: whether it has a small picture at its left end.
    """

    key: str
    kind: Kind
    name: str
    row: int
    column: int = 0
    span: int = 1
    detail: tuple[str, ...] = ()
    parameters: int = 0
    times: int = 1
    picture: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """One arrow.

    Attributes:
        start, end: the keys of two boxes.
        label: the shape of its data, `[B, T, 768]`; words for a tie.
        route: how it runs.
        column: the column in which it runs straight up; None for the middle of its boxes.
    """

    start: str
    end: str
    label: str
    route: Route = "up"
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A border around the rows of the block.

    Attributes:
        first, last: its rows.
        title, note: the words in its upper left corner.
    """

    first: int
    last: int
    title: str
    note: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of the diagram.

    Attributes:
        key: `model`, or the key of the box whose inside it shows.
        title, note: the words above it.
        boxes, arrows: its contents.
        columns: the number of columns.
        frame: the block's border, in the model's panel.
    """

    key: str
    title: str
    note: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    columns: int = 1
    frame: Frame | None = None


@dataclass(frozen=True, slots=True)
class ParameterShare:
    """The number of parameters of one kind."""

    kind: Kind
    name: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Diagram:
    """The whole diagram.

    Attributes:
        name: the model's name.
        lang: the language of its words.
        total: the number of the model's parameters.
        facts: two lines below the title.
        about: a description for readers who cannot see it.
        panels: the model, its attention, its feed-forward layer.
        shares: where the parameters are, in the model's order; they sum to `total`.
        legend: lines that explain letters and colours.
    """

    name: str
    lang: str
    total: int
    facts: tuple[str, ...]
    about: str
    panels: tuple[Panel, Panel, Panel]
    shares: tuple[ParameterShare, ...]
    legend: tuple[str, ...]


def make_diagram(
    config: GPTConfig, name: str, lang: str = "en", batch: int = 0, tokens: int = 0, book: bool = False
) -> Diagram:
    """Return the diagram of a GPT-2 of this shape.

    Args:
        config: the shape.
        name: the model's name.
        lang: the language of the words, `en` or `zh`.
        batch, tokens: numbers for the shapes; 0 for the letters B and T.
        book: whether to say that this is the book's variant.

    Raises:
        InputError: if the language is unknown, or a number is out of range.
    """
    if lang not in LANGUAGES:
        raise InputError(f"{lang!r} is not a language of the diagram; choose one of {', '.join(LANGUAGES)}.")
    if batch < 0:
        raise InputError(f"the batch is {batch}; give at least 1 sequence.")
    if not 0 <= tokens <= config.context_length:
        raise InputError(
            f"the diagram was requested for {tokens:,} tokens, but this model has {config.context_length:,} positions; "
            f"give 1 to {config.context_length:,}."
        )
    title = LANGUAGES[lang]["book"].format(name=name) if book else name
    return _DiagramBuilder(config, title, lang, batch, tokens).diagram()


class _DiagramBuilder:
    """Fills boxes and arrows with the words and the numbers of one model."""

    def __init__(self, config: GPTConfig, name: str, lang: str, batch: int, tokens: int) -> None:
        self.config, self.name, self.lang = config, name, lang
        self.words = LANGUAGES[lang]
        self.parameters: ParameterTree = count_parameters(config)
        self.parts: dict[str, ModelPart] = {part.name: part for _, part in self.parameters.rows()}
        self.B, self.T = str(batch or "B"), str(tokens or "T")

    def diagram(self) -> Diagram:
        config, words = self.config, self.words
        facts = {
            "blocks": self._many("block", config.n_layers),
            "heads": self._many("head", config.n_heads),
            "width": f"{config.head_dim:,}",
            "emb": f"{config.emb_dim:,}",
            "context": f"{config.context_length:,}",
            "vocab": f"{config.vocab_size:,}",
            "total": f"{self.parameters.total:,}",
            "name": self.name,
        }
        return Diagram(
            name=self.name,
            lang=self.lang,
            total=self.parameters.total,
            facts=(words["parameters"].format(n=facts["total"]), words["shape"].format(**facts)),
            about=words["about"].format(**facts),
            panels=(self._model(), self._attention(facts), self._feed_forward()),
            shares=self._shares(),
            legend=(words["letter B"], words["letter T"].format(**facts), words["plain boxes"]),
        )

    # Panels -----------------------------------------------------------------------------------------------------

    def _model(self) -> Panel:
        n = self.config.n_layers
        block = self.parts["block"].count
        in_block = {"span": 2, "times": n}
        tied = self.config.tie_weights
        head = self._part("head", "head", 13, span=2)
        boxes = (
            Box("ids", "value", self.words["ids"], 0, 0),
            Box("positions", "value", self.words["positions"], 0, 1),
            self._part("token", "embedding", 1, 0, lines=2),
            self._part("position", "embedding", 1, 1, lines=2),
            Box("add", "sum", "", 2, span=2),
            self._dropout("dropout", 3),
            self._part("norm_1", "norm", 4, **in_block),
            self._part("attention", "attention", 5, **in_block),
            self._dropout("drop_1", 6),
            Box("add_1", "sum", "", 7, span=2),
            self._part("norm_2", "norm", 8, **in_block),
            self._part("feed_forward", "feed_forward", 9, **in_block),
            self._dropout("drop_2", 10),
            Box("add_2", "sum", "", 11, span=2),
            self._part("final_norm", "norm", 12, span=2),
            Box("head", "embedding", head.name, 13, span=2, detail=(self.words["tied"],)) if tied else head,
            Box("logits", "value", self.words["logits"], 14, span=2),
        )
        x = self._shape("C")
        arrows = [
            Arrow("ids", "token", self._shape()),
            Arrow("positions", "position", f"[{self.T}]"),
            Arrow("token", "add", x, "side"),
            Arrow("position", "add", f"[{self.T}, {self.config.emb_dim}]", "side"),
            *self._chain(x, "add", "dropout", "norm_1", "attention", "drop_1", "add_1"),
            *self._chain(x, "add_1", "norm_2", "feed_forward", "drop_2", "add_2", "final_norm", "head"),
            Arrow("dropout", "add_1", x, "shortcut"),
            Arrow("add_1", "add_2", x, "shortcut"),
            Arrow("head", "logits", self._shape("V")),
        ]
        if tied:
            arrows.append(Arrow("head", "token", self.words["tie"], "tie"))
        title = self.words["block"].format(n=n)
        frame = Frame(4, 11, title, f"{n:,} × {block:,} = {n * block:,}")
        return Panel("model", "", "", boxes, tuple(arrows), 2, frame)

    def _attention(self, facts: dict[str, str]) -> Panel:
        words, config = self.words, self.config
        x, heads = self._shape("C"), f"[{self.B}, {config.n_heads}, {self.T}, {config.head_dim}]"
        scores = f"[{self.B}, {config.n_heads}, {self.T}, {self.T}]"
        thirds = ("W_query", "W_key", "W_value")
        n = config.n_layers
        boxes = (
            Box("attention.in", "value", words["from norm_1"], 0, span=3),
            *(self._part(key, "attention", 1, i, lines=2, times=n) for i, key in enumerate(thirds)),
            Box("split", "step", words["split"], 2, span=3),
            self._step("scores", 3, "scores detail", span=2, width=facts["width"]),
            self._step("mask", 4, "mask detail", span=2),
            self._step("softmax", 5, "softmax detail", span=2),
            self._dropout("drop_weights", 6),
            self._step("mix", 7, "mix detail", span=3),
            Box("join", "step", words["join"], 8, span=3),
            self._part("out", "attention", 9, span=3, times=n),
            Box("attention.out", "value", words["to shortcut"], 10, span=3),
        )
        arrows = (
            *(Arrow("attention.in", key, x, column=i) for i, key in enumerate(thirds)),
            *(Arrow(key, "split", x, column=i) for i, key in enumerate(thirds)),
            *(Arrow("split", "scores", heads, column=i) for i in range(2)),
            *self._chain(scores, "scores", "mask", "softmax", "drop_weights", "mix"),
            Arrow("split", "mix", heads, column=2),
            Arrow("mix", "join", heads),
            *self._chain(x, "join", "out", "attention.out"),
        )
        return Panel("attention", words["attention title"], words["attention note"].format(**facts), boxes, arrows, 3)

    def _feed_forward(self) -> Panel:
        words, config = self.words, self.config
        wide, n = self._shape("F"), config.n_layers
        boxes = (
            Box("feed_forward.in", "value", words["from norm_2"], 0),
            self._part("up", "feed_forward", 1, times=n),
            self._activation(),
            self._part("down", "feed_forward", 3, times=n),
            Box("feed_forward.out", "value", words["to shortcut"], 4),
        )
        arrows = (
            Arrow("feed_forward.in", "up", self._shape("C")),
            *self._chain(wide, "up", "gelu", "down"),
            Arrow("down", "feed_forward.out", self._shape("C")),
        )
        return Panel("feed_forward", words["feed_forward title"], words["feed_forward note"], boxes, arrows)

    def _shares(self) -> tuple[ParameterShare, ...]:
        n, parts = self.config.n_layers, self.parts
        counts: dict[Kind, int] = {
            "embedding": parts["embedding"].count,
            "attention": n * parts["attention"].count,
            "feed_forward": n * parts["feed_forward"].count,
            "norm": n * 2 * parts["norm_1"].count + parts["final_norm"].count,
            "head": parts["head"].count,
        }
        names = {kind: self.words[f"share of {kind}"] for kind in counts}
        if self.config.tie_weights:
            names["embedding"] = self.words["share of embedding, tied"]
        return tuple(ParameterShare(kind, names[kind], count) for kind, count in counts.items() if count)

    # Pieces -----------------------------------------------------------------------------------------------------

    def _part(
        self, key: str, kind: Kind, row: int, column: int = 0, span: int = 1, lines: int = 1, times: int = 1
    ) -> Box:
        """Return a box with parameters, with the formula of their number on one line or two."""
        part = self.parts[key]
        formula, total = part.numbers, f"= {part.count:,}"
        detail = (formula, total) if lines == 2 else (f"{formula} {total}",)
        return Box(key, kind, self.words[key], row, column, span, detail, part.count, times)

    def _step(self, key: str, row: int, detail: str, span: int = 1, **numbers: str) -> Box:
        words = (self.words[detail].format(**numbers),)
        return Box(key, "step", self.words[key], row, span=span, detail=words, picture=key in ("mask", "gelu"))

    def _activation(self) -> Box:
        if self.config.activation == "relu":
            return Box("gelu", "step", "ReLU", 2, detail=(self.words["relu"],))
        return self._step("gelu", 2, self.config.activation)

    def _dropout(self, key: str, row: int) -> Box:
        rate = self.config.drop_rate
        detail = self.words["rate"].format(rate=f"{rate:g}") if rate else self.words["rate 0"]
        return Box(key, "step", self.words["dropout"], row, span=2, detail=(detail,))

    def _chain(self, label: str, *keys: str) -> list[Arrow]:
        return [Arrow(start, end, label) for start, end in pairwise(keys)]

    def _shape(self, width: str = "") -> str:
        """Return the shape of a batch of tokens, or of vectors of a width: `[B, T, 768]`."""
        widths = {"C": self.config.emb_dim, "F": self.config.ff_dim, "V": self.config.vocab_size}
        return f"[{self.B}, {self.T}{f', {widths[width]}' if width else ''}]"

    def _many(self, what: str, n: int) -> str:
        return self.words[f"one {what}"] if n == 1 else self.words[f"{what}s"].format(n=f"{n:,}")
