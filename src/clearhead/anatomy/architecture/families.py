"""From a config.json of Hugging Face to an architecture: one row per family says what is special about it.

Config keys are those of `transformers`; a key that is absent has the default of the family's config class there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clearhead.anatomy.architecture.description import Architecture, AttentionFacts, FeedForwardFacts, PositionKind
from clearhead.anatomy.architecture.family import Config, Family
from clearhead.anatomy.architecture.tensors import expected_tensors
from clearhead.errors import ConfigError
from clearhead.model_types import OTHER_MODEL_TYPES

MOST_LAYERS = 10_000
"""More blocks than any published model has; a config that names more is refused before anything is made for each."""


_LLAMA = {
    "token_embedding": "embed_tokens",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "sinks": "self_attn.sinks",
    "attention_out": "self_attn.o_proj",
    "feed_forward_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "final_norm": "norm",
}
_SANDWICH = {
    **_LLAMA,
    "post_attention_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "post_feed_forward_norm": "post_feedforward_layernorm",
}
_AFTER = {**_SANDWICH, "feed_forward_norm": ""}  # OLMo 2: norms after each half only
# A setting has other names in other families; the first that a config has counts.
HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "seq_length")
_ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "activation")
_MODERN = {"norm": "RMSNorm", "norm_bias": False, "positions": "rotary"}


def _attention(architecture: Architecture, **changes: Any) -> Architecture:
    return replace(architecture, attention=replace(architecture.attention, **changes))


def _feed_forward(architecture: Architecture, **changes: Any) -> Architecture:
    return replace(architecture, feed_forward=replace(architecture.feed_forward, **changes))


def _llama(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return _feed_forward(
        _attention(a, qkv_bias=bias, out_bias=bias), gated=True, bias=bool(config.get("mlp_bias", False))
    )


def _mistral(a: Architecture, config: Config) -> Architecture:
    return _window(_feed_forward(a, gated=True), config, every=True)


def _qwen2(a: Architecture, config: Config) -> Architecture:
    a = _attention(_feed_forward(a, gated=True), qkv_bias=True)
    return _window(a, config) if config.get("use_sliding_window") else a


def _qwen3(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    a = _attention(_feed_forward(a, gated=True), qk_norm=True, qkv_bias=bias, out_bias=bias)
    return _window(a, config) if config.get("use_sliding_window") else a


def _qwen3_moe(a: Architecture, config: Config) -> Architecture:
    a = _experts(_qwen3(a, config), config, width="moe_intermediate_size")
    step, dense = int(config.get("decoder_sparse_step", 1)), set(config.get("mlp_only_layers") or ())
    n_dense = sum(i in dense or (i + 1) % step != 0 for i in range(a.n_layers))
    return _feed_forward(a, dense_layers=n_dense)


def _mixtral(a: Architecture, config: Config) -> Architecture:
    a = _window(_feed_forward(a, gated=True), config, every=True)
    return _experts(a, config, width="intermediate_size")


def _gpt_oss(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", True))
    a = _attention(_feed_forward(a, gated=True, bias=True), sinks=True, qkv_bias=bias, out_bias=bias)
    return _window(_experts(a, config, width="intermediate_size"), config, period=2)


def _gemma(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    a = _attention(_feed_forward(a, gated=True), qkv_bias=bias, out_bias=bias)
    return replace(a, embedding_scale=a.emb_dim**0.5)


def _gemma2(a: Architecture, config: Config) -> Architecture:
    a = _attention(_gemma(a, config), softcap=config.get("attn_logit_softcapping", 50.0))
    return replace(_window(a, config, period=2), logit_softcap=config.get("final_logit_softcapping", 30.0))


def _gemma3(a: Architecture, config: Config) -> Architecture:
    a = _attention(_gemma(a, config), softcap=config.get("attn_logit_softcapping"), qk_norm=True)
    period = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    return replace(_window(a, config, period=period), logit_softcap=config.get("final_logit_softcapping"))


def _olmo2(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", False))
    return _attention(_feed_forward(a, gated=True), qk_norm=True, qkv_bias=bias, out_bias=bias)


def _phi3(a: Architecture, config: Config) -> Architecture:
    return _window(_attention(_feed_forward(a, gated=True), fused=True), config, every=True)


def _neox(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("attention_bias", True))
    a = replace(a, parallel=bool(config.get("use_parallel_residual", True)))
    a = _attention(a, fused=True, qkv_bias=bias, out_bias=bias)
    share = config.get("rotary_pct", _rope(config).get("partial_rotary_factor", 0.25))
    return replace(_feed_forward(a, bias=True), rope_share=float(share))


def _opt(a: Architecture, config: Config) -> Architecture:
    bias = bool(config.get("enable_bias", True))
    before = bool(config.get("do_layer_norm_before", True))
    projected = int(config.get("word_embed_proj_dim") or a.emb_dim)
    final = before and not config.get("_remove_final_layer_norm", False)
    a = replace(
        a,
        pre_norm=before,
        post_norm=not before,
        norm_after_sum=not before,
        final_norm=final,
        projected=projected if projected != a.emb_dim else None,
    )
    width = int(config.get("ffn_dim", 4 * a.emb_dim))
    return _feed_forward(_attention(a, qkv_bias=bias, out_bias=bias), bias=bias, width=width)


def _falcon(a: Architecture, config: Config) -> Architecture:
    new = bool(config.get("new_decoder_architecture", False))
    heads = a.attention.n_heads or 1
    older = 1 if config.get("multi_query", True) else heads
    n_kv = int(config.get("num_kv_heads") or heads) if new else older
    bias = bool(config.get("bias", False))
    a = _attention(a, fused=True, n_kv_heads=n_kv, qkv_bias=bias, out_bias=bias)
    parallel = new or bool(config.get("parallel_attn", True))
    norms = config.get("num_ln_in_parallel_attn") or (2 if new else 1)
    positions: PositionKind = "alibi" if config.get("alibi") else "rotary"
    a = replace(a, parallel=parallel, shared_norm=parallel and norms == 1, positions=positions)
    return _feed_forward(a, bias=bias, width=int(config.get("ffn_hidden_size") or 4 * a.emb_dim))


def _falcon_norms(config: Config) -> Mapping[str, str]:
    """Return the names of the two norms of a Falcon block of the newer kind (40B and later)."""
    two = config.get("new_decoder_architecture") and config.get("num_ln_in_parallel_attn") != 1
    return {"attention_norm": "ln_attn", "feed_forward_norm": "ln_mlp"} if two else {}


def _bloom(a: Architecture, config: Config) -> Architecture:
    a = _attention(a, fused=True, qkv_bias=True, out_bias=True)
    return replace(_feed_forward(a, bias=True, width=4 * a.emb_dim), embedding_norm=True)


def _gpt2(a: Architecture, config: Config) -> Architecture:
    a = _attention(a, fused=True, qkv_bias=True, out_bias=True)
    return _feed_forward(a, bias=True, width=int(config.get("n_inner") or 4 * a.emb_dim))


def _gpt1(a: Architecture, config: Config) -> Architecture:
    a = replace(_gpt2(a, config), pre_norm=False, post_norm=True, norm_after_sum=True, final_norm=False)
    return _feed_forward(a, activation=str(config.get("afn", "gelu")))


def _gpt_neo(a: Architecture, config: Config) -> Architecture:
    a = _feed_forward(_attention(a, out_bias=True, scaled=False), bias=True)
    kinds = config.get("attention_layers")
    if not isinstance(kinds, list):  # older files give the pattern and how often it is repeated
        patterns = config.get("attention_types") or [[["global", "local"], -(-a.n_layers // 2)]]
        kinds = [kind for pattern, times in patterns for _ in range(times) for kind in pattern]
    local = kinds[: a.n_layers].count("local")
    return _attention(a, window=int(config.get("window_size", 256)), windowed_layers=local) if local else a


def _gptj(a: Architecture, config: Config) -> Architecture:
    width = a.attention.head_dim or 1
    rotated = int(config.get("rotary_dim") or width)
    a = replace(a, parallel=True, shared_norm=True, head_bias=True, rope_share=min(1.0, rotated / width))
    return _feed_forward(a, bias=True)


FAMILIES: dict[str, Family] = {
    "openai-gpt": Family(
        "GPT-1",
        {
            "token_embedding": "tokens_embed", "position_embedding": "positions_embed", "attention_norm": "ln_1",
            "qkv": "attn.c_attn", "attention_out": "attn.c_proj", "feed_forward_norm": "ln_2", "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        "transformer.", "h.{i}.", facts={"positions": "learned", "tied": True}, read=_gpt1, transposed=True,
    ),
    "gpt_neo": Family(
        "GPT-Neo",
        {
            "token_embedding": "wte", "position_embedding": "wpe", "attention_norm": "ln_1",
            "query": "attn.attention.q_proj", "key": "attn.attention.k_proj", "value": "attn.attention.v_proj",
            "attention_out": "attn.attention.out_proj", "feed_forward_norm": "ln_2", "up": "mlp.c_fc",
            "down": "mlp.c_proj", "final_norm": "ln_f",
        },
        "transformer.", "h.{i}.", facts={"positions": "learned", "tied": True}, read=_gpt_neo,
    ),
    "gptj": Family(
        "GPT-J",
        {
            "token_embedding": "wte", "attention_norm": "ln_1", "query": "attn.q_proj", "key": "attn.k_proj",
            "value": "attn.v_proj", "attention_out": "attn.out_proj", "up": "mlp.fc_in", "down": "mlp.fc_out",
            "final_norm": "ln_f",
        },
        "transformer.", "h.{i}.", facts={"positions": "rotary"}, read=_gptj,
    ),
    "gpt2": Family(
        "GPT-2",
        {
            "token_embedding": "wte", "position_embedding": "wpe", "attention_norm": "ln_1", "qkv": "attn.c_attn",
            "attention_out": "attn.c_proj", "feed_forward_norm": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj",
            "final_norm": "ln_f",
        },
        "transformer.", "h.{i}.", facts={"positions": "learned", "tied": True}, read=_gpt2, transposed=True,
    ),
    "llama": Family("Llama", _LLAMA, facts=_MODERN, read=_llama),
    "mistral": Family("Mistral", _LLAMA, facts=_MODERN, read=_mistral),
    "mixtral": Family(
        "Mixtral",
        {**_LLAMA, "router": "mlp.gate", "gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"},
        facts=_MODERN, read=_mixtral,
    ),
    "qwen2": Family("Qwen2", _LLAMA, facts=_MODERN, read=_qwen2),
    "qwen3": Family("Qwen3", _LLAMA, facts=_MODERN, read=_qwen3),
    "qwen3_moe": Family(
        "Qwen3 MoE",
        {**_LLAMA, "router": "mlp.gate", "gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj"},
        facts=_MODERN, read=_qwen3_moe,
    ),
    "gemma": Family("Gemma", _LLAMA, facts={**_MODERN, "tied": True}, read=_gemma),
    "gemma2": Family("Gemma 2", _SANDWICH, facts={**_MODERN, "tied": True, "post_norm": True}, read=_gemma2),
    "gemma3_text": Family("Gemma 3", _SANDWICH, facts={**_MODERN, "tied": True, "post_norm": True}, read=_gemma3),
    "olmo2": Family("OLMo 2", _AFTER, facts={**_MODERN, "pre_norm": False, "post_norm": True}, read=_olmo2),
    "phi3": Family(
        "Phi-3", {**_LLAMA, "qkv": "self_attn.qkv_proj", "gate_up": "mlp.gate_up_proj"}, facts=_MODERN, read=_phi3
    ),
    "gpt_neox": Family(
        "GPT-NeoX",
        {
            "token_embedding": "embed_in", "attention_norm": "input_layernorm",
            "feed_forward_norm": "post_attention_layernorm", "qkv": "attention.query_key_value",
            "attention_out": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
            "final_norm": "final_layer_norm",
        },
        "gpt_neox.", facts={"positions": "rotary"}, read=_neox,
    ),
    "opt": Family(
        "OPT",
        {
            **_LLAMA, "position_embedding": "embed_positions", "project_out": "project_out", "project_in": "project_in",
            "attention_norm": "self_attn_layer_norm", "attention_out": "self_attn.out_proj",
            "feed_forward_norm": "final_layer_norm", "up": "fc1", "down": "fc2", "final_norm": "final_layer_norm",
        },
        "model.decoder.", facts={"positions": "learned", "tied": True}, read=_opt,
    ),
    "falcon": Family(
        "Falcon",
        {
            "token_embedding": "word_embeddings", "attention_norm": "input_layernorm",
            "feed_forward_norm": "post_attention_layernorm", "qkv": "self_attention.query_key_value",
            "attention_out": "self_attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h",
            "final_norm": "ln_f",
        },
        "transformer.", "h.{i}.", facts={"positions": "rotary", "tied": True}, read=_falcon,
        renamed=_falcon_norms,
    ),
    "bloom": Family(
        "BLOOM",
        {
            "token_embedding": "word_embeddings", "embedding_norm": "word_embeddings_layernorm",
            "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
            "qkv": "self_attention.query_key_value", "attention_out": "self_attention.dense",
            "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h", "final_norm": "ln_f",
        },
        "transformer.", "h.{i}.", facts={"positions": "alibi", "tied": True}, read=_bloom,
    ),
    "gpt_oss": Family(
        "GPT-OSS",
        {
            **_LLAMA, "router": "mlp.router", "gate_up": "mlp.experts.gate_up_proj", "down": "mlp.experts.down_proj",
        },
        facts=_MODERN, read=_gpt_oss,
    ),
}  # fmt: skip
"""Families by `model_type`."""

ALIASES = {"gemma3": "gemma3_text", "qwen2_5": "qwen2"}


def architecture_from_config(config: Config, name: str) -> Architecture:
    """Return the architecture that a config.json describes, with the tensors that such a model has.

    Args:
        config: the parsed JSON.
        name: the title of charts.

    Raises:
        ConfigError: if the config is of another kind of model, or of a family that is not known here, or a number is
            missing or out of range.
    """
    config, model_type = _of_text(config)
    refuse_other_kinds(model_type, name)
    if model_type not in FAMILIES:
        raise ConfigError(
            f"{name} has the model type {model_type or 'unknown'!r}, whose config is not known here (known are "
            f"{', '.join(sorted(FAMILIES))}); give a safetensors or GGUF file of it, whose header says enough."
        )
    family = FAMILIES[model_type]
    architecture = family.read(_common(config, model_type, family, name), config)
    if architecture.positions != "rotary":
        architecture = replace(architecture, rope_theta=None)
    family = replace(family, names={**family.names, **family.renamed(config)})
    return replace(architecture, tensors=expected_tensors(architecture, family))


def is_known(config: Config) -> bool:
    """Return whether a config is of a family that is known here."""
    return _of_text(config)[1] in FAMILIES


def _of_text(config: Config) -> tuple[Config, str]:
    """Return the config of the text model, if it is one of several, and its family."""
    text = config.get("text_config")
    if isinstance(text, Mapping) and "model_type" in text:
        config = {**config, **text}
    model_type = str(config.get("model_type", "gpt2" if "n_embd" in config else ""))
    return config, ALIASES.get(model_type, model_type)


def refuse_other_kinds(model_type: str, name: str) -> None:
    """Refuse a model that is no decoder-only transformer.

    Raises:
        ConfigError: if its type is known to be another kind: an encoder, for example.
    """
    other = OTHER_MODEL_TYPES.get(model_type)
    if other is not None and not other.decoder:
        raise ConfigError(
            f"{name} is {other.title} (model_type {model_type!r}): {other.reason}; a chart is made of decoder-only "
            "transformers."
        )


def _common(config: Config, model_type: str, family: Family, name: str) -> Architecture:
    """Read what every family has, under any of the keys that families use."""
    vocab = _number(config, name, "vocab_size")
    width = _number(config, name, "hidden_size", "n_embd", "d_model")
    layers = _number(config, name, "num_hidden_layers", "n_layer", "num_layers", most=MOST_LAYERS)
    heads = _number(config, name, *HEAD_KEYS)
    n_kv = _number(config, name, "num_key_value_heads", default=heads)
    head_dim = _number(config, name, "head_dim", default=max(1, width // heads))
    wide = _number(config, name, "intermediate_size", "n_inner", "ffn_dim", default=4 * width)
    context = _number(config, name, *CONTEXT_KEYS, default=0)
    activation = next(
        (str(config[key]) for key in _ACTIVATION_KEYS if config.get(key)),
        "gelu",
    )
    rope = _rope(config)
    facts = dict(family.facts)
    tied = bool(config.get("tie_word_embeddings", facts.pop("tied", False)))
    facts.pop("tied", None)
    return Architecture(
        family=model_type,
        name=name,
        vocab_size=vocab,
        emb_dim=width,
        n_layers=layers,
        context_length=context or None,
        attention=AttentionFacts(heads, n_kv, head_dim),
        feed_forward=FeedForwardFacts(wide, activation),
        tied=tied,
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
        rope_share=float(rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))),
        rope_scaling=_scaling(rope),
        **facts,
    )


def _number(config: Config, name: str, *keys: str, default: int | None = None, most: int = 2**40) -> int:
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not (0 < value <= most):
            raise ConfigError(
                f"{key} is {value!r} in the config of {name}; a whole number from 1 to {most:,} was expected."
            )
        return value
    if default is None:
        raise ConfigError(f"the config of {name} has no {keys[0]}; give the config.json of a model.")
    return default


def _rope(config: Config) -> Config:
    """Return the settings of rotary positions: today's `rope_parameters`, or the older `rope_scaling`."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        return {}
    full = rope.get("full_attention")
    return full if isinstance(full, Mapping) else rope


def _scaling(rope: Config) -> str:
    kind = str(rope.get("rope_type", rope.get("type", "default")))
    return "" if kind == "default" else kind


def _window(a: Architecture, config: Config, every: bool = False, period: int = 0) -> Architecture:
    """Set the sliding window: on every layer, on those that `layer_types` names, or on all but each `period`-th."""
    window = config.get("sliding_window")
    types = config.get("layer_types")
    if window is None or not isinstance(window, int):
        return a
    if isinstance(types, list):
        layers = sum(kind == "sliding_attention" for kind in types[: a.n_layers])
    elif every:
        layers = a.n_layers
    elif period:
        layers = a.n_layers - a.n_layers // period
    else:
        layers = max(0, a.n_layers - int(config.get("max_window_layers", a.n_layers)))
    return _attention(a, window=window, windowed_layers=layers) if layers else a


def _experts(a: Architecture, config: Config, width: str) -> Architecture:
    n = _number(config, a.name, "num_local_experts", "num_experts")
    active = _number(config, a.name, "num_experts_per_tok", "experts_per_token", default=min(2, n))
    return _feed_forward(a, n_experts=n, n_active=active, width=_number(config, a.name, width))
