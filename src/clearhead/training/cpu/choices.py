"""Which operations of a model that trains on a CPU are replaced, decided by its shape and precision and by the CPU.

The decision depends on nothing that is measured, so that two runs of one recipe on one machine compute the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clearhead.config import GPTConfig
from clearhead.losses import HeadOperations
from clearhead.model import Block, CausalSelfAttention, FeedForward, GPTModel, LayerNorm
from clearhead.training.cpu.attention import SHORT, blocked_attention
from clearhead.training.cpu.bfloat16 import Bfloat16Linear, bfloat16_copy
from clearhead.training.cpu.block import CompiledBlock
from clearhead.training.cpu.elementwise import (
    CompiledGELU,
    CompiledLayerNorm,
    accumulate_product,
    compiled_softmax_gradient,
)
from clearhead.training.cpu.linear import OneDnnLinear, has_onednn, onednn_product
from clearhead.training.cpu.threads import TYPES
from clearhead.training.cpu.tied import TiedEmbedding
from clearhead.training.recipe import TrainingRecipe


def use_cpu_kernels(
    model: GPTModel,
    config: GPTConfig,
    dtype: torch.dtype,
    *,
    alone: bool,
    low_gradients: bool = False,
    recompute: bool = False,
) -> dict[str, str]:
    """Replace torch's operations of a model that trains on a CPU, in place.

    Args:
        model: the model.
        config: its configuration.
        dtype: the precision of the matrix products.
        alone: whether one process trains it. Several exchange weights and gradients in ways of their own.
        low_gradients: whether the matrices' gradients may stay in bfloat16, see `gradients_stay_low`.
        recompute: whether the inside of a block is computed again in the backward pass; what a whole block keeps for
            its own backward pass could not be freed until then.

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
    if dtype == torch.bfloat16 and alone:
        chosen["linear layers"] = "oneDNN in bfloat16, with copies of the weights that AdamW writes"
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = Bfloat16Linear
                if low_gradients and module is not model.head and hasattr(module.weight, "grad_dtype"):
                    module.weight.grad_dtype = torch.bfloat16
    if alone and model.head.weight is model.token_embedding.weight:
        model.token_embedding.__class__ = TiedEmbedding
    chosen["attention"] = _describe_attention(config)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.attention_fn = blocked_attention
        if type(module) is LayerNorm:
            module.__class__ = CompiledLayerNorm
        if alone and not recompute and type(module) is Block:
            module.__class__ = CompiledBlock
        if isinstance(module, FeedForward) and config.activation == "gelu_tanh":
            module.gelu = CompiledGELU()  # type: ignore[assignment]
    chosen["GELU"] = "compiled kernel" if config.activation == "gelu_tanh" else "torch"
    chosen["layer norm"] = "compiled kernel"
    chosen["cross-entropy"] = "compiled kernel"
    return chosen


def _describe_attention(config: GPTConfig) -> str:
    if config.drop_rate:
        return "torch, for dropout"
    if config.context_length <= SHORT:
        return "compiled kernel, a head at a time"
    return "blocks of queries with a compiled softmax"


def gradients_stay_low(recipe: TrainingRecipe, processes: int) -> bool:
    """Return whether gradients that a product computes in bfloat16 can stay in bfloat16 until the optimizer reads them.

    They can if nothing is added to them: one backward pass of one process is a whole step. Muon averages them first.
    """
    whole = recipe.micro_batch_size in (0, recipe.batch_size)
    return whole and processes == 1 and recipe.optimizer == "adamw"


def head_operations(dtype: torch.dtype, *, alone: bool) -> HeadOperations:
    """Return the operations of the loss of a model that trains on a CPU; `alone` as for `use_cpu_kernels`."""
    if dtype not in TYPES:
        return HeadOperations()
    if dtype == torch.float32 and has_onednn():
        return HeadOperations(onednn_product, compiled_softmax_gradient)
    if dtype == torch.bfloat16 and alone:
        return HeadOperations(softmax_gradient=compiled_softmax_gradient, cast=_cast, accumulate=accumulate_product)
    return HeadOperations(softmax_gradient=compiled_softmax_gradient, accumulate=accumulate_product)


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return bfloat16_copy(weight) if dtype == torch.bfloat16 != weight.dtype else weight.to(dtype)
