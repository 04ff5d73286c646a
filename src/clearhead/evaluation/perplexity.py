"""The loss on a held-out text: perplexity, and bits per byte, which models with other vocabularies share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.data.documents import Ids
from clearhead.losses import NOT_COUNTED, head_nats
from clearhead.model import GPTModel


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a model paid for a text.

    Attributes:
        nats: the summed -log p of the tokens.
        tokens: how many tokens were predicted.
        text_bytes: the length of their text in UTF-8.
    """

    nats: float
    tokens: int
    text_bytes: float

    @property
    def loss(self) -> float:
        """The mean cross-entropy of a token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss): between how many equally likely tokens the model seems to choose; inf where it has no float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """The summed surprisal in bits over the bytes of the text."""
        return self.nats / math.log(2) / self.text_bytes


Nats = Callable[[Tensor, Tensor], Tensor]
"""Inputs and targets, int64 [B, T] each, in; the targets' summed surprisal out, a scalar."""


@torch.no_grad()
def held_out(
    model: GPTModel,
    ids: Ids,
    text_bytes: int,
    *,
    windows: int | None = None,
    batch_size: int = 16,
    nats: Nats | None = None,
    share: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] = lambda tokens: None,
) -> HeldOut:
    """The loss on a text, in windows of the context length that follow one another without overlap.

    Every token but the first is predicted once, from what stands before it in its window; the text's bytes are
    those of its documents, while the end-of-text tokens between them are paid for.

    Args:
        model: put into evaluation mode while this runs.
        ids: the text, integers [tokens].
        text_bytes: its length in UTF-8.
        windows: evaluate only so many, spread evenly over the text; their bytes are then taken to be the text's
            mean a token.
        batch_size: windows computed at once.
        nats: what computes a batch; the model itself in float32 where it is not given.
        share: (r, n) computes every n-th batch from the r-th on. The results of all r sum to the whole; each takes
            the same number of batches, the last of which may be empty.
        advance: is told how many tokens were done.
    """
    length = model.config.context_length
    device = model.token_embedding.weight.device
    starts = np.arange(0, len(ids) - 1, length)
    starts = starts[evenly(len(starts), windows)]
    rank, world = share
    compute = nats or (
        lambda inputs, targets: head_nats(model.hidden(inputs).flatten(0, 1), model.head.weight, targets.flatten())
    )
    total, tokens = 0.0, 0
    training = model.training
    model.eval()
    rounds = -(-len(starts) // (batch_size * world))
    for first in range(rank * batch_size, rounds * world * batch_size, batch_size * world):
        rows = _windows(ids, starts[first : first + batch_size], length)  # [B, T + 1]
        inputs = torch.from_numpy(rows[:, :-1]).clamp(min=0).to(device)  # [B, T]
        targets = torch.from_numpy(rows[:, 1:]).to(device)  # [B, T]
        total += compute(inputs, targets).item()
        done = int((rows[:, 1:] != NOT_COUNTED).sum())
        tokens += done
        advance(done)
    model.train(training)
    return HeldOut(total, tokens, text_bytes * tokens / max(len(ids) - 1, 1))


def evenly(count: int, most: int | None) -> npt.NDArray[np.int64]:
    """Places among so many things, spread evenly from the first to the last: at most `most`, int64, rising."""
    if most is None or most >= count:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, most).round().astype(np.int64)


def _windows(ids: Ids, starts: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.int64]:
    """The windows that start there, int64 [B, T + 1]; behind the text's end stand targets that do not count."""
    rows = [ids[start : start + length + 1].astype(np.int64) for start in starts]
    if not rows:
        return np.full((1, length + 1), NOT_COUNTED)
    return np.stack([np.pad(row, (0, length + 1 - len(row)), constant_values=NOT_COUNTED) for row in rows])
