"""The cross-entropy of a PyTorch network on a text, while it trains: with autocast, on several devices, on a sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clearhead.data.documents import TokenIds
from clearhead.evaluation.cross_entropy import CrossEntropy
from clearhead.losses import NOT_COUNTED, head_nats
from clearhead.model import GPTModel

BatchNats = Callable[[Tensor, Tensor], Tensor]
"""Computes the summed surprisal of the targets, a scalar, from inputs and targets, both int64 [B, T]."""


@torch.no_grad()
def evaluate_perplexity(
    model: GPTModel,
    ids: TokenIds,
    text_bytes: int,
    *,
    windows: int | None = None,
    batch_size: int = 16,
    batch_nats: BatchNats | None = None,
    share: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] = lambda tokens: None,
) -> CrossEntropy:
    """Compute the cross-entropy on a text, in consecutive windows of the context length without overlap.

    Every token but the first is predicted once, from those before it in its window. The bytes counted are those of the
    documents, while the end-of-text tokens between them add to the cross-entropy.

    Args:
        model: runs in evaluation mode, and returns to its own mode afterwards.
        ids: the text, integers [tokens].
        text_bytes: its length in UTF-8.
        windows: evaluate only this many, spread evenly over the text, with the bytes estimated from the text's mean
            per token; None for all.
        batch_size: the number of windows computed at once.
        batch_nats: computes a batch; the model in float32 if None.
        share: (r, n) computes every n-th batch from the r-th on. The results of all r sum to the whole; each has the
            same number of batches, the last of which may be empty.
        advance: is called with the number of tokens after each batch.
    """
    length = model.config.context_length
    device = model.token_embedding.weight.device
    starts = np.arange(0, len(ids) - 1, length)
    starts = starts[evenly_spaced(len(starts), windows)]
    rank, world = share
    compute = batch_nats or (
        lambda inputs, targets: head_nats(
            model.forward_hidden(inputs).flatten(0, 1), model.head.weight, targets.flatten()
        )
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
    return CrossEntropy(total, tokens, text_bytes * tokens / max(len(ids) - 1, 1))


def evenly_spaced(count: int, most: int | None) -> npt.NDArray[np.int64]:
    """Return at most `most` indices from 0 to count - 1, evenly spaced and rising; all of them if `most` is None."""
    if most is None or most >= count:
        return np.arange(count, dtype=np.int64)
    return np.linspace(0, count - 1, most).round().astype(np.int64)


def _windows(ids: TokenIds, starts: npt.NDArray[np.integer], length: int) -> npt.NDArray[np.int64]:
    """Return the windows that begin at `starts`, int64 [B, T + 1], padded with targets that do not count."""
    rows = [ids[start : start + length + 1].astype(np.int64) for start in starts]
    if not rows:
        return np.full((1, length + 1), NOT_COUNTED)
    return np.stack([np.pad(row, (0, length + 1 - len(row)), constant_values=NOT_COUNTED) for row in rows])
