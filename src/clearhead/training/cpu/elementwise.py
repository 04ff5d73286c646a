"""GELU, layer norm and cross-entropy by compiled kernels, which read and write float32 or bfloat16 without copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clearhead.losses import NOT_COUNTED
from clearhead.model import LayerNorm
from clearhead.training.cpu.kernels import (
    accumulate,
    cross_entropy,
    gelu,
    gelu_gradient,
    layer_norm,
    layer_norm_gradient,
)
from clearhead.training.cpu.threads import TYPES, count_pieces, float_bits, run_kernel


class CompiledGELU(nn.Module):
    """The tanh form of GELU (Hendrycks and Gimpel 2016, section 2), with a compiled forward and backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each number of a tensor on the CPU."""
        found: Tensor = _GELUFunction.apply(x)  # type: ignore[no-untyped-call]
        return found


class _GELUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _elementwise(gelu, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _elementwise(gelu_gradient, x, gradient)


class CompiledLayerNorm(LayerNorm):
    """The model's layer norm, whose result under autocast is in the precision of the product that reads it."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x [..., C] in float32."""
        if x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        if dtype not in TYPES:
            return super().forward(x)
        found: Tensor = _NormFunction.apply(x, self.weight, self.bias, self.eps, dtype)  # type: ignore[no-untyped-call]
        return found


class _NormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        rows, columns = x.numel() // x.shape[-1], x.shape[-1]
        out, statistics = torch.empty_like(x, dtype=dtype), torch.empty(rows, 2)
        numbers = [TYPES[dtype], float_bits(eps)]
        run_kernel(layer_norm, (rows, columns), [x, weight, bias, out, statistics], numbers)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, statistics = ctx.saved_tensors
        received = received.contiguous()
        shape = (len(statistics), x.shape[-1])
        gradient, sums = torch.empty_like(x), torch.zeros(count_pieces(shape), 2, x.shape[-1])
        tensors = [x, weight, received, statistics, gradient, sums]
        run_kernel(layer_norm_gradient, shape, tensors, [TYPES[received.dtype]])
        of_weight, of_bias = sums.sum(0)
        return gradient, of_weight, of_bias, None, None


def accumulate_product(total: Tensor, product: Tensor, start: bool) -> None:
    """Add a product to sums, or start the sums with it.

    Args:
        total: float32 [..., N]; each row of its first dimension is contiguous.
        product: of the same shape, float32 or bfloat16.
        start: whether to overwrite what `total` holds.
    """
    if product.dtype != torch.bfloat16 or not total.numel():
        total.copy_(product) if start else total.add_(product)
        return
    shape = (len(product), product[0].numel())
    run_kernel(accumulate, shape, [total, product.contiguous()], [total.stride(0), int(not start)])


def _elementwise(kernel: Any, x: Tensor, *others: Tensor) -> Tensor:
    dtype = x.dtype if x.dtype in TYPES else torch.float32
    tensors = [tensor.to(dtype).contiguous() for tensor in (x, *others)]
    out = torch.empty_like(tensors[0])
    columns = out.shape[-1] if out.ndim and out.numel() else 1
    run_kernel(kernel, (out.numel() // columns, columns), [*tensors, out], [TYPES[dtype]])
    return out.to(x.dtype)


def compiled_softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed nats of the targets, and the gradient of the logits in their place.

    Args:
        logits: [N, V], float32 or bfloat16, contiguous; overwritten.
        targets: int64 [N]; -100 for a token that does not count.
    """
    nats = torch.empty(len(logits))
    run_kernel(
        cross_entropy,
        (logits.shape[0], logits.shape[1]),
        [logits, targets.contiguous(), nats],
        [TYPES[logits.dtype], NOT_COUNTED],
    )
    return nats.sum(), logits
