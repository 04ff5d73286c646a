"""What sets an architecture apart from GPT-2, in sentences, and the same facts as a table for two models."""

from __future__ import annotations

from collections.abc import Iterator

from clearhead.anatomy.architecture.description import Architecture
from clearhead.anatomy.architecture.words import DIFFERENCES, MISSING

ACTIVATIONS = {
    "silu": "SiLU", "swish": "SiLU", "gelu": "GELU", "gelu_new": "GELU", "gelu_pytorch_tanh": "GELU",
    "gelu_fast": "GELU", "gelu_tanh": "GELU", "gelu_erf": "GELU", "relu": "ReLU",
}  # fmt: skip


def differences(architecture: Architecture, lang: str = "en") -> list[str]:
    """Return one sentence for each way in which the architecture differs from GPT-2, and why it cannot run here."""
    words = DIFFERENCES[lang]
    sentences = [words[key].format(**numbers) for key, numbers in _differences(architecture)]
    missing = [MISSING[lang][key] for key in _missing(architecture)]
    if missing:
        *first, last = missing
        what = MISSING[lang]["comma"].join(first) + (MISSING[lang]["and"] if first else "") + last
        sentences.append(words["cannot run"].format(what=what))
    return sentences or [words["same"]]


def _differences(a: Architecture) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the key and the numbers of each sentence."""
    yield from _positions(a)
    yield from _norms(a)
    yield from _attention(a)
    yield from _feed_forward(a)
    if not a.tied and a.has("head"):
        yield "untied", {}
    if a.embedding_scale:
        yield "scale", {"emb": a.emb_dim}
    if a.embedding_norm:
        yield "embedding norm", {}
    if a.projected:
        yield "projected", {"inner": a.projected, "emb": a.emb_dim}
    if a.logit_softcap:
        yield "logit softcap", {"cap": a.logit_softcap}


def _positions(a: Architecture) -> Iterator[tuple[str, dict[str, object]]]:
    if a.positions == "rotary":
        yield "rotary", {"theta": a.rope_theta or 10_000.0}
        if a.rope_share < 1:
            yield "rotary share", {"share": a.rope_share}
        if a.rope_scaling:
            yield "rotary scaling", {"kind": a.rope_scaling}
    if a.positions == "alibi":
        yield "alibi", {}


def _norms(a: Architecture) -> Iterator[tuple[str, dict[str, object]]]:
    if a.norm == "RMSNorm":
        yield "rmsnorm", {}
    elif not a.norm_bias:
        yield "norm without bias", {}
    if a.post_norm:
        yield ("sandwich" if a.pre_norm else "post norm"), {}
    if not a.final_norm:
        yield "no final norm", {}
    if a.parallel:
        yield "parallel", {}
    if a.shared_norm:
        yield "shared norm", {}


def _attention(a: Architecture) -> Iterator[tuple[str, dict[str, object]]]:
    t = a.attention
    if t.n_heads and t.n_kv_heads and t.n_kv_heads < t.n_heads:
        numbers: dict[str, object] = {"heads": t.n_heads, "kv": t.n_kv_heads, "ratio": t.n_heads / t.n_kv_heads}
        yield ("multi-query" if t.n_kv_heads == 1 else "grouped"), numbers
    if t.n_heads and t.head_dim and t.n_heads * t.head_dim != a.emb_dim:
        yield "wide heads", {"inner": t.n_heads * t.head_dim, "emb": a.emb_dim}
    if not t.fused:
        yield "separate", {}
    if t.qk_norm:
        yield "qk norm", {}
    if not (t.qkv_bias or t.out_bias or a.feed_forward.bias):
        yield "no biases", {}
    elif t.qkv_bias and not (t.out_bias or a.feed_forward.bias):
        yield "qkv bias only", {}
    elif not t.qkv_bias:
        yield "no qkv bias", {}
    if t.sinks:
        yield "sinks", {}
    if t.window:
        yield "window", {"n": t.windowed_layers, "layers": a.n_layers, "window": t.window}
    if not t.scaled:
        yield "unscaled", {}
    if t.softcap:
        yield "attention softcap", {"cap": t.softcap}


def _feed_forward(a: Architecture) -> Iterator[tuple[str, dict[str, object]]]:
    f = a.feed_forward
    activation = activation_name(f.activation)
    if f.gated:
        yield "gated", {"activation": activation, "gpt2": "GELU"}
    elif activation != "GELU":
        yield "activation", {"activation": activation}
    if f.n_experts:
        numbers = {"n": f.n_experts, "active": f.n_active, "total": f"{a.total:,}"}
        yield "experts", {**numbers, "active_count": f"{active_parameters(a):,}"}
        if f.dense_layers:
            yield "dense layers", {"n": f.dense_layers}


def _missing(a: Architecture) -> Iterator[str]:
    """Yield what the GPT-2 of this package would need to run such a model."""
    if a.positions in ("rotary", "alibi"):
        yield a.positions
    if a.norm == "RMSNorm":
        yield "RMSNorm"
    if a.post_norm or not a.pre_norm or not a.final_norm:
        yield "norms"
    if a.parallel:
        yield "parallel"
    if a.attention.window:
        yield "window"
    if a.attention.n_heads != a.attention.n_kv_heads:
        yield "grouped"
    if a.feed_forward.gated:
        yield "gated"
    if a.feed_forward.n_experts:
        yield "experts"


def active_parameters(a: Architecture) -> int:
    """Return the parameters that take part in one token's pass: of the experts only those that are chosen."""
    f = a.feed_forward
    if not f.n_experts:
        return a.total
    of_experts = sum(t.count for t in a.tensors if t.role in ("gate_up", "gate", "up", "down") and "experts" in t.name)
    return a.total - of_experts + of_experts * f.n_active // f.n_experts


def activation_name(name: str) -> str:
    """Return the usual spelling of an activation."""
    return ACTIVATIONS.get(name, name)
