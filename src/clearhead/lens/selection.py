"""Which activations of which texts and tokens are wanted: what the passes in PyTorch and in NumPy have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.inference.runner import check_token_ids
from clearhead.lens.activations import Activation, Activations, names
from clearhead.lens.aliases import Alias, masked_scores, resolve
from clearhead.lens.results import ActivationCache, Array


@dataclass(frozen=True)
class Selection:
    """The activations to record of a batch of texts.

    Attributes:
        known: the model's activations.
        texts: token ids of each text.
        aliases: what each wanted name means.
        positions: the positions to keep of each text, counted from its start, int64 [N, P]; None for all.
    """

    known: Activations
    texts: Sequence[Sequence[int]]
    aliases: Mapping[str, Alias]
    positions: npt.NDArray[np.int64] | None

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The activations to record, in the order of the model."""
        return self.known.find({alias.activation for alias in self.aliases.values()})

    def cache(
        self, values: Mapping[str, Array], gradients: Mapping[str, Array] | None = None
    ) -> ActivationCache[Array]:
        """Return recorded values, and gradients if there are any, under the wanted names and in the axis order of each.

        Args:
            values: by the activation's name, [N, *shape].
            gradients: likewise.
        """
        axes = {name: alias.token_axes(self.known, self.positions is not None) for name, alias in self.aliases.items()}
        converted = [
            {name: alias.convert(found[alias.activation], self.known.config) for name, alias in self.aliases.items()}
            for found in (values, gradients)
            if found
        ]
        return ActivationCache(self.texts, converted[0], axes, converted[1] if gradients else None)


def select(
    config: GPTConfig,
    texts: Sequence[Sequence[int]],
    wanted: str | Iterable[str],
    positions: int | Sequence[int] | None,
) -> Selection:
    """Check what is asked for.

    Args:
        config: the model's shape.
        texts: token ids of each text.
        wanted: names of activations, here or in TransformerLens, with wildcards.
        positions: keep the tokens at these positions only; negative ones count from each text's end.

    Raises:
        InputError: if there is no text, a name is unknown, a text is empty, too long or has an unknown id, or a
            position is outside a text.
    """
    known = names(config)
    aliases = resolve(wanted, known)
    check_texts(config, texts)
    chosen = _chosen_positions(positions, texts)
    if chosen is not None and any(alias.convert is masked_scores for alias in aliases.values()):
        raise InputError(
            "hook_attn_scores are masked by position, so they come whole; leave positions out, or record "
            "attention.scores."
        )
    return Selection(known, texts, aliases, chosen)


def check_texts(config: GPTConfig, texts: Sequence[Sequence[int]]) -> None:
    """Check that a model can run texts.

    Raises:
        InputError: if there is no text, or one is empty, too long or has an id outside the vocabulary.
    """
    if not len(texts):
        raise InputError("there are no texts to run; give at least one.")
    for number, ids in enumerate(texts):
        if isinstance(ids, str | bytes):
            raise InputError(f"text {number} is {ids!r:.40}; token ids were expected, as tokenizer.encode gives them.")
        if not 1 <= len(ids) <= config.context_length:
            raise InputError(
                f"text {number} has {len(ids):,} tokens, but the model reads 1 to {config.context_length:,}; shorten "
                "it, or leave it out."
            )
        check_token_ids(ids, config.vocab_size)


def _chosen_positions(
    positions: int | Sequence[int] | None, texts: Sequence[Sequence[int]]
) -> npt.NDArray[np.int64] | None:
    """Return the positions to keep of each text, [N, P], counted from the start; None for all.

    Raises:
        InputError: if there is none, or one is outside a text.
    """
    if positions is None:
        return None
    wanted = [positions] if isinstance(positions, int) else [int(one) for one in positions]
    shortest = min(map(len, texts))
    if not wanted:
        raise InputError("positions is empty; name at least one, or leave it out for all.")
    for position in wanted:
        if not -shortest <= position < shortest:
            raise InputError(f"there is no position {position} in the shortest text, which has {shortest:,} tokens.")
    return np.array([[position % len(ids) for position in wanted] for ids in texts])
