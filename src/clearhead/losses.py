"""The cross-entropy of the next token without holding the logits of all tokens.

With GPT-2's vocabulary the logits are the largest thing in a training step: 16 windows of 1,024 tokens make
16,384 x 50,257 floats, 3.1 GiB, and their gradient the same again. Here a few hundred tokens pass through the head at a
time; their gradient is computed at once, while the logits are there, so that nothing has to be computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 << 20  # of logits in float32 at a time: large enough for fast products, small beside a model
NOT_COUNTED = -100
"""The target of a token that does not count, as torch's cross-entropy has it."""


def head_nats(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0) -> Tensor:
    """The summed surprisal of the targets, -sum log softmax(hidden weight^T)[target], in nats.

    Equal to `F.cross_entropy(hidden @ weight.T, targets, reduction="sum")` in value and gradients to rounding. Where
    autocast is on, the products are in its type; softmax and sums are in float32 always. It can be
    differentiated once, and one call backwards uses up what it kept.

    Args:
        hidden: the final norm's output, [N, C].
        weight: the head's, [V, C].
        targets: int64 [N]; -100 where a token does not count.
        chunk: tokens at a time; 0 for as many as make 64 MiB of logits.

    Returns:
        a scalar, float32.
    """
    chunk = chunk or max(16, CHUNK_BYTES // (4 * weight.shape[0]))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _HeadNats.apply(hidden, weight, targets, chunk)
    device = hidden.device.type
    low, matrix = _product_type(hidden), weight.to(_product_type(hidden))
    total = hidden.new_zeros((), dtype=torch.float32)
    with torch.autocast(device, enabled=False):
        for piece, wanted in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = (piece.to(low) @ matrix.T).float()  # [chunk, V]
            total += F.cross_entropy(logits, wanted, reduction="sum", ignore_index=NOT_COUNTED)
    return total


class _HeadNats(torch.autograd.Function):
    """Computes the gradients on the way forwards: softmax(logits) - onehot(target), times weight and times hidden."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        low = _product_type(hidden)
        inputs, matrix = hidden.to(low), weight.to(low)
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None  # [N, C]
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # [V, C]
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(inputs), chunk):
                piece = inputs[first : first + chunk]
                nats, of_logits = _softmax_gradient(piece @ matrix.T, targets[first : first + chunk])
                total += nats
                of_logits = of_logits.to(low)
                if of_hidden is not None:
                    torch.mm(of_logits, matrix, out=of_hidden[first : first + chunk])
                if of_weight is None:
                    continue
                if of_weight.dtype == low:
                    of_weight.addmm_(of_logits.T, piece)
                else:
                    of_weight += of_logits.T @ piece
        ctx.gradients = None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The kept gradients times what comes from above; in place, since one of them is as large as the head."""
        if ctx.gradients is None:
            raise RuntimeError("head_nats can be differentiated once; call it again.")
        (of_hidden, of_weight), ctx.gradients = ctx.gradients, None
        for gradient in (of_hidden, of_weight):
            if gradient is not None:
                gradient.mul_(upstream)
        return of_hidden, of_weight, None, None


def _softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed nats of logits [N, V], and their gradient in float32 [N, V]."""
    logs = logits.float().log_softmax(dim=-1)
    counted = targets != NOT_COUNTED
    places = targets.where(counted, 0)[:, None]  # [N, 1]
    nats = -(logs.gather(1, places)[:, 0] * counted).sum()
    gradient = logs.exp_().scatter_add_(1, places, -torch.ones_like(places, dtype=logs.dtype))
    return nats, gradient.mul_(counted[:, None]) if not bool(counted.all()) else gradient


def _product_type(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
