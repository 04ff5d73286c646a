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
    add,
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
        return apply_gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gelu_gradients(x, gradient)


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
        out, statistics = normalize(x, weight, bias, eps, dtype)
        ctx.save_for_backward(x, weight, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, received: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, statistics = ctx.saved_tensors
        gradient, of_weight, of_bias = norm_gradients(x, weight, statistics, received)
        return gradient, of_weight, of_bias, None, None


def normalize(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the layer norm of x [..., C], float32 and contiguous, in a dtype, and the statistics of its rows."""
    shape = _rows(x)
    out, statistics = torch.empty_like(x, dtype=dtype), torch.empty(shape[0], 2)
    run_kernel(layer_norm, shape, [x, weight, bias, out, statistics], [TYPES[dtype], float_bits(eps)])
    return out, statistics


def add_and_normalize(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x + added in float32, its layer norm in the dtype of `added`, and the statistics of its rows.

    Args:
        x: float32 [..., C]; contiguous, as all here.
        added: float32 or bfloat16, of the same shape.
        weight, bias: of the norm, float32 [C].
        eps: likewise.
    """
    shape = _rows(x)
    total, out, statistics = torch.empty_like(x), torch.empty_like(added), torch.empty(shape[0], 2)
    tensors = [x, weight, bias, out, statistics, added, total]
    run_kernel(layer_norm, shape, tensors, [TYPES[added.dtype], float_bits(eps)])
    return total, out, statistics


def norm_gradients(
    x: Tensor, weight: Tensor, statistics: Tensor, received: Tensor, beside: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias.

    Args:
        x: float32 [..., C], contiguous.
        weight: float32 [C].
        statistics: those that `normalize` returned.
        received: the gradient of the result, float32 or bfloat16.
        beside: a gradient that reaches x on another way, to be added to the norm's; float32, contiguous.
    """
    received, shape = received.contiguous(), _rows(x)
    gradient, sums = torch.empty_like(x), torch.zeros(count_pieces(shape), 2, x.shape[-1])
    tensors = [x, weight, received, statistics, gradient, sums, beside]
    run_kernel(layer_norm_gradient, shape, tensors, [TYPES[received.dtype]])
    of_weight, of_bias = sums.sum(0)
    return gradient, of_weight, of_bias


def add_low(x: Tensor, added: Tensor) -> Tensor:
    """Return x + added in float32, for x in float32 and `added` in float32 or bfloat16, both contiguous."""
    out = torch.empty_like(x)
    run_kernel(add, _rows(x), [x, added, out], [TYPES[added.dtype]])
    return out


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


def apply_gelu(x: Tensor) -> Tensor:
    """Return the GELU of each number of a tensor."""
    return _elementwise(gelu, x)


def gelu_gradients(x: Tensor, received: Tensor) -> Tensor:
    """Return the gradient of x, given that of its GELU."""
    return _elementwise(gelu_gradient, x, received)


def _elementwise(kernel: Any, x: Tensor, *others: Tensor) -> Tensor:
    dtype = x.dtype if x.dtype in TYPES else torch.float32
    tensors = [tensor.to(dtype).contiguous() for tensor in (x, *others)]
    out = torch.empty_like(tensors[0])
    run_kernel(kernel, _rows(out), [*tensors, out], [TYPES[dtype]])
    return out.to(x.dtype)


def _rows(x: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a tensor as a matrix; of a single number, one each."""
    columns = x.shape[-1] if x.ndim and x.numel() else 1
    return x.numel() // columns, columns


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
