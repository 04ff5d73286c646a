"""Every layout's names for a GPT-2's tensors, and the order of their axes: one table.

A layout is a naming scheme of weights: Hugging Face's, OpenAI's, nanoGPT's, ... A cell of `TABLE` is a name and the
tensor's axes in stored order: `h.{i}.attn.c_attn.weight [C, S H D]`. One letter is one axis of the model; letters
that share a dimension are merged, the left one slowest:

    V  vocabulary          C  emb_dim           S  query, key, value (3)
    T  context             F  ff_dim            H  heads
    L  layers              1  a dimension of 1  D  head_dim

A conversion needs nothing else. Two cells of one row hold the same numbers, so the axes determine the operations
that turn one into the other: `[C, S H D]` to `[S H D, C]` is a transpose, `[H, C, D]` to `[H D, C]` a
rearrangement, three cells `[H D, C]` to `[S H D, C]` a stack; `steps.py` derives them. `{i}` in a name
means one tensor per layer; several names in one cell are query, key and value in that order.

A new layout is one more column: a `Layout` in `LAYOUTS` and its cell in every row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from clearhead.config import GPTConfig

Cell = str | tuple[str, str, str]


@dataclass(frozen=True)
class Ignored:
    """Tensors that a layout's files may hold and a GPT-2 does not need.

    Attributes:
        pattern: a regular expression for the whole name, without the layout's prefixes.
        reason: why a GPT-2 does not need them.
        is_head: whether they are a head besides the output head, which other programs use.
    """

    pattern: str
    reason: str
    is_head: bool = False


@dataclass(frozen=True)
class Layout:
    """One naming scheme of weights.

    Attributes:
        name: its key in `LAYOUTS` and its column in `TABLE`.
        title: its name in messages, as in "... names were expected".
        prefixes: prefixes that names in a file may have, in any number; for a layout without, any prefix that ends in a
            dot, as wrappers add them (`module.`, `_orig_mod.`, `pretrained_model.`, a Lightning module's attribute).
        other_roots: what names in a file begin with, after the prefix, besides the names in the table.
        aliases: other bare names for names in the table.
        keeps_qkv_bias: whether its files always hold a bias for q, k and v; zeros for a model without one.
        keeps_head: whether its files always hold an output head; a copy of the token embedding if the two are tied.
        always_tied: whether the programs that read it always tie the output head to the token embedding.
        may_lack: canonical names that a file may omit; they are filled with zeros.
        ignored: other tensors that a file may hold.
    """

    name: str
    title: str
    prefixes: tuple[str, ...] = ()
    other_roots: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    keeps_qkv_bias: bool = False
    keeps_head: bool = False
    always_tied: bool = False
    may_lack: frozenset[str] = frozenset()
    ignored: tuple[Ignored, ...] = ()

    @cached_property
    def _prefix(self) -> re.Pattern[str]:
        if self.prefixes:
            return re.compile("^(?:" + "|".join(map(re.escape, self.prefixes)) + ")+")
        # The shortest prefix after which the first part of a name in the table follows.
        names = [parse(cell)[0] for row in TABLE for cell in row.cells_of(self.name)]
        roots = {name.removeprefix("transformer.").partition(".")[0] for name in names} | set(self.other_roots)
        return re.compile(rf"^(?:[^/]*?\.)??(?=(?:{'|'.join(map(re.escape, sorted(roots)))})\.)")

    def bare(self, name: str) -> str:
        """Return a stored name without prefixes."""
        bare = self._prefix.sub("", name)
        return self.aliases.get(bare, bare)

    def is_head(self, name: str) -> bool:
        """Return whether a tensor of this name is a head besides the output head."""
        return any(rule.is_head and re.fullmatch(rule.pattern, self.bare(name)) for rule in self.ignored)

    def reason_to_ignore(self, name: str) -> str | None:
        """Return why a tensor of this name is not needed, or None."""
        bare = self.bare(name)
        return next((rule.reason for rule in self.ignored if re.fullmatch(rule.pattern, bare)), None)


_CLASSIFIER = Ignored(r"score\.(weight|bias)", "the head of a classifier; `clearhead classify` reads it", is_head=True)
_BIASES = frozenset(
    {"final_norm.bias"}
    | {f"blocks.{{i}}.{part}.bias" for part in ("norm_1", "attention.out", "norm_2", "feed_forward.up")}
    | {"blocks.{i}.feed_forward.down.bias"}
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("canonical", "Clearhead"),
        Layout(
            "huggingface",
            "Hugging Face's GPT-2",
            other_roots=("score", "v_head", "multiple_choice_head", "classifier", "qa_outputs"),
            aliases={"lm_head.decoder.weight": "lm_head.weight"},
            keeps_qkv_bias=True,
            ignored=(
                _CLASSIFIER,
                Ignored(
                    r"v_head\..+",
                    "a value head, for reinforcement learning",
                    is_head=True,
                ),
                Ignored(
                    r"multiple_choice_head\..+",
                    "a multiple-choice head",
                    is_head=True,
                ),
                Ignored(r"classifier\..+", "the head of a token classifier", is_head=True),
                Ignored(r"qa_outputs\..+", "a head for question answering", is_head=True),
                Ignored(r"h\.\d+\.attn\.bias", "the causal mask, a constant that older files hold"),
                Ignored(
                    r"h\.\d+\.attn\.masked_bias", "the value for masked positions, a constant that older files hold"
                ),
            ),
        ),
        Layout(
            "book",
            "the book's GPTModel",
            keeps_head=True,
            ignored=(Ignored(r"trf_blocks\.\d+\.att\.mask", "the causal mask, a constant"), _CLASSIFIER),
        ),
        Layout(
            "nanogpt",
            "nanoGPT",
            keeps_qkv_bias=True,
            keeps_head=True,
            always_tied=True,
            may_lack=_BIASES,
            ignored=(Ignored(r"h\.\d+\.attn\.bias", "the causal mask, a constant that older versions keep"),),
        ),
        Layout("llmc", "llm.c", keeps_qkv_bias=True),
        Layout(
            "transformerlens",
            "TransformerLens",
            keeps_qkv_bias=True,
            keeps_head=True,
            ignored=(
                Ignored(r"blocks\.\d+\.attn\.mask", "the causal mask, a constant"),
                Ignored(r"blocks\.\d+\.attn\.IGNORE", "the value for masked positions, a constant"),
                Ignored(r"unembed\.b_U", "all zeros: GPT-2 has no bias on its output head"),
            ),
        ),
        Layout("gguf", "GGUF", keeps_qkv_bias=True),
        Layout("onnx", "ONNX"),
        Layout(
            "openai",
            "OpenAI's TensorFlow",
            prefixes=("model/",),
            keeps_qkv_bias=True,
            ignored=(
                Ignored(
                    r"(.*/)?(Adam(_\d+)?|adam_[mv]|Momentum|RMSProp(_\d+)?|Adagrad|Ftrl(_\d+)?)",
                    "the optimizer's state for a weight, needed only to resume training",
                ),
                Ignored(
                    r"(.*/)?(beta[12]_power(_\d+)?|global_step|learning_rate)",
                    "a setting of the optimizer, needed only to resume training",
                ),
            ),
        ),
    )
}
"""Every layout that Clearhead knows, by name."""


@dataclass(frozen=True)
class LayoutRow:
    """One tensor of a GPT-2 (or one per layer) under each layout's name.

    Attributes:
        cells: by layout name; a layout without the tensor has no cell.
        needs: the setting that the tensor depends on: `qkv_bias`, `head` (an untied head), or empty.
    """

    cells: dict[str, Cell] = field(hash=False)
    needs: str = ""

    def cells_of(self, layout: str) -> tuple[str, ...]:
        """Return the cells of one layout: none, one, or three for query, key and value."""
        cell = self.cells.get(layout, ())
        return (cell,) if isinstance(cell, str) else cell

    @property
    def name(self) -> str:
        """The canonical name, with `{i}` for the layer."""
        cell = self.cells["canonical"]
        assert isinstance(cell, str)
        return parse(cell)[0]


def _row(canonical: str, needs: str = "", **cells: Cell) -> LayoutRow:
    return LayoutRow({"canonical": canonical, **cells}, needs)


def _qkv(cell: str, names: str) -> Cell:
    """Return a cell for query, key and value: the three names replace the asterisk."""
    query, key, value = (cell.replace("*", name) for name in names.split())
    return query, key, value


TABLE: tuple[LayoutRow, ...] = (
    _row(
        "token_embedding.weight [V, C]",
        huggingface="transformer.wte.weight [V, C]",
        book="tok_emb.weight [V, C]",
        nanogpt="transformer.wte.weight [V, C]",
        llmc="wte [V, C]",
        transformerlens="embed.W_E [V, C]",
        gguf="token_embd.weight [V, C]",
        openai="model/wte [V, C]",
        onnx="token_embedding.weight [V, C]",
    ),
    _row(
        "position_embedding.weight [T, C]",
        huggingface="transformer.wpe.weight [T, C]",
        book="pos_emb.weight [T, C]",
        nanogpt="transformer.wpe.weight [T, C]",
        llmc="wpe [T, C]",
        transformerlens="pos_embed.W_pos [T, C]",
        gguf="position_embd.weight [T, C]",
        openai="model/wpe [T, C]",
        onnx="position_embedding.weight [T, C]",
    ),
    _row(
        "blocks.{i}.norm_1.weight [C]",
        huggingface="transformer.h.{i}.ln_1.weight [C]",
        book="trf_blocks.{i}.norm1.scale [C]",
        nanogpt="transformer.h.{i}.ln_1.weight [C]",
        llmc="ln1w [L, C]",
        transformerlens="blocks.{i}.ln1.w [C]",
        gguf="blk.{i}.attn_norm.weight [C]",
        openai="model/h{i}/ln_1/g [C]",
        onnx="blocks.{i}.norm_1.weight [C]",
    ),
    _row(
        "blocks.{i}.norm_1.bias [C]",
        huggingface="transformer.h.{i}.ln_1.bias [C]",
        book="trf_blocks.{i}.norm1.shift [C]",
        nanogpt="transformer.h.{i}.ln_1.bias [C]",
        llmc="ln1b [L, C]",
        transformerlens="blocks.{i}.ln1.b [C]",
        gguf="blk.{i}.attn_norm.bias [C]",
        openai="model/h{i}/ln_1/b [C]",
        onnx="blocks.{i}.norm_1.bias [C]",
    ),
    _row(
        "blocks.{i}.attention.qkv.weight [S H D, C]",
        huggingface="transformer.h.{i}.attn.c_attn.weight [C, S H D]",
        book=_qkv("trf_blocks.{i}.att.W_*.weight [H D, C]", "query key value"),
        nanogpt="transformer.h.{i}.attn.c_attn.weight [S H D, C]",
        llmc="qkvw [L, S H D, C]",
        transformerlens=_qkv("blocks.{i}.attn.W_* [H, C, D]", "Q K V"),
        gguf="blk.{i}.attn_qkv.weight [S H D, C]",
        openai="model/h{i}/attn/c_attn/w [1, C, S H D]",
        onnx="blocks.{i}.attention.qkv.weight [C, S H D]",
    ),
    _row(
        "blocks.{i}.attention.qkv.bias [S H D]",
        needs="qkv_bias",
        huggingface="transformer.h.{i}.attn.c_attn.bias [S H D]",
        book=_qkv("trf_blocks.{i}.att.W_*.bias [H D]", "query key value"),
        nanogpt="transformer.h.{i}.attn.c_attn.bias [S H D]",
        llmc="qkvb [L, S H D]",
        transformerlens=_qkv("blocks.{i}.attn.b_* [H, D]", "Q K V"),
        gguf="blk.{i}.attn_qkv.bias [S H D]",
        openai="model/h{i}/attn/c_attn/b [S H D]",
        onnx="blocks.{i}.attention.qkv.bias [S H D]",
    ),
    _row(
        "blocks.{i}.attention.out.weight [C, H D]",
        huggingface="transformer.h.{i}.attn.c_proj.weight [H D, C]",
        book="trf_blocks.{i}.att.out_proj.weight [C, H D]",
        nanogpt="transformer.h.{i}.attn.c_proj.weight [C, H D]",
        llmc="attprojw [L, C, H D]",
        transformerlens="blocks.{i}.attn.W_O [H, D, C]",
        gguf="blk.{i}.attn_output.weight [C, H D]",
        openai="model/h{i}/attn/c_proj/w [1, H D, C]",
        onnx="blocks.{i}.attention.out.weight [H D, C]",
    ),
    _row(
        "blocks.{i}.attention.out.bias [C]",
        huggingface="transformer.h.{i}.attn.c_proj.bias [C]",
        book="trf_blocks.{i}.att.out_proj.bias [C]",
        nanogpt="transformer.h.{i}.attn.c_proj.bias [C]",
        llmc="attprojb [L, C]",
        transformerlens="blocks.{i}.attn.b_O [C]",
        gguf="blk.{i}.attn_output.bias [C]",
        openai="model/h{i}/attn/c_proj/b [C]",
        onnx="blocks.{i}.attention.out.bias [C]",
    ),
    _row(
        "blocks.{i}.norm_2.weight [C]",
        huggingface="transformer.h.{i}.ln_2.weight [C]",
        book="trf_blocks.{i}.norm2.scale [C]",
        nanogpt="transformer.h.{i}.ln_2.weight [C]",
        llmc="ln2w [L, C]",
        transformerlens="blocks.{i}.ln2.w [C]",
        gguf="blk.{i}.ffn_norm.weight [C]",
        openai="model/h{i}/ln_2/g [C]",
        onnx="blocks.{i}.norm_2.weight [C]",
    ),
    _row(
        "blocks.{i}.norm_2.bias [C]",
        huggingface="transformer.h.{i}.ln_2.bias [C]",
        book="trf_blocks.{i}.norm2.shift [C]",
        nanogpt="transformer.h.{i}.ln_2.bias [C]",
        llmc="ln2b [L, C]",
        transformerlens="blocks.{i}.ln2.b [C]",
        gguf="blk.{i}.ffn_norm.bias [C]",
        openai="model/h{i}/ln_2/b [C]",
        onnx="blocks.{i}.norm_2.bias [C]",
    ),
    _row(
        "blocks.{i}.feed_forward.up.weight [F, C]",
        huggingface="transformer.h.{i}.mlp.c_fc.weight [C, F]",
        book="trf_blocks.{i}.ff.layers.0.weight [F, C]",
        nanogpt="transformer.h.{i}.mlp.c_fc.weight [F, C]",
        llmc="fcw [L, F, C]",
        transformerlens="blocks.{i}.mlp.W_in [C, F]",
        gguf="blk.{i}.ffn_up.weight [F, C]",
        openai="model/h{i}/mlp/c_fc/w [1, C, F]",
        onnx="blocks.{i}.feed_forward.up.weight [C, F]",
    ),
    _row(
        "blocks.{i}.feed_forward.up.bias [F]",
        huggingface="transformer.h.{i}.mlp.c_fc.bias [F]",
        book="trf_blocks.{i}.ff.layers.0.bias [F]",
        nanogpt="transformer.h.{i}.mlp.c_fc.bias [F]",
        llmc="fcb [L, F]",
        transformerlens="blocks.{i}.mlp.b_in [F]",
        gguf="blk.{i}.ffn_up.bias [F]",
        openai="model/h{i}/mlp/c_fc/b [F]",
        onnx="blocks.{i}.feed_forward.up.bias [F]",
    ),
    _row(
        "blocks.{i}.feed_forward.down.weight [C, F]",
        huggingface="transformer.h.{i}.mlp.c_proj.weight [F, C]",
        book="trf_blocks.{i}.ff.layers.2.weight [C, F]",
        nanogpt="transformer.h.{i}.mlp.c_proj.weight [C, F]",
        llmc="fcprojw [L, C, F]",
        transformerlens="blocks.{i}.mlp.W_out [F, C]",
        gguf="blk.{i}.ffn_down.weight [C, F]",
        openai="model/h{i}/mlp/c_proj/w [1, F, C]",
        onnx="blocks.{i}.feed_forward.down.weight [F, C]",
    ),
    _row(
        "blocks.{i}.feed_forward.down.bias [C]",
        huggingface="transformer.h.{i}.mlp.c_proj.bias [C]",
        book="trf_blocks.{i}.ff.layers.2.bias [C]",
        nanogpt="transformer.h.{i}.mlp.c_proj.bias [C]",
        llmc="fcprojb [L, C]",
        transformerlens="blocks.{i}.mlp.b_out [C]",
        gguf="blk.{i}.ffn_down.bias [C]",
        openai="model/h{i}/mlp/c_proj/b [C]",
        onnx="blocks.{i}.feed_forward.down.bias [C]",
    ),
    _row(
        "final_norm.weight [C]",
        huggingface="transformer.ln_f.weight [C]",
        book="final_norm.scale [C]",
        nanogpt="transformer.ln_f.weight [C]",
        llmc="lnfw [C]",
        transformerlens="ln_final.w [C]",
        gguf="output_norm.weight [C]",
        openai="model/ln_f/g [C]",
        onnx="final_norm.weight [C]",
    ),
    _row(
        "final_norm.bias [C]",
        huggingface="transformer.ln_f.bias [C]",
        book="final_norm.shift [C]",
        nanogpt="transformer.ln_f.bias [C]",
        llmc="lnfb [C]",
        transformerlens="ln_final.b [C]",
        gguf="output_norm.bias [C]",
        openai="model/ln_f/b [C]",
        onnx="final_norm.bias [C]",
    ),
    _row(
        "head.weight [V, C]",
        needs="head",
        huggingface="lm_head.weight [V, C]",
        book="out_head.weight [V, C]",
        nanogpt="lm_head.weight [V, C]",
        transformerlens="unembed.W_U [C, V]",
        gguf="output.weight [V, C]",
        onnx="head.weight [V, C]",
    ),
)
"""Every tensor of a GPT-2 under every layout's name, in the order of the model."""


Dims = tuple[tuple[str, ...], ...]
"""A tensor's dimensions, each a tuple of the axes merged in it; a dimension of 1 has none."""


def parse(cell: str) -> tuple[str, Dims]:
    """Return a cell's name and dimensions: `wte [1, S H]` gives `("wte", ((), ("S", "H")))`."""
    name, _, axes = cell.rstrip("]").partition(" [")
    dims = axes.split(", ") if axes else []
    return name, tuple(() if dim == "1" else tuple(dim.split()) for dim in dims)


def axis_sizes(config: GPTConfig) -> dict[str, int]:
    """Return the length of each axis of the table in a model of this shape."""
    return {
        "V": config.vocab_size,
        "T": config.context_length,
        "C": config.emb_dim,
        "L": config.n_layers,
        "H": config.n_heads,
        "D": config.head_dim,
        "F": config.ff_dim,
        "S": 3,
    }


@dataclass(frozen=True)
class LayoutTensor:
    """One tensor of one layout: a cell of the table with its layer filled in.

    Attributes:
        name: its name in the layout.
        dims: its dimensions.
        fixed: its index on the axes that the layout spreads over several tensors (`L`, `S`).
    """

    name: str
    dims: Dims
    fixed: dict[str, int] = field(hash=False)

    @property
    def axes(self) -> tuple[str, ...]:
        """Its axes, in order."""
        return tuple(axis for dim in self.dims for axis in dim)

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Return its shape in a model whose axes have these sizes."""
        return tuple(math.prod(sizes[axis] for axis in dim) for dim in self.dims)


def layout_tensors(row: LayoutRow, layout: str, n_layers: int, layer: int | None = None) -> list[LayoutTensor]:
    """Return the tensors in which a layout keeps one row of the table, layer by layer; none if it has no such tensor.

    Args:
        row: a row of the table.
        layout: a key of `LAYOUTS`.
        n_layers: how many layers the model has.
        layer: return the tensors of this layer only, if the layout has one tensor per layer.
    """
    cell = row.cells.get(layout, ())
    names = (cell,) if isinstance(cell, str) else cell
    per_layer = "{i}" in "".join(names)
    found = []
    for i in (range(n_layers) if layer is None else (layer,)) if per_layer else (None,):
        for part, one in enumerate(names):
            name, dims = parse(one)
            fixed = {} if i is None else {"L": i}
            if len(names) > 1:
                fixed["S"] = part
            found.append(LayoutTensor(name if i is None else name.replace("{i}", str(i)), dims, fixed))
    return found
