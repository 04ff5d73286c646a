"""LoRA: train low-rank matrices instead of the model's own (Hu et al. 2021), through the library peft."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from safetensors.torch import save_file

from clearhead.errors import TrainingError
from clearhead.model import GPTModel
from clearhead.training.recipe import FineTuneRecipe
from clearhead.utils.atomic import staged_files

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


def save_adapter(model: GPTModel, recipe: FineTuneRecipe, folder: Path) -> None:
    """Write the LoRA matrices alone, as peft opens them over the same model in `transformers`.

    Args:
        model: a model with LoRA matrices.
        recipe: the settings of the matrices.
        folder: the destination; it is created if it does not exist.

    Raises:
        OSError: if it cannot be written.
    """
    names = {"attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj"}
    names |= {"feed_forward.up": "mlp.c_fc", "feed_forward.down": "mlp.c_proj"}
    tensors = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        _, layer, rest = name.split(".", 2)
        matrix, _, kind = rest.partition(".lora_")  # attention.qkv, A.default.weight
        key = f"base_model.model.transformer.h.{layer}.{names[matrix]}.lora_{kind[0]}.weight"
        tensors[key] = parameter.detach().cpu().contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": recipe.start,
        "r": recipe.lora_rank,
        "lora_alpha": recipe.lora_alpha,
        "lora_dropout": recipe.lora_dropout,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": sorted({"c_attn", "c_proj", "c_fc"}),
    }
    with staged_files(folder, last=["adapter_config.json"]) as staged:
        save_file(tensors, staged / "adapter_model.safetensors", metadata={"format": "pt"})
        (staged / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
