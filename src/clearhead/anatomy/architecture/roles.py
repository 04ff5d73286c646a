"""One table: which component of a transformer a tensor belongs to, by its name.

Each row gives a component's names in Hugging Face's state dicts (of any family) and in GGUF files (llama.cpp's
`gguf` constants). Names are matched without `.weight` or `.bias` and without the block's prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from clearhead.anatomy.architecture.description import ArchitectureTensor

ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # component: (names in Hugging Face's state dicts, names in GGUF)
    "token_embedding": (("wte", "embed_tokens", "embed_in", "word_embeddings", "tokens_embed"), ("token_embd",)),
    "position_embedding": (("wpe", "embed_positions", "positions_embed"), ("position_embd",)),
    "embedding_norm": (("word_embeddings_layernorm",), ("token_embd_norm",)),
    "project_in": (("project_in",), ()),
    "project_out": (("project_out",), ()),
    "attention_norm": (("ln_1", "input_layernorm", "self_attn_layer_norm", "ln_attn"), ("attn_norm",)),
    "qkv": (("c_attn", "qkv_proj", "query_key_value"), ("attn_qkv",)),
    "query": (("q_proj",), ("attn_q",)),
    "key": (("k_proj",), ("attn_k",)),
    "value": (("v_proj",), ("attn_v",)),
    "query_norm": (("q_norm", "q_layernorm"), ("attn_q_norm",)),
    "key_norm": (("k_norm", "k_layernorm"), ("attn_k_norm",)),
    "sinks": (("sinks",), ("attn_sinks",)),
    "attention_out": (
        ("attn.c_proj", "attn.o_proj", "attn.out_proj", "attention.out_proj", "attention.dense", "attn.dense"),
        ("attn_output",),
    ),
    "post_attention_norm": (("post_attention_layernorm#sandwich",), ("post_attention_norm", "attn_post_norm")),
    "feed_forward_norm": (
        ("ln_2", "post_attention_layernorm", "pre_feedforward_layernorm", "ln_mlp", "final_layer_norm#block"),
        ("ffn_norm", "post_attention_norm#pre", "attn_norm_2"),
    ),
    "router": (("mlp.router", "mlp.gate", "block_sparse_moe.gate"), ("ffn_gate_inp",)),
    "gate_up": (("gate_up_proj",), ()),
    "gate": (("gate_proj", "w1"), ("ffn_gate", "ffn_gate_exps")),
    "up": (("c_fc", "up_proj", "fc1", "dense_h_to_4h", "w3", "fc_in"), ("ffn_up", "ffn_up_exps")),
    "down": (
        ("mlp.c_proj", "down_proj", "fc2", "dense_4h_to_h", "w2", "fc_out"),
        ("ffn_down", "ffn_down_exps"),
    ),
    "post_feed_forward_norm": (("post_feedforward_layernorm",), ("post_ffw_norm", "ffn_post_norm")),
    "final_norm": (("ln_f", "norm", "final_layer_norm", "final_layernorm"), ("output_norm",)),
    "head": (("lm_head", "embed_out", "output_projection"), ("output",)),
}
"""A name with `#` holds under a condition that `_resolve` decides from the other names of its block."""

BLOCK_ROLES = (
    "attention_norm", "qkv", "query", "key", "value", "query_norm", "key_norm", "sinks", "attention_out",
    "post_attention_norm", "feed_forward_norm", "router", "gate_up", "gate", "up", "down", "post_feed_forward_norm",
)  # fmt: skip
"""The components that every block has of its own."""

BUFFERS = re.compile(
    r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq|attention\.(masked_)?bias|rope_freqs|rope_factors_\w+)(\.weight)?$"
)
"""Stored values that are not parameters: masks and rotary frequencies. A chart leaves them out."""

_LAYER = re.compile(r"^(?P<prefix>.*?(?:\b(?:layers|h|blocks|blk)\.))(?P<layer>\d+)\.(?P<rest>.+)$")
_ENDING = re.compile(r"(\.(weight|bias)|_bias)$")
_EXPERT = re.compile(r"\bexperts\.\d+\.")


def classify(shapes: Mapping[str, tuple[int, ...]]) -> tuple[ArchitectureTensor, ...]:
    """Return every tensor with its component; what no row of the table names gets the role "other".

    Args:
        shapes: the name and shape of every tensor of one model.
    """
    blocks: dict[int, list[str]] = {}
    for name in shapes:
        if match := _LAYER.match(name):
            blocks.setdefault(int(match["layer"]), []).append(match["rest"])
    tensors = []
    for name, shape in shapes.items():
        if BUFFERS.search(name):
            continue
        match = _LAYER.match(name)
        if match is None:
            tensors.append(ArchitectureTensor(name, tuple(shape), _outside(name)))
        else:
            layer = int(match["layer"])
            tensors.append(ArchitectureTensor(name, tuple(shape), _inside(match["rest"], blocks[layer]), layer))
    return tuple(tensors)


def _bare(name: str) -> str:
    return _EXPERT.sub("experts.", _ENDING.sub("", name))


def _outside(name: str) -> str:
    bare = _bare(name)
    for role, (published, gguf) in ROLES.items():
        if role not in BLOCK_ROLES and any(_ends_with(bare, known) for known in (*published, *gguf)):
            return role
    return "other"


def _inside(rest: str, names: Iterable[str]) -> str:
    bare = _bare(rest)
    if (conditional := _resolve(bare, {_bare(name) for name in names})) is not None:
        return conditional
    for role in BLOCK_ROLES:
        published, gguf = ROLES[role]
        if any(_ends_with(bare, known) for known in (*published, *gguf) if "#" not in known):
            return role
    return "other"


def _resolve(bare: str, names: set[str]) -> str | None:
    """Return the role of a name that means different norms in different families; None for other names.

    `post_attention_layernorm` stands after attention if the block has a norm of its own before the feed-forward layer
    (Gemma 2 and 3) or none before attention (OLMo 2), and before the feed-forward layer otherwise. OPT calls the norm
    before its feed-forward layer `final_layer_norm`.
    """
    last = bare.rpartition(".")[2]
    if last == "post_attention_layernorm":
        return "post_attention_norm" if {"pre_feedforward_layernorm", "post_feedforward_layernorm"} & names else None
    if last == "final_layer_norm":
        return "feed_forward_norm"
    if last == "post_attention_norm":
        return "post_attention_norm" if {"ffn_norm", "post_ffw_norm"} & names else "feed_forward_norm"
    return None


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}") or (("." in ending) and name.endswith(ending))
