"""Linear layers in float32 by oneDNN.

torch computes their products with MKL or OpenBLAS, which read a weight in the order in which it lies in memory; oneDNN
first arranges it in tiles. On a CPU with AVX-512 that pays for the products with the weights, forward and backward;
the gradient of the weights, a product of two activations, stays with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class OneDnnLinear(nn.Linear):
    """`nn.Linear` whose products in float32 are oneDNN's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b for x [..., in]."""
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        found: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


def has_onednn() -> bool:
    """Return whether this torch has oneDNN's products, on a CPU where they are faster."""
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return fast and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b in float32, for x [N, in] and W [out, in]."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return onednn_product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return linear_gradients(ctx, received, lambda flat, weight: onednn_product(flat, weight.t()))


def linear_gradients(
    ctx: Any, received: Tensor, product: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of a linear layer's x, weight and bias that are needed.

    Args:
        ctx: the function's context, in which x [..., in] and the weight [out, in] are saved.
        received: the gradient of the result, [..., out].
        product: computes received @ weight for [N, out] and [out, in].
    """
    x, weight = ctx.saved_tensors
    flat = received.reshape(-1, received.shape[-1])  # [N, out]
    needed = ctx.needs_input_grad
    return (
        product(flat, weight).view(x.shape) if needed[0] else None,
        flat.t() @ x.reshape(-1, x.shape[-1]) if needed[1] else None,
        flat.sum(0) if needed[2] else None,
    )
