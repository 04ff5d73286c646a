"""A token embedding whose weight is the head's, too, with one gradient for both uses.

torch computes two gradients of the whole vocabulary and adds them; that of the embedding is nearly all zeros. Here the
embedding adds its rows to the gradient that the head has computed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clearhead.model import GPTModel
from clearhead.training.cpu.bfloat16 import share_copy


class TiedEmbedding(nn.Embedding):
    """`nn.Embedding` that, when it trains, keeps the weight through which the head's gradient reaches it.

    Attributes:
        for_head: that weight, of the last forward pass; None if there was none.
    """

    for_head: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of the weight, [..., C]."""
        self.for_head = None
        if not (self.training and torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(ids)
        rows: Tensor
        rows, self.for_head = _RowsAndWeight.apply(self.weight, ids)  # type: ignore[no-untyped-call]
        share_copy(self.weight, self.for_head)
        return rows


def take_head_weight(model: GPTModel) -> Tensor:
    """Return the weight for the head of the forward pass that was just computed; it is used once."""
    embedding = model.token_embedding
    if not isinstance(embedding, TiedEmbedding) or embedding.for_head is None:
        return model.head.weight
    weight, embedding.for_head = embedding.for_head, None
    return weight


class _RowsAndWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape
        ctx.set_materialize_grads(False)
        return F.embedding(ids, weight), weight.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor | None, of_weight: Tensor | None) -> tuple[Tensor | None, None]:
        (ids,) = ctx.saved_tensors
        if of_rows is None:
            return of_weight, None
        if of_weight is None:  # the head was not used, or not through this weight
            of_weight = of_rows.new_zeros(ctx.shape)
        return of_weight.index_add_(0, ids.flatten(), of_rows.flatten(0, -2)), None
