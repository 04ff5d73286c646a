"""A walk as text: what `clearhead walk` prints in the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CELL = 7  # characters of a number in a table
_LABEL = 10  # characters of a token at the start of its row
_MOST_TOKENS = 16


class WalkPrinter:
    """Print a walk for one block and one head, as wide as the terminal is.

    Args:
        walk: the result of `lens.walk.walk`, with `name`, `prompt`, `block` and `head`.
        language: the language of the explanations.
        console: the console to print to.
    """

    def __init__(self, walk: Mapping[str, Any], language: str, console: Console) -> None:
        from clearhead.lens.words import words

        self.walk, self.console = walk, console
        self.words = words(language)
        self.width = min(console.width, 120)
        count = len(walk["tokens"])
        fit = max(2, min(_MOST_TOKENS, (self.width - _LABEL - 2) // _CELL))
        self.shown = range(max(0, count - fit), count)  # of the tokens that the walk has
        self.last = count - 1
        self.block = walk["blocks"][walk["block"]]

    def print(self) -> None:
        """Print all steps, one below another."""
        self.console.print(self.words["title"], style="bold")
        self.say("model", name=self.walk["name"] or self.words["bundled"])
        first = self.walk["first_shown"] + self.shown.start
        if first:
            self.say("cut", prompt_tokens=self.walk["prompt_tokens"], shown=len(self.shown), first=first)
        steps = (self.tokens, self.embedding, self.norm, self.attention, self.gelu, self.residual, self.lens, self.next)
        names = ("tokens", "embedding", "norm", "attention", "gelu", "residual", "lens", "next")
        for number, (name, step) in enumerate(zip(names, steps, strict=True), start=1):
            self.console.print()
            self.console.print(f"{number}  {self.words[name]}", style="bold")
            self.say(f"{name}.text")
            self.console.print()
            step()

    # The steps.

    def tokens(self) -> None:
        self.line([self.words["position"], self.words["id"], "  " + self.words["piece"]], [6, 8, -20], "dim")
        for t in self.shown:
            token = self.walk["tokens"][t]
            self.line([self.walk["first_shown"] + t, token["id"], "  " + self.name(t)], [6, 8, -20])

    def embedding(self) -> None:
        for t in self.shown:
            for part in ("token", "position", "sum"):
                label = self.label(t) if part == "token" else ""
                numbers = self.numbers(self.walk["embedding"][part][t])
                self.line([label, self.words[f"embedding.{part}"], numbers], [_LABEL, -9, -60], "" if label else "dim")

    def norm(self) -> None:
        for name in ("norm_1", "norm_2"):
            norm = self.block[name]
            self.console.print(f"{self.format('at.block', block=self.walk['block'])} · {name}", style="underline")
            stages = ("before", "normed", "after")
            self.line(["", *(self.words[f"norm.{stage}"] for stage in stages)], [_LABEL, 20, 20, 20], "dim")
            self.line(
                ["", *(self.words[what] for _ in stages for what in ("mean", "variance"))], [_LABEL] + 6 * [10], "dim"
            )
            for t in self.shown:
                cells = [f"{norm[stage][what][t]:.4f}" for stage in stages for what in ("mean", "variance")]
                self.line([self.label(t), *cells], [_LABEL] + 6 * [10])

    def attention(self) -> None:
        head = self.walk["head"]
        config = self.walk["config"]
        self.console.print(self.format("at", block=self.walk["block"], head=head), style="underline")
        self.say("attention.scores", head_dim=config["emb_dim"] // config["n_heads"])
        self.matrix(lambda t, s: f"{self.block['scores'][head][t][s]:.2f}")
        self.console.print()
        self.say("attention.weights")
        weights = self.block["pattern"][head]
        self.matrix(lambda t, s: f"{weights[t][s]:.2f}" if s <= t else "·")
        earlier = 1 - sum(weights[self.last][self.shown.start :])
        if self.walk["first_shown"] + self.shown.start:
            self.say("earlier", share=f"{max(0.0, earlier):.1%}")
        self.console.print()
        self.say("attention.mixed", token=self.name(self.last))
        for s in self.shown:
            value = self.numbers(self.block["values"][head][s])
            self.line([self.label(s), f"{weights[self.last][s]:.2f} ×", value], [_LABEL, 9, -60])
        total = self.numbers(self.block["mixed"][head][self.last])
        self.line([self.words["sum"], "=", total], [_LABEL, 9, -60], "bold")

    def gelu(self) -> None:
        gelu = self.block["gelu"]
        self.console.print(self.format("at.block", block=self.walk["block"]), style="underline")
        self.say("gelu.share", **{name: f"{gelu[name]:.1%}" for name in ("below_zero", "nearly_zero")})
        self.line(
            [self.name(self.last), self.words["before"], self.numbers(gelu["before"][self.last])], [_LABEL, -8, -60]
        )
        self.line(["", self.words["after"], self.numbers(gelu["after"][self.last])], [_LABEL, -8, -60])

    def residual(self) -> None:
        sizes = [size[self.last] for size in self.walk["residual_size"]]
        scale = max(1, self.width - 62) / (max(sizes) or 1)
        heads = ["", self.words["size"], self.words["attention_adds"], self.words["feed_forward_adds"]]
        self.console.print(self.name(self.last), style="underline")
        self.line(heads, [-12, 8, 16, 19], "dim")
        for depth, size in enumerate(sizes):
            block = self.walk["blocks"][depth - 1] if depth else None
            adds = [
                f"{block[f'{part}_size'][self.last]:.2f}" if block else "" for part in ("attention", "feed_forward")
            ]
            self.line(
                [self.depth(depth), f"{size:.2f}", *adds, "  " + "█" * round(size * scale)],
                [-12, 8, 16, 19, -(self.width - 60)],
            )

    def lens(self) -> None:
        self.console.print(self.name(self.last), style="underline")
        for depth, rows in enumerate(self.walk["lens"]):
            cells = [f"{share:6.1%} {self.piece(id)}" for id, share in rows[self.last]]
            fit = max(1, min(len(cells), (self.width - 12) // 18))
            self.line([self.depth(depth), *cells[:fit]], [-12] + [-17] * fit)

    def next(self) -> None:
        choice = self.walk["next"]
        heads = [
            self.words["piece"],
            self.words["logit"],
            self.words["softmax"],
            self.format("temperature", temperature=f"{choice['temperature']:g}"),
            self.format("top_k", top_k=choice["top_k"]),
        ]
        widths = [-16, 8, 10, 17, 10, -14]
        self.line(heads, widths[:-1], "dim")
        drawn = [id for id, _ in choice["top"]].index(choice["chosen"]) if self.is_listed(choice) else -1
        for index in sorted({*range(min(12, len(choice["top"]))), *([drawn] if drawn >= 0 else [])}):
            id, logit = choice["top"][index]
            shares = [f"{choice[name][index]:.1%}" for name in ("plain", "tempered", "kept")]
            mark = "  " + self.words["drawn"] if index == drawn else ""
            self.line([self.piece(id), f"{logit:.2f}", *shares, mark], widths, "bold" if mark else "")
        self.say("next.seed", seed=choice["seed"], token=self.piece(choice["chosen"]))

    # How it is written.

    @staticmethod
    def is_listed(choice: Mapping[str, Any]) -> bool:
        return choice["chosen"] in (id for id, _ in choice["top"])

    def format(self, key: str, **values: Any) -> str:
        return self.words[key].format(**{**self.walk["config"], **values})

    def say(self, key: str, **values: Any) -> None:
        """Print a sentence, wrapped at the width."""
        for line in _wrapped(self.format(key, **values), self.width):
            self.console.print(line, style="dim", soft_wrap=True)

    def line(self, cells: Sequence[Any], widths: Sequence[int], style: str = "") -> None:
        """Print cells of these widths, right-aligned, or left-aligned if the width is negative."""
        text = " ".join(_fit(str(cell), width) for cell, width in zip(cells, widths, strict=True))
        self.console.print(text.rstrip(), style=style, no_wrap=True, overflow="crop", crop=True)

    def matrix(self, cell: Callable[[int, int], str]) -> None:
        """Print a number for each pair of shown tokens: queries are the rows, keys the columns."""
        widths = [_LABEL] + [_CELL - 1] * len(self.shown)
        self.line(["", *(self.label(s) for s in self.shown)], widths, "dim")
        for t in self.shown:
            self.line([self.label(t), *(cell(t, s) for s in self.shown)], widths)

    def numbers(self, numbers: Sequence[float]) -> str:
        fit = max(2, min(len(numbers), (self.width - _LABEL - 16) // 8))
        return " ".join(f"{round(number, 3) + 0.0:7.3f}" for number in numbers[:fit]) + " …"  # + 0.0: no -0.000

    def depth(self, depth: int) -> str:
        return self.format("depth.block", block=depth - 1) if depth else self.words["depth.embedding"]

    def name(self, t: int) -> str:
        return repr(self.walk["tokens"][t]["text"])

    def piece(self, id: int) -> str:
        return repr(self.walk["pieces"][id])

    def label(self, t: int) -> str:
        """Return a token's text for the start of a row: without spaces, unless it has nothing else."""
        text: str = self.walk["tokens"][t]["text"]
        return text.strip() or repr(text)


# A unit that is never split: a word, or a Chinese character, with the Chinese punctuation that follows it.
_UNIT = re.compile(r"\s+|（?(?:[⺀-鿿]|[^\s⺀-鿿（），。；：、]+)[），。；：、]*|.")


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Wrap text at a width in cells. Chinese may break after any character, which rich does not do."""
    from rich.cells import cell_len

    line = ""
    for unit in _UNIT.findall(text):
        if cell_len(line + unit.rstrip()) > width:
            yield line.rstrip()
            line = ""
        line += unit if line else unit.lstrip()
    yield line.rstrip()


def _fit(text: str, width: int) -> str:
    """Cut a text, or pad it with spaces, to a width in cells (a Chinese character takes two)."""
    from rich.cells import cell_len, set_cell_size

    size = abs(width)
    if cell_len(text) > size:
        return set_cell_size(text, size - 1) + "…"
    space = " " * (size - cell_len(text))
    return text + space if width < 0 else space + text
