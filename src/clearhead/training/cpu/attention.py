"""Causal attention with a backward pass, in large products and one compiled softmax.

Queries are taken in blocks, each with the keys up to its end, so that little more than the half below the diagonal is
computed, and the scores of a block stay in the cache. Scores are in float32 in any precision; the products with
the weights are in the precision of the model. The backward pass computes the scores of long contexts again (Dao et al.
2022).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clearhead.model import fused_attention
from clearhead.training.cpu.elementwise import accumulate_product
from clearhead.training.cpu.kernels import causal_softmax, causal_softmax_gradient
from clearhead.training.cpu.short_attention import short_attention
from clearhead.training.cpu.threads import TYPES, float_bits, run_kernel
from clearhead.utils.machine_code import Callback

_BLOCK = 128  # queries
_LONG = 512  # tokens; torch's kernel is as fast in float32 below
SHORT = 64
"""Up to so many tokens, a head is computed whole, in one compiled kernel."""
_SCORES = 1 << 20  # of a group of heads at a time: 4 MiB
_KEPT_BYTES = 8 << 20  # of the weights of a layer, up to which they are kept for the backward pass


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
        q, k, v = (tensor.reshape(B * H, T, D) for tensor in (queries, keys, values))
        out = torch.empty(B, T, H, D, dtype=q.dtype)  # the order in which the model reads it
        mixed = torch.empty(B * H, T, D, dtype=q.dtype)
        ctx.kept = B * H * T * T * q.element_size() <= 2 * _KEPT_BYTES  # little more than half of them is computed
        kept = []
        for heads, rows, weights in _weights(q, k):
            mixed[heads, rows] = torch.bmm(weights, v[heads, : rows.stop])
            if ctx.kept:
                kept.append(weights)
        out.copy_(mixed.view(B, H, T, D).transpose(1, 2))
        ctx.save_for_backward(q, k, v, *kept)
        return out.transpose(1, 2)

    @staticmethod
    def _backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, *kept = ctx.saved_tensors
        B, H, T, D = received.shape  # noqa: N806
        received = received.reshape(B * H, T, D)
        wide_v, wide_received = v.float(), received.float()
        q_gradient = torch.empty_like(q)
        k_gradient, v_gradient = torch.empty(B * H, T, D), torch.empty(B * H, T, D)
        blocks = _blocks(B * H, T)
        computed = zip(*zip(*blocks, strict=True), kept, strict=True) if ctx.kept else _weights(q, k)
        scratch = torch.empty(max((heads.stop - heads.start) * _length(rows) * T for heads, rows in blocks))
        for heads, rows, weights in computed:
            seen, start = slice(0, rows.stop), rows.stop == T  # the block with all keys comes first: it starts the sums
            gradient = scratch[: weights.numel()].view(weights.shape)
            torch.bmm(wide_received[heads, rows], wide_v[heads, seen].transpose(1, 2), out=gradient)
            score_gradient = gradient if q.dtype == torch.float32 else torch.empty_like(weights)
            _run(causal_softmax_gradient, [weights, gradient, score_gradient], rows.start, D)
            q_gradient[heads, rows] = torch.bmm(score_gradient, k[heads, seen])
            _add_product(k_gradient[heads, seen], score_gradient.transpose(1, 2), q[heads, rows], start)
            _add_product(v_gradient[heads, seen], weights.transpose(1, 2), received[heads, rows], start)
        shape = (B, H, T, D)
        return q_gradient.view(shape), k_gradient.to(q.dtype).view(shape), v_gradient.to(q.dtype).view(shape)


def _add_product(total: Tensor, a: Tensor, b: Tensor, start: bool) -> None:
    """Add a product to float32 sums, or start them with it."""
    if a.dtype == torch.float32 and not start:
        total.baddbmm_(a, b)
    else:
        accumulate_product(total, torch.bmm(a, b), start)


def _blocks(heads: int, tokens: int) -> list[tuple[slice, slice]]:
    """Return groups of heads, and blocks of queries of each; the last queries of a group come first."""
    group = max(1, _SCORES // (min(_BLOCK, tokens) * tokens))
    return [
        (slice(first, min(first + group, heads)), slice(start, min(start + _BLOCK, tokens)))
        for first in range(0, heads, group)
        for start in reversed(range(0, tokens, _BLOCK))
    ]


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


def _weights(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield each of `_blocks` with its weights, [heads, queries, keys], for queries and keys [heads, T, D]."""
    wide_q, wide_k = q.float(), k.float()
    for heads, rows in _blocks(*q.shape[:2]):
        scores = torch.bmm(wide_q[heads, rows], wide_k[heads, : rows.stop].transpose(1, 2))
        weights = scores if q.dtype == torch.float32 else torch.empty_like(scores, dtype=q.dtype)
        _run(causal_softmax, [scores, weights], rows.start, q.shape[2])
        yield heads, rows, weights


def _run(kernel: Callback, tensors: list[Tensor], first: int, width: int) -> None:
    """Run a kernel for weights [heads, queries, keys], the last of `tensors`, of queries from `first` on."""
    heads, queries, keys = tensors[-1].shape
    numbers = [TYPES[tensors[-1].dtype], queries, first, float_bits(1 / math.sqrt(width))]
    run_kernel(kernel, (heads * queries, keys), tensors, numbers)
