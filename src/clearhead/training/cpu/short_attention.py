"""Causal attention over short contexts with a backward pass, one head at a time in a compiled kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clearhead.training.cpu.head_kernels import (
    attention_of_heads,
    backward_scratch,
    forward_scratch,
    gradient_of_heads,
)
from clearhead.training.cpu.threads import TYPES, count_pieces, float_bits, run_kernel


def short_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute `model.fused_attention`; every product and sum is in float32.

    Args:
        queries, keys, values: [B, H, T, D], float32 or bfloat16.

    Returns:
        [B, H, T, D]
    """
    found: Tensor = _ShortAttention.apply(queries, keys, values)  # type: ignore[no-untyped-call]
    return found


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        given = queries, keys, values
        if not (queries.stride() == keys.stride() == values.stride() and queries.stride(3) == 1):
            given = tuple(tensor.contiguous() for tensor in given)  # type: ignore[assignment]
        out, logs = attend_heads(*given)
        ctx.save_for_backward(*given, logs)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, logs = ctx.saved_tensors
        gradients = head_gradients(q, k, v, logs, received.transpose(1, 2).contiguous())
        of_queries, of_keys, of_values = gradients.permute(2, 0, 3, 1, 4)
        return of_queries, of_keys, of_values


def attend_heads(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention of each head, and the logarithms of its softmaxes' sums for `head_gradients`.

    Args:
        queries, keys, values: [B, H, T, D], float32 or bfloat16, of the same strides, the last of which is 1.

    Returns:
        [B, T, H, D], the order in which the model reads it; float32 [B, H, T].
    """
    B, H, T, D = queries.shape  # noqa: N806
    out, logs = torch.empty(B, T, H, D, dtype=queries.dtype), torch.empty(B, H, T)
    _run(attention_of_heads, queries, [queries, keys, values, out, logs], forward_scratch(T, D))
    return out, logs


def head_gradients(queries: Tensor, keys: Tensor, values: Tensor, logs: Tensor, received: Tensor) -> Tensor:
    """Return the gradients of queries, keys and values, [B, T, 3, H, D].

    Args:
        queries, keys, values: as `attend_heads` was given them.
        logs: as it returned them.
        received: the gradient of its result, [B, T, H, D], contiguous.
    """
    B, H, T, D = queries.shape  # noqa: N806
    gradients = torch.empty(B, T, 3, H, D, dtype=queries.dtype)
    _run(gradient_of_heads, queries, [queries, keys, values, received, gradients, logs], backward_scratch(T, D))
    return gradients


def _run(kernel: Any, q: Tensor, tensors: list[Tensor], scratch: int) -> None:
    """Compute a kernel of `head_kernels` for queries [B, H, T, D]."""
    B, H, T, D = q.shape  # noqa: N806
    shape = (B * H, T * T)
    numbers = [TYPES[q.dtype], T, D, H, *q.stride()[:3], float_bits(1 / math.sqrt(D)), scratch]
    run_kernel(kernel, shape, [*tensors, torch.empty(count_pieces(shape), scratch)], numbers)
