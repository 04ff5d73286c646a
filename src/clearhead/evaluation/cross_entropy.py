"""The cross-entropy of a model on a text: perplexity, and bits per byte, which is comparable across vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clearhead.data.documents import TokenIds
from clearhead.inference.runner import ScoringRunner
from clearhead.inference.scoring import ScoreRequest, score_sequences


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The cross-entropy of a model on a text.

    Attributes:
        nats: the summed -log p of the tokens.
        tokens: the number of predicted tokens.
        text_bytes: the length of their text in UTF-8.
    """

    nats: float
    tokens: int
    text_bytes: float

    @property
    def loss(self) -> float:
        """The mean cross-entropy per token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss), the number of equally likely tokens with the same entropy; inf if it exceeds a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """The summed surprisal in bits over the bytes of the text."""
        return self.nats / math.log(2) / self.text_bytes


def measure_cross_entropy(
    runner: ScoringRunner,
    ids: TokenIds,
    text_bytes: int,
    *,
    advance: Callable[[int], None] = lambda tokens: None,
) -> CrossEntropy:
    """Compute the cross-entropy on a text, in consecutive windows of the context length without overlap.

    Every token but the first is predicted once, from those before it in its window. The bytes counted are those of the
    documents, while the end-of-text tokens between them add to the cross-entropy.

    Args:
        runner: runs the model.
        ids: the text, integers [tokens].
        text_bytes: its length in UTF-8.
        advance: is called with the number of tokens after each window.

    Raises:
        WeightsError: if a log-probability is NaN or infinite.
    """
    length = runner.config.context_length

    def windows() -> Iterator[ScoreRequest]:
        for start in range(0, len(ids) - 1, length):
            yield ScoreRequest(ids[start : start + length + 1].tolist())

    nats, tokens = 0.0, 0
    for found in score_sequences(runner, windows()):
        logprobs = found.scores.logprobs
        nats -= float(logprobs.sum(dtype=np.float64))
        tokens += len(logprobs)
        advance(len(logprobs))
    return CrossEntropy(nats, tokens, text_bytes)
