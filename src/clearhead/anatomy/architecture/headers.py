"""From names and shapes of tensors to an architecture: for files whose header is all there is.

A GGUF header also has numbers that no shape shows (heads, experts per token, rotary base). A safetensors header has
none, so heads stay unknown unless the folder has a config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clearhead.anatomy.architecture.description import (
    Architecture,
    ArchitectureTensor,
    AttentionFacts,
    FeedForwardFacts,
    PositionKind,
)
from clearhead.anatomy.architecture.families import CONTEXT_KEYS, HEAD_KEYS
from clearhead.anatomy.architecture.family import Config
from clearhead.anatomy.architecture.roles import classify
from clearhead.errors import WeightsError

_GGUF_ACTIVATIONS = {"gemma": "gelu", "gemma2": "gelu", "gemma3": "gelu", "gpt2": "gelu", "gptneox": "gelu"}
_GGUF_ACTIVATIONS |= {"falcon": "gelu", "bloom": "gelu", "starcoder": "gelu", "mpt": "gelu", "phi2": "gelu"}
_GGUF_ALIBI = ("bloom", "mpt")
_CONFIG_KEYS = {
    "attention.head_count": HEAD_KEYS,
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.key_length": ("head_dim",),
    "context_length": CONTEXT_KEYS,
}
"""Where a config.json says what a GGUF header says under a key."""


def architecture_from_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
    metadata: Mapping[str, Any] | None = None,
    config: Config | None = None,
) -> Architecture:
    """Return the architecture that a file's tensors show.

    Args:
        shapes: the shape of every tensor, by its name in Hugging Face's state dicts or in GGUF.
        name: the title of charts.
        metadata: the keys of a GGUF file, for what shapes do not show.
        config: a config.json of a family that is not known here; of it the keys are read that most families use.

    Raises:
        WeightsError: if there is no token embedding or no block among the tensors.
    """
    if quantized := next((key for key in shapes if key.endswith((".qweight", ".qzeros", ".weight.absmax"))), None):
        raise WeightsError(
            f"{name} is a quantized checkpoint (GPTQ, AWQ or bitsandbytes: it has {quantized}), whose shapes are not "
            "those of the matrices; put its config.json in the same folder, which says enough."
        )
    tensors = classify(shapes)
    layers = {tensor.layer for tensor in tensors if tensor.layer is not None}
    embedding = [t for t in tensors if t.role == "token_embedding" and len(t.shape) == 2]
    if not embedding or not layers:
        raise WeightsError(
            f"{name} has no {'token embedding' if not embedding else 'blocks'} among its {len(shapes):,} tensors, so "
            "it is not a decoder-only transformer with known tensor names; give its config.json if there is one."
        )
    vocab, inner = embedding[0].shape
    norm = _first(tensors, "final_norm", 1) or _first(tensors, "attention_norm", 1)
    projected = any(t.role == "project_in" for t in tensors) and norm is not None
    width = norm.shape[0] if projected and norm is not None else inner
    facts = _Metadata(metadata or {}, config or {})
    architecture = Architecture(
        family=facts.family or facts.model_type or "unknown",
        name=name,
        vocab_size=vocab,
        emb_dim=width,
        n_layers=len(layers),
        context_length=facts.number("context_length"),
        attention=_attention(tensors, facts, width),
        feed_forward=_feed_forward(tensors, facts),
        projected=inner if projected else None,
        tensors=_split_fused(tensors),
    )
    return _norms_and_positions(architecture, facts)


class _Metadata:
    """Numbers of a GGUF header, whose keys begin with the architecture's name, or of a config.json."""

    def __init__(self, keys: Mapping[str, Any], config: Config) -> None:
        self._keys, self._config = keys, config
        self.model_type = str(config.get("model_type", ""))
        self.family = str(keys.get("general.architecture", "")).replace("-", "_")
        self._prefix = str(keys.get("general.architecture", ""))

    def number(self, key: str) -> int | None:
        """Return a whole number, the largest of a list (some models differ by layer), or None."""
        value = self.value(key)
        if isinstance(value, list):
            value = max((v for v in value if isinstance(v, int)), default=None)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def value(self, key: str) -> Any:
        """Return the value of a key of this architecture, or None."""
        if self._keys:
            return self._keys.get(f"{self._prefix}.{key}")
        return next((self._config[name] for name in _CONFIG_KEYS.get(key, ()) if name in self._config), None)


def _first(tensors: tuple[ArchitectureTensor, ...], role: str, dims: int = 2) -> ArchitectureTensor | None:
    return next((t for t in tensors if t.role == role and len(t.shape) >= dims), None)


def _has_bias(tensors: tuple[ArchitectureTensor, ...], *roles: str) -> bool:
    return any(t.role in roles and t.name.endswith("bias") for t in tensors)


def _attention(tensors: tuple[ArchitectureTensor, ...], facts: _Metadata, width: int) -> AttentionFacts:
    query, key = _first(tensors, "query"), _first(tensors, "key")
    heads, n_kv = facts.number("attention.head_count"), facts.number("attention.head_count_kv")
    norm = _first(tensors, "query_norm", 1)
    head_dim = facts.number("attention.key_length")
    if head_dim is None and norm is not None and len(norm.shape) == 1 and query is not None:
        head_dim = norm.shape[0] if norm.shape[0] < query.shape[0] else None
    if head_dim is None and heads:
        head_dim = (query.shape[0] if query else width) // heads
    if heads is None and head_dim and query is not None:
        heads = query.shape[0] // head_dim
    if n_kv is None and head_dim and key is not None:
        n_kv = key.shape[0] // head_dim
    window = facts.number("attention.sliding_window")
    return AttentionFacts(
        n_heads=heads,
        n_kv_heads=n_kv or heads,
        head_dim=head_dim,
        fused=query is None,
        qkv_bias=_has_bias(tensors, "query", "qkv"),
        out_bias=_has_bias(tensors, "attention_out"),
        qk_norm=norm is not None,
        sinks=any(t.role == "sinks" for t in tensors),
        window=window,
        windowed_layers=_windowed(tensors, facts) if window else 0,
    )


def _windowed(tensors: tuple[ArchitectureTensor, ...], facts: _Metadata) -> int:
    n_layers = len({t.layer for t in tensors if t.layer is not None})
    period = {"gemma2": 2, "gemma3": 6, "gpt_oss": 2}.get(facts.family)
    return n_layers - n_layers // period if period else n_layers


def _feed_forward(tensors: tuple[ArchitectureTensor, ...], facts: _Metadata) -> FeedForwardFacts:
    down, gate = _first(tensors, "down"), _first(tensors, "gate")
    experts = [t for t in tensors if t.role in ("down", "gate_up", "up") and ("exp" in t.name or len(t.shape) == 3)]
    router = _first(tensors, "router")
    n_experts = facts.number("expert_count") or (router.shape[0] if router is not None and experts else 0)
    width = facts.number("expert_feed_forward_length" if experts else "feed_forward_length") or facts.number(
        "feed_forward_length"
    )
    if width is None and down is not None:
        width = _width(tensors, down)
    fused = _is_fused(tensors) or _first(tensors, "gate_up") is not None
    gated = gate is not None or fused
    activation = _GGUF_ACTIVATIONS.get(facts.family, "silu" if gated else "gelu")
    dense = {t.layer for t in tensors if t.role == "down" and t not in experts} if experts else set()
    return FeedForwardFacts(
        width=width or 0,
        activation=activation,
        gated=gated,
        bias=_has_bias(tensors, "down", "up"),
        n_experts=n_experts,
        n_active=facts.number("expert_used_count") or 0,
        dense_layers=len(dense),
    )


def _width(tensors: tuple[ArchitectureTensor, ...], down: ArchitectureTensor) -> int:
    """Return the inner width from the down matrix: the size that is not the model's own."""
    norm = _first(tensors, "final_norm", 1) or _first(tensors, "attention_norm", 1)
    sizes = [size for size in down.shape[-2:] if norm is None or size != norm.shape[0]]
    return sizes[0] if sizes else down.shape[-1]


def _is_fused(tensors: tuple[ArchitectureTensor, ...]) -> bool:
    """Return whether `up` holds gate and up together, as Phi-3's GGUF does."""
    up, down = _first(tensors, "up"), _first(tensors, "down")
    if up is None or down is None or _first(tensors, "gate") is not None:
        return False
    return up.shape[0] == 2 * down.shape[-1]


def _split_fused(tensors: tuple[ArchitectureTensor, ...]) -> tuple[ArchitectureTensor, ...]:
    if not _is_fused(tensors):
        return tensors
    return tuple(replace(t, role="gate_up") if t.role == "up" else t for t in tensors)


def _norms_and_positions(a: Architecture, facts: _Metadata) -> Architecture:
    tensors, notes = a.tensors, list(a.notes)
    norm_bias = _has_bias(tensors, "attention_norm", "final_norm", "feed_forward_norm")
    rms = not norm_bias if not facts.family else facts.value("attention.layer_norm_rms_epsilon") is not None
    positions: PositionKind = "rotary"
    if a.has("position_embedding"):
        positions = "learned"
    elif facts.family in _GGUF_ALIBI:
        positions = "alibi"
    theta = facts.value("rope.freq_base")
    rotated = facts.number("rope.dimension_count")
    width = a.attention.head_dim
    if not facts.family:
        missing = [] if a.attention.n_heads else ["the number of heads"]
        missing += [] if positions == "learned" else ["how positions get in"]
        if missing and facts.model_type:
            notes.append(
                f"Nothing is known here of configs of type {facts.model_type!r}, so {' and '.join(missing)} stays open."
            )
        elif missing:
            notes.append(f"The header does not say {' and '.join(missing)}; a config.json beside it would.")
    second = a.has("feed_forward_norm")
    return replace(
        a,
        norm="RMSNorm" if rms else "LayerNorm",
        norm_bias=norm_bias,
        pre_norm=a.has("attention_norm"),
        post_norm=a.has("post_attention_norm") or a.has("post_feed_forward_norm"),
        parallel=_parallel(a, facts, second),
        shared_norm=a.has("attention_norm") and not second,
        positions=positions,
        rope_theta=float(theta) if isinstance(theta, int | float) else (10_000.0 if positions == "rotary" else None),
        rope_share=min(1.0, rotated / width) if rotated and width else 1.0,
        rope_scaling=str(facts.value("rope.scaling.type") or "").replace("none", ""),
        embedding_scale=a.emb_dim**0.5 if facts.family.startswith("gemma") else None,
        embedding_norm=a.has("embedding_norm"),
        final_norm=a.has("final_norm"),
        tied=not a.has("head"),
        notes=tuple(notes),
    )


def _parallel(a: Architecture, facts: _Metadata, second_norm: bool) -> bool:
    if facts.value("use_parallel_residual") is not None:
        return bool(facts.value("use_parallel_residual"))
    if facts.family == "falcon" or any(".ln_mlp." in tensor.name for tensor in a.tensors):
        return True
    return a.has("attention_norm") and not second_norm and not a.has("post_attention_norm")
