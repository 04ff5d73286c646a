"""Small models and comparisons of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

SHAPE: dict[str, Any] = {"vocab_size": 61, "n_positions": 16, "n_embd": 24, "n_head": 3, "n_layer": 2}


def random_model(**changes: Any) -> GPT2LMHeadModel:
    """A GPT-2 of transformers' whose every parameter is random: no bias is zero, no norm one."""
    torch.manual_seed(1)
    config = GPT2Config(**{**SHAPE, "bos_token_id": 0, "eos_token_id": 0, **changes})
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def canonical(model: GPT2LMHeadModel) -> dict[str, np.ndarray]:
    """What every tensor must be, read off the modules of transformers' model and not off their names on disk."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return tensor.detach().float().numpy()

    found = {
        "token_embedding.weight": array(model.transformer.wte.weight),
        "position_embedding.weight": array(model.transformer.wpe.weight),
        "final_norm.weight": array(model.transformer.ln_f.weight),
        "final_norm.bias": array(model.transformer.ln_f.bias),
        "head.weight": array(model.lm_head.weight),
    }
    for i, block in enumerate(model.transformer.h):
        at = f"blocks.{i}."
        for ours, norm in (("norm_1", block.ln_1), ("norm_2", block.ln_2)):
            found[f"{at}{ours}.weight"], found[f"{at}{ours}.bias"] = array(norm.weight), array(norm.bias)
        for ours, conv in (
            ("attention.qkv", block.attn.c_attn),
            ("attention.out", block.attn.c_proj),
            ("feed_forward.up", block.mlp.c_fc),
            ("feed_forward.down", block.mlp.c_proj),
        ):
            found[f"{at}{ours}.weight"], found[f"{at}{ours}.bias"] = array(conv.weight).T, array(conv.bias)
    return found


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def as_bin(model: GPT2LMHeadModel, folder: Path, names: Callable[[str], str] = str, **more: torch.Tensor) -> None:
    """Replaces a folder's weights by a pytorch_model.bin."""
    state = {names(name): tensor for name, tensor in model.state_dict().items()}
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    torch.save({**state, **more}, folder / "pytorch_model.bin")
