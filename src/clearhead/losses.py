"""The cross-entropy of the next token without storing the logits of all tokens.

With GPT-2's vocabulary the logits are the largest thing in a training step: 16 windows of 1,024 tokens make
16,384 x 50,257 floats, 3.1 GiB, and their gradient as much again. Here a few hundred tokens at a time pass through the
head. Their gradient is computed immediately, while the logits are in memory, so that nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 64 << 20  # of logits in float32 at a time: large enough for fast products, small compared with a model
_ROWS = 1024  # of the vocabulary
NOT_COUNTED = -100
"""The target of a token that does not count; torch's cross-entropy uses the same number."""


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


def _accumulate(total: Tensor, product: Tensor, start: bool) -> None:
    total.copy_(product) if start else total.add_(product)


def softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed nats of logits [N, V], and their gradient in float32 [N, V]."""
    logs = logits.float().log_softmax(dim=-1)
    counted = targets != NOT_COUNTED
    indices = targets.where(counted, 0)[:, None]  # [N, 1]
    nats = -(logs.gather(1, indices)[:, 0] * counted).sum()
    gradient = logs.exp_().scatter_add_(1, indices, -torch.ones_like(indices, dtype=logs.dtype))
    return nats, gradient.mul_(counted[:, None]) if not bool(counted.all()) else gradient


@dataclass(frozen=True, slots=True)
class HeadOperations:
    """The operations of the head and its loss; others may be faster on a device.

    Attributes:
        product: x [N, in] and W [out, in] to x W^T.
        softmax_gradient: logits [N, V], which it may overwrite, and targets to the summed nats and the gradient.
        cast: a weight to the dtype of the products.
        accumulate: adds a product to float32 sums of its shape, or starts them with it if the last argument is true.
    """

    product: Callable[[Tensor, Tensor], Tensor] = _product
    softmax_gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = softmax_gradient
    cast: Callable[[Tensor, torch.dtype], Tensor] = Tensor.to
    accumulate: Callable[[Tensor, Tensor, bool], None] = _accumulate


_TORCH = HeadOperations()


def head_nats(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0, operations: HeadOperations = _TORCH
) -> Tensor:
    """Return the summed surprisal of the targets, -sum log softmax(hidden weight^T)[target], in nats.

    Equal to `F.cross_entropy(hidden @ weight.T, targets, reduction="sum")` in value and gradients to rounding. With
    autocast, the products are in its dtype; softmax and sums are always in float32. The result can be
    differentiated once: the backward pass consumes the stored gradients.

    Args:
        hidden: the final norm's output, [N, C].
        weight: the head's, [V, C].
        targets: int64 [N]; -100 for a token that does not count.
        chunk: tokens at a time; 0 for as many as 64 MiB of logits allow.
        operations: those with which the gradients are computed.

    Returns:
        a scalar, float32.
    """
    chunk = chunk or max(16, CHUNK_BYTES // (4 * weight.shape[0]))
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        nats: Tensor = _HeadNats.apply(hidden, weight, targets, chunk, operations)  # type: ignore[no-untyped-call]
        return nats
    device = hidden.device.type
    low = _product_dtype(hidden)
    matrix = operations.cast(weight, low)
    total = hidden.new_zeros((), dtype=torch.float32)
    with torch.autocast(device, enabled=False):
        for piece, wanted in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
            logits = (piece.to(low) @ matrix.T).float()  # [chunk, V]
            total += F.cross_entropy(logits, wanted, reduction="sum", ignore_index=NOT_COUNTED)
    return total


class _HeadNats(torch.autograd.Function):
    """Compute the gradients in the forward pass: softmax(logits) - onehot(target), times weight and times hidden."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, operations: HeadOperations
    ) -> Tensor:
        low = _product_dtype(hidden)
        inputs, matrix = hidden.to(low), operations.cast(weight, low)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None  # [N, C]
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None  # [V, C]
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(inputs), chunk):
                piece = inputs[first : first + chunk]
                logits = operations.product(piece, matrix)
                nats, logit_gradient = operations.softmax_gradient(logits, targets[first : first + chunk])
                total += nats
                logit_gradient = logit_gradient.to(low)
                if hidden_gradient is not None:
                    hidden_gradient[first : first + chunk] = operations.product(logit_gradient, matrix.T)
                if weight_gradient is not None:
                    _add_weight_gradient(weight_gradient, logit_gradient, piece, first == 0, operations.accumulate)
            if weight_gradient is not None and not len(inputs):
                weight_gradient.zero_()
        ctx.gradients = None if hidden_gradient is None else hidden_gradient.to(hidden.dtype), weight_gradient
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """Return the stored gradients times the upstream one; in place, since one of them is as large as the head."""
        if ctx.gradients is None:
            raise RuntimeError("the result of head_nats can be differentiated once; call it again.")
        (hidden_gradient, weight_gradient), ctx.gradients = ctx.gradients, None
        for gradient in (hidden_gradient, weight_gradient):
            if gradient is not None:
                gradient.mul_(upstream)
        return hidden_gradient, weight_gradient, None, None, None


def _add_weight_gradient(
    total: Tensor,
    logit_gradient: Tensor,
    hidden: Tensor,
    start: bool,
    accumulate: Callable[[Tensor, Tensor, bool], None],
) -> None:
    """Add the product of a chunk's logit gradient [N, V] and hidden [N, C] to a sum [V, C], or start the sum with it.

    Starting it saves a pass that fills it with zeros: with GPT-2's vocabulary it has 154 MB.
    """
    if total.dtype == hidden.dtype:
        if start:
            torch.mm(logit_gradient.T, hidden, out=total)
        else:
            total.addmm_(logit_gradient.T, hidden)
        return
    # A block of the vocabulary at a time, so that a product in 16 bits is added to the sum while it is in the cache.
    for first in range(0, len(total), _ROWS):
        rows = slice(first, first + _ROWS)
        accumulate(total[rows], logit_gradient[:, rows].T @ hidden, start)


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
