"""Causal attention with a backward pass, in large products and one compiled softmax.

Queries are taken in blocks, each with the keys up to its end, so that little more than the half below the diagonal is
computed, and the scores of a block stay in the cache. Scores are in float32 in any precision; the products with
the weights are in the precision of the model. The backward pass computes the scores again (Dao et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clearhead.model import fused_attention
from clearhead.training.cpu.kernels import causal_softmax, causal_softmax_gradient
from clearhead.training.cpu.short_attention import short_attention
from clearhead.training.cpu.threads import TYPES, float_bits, run_kernel

_BLOCK = 128  # queries
_LONG = 512  # tokens; torch's kernel is as fast in float32 below
SHORT = 64
"""Up to so many tokens, a head is computed whole, in one compiled kernel."""
_SCORES = 1 << 20  # of a group of heads at a time: 4 MiB


def blocked_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """Compute `model.fused_attention`, or call it: with dropout, and where it is as fast.

    Args:
        queries, keys, values: [B, H, T, D], float32 or bfloat16.
        drop_rate: fraction of the attention weights set to zero.

    Returns:
        [B, H, T, D]
    """
    if drop_rate or queries.dtype not in TYPES:
        return fused_attention(queries, keys, values, drop_rate)
    if queries.shape[2] <= SHORT:
        return short_attention(queries, keys, values)
    if queries.dtype == torch.float32 and queries.shape[2] < _LONG:
        return fused_attention(queries, keys, values)
    found: Tensor = _Attention.apply(queries, keys, values)  # type: ignore[no-untyped-call]
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return _Attention._forward(ctx, queries, keys, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):  # a step calls this in a context with autocast, too
            return _Attention._backward(ctx, received)

    @staticmethod
    def _forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        B, H, T, D = queries.shape  # noqa: N806
        ctx.scale = 1 / math.sqrt(D)
        q, k, v = (tensor.reshape(B * H, T, D) for tensor in (queries, keys, values))
        wide_q, wide_k = q.float(), k.float()
        out = torch.empty(B, T, H, D, dtype=q.dtype)  # the order in which the model reads it
        mixed = torch.empty(B * H, T, D, dtype=q.dtype)
        logs = torch.empty(B * H, T)
        for heads, rows in _blocks(B * H, T):
            scores = torch.bmm(wide_q[heads, rows], wide_k[heads, : rows.stop].transpose(1, 2))  # [heads, block, keys]
            logs[heads, rows] = _softmax(scores, rows.start, ctx.scale)
            mixed[heads, rows] = torch.bmm(scores.to(q.dtype), v[heads, : rows.stop])
        out.copy_(mixed.view(B, H, T, D).transpose(1, 2))
        ctx.save_for_backward(q, k, v, mixed, logs)
        return out.transpose(1, 2)

    @staticmethod
    def _backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, mixed, logs = ctx.saved_tensors
        B, H, T, D = received.shape  # noqa: N806
        received = received.reshape(B * H, T, D)
        wide_q, wide_k, wide_v, wide_received = q.float(), k.float(), v.float(), received.float()
        means = torch.linalg.vecdot(wide_received, mixed.float())  # [B * H, T]
        q_gradient = torch.empty_like(q)
        k_gradient, v_gradient = torch.zeros(B * H, T, D), torch.zeros(B * H, T, D)
        for heads, rows in _blocks(B * H, T):
            seen = slice(0, rows.stop)
            scores = torch.bmm(wide_q[heads, rows], wide_k[heads, seen].transpose(1, 2))  # [heads, block, keys]
            weight_gradient = torch.bmm(wide_received[heads, rows], wide_v[heads, seen].transpose(1, 2))
            tensors = [scores, weight_gradient, logs[heads, rows].contiguous(), means[heads, rows].contiguous()]
            numbers = [scores.shape[1], rows.start, float_bits(ctx.scale)]
            run_kernel(causal_softmax_gradient, (scores.shape[:2].numel(), rows.stop), tensors, numbers)
            weights, score_gradient = scores.to(q.dtype), weight_gradient.to(q.dtype)
            q_gradient[heads, rows] = torch.bmm(score_gradient, k[heads, seen])
            _add_product(k_gradient[heads, seen], score_gradient.transpose(1, 2), q[heads, rows])
            _add_product(v_gradient[heads, seen], weights.transpose(1, 2), received[heads, rows])
        shape = (B, H, T, D)
        return q_gradient.view(shape), k_gradient.to(q.dtype).view(shape), v_gradient.to(q.dtype).view(shape)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product to float32 sums."""
    if a.dtype == torch.float32:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def _blocks(heads: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Yield groups of heads, and blocks of queries of each."""
    group = max(1, _SCORES // (min(_BLOCK, tokens) * tokens))
    for first in range(0, heads, group):
        for start in range(0, tokens, _BLOCK):
            yield slice(first, min(first + group, heads)), slice(start, min(start + _BLOCK, tokens))


def _softmax(scores: Tensor, first: int, scale: float) -> Tensor:
    """Replace scores [heads, queries, keys] by their weights; return the logarithms of the sums, [heads, queries]."""
    heads, queries, keys = scores.shape
    logs = torch.empty(heads, queries)
    run_kernel(causal_softmax, (heads * queries, keys), [scores, logs], [queries, first, float_bits(scale)])
    return logs
