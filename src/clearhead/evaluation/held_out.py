"""The loss on a held-out text: perplexity, and bits per byte, which models with other vocabularies share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from clearhead.model import GPTModel
from clearhead.texts import Ids


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
        """exp(loss): between how many equally likely tokens the model seems to choose."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The summed surprisal in bits over the bytes of the text."""
        return self.nats / math.log(2) / self.text_bytes


@torch.inference_mode()
def held_out(
    model: GPTModel,
    ids: Ids,
    text_bytes: int,
    *,
    windows: int | None = None,
    batch_size: int = 16,
    bfloat16: bool = False,
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
        bfloat16: autocast the products.
        advance: is told how many tokens were done.
    """
    length = model.config.context_length
    device = model.token_embedding.weight.device
    starts = np.arange(0, len(ids) - 1, length)
    if windows is not None and windows < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, windows).round().astype(int)]
    nats, tokens = 0.0, 0
    training = model.training
    model.eval()
    autocast = torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext()
    for first in range(0, len(starts), batch_size):
        batch = [ids[s : s + length + 1].astype(np.int64) for s in starts[first : first + batch_size]]
        # Only the text's last window is shorter: behind it stand tokens that nobody predicts.
        rows = np.stack([np.pad(row, (0, length + 1 - len(row)), constant_values=-100) for row in batch])
        inputs = torch.from_numpy(rows[:, :-1]).clamp(min=0).to(device)  # [B, T]
        targets = torch.from_numpy(rows[:, 1:]).to(device)  # [B, T]
        with autocast:
            logits = model(inputs)  # [B, T, V]
        nats += F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum").item()
        done = sum(len(row) - 1 for row in batch)
        tokens += done
        advance(done)
    model.train(training)
    return HeldOut(nats, tokens, text_bytes * tokens / max(len(ids) - 1, 1))
