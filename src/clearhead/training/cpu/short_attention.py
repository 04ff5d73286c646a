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
        B, H, T, D = queries.shape  # noqa: N806
        q, k, v = queries, keys, values
        if not (q.stride() == k.stride() == v.stride() and q.stride(3) == 1):
            q, k, v = (tensor.contiguous() for tensor in (q, k, v))
        out = torch.empty(B, T, H, D, dtype=q.dtype)  # the order in which the model reads it
        logs = torch.empty(B, H, T)
        _run(attention_of_heads, q, [q, k, v, out, logs], forward_scratch(T, D))
        ctx.save_for_backward(q, k, v, logs)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, logs = ctx.saved_tensors
        B, H, T, D = q.shape  # noqa: N806
        received = received.transpose(1, 2).contiguous()
        gradients = torch.empty(3, B, T, H, D, dtype=q.dtype)
        _run(gradient_of_heads, q, [q, k, v, received, gradients, logs], backward_scratch(T, D))
        of_queries, of_keys, of_values = gradients.transpose(2, 3)
        return of_queries, of_keys, of_values


def _run(kernel: Any, q: Tensor, tensors: list[Tensor], scratch: int) -> None:
    """Compute a kernel of `head_kernels` for queries [B, H, T, D]."""
    B, H, T, D = q.shape  # noqa: N806
    shape = (B * H, T * T)
    numbers = [TYPES[q.dtype], T, D, H, *q.stride()[:3], float_bits(1 / math.sqrt(D)), scratch]
    run_kernel(kernel, shape, [*tensors, torch.empty(count_pieces(shape), scratch)], numbers)
