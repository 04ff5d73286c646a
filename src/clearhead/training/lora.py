"""LoRA: train low-rank matrices instead of the model's own (Hu et al. 2021), through the library peft."""

from __future__ import annotations

import copy

from clearhead.errors import TrainingError
from clearhead.model import GPTModel
from clearhead.training.recipe import FineTuneRecipe

TARGETS = ["qkv", "out", "up", "down"]
"""The matrices of a block that get LoRA matrices."""


def add_lora(model: GPTModel, recipe: FineTuneRecipe) -> None:
    """Add LoRA matrices to every block, in place; only they are trained from here on.

    Raises:
        TrainingError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise TrainingError(
            'lora_rank needs the package peft; install it with: pip install "clearhead[train]".'
        ) from None
    config = LoraConfig(
        r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, lora_dropout=recipe.lora_dropout, target_modules=TARGETS
    )
    inject_adapter_in_model(config, model)


def merge_lora(model: GPTModel) -> GPTModel:
    """Return a copy of the model with the LoRA matrices added to its own; the model itself if it has none."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.lora import LoraLayer

    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            owner, _, field = name.rpartition(".")
            setattr(merged.get_submodule(owner), field, module.get_base_layer())
    return merged
