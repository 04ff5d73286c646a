"""GELU and cross-entropy by compiled kernels, which read and write float32 or bfloat16 without copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from clearhead.losses import NOT_COUNTED
from clearhead.training.cpu.kernels import cross_entropy, gelu, gelu_gradient
from clearhead.training.cpu.threads import TYPES, run_kernel


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
