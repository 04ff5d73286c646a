"""The contract between what runs a model and what generates with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from clearhead.config import GPTConfig


class Slot(Protocol):
    """One growing sequence inside a Runner. Only the Runner that opened it knows what is inside."""

    @property
    def length(self) -> int:
        """How many tokens the sequence holds so far."""


class Runner(Protocol):
    """Runs a GPT over growing sequences and remembers their keys and values.

    The results for a sequence do not depend on what else is in the batch, nor on how its tokens were
    cut into calls (to rounding: 1e-4 in the logits).
    """

    @property
    def config(self) -> GPTConfig:
        """The shape of the model that runs."""

    def open(self) -> Slot:
        """A new, empty sequence."""

    def close(self, slot: Slot) -> None:
        """Forgets a sequence and frees its memory; the slot must not be used again."""

    def extend(self, work: Sequence[tuple[Slot, Sequence[int]]]) -> np.ndarray:
        """Appends tokens to each sequence; returns the logits after each one's last token.

        Args:
            work: pairs of a slot and the ids to append, at least one each; no slot twice.

        Returns:
            float32 [len(work), vocab_size]

        Raises:
            InputError: where ids are empty or outside the vocabulary, or a sequence would grow past
                `config.context_length`.
        """


class ScoringRunner(Runner, Protocol):
    """A Runner that also gives the logits at every token of a text."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits at every token of a whole sequence, beside the open ones: float32 [T, vocab_size].

        Raises:
            InputError: as `extend`.
        """
