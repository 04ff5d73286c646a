"""Operations of a training step for which torch is slow on a CPU: GELU, and narrow heads' attention in bfloat16.

torch's tanh form of GELU takes two and a half times as long as its erf form, and its attention in bfloat16 takes ten
times as long as in float32 if the heads are narrow. Which of the two is used depends on the model's shape, the
activation and the precision alone, so that two runs of one recipe compute the same bits.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clearhead.config import GPTConfig
from clearhead.engine.elementwise import exponential
from clearhead.model import CausalSelfAttention, FeedForward, GPTModel, fused_attention
from clearhead.utils.jit import compile_notice, entry

_NARROW = 64  # the width of a head below which attention is computed in float32
_SPLIT_FROM = 1 << 16  # numbers from which on several threads share the work
_SLOPE, _CUBIC = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
_ONE, _TWO, _THREE = np.float32(1), np.float32(2), np.float32(3)


def use_cpu_kernels(model: GPTModel, config: GPTConfig, dtype: torch.dtype) -> list[str]:
    """Replace torch's operations of a model that trains on a CPU, in place.

    Args:
        model: the model.
        config: its configuration.
        dtype: the precision of the matrix products.

    Returns:
        what was replaced, in words.
    """
    replaced = []
    if config.activation == "gelu_tanh":
        replaced.append("GELU by a kernel of our own")
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.gelu = CompiledGELU()  # type: ignore[assignment]
    if dtype == torch.bfloat16 and config.emb_dim // config.n_heads < _NARROW:
        replaced.append("attention in float32, as its heads are narrow")
        for module in model.modules():
            if isinstance(module, CausalSelfAttention):
                module.attention_fn = attention_in_float32
    return replaced


def attention_in_float32(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """Compute attention in float32, whatever the type of its arguments [B, H, T, D]; return their type."""
    with torch.autocast(queries.device.type, enabled=False):
        mixed = fused_attention(queries.float(), keys.float(), values.float(), drop_rate)
    return mixed.to(queries.dtype)


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
        wide = x.float().contiguous()
        out = torch.empty_like(wide)
        _run(_gelu, wide, out)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide = x.float().contiguous()
        received = gradient.float().contiguous()
        out = torch.empty_like(wide)
        _run(_gelu_gradient, wide, received, out)
        return out.to(gradient.dtype)


def _run(kernel: Any, *tensors: Tensor) -> None:
    """Call a kernel on tensors of one size as flat arrays, on as many threads as torch uses."""
    arrays = [tensor.detach().view(-1).numpy() for tensor in tensors]
    _compile()
    threads = torch.get_num_threads()
    if threads == 1 or len(arrays[0]) < _SPLIT_FROM:
        kernel(*arrays)
        return
    edges = np.linspace(0, len(arrays[0]), threads + 1).astype(np.int64).tolist()
    parts = [[array[first:last] for array in arrays] for first, last in itertools.pairwise(edges)]
    waiting = [_pool(threads).submit(kernel, *part) for part in parts[1:]]
    kernel(*parts[0])
    for future in waiting:
        future.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="clearhead-gelu")


@cache
def _compile() -> None:
    with compile_notice("Compiling kernels for training, once on this machine …"):
        for kernel, count in ((_gelu, 2), (_gelu_gradient, 3)):
            kernel(*[np.zeros(1, np.float32)] * count)


@entry
def _gelu(x: Any, out: Any) -> None:
    """0.5 x (1 + tanh u) = x / (1 + e^(-2u)), with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    for index in range(x.shape[0]):
        i = np.uint64(index)  # unsigned, so that the loop has no test for negative indices and is vectorized
        v = x[i]
        u = _SLOPE * (v + _CUBIC * v * v * v)
        out[i] = v / (_ONE + exponential(-_TWO * u))


@entry
def _gelu_gradient(x: Any, gradient: Any, out: Any) -> None:
    """The gradient times s + x s (1 - s) 2 du/dx, with s = 1 / (1 + e^(-2u))."""
    for index in range(x.shape[0]):
        i = np.uint64(index)
        v = x[i]
        u = _SLOPE * (v + _CUBIC * v * v * v)
        s = _ONE / (_ONE + exponential(-_TWO * u))
        slope = _TWO * _SLOPE * (_ONE + _THREE * _CUBIC * v * v)
        out[i] = gradient[i] * (s + v * s * (_ONE - s) * slope)
