"""Which operations of a model that trains on a CPU are replaced, decided by its shape and precision and by the CPU.

The decision depends on nothing that is measured, so that two runs of one recipe on one machine compute the same bits.
"""

from __future__ import annotations

import torch
from torch import nn

from clearhead.config import GPTConfig
from clearhead.losses import HeadOperations
from clearhead.model import CausalSelfAttention, FeedForward, GPTModel
from clearhead.training.cpu.attention import SHORT, blocked_attention
from clearhead.training.cpu.elementwise import CompiledGELU, compiled_softmax_gradient
from clearhead.training.cpu.linear import OneDnnLinear, has_onednn, onednn_product
from clearhead.training.cpu.threads import TYPES


def use_cpu_kernels(model: GPTModel, config: GPTConfig, dtype: torch.dtype) -> dict[str, str]:
    """Replace torch's operations of a model that trains on a CPU, in place.

    Args:
        model: the model.
        config: its configuration.
        dtype: the precision of the matrix products.

    Returns:
        what computes each operation, in words.
    """
    if dtype not in TYPES:
        return {}
    chosen = {"linear layers": "torch"}
    if dtype == torch.float32 and has_onednn():
        chosen["linear layers"] = "oneDNN, and torch for the weights' gradients"
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDnnLinear
    chosen["attention"] = _describe_attention(config)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.attention_fn = blocked_attention
        if isinstance(module, FeedForward) and config.activation == "gelu_tanh":
            module.gelu = CompiledGELU()  # type: ignore[assignment]
    chosen["GELU"] = "compiled kernel" if config.activation == "gelu_tanh" else "torch"
    chosen["cross-entropy"] = "compiled kernel"
    return chosen


def _describe_attention(config: GPTConfig) -> str:
    if config.drop_rate:
        return "torch, for dropout"
    if config.context_length <= SHORT:
        return "compiled kernel, a head at a time"
    return "blocks of queries with a compiled softmax"


def head_operations(dtype: torch.dtype) -> HeadOperations:
    """Return the operations of the loss of a model that trains on a CPU."""
    if dtype not in TYPES:
        return HeadOperations()
    if dtype == torch.float32 and has_onednn():
        return HeadOperations(onednn_product, compiled_softmax_gradient)
    return HeadOperations(softmax_gradient=compiled_softmax_gradient)
