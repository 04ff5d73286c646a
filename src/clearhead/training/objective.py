"""The training objective: the summed cross-entropy of a batch, as a module that can be spread and compiled."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clearhead.losses import NOT_COUNTED, HeadOperations, head_nats
from clearhead.model import GPTModel
from clearhead.training.cpu.tied import take_head_weight


class Objective(nn.Module):
    """A model and its loss.

    Args:
        model: the network; it is used, not copied.
        chunk: tokens whose logits are in memory at a time; 0 for a size that fits.
        compiled: whether torch.compile fuses everything below the head (the head consists of a few large products and
            gains nothing).
        recompute: whether the inside of each block is computed again in the backward pass.
        head: the operations of the loss.
    """

    def __init__(
        self,
        model: GPTModel,
        *,
        chunk: int = 0,
        compiled: bool = False,
        recompute: bool = False,
        head: HeadOperations | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk
        self.head = head or HeadOperations()
        if recompute:
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self._trunk = torch.compile(model.forward_hidden) if compiled else model.forward_hidden

    def forward(self, ids: Tensor, targets: Tensor, counted: Tensor | None = None, guess: bool = False) -> Tensor:
        """Return the summed cross-entropy of the targets in nats, or the likeliest ids.

        Args:
            ids: int64 [B, T]
            targets: int64 [B, T]; -100 for tokens that do not count.
            counted: the indices in the flattened batch whose targets count, int64 [N]; None for all. The others do
                not go through the head.
            guess: return the likeliest ids instead of the loss.

        Returns:
            a scalar, float32; or the ids, int64 [N].
        """
        trunk = self._trunk if self.model.training else self.model.forward_hidden
        hidden = trunk(ids).flatten(0, 1)  # [B * T, C]
        targets = targets.flatten()  # [B * T]
        if counted is not None:
            hidden, targets = hidden[counted], targets[counted]
        if guess:
            logits: torch.Tensor = self.model.head(hidden)  # [N, V]
            return logits.argmax(dim=-1)  # [N]
        return head_nats(hidden, take_head_weight(self.model), targets, self.chunk, self.head)


def counted_indices(targets: Tensor) -> Tensor | None:
    """Return the indices of the flattened targets [B, T] that count, int64 [N]; None if all do."""
    flat = targets.flatten()
    counted = flat != NOT_COUNTED
    return None if bool(counted.all()) else counted.nonzero()[:, 0]
