"""An architecture as boxes and arrows, for the same drawings as GPT-2's own diagram."""

from __future__ import annotations

from itertools import pairwise

from clearhead.anatomy.architecture.description import Architecture, ArchitectureTensor
from clearhead.anatomy.architecture.differences import activation_name
from clearhead.anatomy.architecture.families import FAMILIES
from clearhead.anatomy.architecture.words import CHART
from clearhead.anatomy.diagram.diagram import Arrow, Box, Diagram, Frame, Kind, Panel, ParameterShare
from clearhead.errors import InputError

KINDS: dict[str, Kind] = {
    "token_embedding": "embedding", "position_embedding": "embedding", "project_in": "embedding",
    "embedding_norm": "norm", "attention_norm": "norm", "post_attention_norm": "norm", "feed_forward_norm": "norm",
    "post_feed_forward_norm": "norm", "query_norm": "norm", "key_norm": "norm", "final_norm": "norm",
    "query": "attention", "key": "attention", "value": "attention", "qkv": "attention", "sinks": "attention",
    "attention_out": "attention", "router": "feed_forward", "gate_up": "feed_forward", "gate": "feed_forward",
    "up": "feed_forward", "down": "feed_forward", "project_out": "head", "head": "head", "other": "step",
}  # fmt: skip
"""The kind, and with it the colour, of every component's box."""

_ATTENTION = ("query", "key", "value", "qkv", "query_norm", "key_norm", "sinks", "attention_out")
_FEED_FORWARD = ("router", "gate_up", "gate", "up", "down")


def architecture_diagram(architecture: Architecture, lang: str = "en") -> Diagram:
    """Return the chart of an architecture: the whole model, its attention and its feed-forward layer.

    Every tensor's parameters are in exactly one box, but for tensors that were not recognized; the facts below the
    title name those.

    Raises:
        InputError: if there is no such language.
    """
    if lang not in CHART:
        raise InputError(f"there is no language {lang!r} for the chart; the languages are {', '.join(CHART)}.")
    return _ChartBuilder(architecture, lang).diagram()


class _ChartBuilder:
    """Collects the boxes and arrows of one chart, row by row from the bottom."""

    def __init__(self, architecture: Architecture, lang: str) -> None:
        self.a, self.lang, self.words = architecture, lang, CHART[lang]
        self.roles = architecture.by_role()

    def diagram(self) -> Diagram:
        a, words = self.a, self.words
        facts = [words["parameters"].format(n=f"{a.total:,}"), self._shape_words(), *a.notes]
        if other := a.other():
            names = ", ".join(tensor.name for tensor in other[:3]) + (", …" if len(other) > 3 else "")
            count = f"{sum(tensor.count for tensor in other):,}"
            facts.append(words["other"].format(n=f"{len(other):,}", count=count, names=names))
        return Diagram(
            name=a.name,
            lang=self.lang,
            total=a.total,
            facts=tuple(facts),
            about=words["about"].format(name=a.name, layers=a.n_layers, total=f"{a.total:,}"),
            panels=(self._model(), self._attention(), self._feed_forward()),
            shares=self._shares(),
            legend=(words["letter B"], words["letter T"], words["plain boxes"]),
        )

    def _shape_words(self) -> str:
        a = self.a
        numbers = {"layers": f"{a.n_layers:,}", "emb": f"{a.emb_dim:,}", "vocab": f"{a.vocab_size:,}"}
        family = FAMILIES[a.family].title if a.family in FAMILIES else a.family
        return self.words["shape"].format(family=family, **numbers)

    # The whole model ----------------------------------------------------------------------------------------------

    def _model(self) -> Panel:
        a, words = self.a, self.words
        boxes, arrows = self._embedding()
        row = max(box.row for box in boxes)
        previous = boxes[-1].key
        start = row + 1
        for key, name, role in self._half_steps(previous):
            row += 1
            boxes += self._block_row(key, name, role, row)
        arrows += self._block_arrows(previous)
        end = row
        chain = ["add_1" if a.parallel else "add_2"]
        if a.norm_after_sum:
            chain = ["feed_forward_norm"]
        if a.final_norm:
            chain.append("final_norm")
        if a.projected:
            chain.append("project_out")
        chain.append("head")
        for key in chain[1:]:
            row += 1
            boxes.append(self._head(row) if key == "head" else self._box(key, row, span=2))
        if a.logit_softcap:
            row += 1
            boxes.append(Box("logit_softcap", "step", words["softcap"].format(cap=a.logit_softcap), row, span=2))
            chain.append("logit_softcap")
        boxes.append(Box("logits", "value", words["logits"], row + 1, span=2))
        arrows += self._chain(self._shape(a.emb_dim), *chain)
        arrows.append(Arrow(chain[-1], "logits", self._shape(a.vocab_size)))
        if a.tied:
            arrows.append(Arrow("head", "token_embedding", words["tie"], "tie"))
        per_block = self._count(*(role for role in self.roles if self.roles[role][0].layer is not None))
        note = (
            f"{self._layer_total():,}"
            if per_block * a.n_layers != self._layer_total()
            else (f"{a.n_layers:,} × {per_block:,} = {a.n_layers * per_block:,}")
        )
        frame = Frame(start, end, words["block"].format(n=a.n_layers), note)
        return Panel("model", "", "", tuple(boxes), tuple(arrows), 2, frame)

    def _embedding(self) -> tuple[list[Box], list[Arrow]]:
        a, words = self.a, self.words
        ids, inner = f"[{self.B}, {self.T}]", self._shape(a.projected or a.emb_dim)
        learned = a.positions == "learned"
        span = 1 if learned and not a.projected else 2
        boxes = [Box("ids", "value", words["ids"], 0, span=span)]
        arrows = [Arrow("ids", "token_embedding", ids)]
        row, last = 1, "token_embedding"
        boxes.append(self._box("token_embedding", 1, span=span))
        if learned and span == 1:
            boxes.insert(1, Box("positions", "value", words["positions"], 0, 1))
            boxes.append(self._box("position_embedding", 1, column=1))
            boxes.append(Box("add", "sum", "", 2, span=2))
            arrows += [
                Arrow("positions", "position_embedding", f"[{self.T}]"),
                Arrow("token_embedding", "add", inner, "side"),
                Arrow("position_embedding", "add", f"[{self.T}, {a.emb_dim}]", "side"),
            ]
            row, last = 2, "add"
        steps: list[Box] = []
        if a.projected:
            steps.append(self._box("project_in", 0, span=2))
        if learned and span == 2:
            steps.append(self._box("position_embedding", 0, span=2))
        if a.embedding_scale:
            steps.append(Box("scale", "step", words["scale"].format(width=f"{a.emb_dim:,}"), 0, span=2))
        if a.embedding_norm:
            steps.append(self._box("embedding_norm", 0, span=2))
        for box in steps:
            row += 1
            boxes.append(_at(box, row))
            arrows.append(Arrow(last, box.key, inner if last == "token_embedding" else self._shape(a.emb_dim)))
            last = box.key
        return boxes, arrows

    def _half_steps(self, previous: str) -> list[tuple[str, str, str]]:
        """Return the rows of a block from the bottom: key, words, and role or kind."""
        a = self.a
        if a.parallel:
            norms = [("attention_norm", "", "norm")] if a.shared_norm else [("both_norms", "", "norms")]
            return [("input", "", "input"), *norms, ("both", "", "both"), ("add_1", "", "sum")]
        steps = []
        for half, add in (("attention", "add_1"), ("feed_forward", "add_2")):
            if a.pre_norm:
                steps.append((f"{half}_norm", "", "norm"))
            steps.append((half, "", "half"))
            if a.post_norm and not a.norm_after_sum:
                steps.append((f"post_{half}_norm", "", "norm"))
            steps.append((add, "", "sum"))
            if a.norm_after_sum:
                steps.append((f"{half}_norm", "", "norm"))
        return steps

    def _block_row(self, key: str, name: str, role: str, row: int) -> list[Box]:
        n = self.a.n_layers
        if role == "sum":
            return [Box(key, "sum", "", row, span=2)]
        if role == "input":
            return [Box(key, "value", self.words["input"], row, span=2)]
        if role == "half":
            return [self._half(key, row, span=2)]
        if role == "norms":
            return [
                self._box("attention_norm", row, column=0, times=n),
                self._box("feed_forward_norm", row, column=1, times=n),
            ]
        if role == "both":
            return [self._half("attention", row, column=0), self._half("feed_forward", row, column=1)]
        return [self._box(key, row, span=2, times=n)]

    def _block_arrows(self, previous: str) -> list[Arrow]:
        a, x = self.a, self._shape(self.a.emb_dim)
        if a.parallel:
            norms = ("attention_norm", "attention_norm") if a.shared_norm else ("attention_norm", "feed_forward_norm")
            into = (
                [Arrow("input", norms[0], x)]
                if a.shared_norm
                else [Arrow("input", norm, x, column=i) for i, norm in enumerate(norms)]
            )
            return [
                Arrow(previous, "input", x),
                *into,
                Arrow(norms[0], "attention", x, column=0),
                Arrow(norms[1], "feed_forward", x, column=1),
                Arrow("attention", "add_1", x, "side"),
                Arrow("feed_forward", "add_1", x, "side"),
                Arrow(previous, "add_1", x, "shortcut"),
            ]
        keys = [previous, *(key for key, _, _ in self._half_steps(previous))]
        arrows = self._chain(x, *keys)
        second = keys[keys.index("feed_forward") - (2 if a.pre_norm else 1)]
        return [*arrows, Arrow(previous, "add_1", x, "shortcut"), Arrow(second, "add_2", x, "shortcut")]

    def _head(self, row: int) -> Box:
        if self.a.tied:
            return Box("head", "embedding", self.words["head"], row, span=2, detail=(self.words["tied"],))
        return self._box("head", row, span=2)

    # The two halves, opened ---------------------------------------------------------------------------------------

    def _attention(self) -> Panel:
        a, t, words = self.a, self.a.attention, self.words
        x = self._shape(a.emb_dim)
        queries, keys = self._heads(t.n_heads), self._heads(t.n_kv_heads)
        n = a.n_layers
        boxes = [Box("attention.in", "value", words["in"], 0, span=3)]
        arrows: list[Arrow] = []
        if t.fused:
            boxes.append(self._box("qkv", 1, span=3, times=n))
            arrows += self._chain(x, "attention.in", "qkv")
            arrows.append(Arrow("qkv", "split", self._shape(self._width("qkv"))))
        else:
            names = ("query", "key", "value")
            boxes += [self._box(key, 1, column=i, times=n) for i, key in enumerate(names)]
            arrows += [Arrow("attention.in", key, x, column=i) for i, key in enumerate(names)]
            arrows += [Arrow(key, "split", self._shape(self._width(key)), column=i) for i, key in enumerate(names)]
        boxes.append(Box("split", "step", words["split"], 2, span=3))
        row, below = 2, ["split", "split"]
        if t.qk_norm:
            row += 1
            boxes += [self._box(key, row, column=i, times=n) for i, key in enumerate(("query_norm", "key_norm"))]
            arrows += [Arrow("split", "query_norm", queries, column=0), Arrow("split", "key_norm", keys, column=1)]
            below = ["query_norm", "key_norm"]
        if a.positions == "rotary":
            row += 1
            boxes.append(Box("rope", "step", words["rope"], row, span=2, detail=(self._rope(),)))
            arrows += [Arrow(below[0], "rope", queries, column=0), Arrow(below[1], "rope", keys, column=1)]
            below = ["rope", "rope"]
        scores, row = self._scores(row)
        boxes += scores
        arrows += [Arrow(below[0], "scores", queries, column=0), Arrow(below[1], "scores", keys, column=1)]
        square = f"[{self.B}, {t.n_heads or 'H'}, {self.T}, {self.T}]"
        arrows += self._chain(square, *(box.key for box in scores), "mix")
        boxes += [
            Box("mix", "step", words["mix"], row + 1, span=3, detail=(words["mix detail"],)),
            Box("join", "step", words["join"], row + 2, span=3),
            self._box("attention_out", row + 3, span=3, times=n),
            Box("attention.out", "value", words["out"], row + 4, span=3),
        ]
        arrows += [Arrow("split", "mix", keys, column=2), Arrow("mix", "join", queries)]
        arrows += [Arrow("join", "attention_out", self._joined()), Arrow("attention_out", "attention.out", x)]
        return Panel("attention", words["attention title"], self._heads_note(), tuple(boxes), tuple(arrows), 3)

    def _scores(self, row: int) -> tuple[list[Box], int]:
        """Return the steps from scores to weights, and the row of the last one."""
        t, words = self.a.attention, self.words
        detail = [words["scores detail"].format(width=t.head_dim or "D")]
        if t.n_heads and t.n_kv_heads and t.n_heads != t.n_kv_heads:
            detail.append(words["grouped"].format(n=f"{t.n_heads / t.n_kv_heads:g}"))
        if self.a.positions == "alibi":
            detail.append(words["alibi"])
        boxes = [Box("scores", "step", words["scores"], row + 1, span=2, detail=tuple(detail))]
        row += 1
        if t.softcap:
            row += 1
            boxes.append(Box("attention_softcap", "step", words["softcap"].format(cap=t.softcap), row, span=2))
        mask = [words["mask detail"]]
        if t.window:
            mask.append(words["window"].format(n=t.windowed_layers, layers=self.a.n_layers, window=t.window))
        boxes.append(Box("mask", "step", words["mask"], row + 1, span=2, detail=tuple(mask)))
        if t.sinks:
            sinks = self._box("sinks", row + 2, span=2, times=self.a.n_layers)
            detail_lines = (words["softmax detail"], words["sinks detail"], *sinks.detail)
            boxes.append(
                Box("sinks", "attention", words["softmax"], row + 2, 0, 2, detail_lines, sinks.parameters, sinks.times)
            )
        else:
            boxes.append(Box("softmax", "step", words["softmax"], row + 2, span=2, detail=(words["softmax detail"],)))
        return boxes, row + 2

    def _feed_forward(self) -> Panel:
        a, f, words, n = self.a, self.a.feed_forward, self.words, self.a.n_layers
        x, wide = self._shape(a.emb_dim), self._shape(f.width)
        columns = 2 if f.gated else 1
        boxes = [Box("feed_forward.in", "value", words["in"], 0, span=columns)]
        arrows: list[Arrow] = []
        row, last = 0, "feed_forward.in"
        if f.n_experts:
            row += 1
            picks = words["router detail"].format(active=f.n_active, n=f.n_experts)
            router = self._box("router", row, span=columns, times=n)
            boxes.append(_with_detail(router, picks))
            arrows.append(Arrow(last, "router", x))
            last = "router"
        half = (words["gate half"],) if f.gated and self._fused_gate() else ()
        activation = Box("activation", "step", activation_name(f.activation), row + 2, detail=half)
        if not f.gated:
            boxes += [self._box("up", row + 1, times=n), activation]
            arrows += [Arrow(last, "up", x), *self._chain(wide, "up", "activation", "down")]
            row += 2
        else:
            boxes += self._gate_boxes(row + 1)
            boxes += [
                activation,
                Box("product", "step", words["product"], row + 3, span=2, detail=(words["product detail"],)),
            ]
            arrows += self._gate_arrows(last, x, wide)
            row += 3
        boxes.append(self._box("down", row + 1, span=columns, times=n))
        row, last = row + 1, "down"
        if f.n_experts:
            row += 1
            boxes.append(Box("combine", "step", words["combine"], row, span=columns))
            arrows.append(Arrow("down", "combine", x))
            last = "combine"
        boxes.append(Box("feed_forward.out", "value", words["out"], row + 1, span=columns))
        arrows.append(Arrow(last, "feed_forward.out", x))
        note = (
            words["experts note"].format(active=f.n_active, n=f.n_experts)
            if f.n_experts
            else words["feed_forward note"]
        )
        return Panel("feed_forward", words["feed_forward title"], note, tuple(boxes), tuple(arrows), columns)

    def _gate_boxes(self, row: int) -> list[Box]:
        n = self.a.n_layers
        if self._fused_gate():
            return [self._box("gate_up", row, span=2, times=n)]
        return [self._box("gate", row, column=0, times=n), self._box("up", row, column=1, times=n)]

    def _gate_arrows(self, last: str, x: str, wide: str) -> list[Arrow]:
        after = [Arrow("activation", "product", wide, column=0), Arrow("product", "down", wide)]
        if self._fused_gate():
            return [
                Arrow(last, "gate_up", x),
                Arrow("gate_up", "activation", wide, column=0),
                Arrow("gate_up", "product", "", column=1),
                *after,
            ]
        return [
            Arrow(last, "gate", x, column=0),
            Arrow(last, "up", x, column=1),
            Arrow("gate", "activation", wide, column=0),
            Arrow("up", "product", wide, column=1),
            *after,
        ]

    # Pieces -------------------------------------------------------------------------------------------------------

    B, T = "B", "T"

    def _fused_gate(self) -> bool:
        return "gate_up" in self.roles

    def _box(self, role: str, row: int, column: int = 0, span: int = 1, times: int = 1) -> Box:
        """Return the box of one component, with its matrix's shape and its parameters."""
        tensors = self.roles.get(role, ())
        first = [tensor for tensor in tensors if tensor.layer == tensors[0].layer]
        name = self.words["shared_norm" if role == "attention_norm" and self.a.shared_norm else role]
        layers = len({tensor.layer for tensor in tensors}) or times
        count = sum(tensor.count for tensor in first)
        formula = _formula(first)
        if formula == f"{count:,}":
            detail: tuple[str, ...] = (formula,)
        else:
            detail = (formula, f"= {count:,}") if span == 1 else (f"{formula} = {count:,}",)
        times = layers if first and first[0].layer is not None else times
        return Box(role, KINDS[role], name.format(norm=self._norm()), row, column, span, detail, count, times)

    def _half(self, key: str, row: int, column: int = 0, span: int = 1) -> Box:
        """Return the closed box of attention or feed-forward layer."""
        f = self.a.feed_forward
        attention = key == "attention"
        count = self._count(*(_ATTENTION if attention else _FEED_FORWARD))
        name = self.words[key]
        if not attention and f.n_experts:
            name = self.words["experts"].format(active=f.n_active, n=f.n_experts)
        return Box(
            key,
            "attention" if attention else "feed_forward",
            name,
            row,
            column,
            span,
            (self.words["parameters"].format(n=f"{count:,}"),),
            0,
        )

    def _count(self, *roles: str) -> int:
        return self.a.in_block(*roles)

    def _layer_total(self) -> int:
        return sum(tensor.count for tensor in self.a.tensors if tensor.layer is not None)

    def _norm(self) -> str:
        return "LayerNorm" if self.a.norm == "LayerNorm" else "RMSNorm"

    def _rope(self) -> str:
        a = self.a
        key = "rope share" if a.rope_share < 1 else "rope detail"
        return self.words[key].format(theta=a.rope_theta or 10_000.0, share=a.rope_share)

    def _heads_note(self) -> str:
        t = self.a.attention
        if t.n_heads is None:
            return self.words["attention note, unknown"]
        return self.words["attention note"].format(heads=t.n_heads, kv=t.n_kv_heads, width=t.head_dim)

    def _heads(self, n: int | None) -> str:
        return f"[{self.B}, {n or 'H'}, {self.T}, {self.a.attention.head_dim or 'D'}]"

    def _joined(self) -> str:
        t = self.a.attention
        return self._shape(t.n_heads * t.head_dim) if t.n_heads and t.head_dim else f"[{self.B}, {self.T}, H·D]"

    def _width(self, role: str) -> int:
        """Return how many numbers a projection makes for a token."""
        shape = self.roles[role][0].shape
        return max(shape) if self.a.family == "gpt2" else shape[0]

    def _shape(self, width: int) -> str:
        return f"[{self.B}, {self.T}, {width}]"

    def _chain(self, label: str, *keys: str) -> list[Arrow]:
        return [Arrow(start, end, label) for start, end in pairwise(keys)]

    def _shares(self) -> tuple[ParameterShare, ...]:
        counts: dict[Kind, int] = {}
        for tensor in self.a.tensors:
            kind = KINDS[tensor.role]
            counts[kind] = counts.get(kind, 0) + tensor.count
        names: dict[Kind, str] = {kind: self.words.get(f"share of {kind}", "") for kind in counts}
        names["step"] = self.words["share of other"]
        if self.a.tied:
            names["embedding"] = self.words["share of embedding, tied"]
        return tuple(ParameterShare(kind, names[kind], number) for kind, number in counts.items() if number)


def _formula(tensors: list[ArchitectureTensor]) -> str:
    """Return the shapes of one component's tensors as a sum of products; many alike are counted."""
    terms: dict[str, int] = {}
    for tensor in tensors:
        term = " × ".join(f"{size:,}" for size in tensor.shape)
        terms[term] = terms.get(term, 0) + 1
    return " + ".join(f"{n} × {term}" if n > 1 else term for term, n in terms.items())


def _at(box: Box, row: int) -> Box:
    return Box(box.key, box.kind, box.name, row, box.column, box.span, box.detail, box.parameters, box.times)


def _with_detail(box: Box, line: str) -> Box:
    detail = (line, *box.detail)
    return Box(box.key, box.kind, box.name, box.row, box.column, box.span, detail, box.parameters, box.times)
