"""The tensors that a model of an architecture has, by the names of its family's state dict."""

from __future__ import annotations

from collections.abc import Iterator

from clearhead.anatomy.architecture.description import Architecture, ArchitectureTensor
from clearhead.anatomy.architecture.family import Family

Shape = tuple[int, ...]


def expected_tensors(architecture: Architecture, family: Family) -> tuple[ArchitectureTensor, ...]:
    """Return every tensor of such a model, in the order in which a token meets them.

    The head is among them if it is tied too: state dicts name it, files often leave it out.
    """
    a, names = architecture, family.names
    tensors: list[ArchitectureTensor] = []

    def add(role: str, shape: Shape, bias: bool = False, layer: int | None = None, weight: bool = True) -> None:
        prefix = family.stem + (family.block.format(i=layer) if layer is not None else "")
        # Experts' stacked matrices and sinks are bare parameters, without `.weight`.
        bare = "experts." in names[role] or role == "sinks"
        ending, bias_ending = ("", "_bias") if bare else (".weight", ".bias")
        if family.transposed and len(shape) == 2 and role not in ("token_embedding", "position_embedding"):
            shape = (shape[1], shape[0])
        tensors.append(ArchitectureTensor(f"{prefix}{names[role]}{ending}", shape, role, layer))
        if bias:
            out = shape[-1] if family.transposed or bare else shape[0]
            bias_shape = (shape[0], out) if bare else (out,)
            tensors.append(ArchitectureTensor(f"{prefix}{names[role]}{bias_ending}", bias_shape, role, layer))

    inner = a.projected or a.emb_dim
    add("token_embedding", (a.vocab_size, inner))
    if a.positions == "learned":
        offset = 2 if a.family == "opt" else 0  # OPT's table has two rows before position 0
        add("position_embedding", ((a.context_length or 0) + offset, a.emb_dim))
    if a.embedding_norm:
        add("embedding_norm", (a.emb_dim,), a.norm_bias)
    if a.projected:
        add("project_in", (a.emb_dim, inner))
    for layer in range(a.n_layers):
        for role, shape, bias in _block(a, names, layer):
            add(role, shape, bias, layer)
    if a.final_norm:
        add("final_norm", (a.emb_dim,), a.norm_bias)
    if a.projected:
        add("project_out", (inner, a.emb_dim))
    tensors.append(ArchitectureTensor(f"{family.head}.weight", (a.vocab_size, inner), "head", None, a.tied))
    if a.head_bias:
        tensors.append(ArchitectureTensor(f"{family.head}.bias", (a.vocab_size,), "head"))
    return tuple(tensors)


def _block(a: Architecture, names: object, layer: int) -> Iterator[tuple[str, Shape, bool]]:
    """Yield component, shape `[out, in]` and bias of each tensor of one block."""
    norm = ((a.emb_dim,), a.norm_bias)
    if a.pre_norm or a.norm_after_sum:
        yield ("attention_norm", *norm)
    yield from _attention(a)
    if a.post_norm and not a.norm_after_sum:
        yield ("post_attention_norm", *norm)
    if (a.pre_norm or a.norm_after_sum) and not a.shared_norm:
        yield ("feed_forward_norm", *norm)
    yield from _feed_forward(a, names, layer)
    if a.post_norm and not a.norm_after_sum:
        yield ("post_feed_forward_norm", *norm)


def _attention(a: Architecture) -> Iterator[tuple[str, Shape, bool]]:
    t = a.attention
    heads, n_kv, width = t.n_heads or 1, t.n_kv_heads or t.n_heads or 1, t.head_dim or 1
    queries, keys = heads * width, n_kv * width
    if t.sinks:
        yield "sinks", (heads,), False
    if t.fused:
        yield "qkv", (queries + 2 * keys, a.emb_dim), t.qkv_bias
    else:
        yield "query", (queries, a.emb_dim), t.qkv_bias
        yield "key", (keys, a.emb_dim), t.qkv_bias
        yield "value", (keys, a.emb_dim), t.qkv_bias
    if t.qk_norm:
        whole = a.family == "olmo2"  # there over all heads together
        yield "query_norm", (queries if whole else width,), False
        yield "key_norm", (keys if whole else width,), False
    yield "attention_out", (a.emb_dim, queries), t.out_bias


def _feed_forward(a: Architecture, names: object, layer: int) -> Iterator[tuple[str, Shape, bool]]:
    f = a.feed_forward
    if f.n_experts:
        yield "router", (f.n_experts, a.emb_dim), f.bias
        if a.family == "gpt_oss":  # stored [experts, in, out]
            yield "gate_up", (f.n_experts, a.emb_dim, 2 * f.width), f.bias
            yield "down", (f.n_experts, f.width, a.emb_dim), f.bias
        else:
            yield "gate_up", (f.n_experts, 2 * f.width, a.emb_dim), f.bias
            yield "down", (f.n_experts, a.emb_dim, f.width), f.bias
        return
    if f.gated and isinstance(names, dict) and "gate_up" in names:
        yield "gate_up", (2 * f.width, a.emb_dim), f.bias
    else:
        if f.gated:
            yield "gate", (f.width, a.emb_dim), f.bias
        yield "up", (f.width, a.emb_dim), f.bias
    yield "down", (a.emb_dim, f.width), f.bias
