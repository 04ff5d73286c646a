"""Linear layers of a model that trains on a CPU: their products, forward and backward.

torch computes products in float32 with MKL or OpenBLAS, which read a weight in the order in which it lies in memory;
oneDNN first arranges it in tiles. On a CPU with AVX-512 that pays for the products with the weights, forward and
backward; the gradient of the weights, a product of two activations, stays with torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class LinearProducts:
    """How the products of linear layers are computed in one precision.

    Attributes:
        dtype: the precision.
        matrix: returns a parameter in float32 in that precision.
        forward: returns x W^T + b for x [N, in], a matrix W [out, in] and a bias in float32 or None.
        backward: returns g W, the gradient of x, for g [N, out].
    """

    dtype: torch.dtype
    matrix: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]

    def gradients(
        self, received: Tensor, x: Tensor, matrix: Tensor, needed: Sequence[bool] = (True, True, True)
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of x, the weight and the bias, or None for those that are not needed.

        Args:
            received: the gradient of the result, [N, out].
            x: what the layer read, [N, in].
            matrix: the weight as `matrix` returned it, [out, in].
            needed: for x, the weight and the bias.
        """
        return (
            self.backward(received, matrix) if needed[0] else None,
            received.t() @ x if needed[1] else None,
            received.sum(0) if needed[2] else None,
        )


class OneDnnLinear(nn.Linear):
    """`nn.Linear` whose products in float32 are oneDNN's."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b for x [..., in]."""
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return apply_linear(x, self.weight, self.bias, ONEDNN_FLOAT32)


def has_onednn() -> bool:
    """Return whether this torch has oneDNN's products, on a CPU where they are faster."""
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return fast and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b in float32, for x [N, in] and W [out, in]."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def _onednn_backward(received: Tensor, matrix: Tensor) -> Tensor:
    return onednn_product(received, matrix.t())


ONEDNN_FLOAT32 = LinearProducts(torch.float32, Tensor.detach, onednn_product, _onednn_backward)
TORCH_FLOAT32 = LinearProducts(torch.float32, Tensor.detach, torch.nn.functional.linear, torch.mm)


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None, products: LinearProducts) -> Tensor:
    """Return x W^T + b for x [..., in], with a backward pass."""
    found: Tensor = _Linear.apply(x, weight, bias, products)  # type: ignore[no-untyped-call]
    return found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: LinearProducts) -> Tensor:
        low, matrix = x.to(products.dtype), products.matrix(weight)
        ctx.save_for_backward(low, matrix)
        ctx.products = products
        return products.forward(low.reshape(-1, x.shape[-1]), matrix, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, matrix = ctx.saved_tensors
        flat, rows = received.reshape(-1, received.shape[-1]), x.reshape(-1, x.shape[-1])
        of_x, of_weight, of_bias = ctx.products.gradients(flat, rows, matrix, ctx.needs_input_grad)
        return None if of_x is None else of_x.view(x.shape), of_weight, of_bias, None
