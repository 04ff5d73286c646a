"""An architecture as plain text, as JSON, and two of them side by side as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from clearhead.anatomy.architecture.description import Architecture
from clearhead.anatomy.architecture.differences import activation_name, active_parameters, differences
from clearhead.anatomy.architecture.families import FAMILIES
from clearhead.anatomy.architecture.roles import ROLES
from clearhead.anatomy.architecture.words import CHART, FACTS


def components(architecture: Architecture, lang: str = "en") -> list[tuple[str, int, int, int]]:
    """Return every component: its words, how many the model has, the parameters of one, and of all together.

    They stand in the order in which a token meets them.
    """
    words, norm = CHART[lang], architecture.norm
    rows = []
    order = list(ROLES)  # in which a token meets them; files are often sorted by name
    found = sorted(architecture.by_role().items(), key=lambda item: order.index(item[0]) if item[0] in order else 99)
    for role, tensors in found:
        layers = {tensor.layer for tensor in tensors}
        total = sum(tensor.count for tensor in tensors)
        named = {"attention_norm": "shared_norm"} if architecture.shared_norm else {}
        name = words[{**named, "other": "share of other"}.get(role, role)]
        rows.append((name.format(norm=norm), len(layers), architecture.in_block(role), total))
    return rows


def facts(architecture: Architecture, lang: str = "en") -> dict[str, str]:
    """Return what a comparison shows of an architecture: a label and a short value for each property."""
    a, words = architecture, FACTS[lang]
    t, f = a.attention, a.feed_forward
    unknown = words["unknown"]
    norm_place = (
        "parallel" if a.parallel else ("both" if a.pre_norm and a.post_norm else "before" if a.pre_norm else "after")
    )
    positions = words[f"positions {a.positions}"]
    if a.positions == "rotary" and a.rope_theta:
        positions += f" ({a.rope_theta:,.0f})"
    biases = [words[f"bias {name}"] for name, has in _biases(a).items() if has]
    values = {
        "family": FAMILIES[a.family].title if a.family in FAMILIES else a.family,
        "parameters": f"{a.total:,}",
        "blocks": f"{a.n_layers:,}",
        "width": f"{a.emb_dim:,}",
        "vocabulary": f"{a.vocab_size:,}",
        "context": f"{a.context_length:,}" if a.context_length else unknown,
        "positions": positions,
        "norm": a.norm,
        "norm place": words[f"norm {norm_place}"],
        "query heads": f"{t.n_heads} × {t.head_dim}" if t.n_heads else unknown,
        "kv heads": f"{t.n_kv_heads}" if t.n_kv_heads else unknown,
        "qk norm": words["yes"] if t.qk_norm else words["no"],
        "window": words["windowed"].format(n=t.windowed_layers, window=t.window) if t.window else words["no"],
        "feed-forward": f"{f.width:,}, {activation_name(f.activation)}" + (words["with gate"] if f.gated else ""),
        "experts": f"{f.n_active} / {f.n_experts}" if f.n_experts else words["no"],
        "biases": words["and"].join(biases) or words["no"],
        "head": words["tied"] if a.tied else words["own"],
    }
    if f.n_experts:
        values["active"] = f"{active_parameters(a):,}"
    return {words[key]: value for key, value in values.items()}


def _biases(a: Architecture) -> dict[str, bool]:
    return {"qkv": a.attention.qkv_bias, "out": a.attention.out_bias, "ff": a.feed_forward.bias}


def architecture_json(architecture: Architecture) -> dict[str, Any]:
    """Return an architecture as JSON values: all facts, every tensor with its component, and the differences."""
    values = asdict(architecture)
    values["parameters"] = architecture.total
    values["active_parameters"] = active_parameters(architecture)
    values["differences_from_gpt2"] = differences(architecture)
    values["tensors"] = [
        {
            "name": t.name,
            "shape": list(t.shape),
            "component": t.role,
            "layer": t.layer,
            "parameters": t.count,
            "tied": t.tied,
        }
        for t in architecture.tensors
    ]
    return values
