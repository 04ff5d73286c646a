"""A whole block of a model that trains on a CPU, forward and backward, without a node of autograd for each operation.

In a small model the operations are as short as what torch does around them: with 128 components and 768 tokens a third
of a step is spent on recording operations and on walking through the record. Here autograd sees one operation. The
numbers are those of the modules, computed by the same kernels in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clearhead.model import AttentionFn, Block
from clearhead.training.cpu.attention import SHORT, blocked_attention
from clearhead.training.cpu.bfloat16 import BFLOAT16_PRODUCTS, Bfloat16Linear
from clearhead.training.cpu.elementwise import (
    CompiledGELU,
    CompiledLayerNorm,
    add_and_normalize,
    add_low,
    apply_gelu,
    gelu_gradients,
    norm_gradients,
    normalize,
)
from clearhead.training.cpu.linear import ONEDNN_FLOAT32, TORCH_FLOAT32, LinearProducts, OneDnnLinear
from clearhead.training.cpu.short_attention import attend_heads, head_gradients

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class CompiledBlock(Block):
    """The model's block, which computes all of itself at once where it can, and else as the model does.

    It can while it trains, without dropout, with the modules that `use_cpu_kernels` chose, and if nobody has attached a
    hook to one of them.
    """

    def forward(self, x: Tensor, attend: AttentionFn | None = None) -> Tensor:
        """Return the residual stream [B, T, C] behind the block."""
        products = self._products() if attend is None and self._is_plain(x) else None
        if products is None:
            return super().forward(x, attend)
        attention, feed_forward = self.attention, self.feed_forward
        layers = (attention.qkv, attention.out, feed_forward.up, feed_forward.down)
        parameters = [p for module in (self.norm_1, self.norm_2, *layers) for p in (module.weight, module.bias)]
        found: Tensor = _BlockFunction.apply(x, self, products, *parameters)  # type: ignore[no-untyped-call]
        return found

    def _is_plain(self, x: Tensor) -> bool:
        attention = self.attention
        dropped = self.training and (self.dropout.p > 0 or attention.drop_rate > 0)
        return (
            torch.is_grad_enabled()
            and x.dtype == torch.float32
            and not dropped
            and attention.attention_fn is blocked_attention
            and isinstance(self.feed_forward.gelu, CompiledGELU)
            and type(self.norm_1) is type(self.norm_2) is CompiledLayerNorm
            and not any(getattr(module, hooks) for module in self._parts() for hooks in _HOOKS)
        )

    def _parts(self) -> tuple[nn.Module, ...]:
        """Return the modules inside the block; listing them is quicker than `modules`, which every step would call."""
        a, f = self.attention, self.feed_forward
        return self.norm_1, a, a.qkv, a.out, self.norm_2, f, f.up, f.gelu, f.down, self.dropout

    def _products(self) -> LinearProducts | None:
        """Return how the block's linear layers compute now; None if they are not all of one kind that is known."""
        kinds = {
            type(m) for m in (self.attention.qkv, self.attention.out, self.feed_forward.up, self.feed_forward.down)
        }
        low = torch.is_autocast_enabled("cpu")
        if low and kinds == {Bfloat16Linear} and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return BFLOAT16_PRODUCTS
        if not low and kinds == {OneDnnLinear}:
            return ONEDNN_FLOAT32
        return TORCH_FLOAT32 if not low and kinds == {nn.Linear} else None


class _BlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: CompiledBlock, products: LinearProducts, *parameters: Tensor) -> Tensor:
        norm_1, bias_1, norm_2, bias_2, qkv, of_qkv, out, of_out, up, of_up, down, of_down = parameters
        qkv, out, up, down = map(products.matrix, (qkv, out, up, down))
        stream = x.reshape(-1, x.shape[-1]).contiguous()  # [N, C], as all here
        normed_1, statistics_1 = normalize(stream, norm_1, bias_1, block.norm_1.eps, products.dtype)
        three = products.forward(normed_1, qkv, of_qkv).view(*x.shape[:2], -1)  # [B, T, 3 C]
        attention = _WholeHeads if x.shape[1] <= SHORT else _AnyAttention
        ctx.attention = attention(three, block.attention.n_heads)
        mixed = ctx.attention.mixed.view(stream.shape)
        added = products.forward(mixed, out, of_out)
        middle, normed_2, statistics_2 = add_and_normalize(stream, added, norm_2, bias_2, block.norm_2.eps)
        raised = products.forward(normed_2, up, of_up)  # [N, ff_dim]
        active = apply_gelu(raised)
        found = add_low(middle, products.forward(active, down, of_down))
        ctx.products = products
        ctx.save_for_backward(
            *(norm_1, norm_2, qkv, out, up, down),
            *(stream, normed_1, statistics_1, mixed, middle, normed_2, statistics_2, raised, active),
        )
        return found.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor | None, ...]:
        norm_1, norm_2, qkv, out, up, down, *rest = ctx.saved_tensors
        stream, normed_1, statistics_1, mixed, middle, normed_2, statistics_2, raised, active = rest
        products, attention = ctx.products, ctx.attention
        ctx.attention = None
        needed = ctx.needs_input_grad[3:]
        received = received.reshape(stream.shape).contiguous()
        of_active, *of_down = products.gradients(received.to(products.dtype), active, down, (True, *needed[10:12]))
        of_raised = gelu_gradients(raised, of_active)
        of_normed, *of_up = products.gradients(of_raised, normed_2, up, (True, *needed[8:10]))
        of_middle, *of_norm_2 = norm_gradients(middle, norm_2, statistics_2, of_normed, received)
        of_mixed, *of_out = products.gradients(of_middle.to(products.dtype), mixed, out, (True, *needed[6:8]))
        of_three = attention.gradient(of_mixed).view(len(stream), -1)
        of_normed, *of_qkv = products.gradients(of_three, normed_1, qkv, (True, *needed[4:6]))
        of_stream, *of_norm_1 = norm_gradients(stream, norm_1, statistics_1, of_normed, of_middle)
        found = (*of_norm_1, *of_norm_2, *of_qkv, *of_out, *of_up, *of_down)
        return of_stream.view(attention.shape), None, None, *found


class _WholeHeads:
    """Attention in a short context, by the kernels of `short_attention`.

    Args:
        three: queries, keys and values of each token, [B, T, 3 C], contiguous.
        heads: their number.

    Attributes:
        mixed: the result, [B, T, C].
        shape: its shape.
    """

    def __init__(self, three: Tensor, heads: int) -> None:
        B, T, _ = three.shape  # noqa: N806
        self._heads = three.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4)  # [3, B, H, T, D]
        queries, keys, values = self._heads.unbind(0)
        out, self._logs = attend_heads(queries, keys, values)
        self.mixed = out.view(B, T, -1)
        self.shape = self.mixed.shape

    def gradient(self, received: Tensor) -> Tensor:
        """Return the gradient of `three`, given that of `mixed` in any shape."""
        queries, keys, values = self._heads.unbind(0)
        B, H, T, D = queries.shape  # noqa: N806
        return head_gradients(queries, keys, values, self._logs, received.view(B, T, H, D))


class _AnyAttention:
    """Attention in a longer context, by torch's kernel or ours, whose backward pass is left to autograd."""

    def __init__(self, three: Tensor, heads: int) -> None:
        B, T, _ = three.shape  # noqa: N806
        self._three = three.detach().requires_grad_()
        with torch.enable_grad():
            queries, keys, values = self._three.view(B, T, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            self._mixed = blocked_attention(queries, keys, values).transpose(1, 2).reshape(B, T, -1)
        self.mixed = self._mixed.detach()
        self.shape = self.mixed.shape

    def gradient(self, received: Tensor) -> Tensor:
        """Return the gradient of `three`, given that of `mixed` in any shape."""
        (found,) = torch.autograd.grad(self._mixed, self._three, received.view(self.shape))
        return found
