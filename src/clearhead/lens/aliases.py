"""TransformerLens' names for activations, for people and code that know them.

A name of TransformerLens gives the value and axis order of its bridge, which does not change the weights: heads come
after tokens, scores are masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clearhead.config import GPTConfig
from clearhead.lens.activations import Activations, wanted_names
from clearhead.lens.results import Array


class Conversion(Protocol):
    """Turns the value of an activation, with or without a batch axis, into that of TransformerLens."""

    def __call__(self, value: Array, config: GPTConfig, /) -> Array:
        """Return the converted value."""


def _same(value: Array, config: GPTConfig) -> Array:
    return value


def _heads_last(value: Array, config: GPTConfig) -> Array:
    return value.swapaxes(-3, -2)  # [..., H, T, D] -> [..., T, H, D]


def _scale(variance: Array, config: GPTConfig) -> Array:
    scale: Array = (variance + config.norm_eps) ** 0.5
    return scale[..., None]  # [..., T] -> [..., T, 1]


def masked_scores(scores: Array, config: GPTConfig) -> Array:
    """Return scores [..., T, T] with minus infinity for the tokens that attention may not see."""
    future = np.triu(np.full(scores.shape[-2:], -np.inf, np.float32), 1)
    return scores + (future if isinstance(scores, np.ndarray) else scores.new_tensor(future))


@dataclass(frozen=True, slots=True)
class Alias:
    """A name of TransformerLens.

    Attributes:
        name: as TransformerLens spells it.
        activation: the name here.
        convert: turns the value here, with or without a batch axis, into the value there.
    """

    name: str
    activation: str
    convert: Conversion = _same

    def token_axes(self, known: Activations, only_keys: bool) -> list[int]:
        """Return the axes that count the tokens of a text in the converted value, without a batch axis.

        Args:
            known: the model's activations.
            only_keys: leave out the axis of the tokens themselves (of the queries, in scores and patterns).
        """
        activation = known[self.activation]
        axes = [axis for axis, letter in enumerate(activation.letters) if letter == "T"]
        if only_keys:
            axes.remove(activation.token_axis)
        if self.convert is _heads_last:
            axes = [1 - axis for axis in axes]
        return axes


_BLOCK: tuple[tuple[str, str, Conversion], ...] = (
    ("hook_resid_pre", "residual_in", _same),
    ("ln1.hook_scale", "norm_1.variance", _scale),
    ("ln1.hook_out", "norm_1.output", _same),
    ("attn.hook_q", "attention.queries", _heads_last),
    ("attn.hook_k", "attention.keys", _heads_last),
    ("attn.hook_v", "attention.values", _heads_last),
    ("attn.hook_attn_scores", "attention.scores", masked_scores),
    ("attn.hook_pattern", "attention.pattern", _same),
    ("attn.hook_z", "attention.mixed", _heads_last),
    ("hook_attn_out", "attention.output", _same),
    ("hook_resid_mid", "residual_mid", _same),
    ("ln2.hook_scale", "norm_2.variance", _scale),
    ("ln2.hook_out", "norm_2.output", _same),
    ("mlp.hook_pre", "feed_forward.up", _same),
    ("mlp.hook_post", "feed_forward.activated", _same),
    ("hook_mlp_out", "feed_forward.output", _same),
    ("hook_resid_post", "residual_out", _same),
)
_OUTSIDE: tuple[tuple[str, str, Conversion], ...] = (
    ("hook_embed", "embedding.token", _same),
    ("hook_pos_embed", "embedding.position", _same),
    ("ln_final.hook_scale", "final_norm.variance", _scale),
    ("ln_final.hook_out", "final_norm.output", _same),
)


def transformer_lens_names(config: GPTConfig) -> dict[str, Alias]:
    """Return every name of TransformerLens that has a value here."""
    found = [Alias(*row) for row in _OUTSIDE]
    for layer in range(config.n_layers):
        found += [Alias(f"blocks.{layer}.{name}", f"blocks.{layer}.{ours}", f) for name, ours, f in _BLOCK]
    return {alias.name: alias for alias in found}


def resolve(wanted: str | Iterable[str], known: Activations) -> dict[str, Alias]:
    """Return what each wanted name means: names and wildcards of either kind, in the order of the model.

    Raises:
        InputError: if a name matches none.
    """
    aliases = transformer_lens_names(known.config)
    chosen: dict[str, Alias] = {}
    for name in wanted_names(wanted):
        pattern = re.escape(name).replace(r"\*", ".*").replace(r"\?", ".")
        theirs = [alias for key, alias in aliases.items() if re.fullmatch(pattern, key)] if "hook_" in name else []
        ours = [] if theirs else [Alias(one.name, one.name) for one in known.find(name)]
        chosen.update({alias.name: alias for alias in theirs or ours})
    order = {name: index for index, name in enumerate(known)}
    return dict(sorted(chosen.items(), key=lambda item: order[item[1].activation]))
