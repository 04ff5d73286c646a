"""A GPT-2 of transformers' and Clearhead's model of the same weights, for tests that put the two side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.model import GPTModel
from clearhead.model_weights import load_into

SMALL = GPTConfig(vocab_size=97, context_length=64, emb_dim=48, n_heads=4, n_layers=3, qkv_bias=True, tie_weights=True)


def peer_config(config: GPTConfig) -> GPT2Config:
    """Return the same shape as transformers' config."""
    return GPT2Config(**{**config.to_huggingface(), "bos_token_id": 0, "eos_token_id": 0})


def peer_of(config: GPTConfig, std: float | None = None, seed: int = 1) -> GPT2LMHeadModel:
    """transformers' model of a shape, in evaluation mode.

    Args:
        config: the shape.
        std: where given, every parameter is normal with it: no bias is zero and no norm one.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    peer = GPT2LMHeadModel(peer_config(config)).eval()
    if std is not None:
        with torch.no_grad():
            for parameter in peer.parameters():
                parameter.normal_(std=std)
    return peer


def ours_of(peer: GPT2LMHeadModel, folder: Path, plain: bool = False) -> GPTModel:
    """Clearhead's model of a peer's weights, by way of the folder that the peer saves."""
    peer.save_pretrained(folder)
    source = weights.open(folder)
    model = GPTModel(source.config, plain=plain)
    load_into(model, source)
    return model.eval()


def peer_logits(peer: GPT2LMHeadModel, ids: torch.Tensor) -> torch.Tensor:
    """Its logits, float32 [B, T, V]."""
    with torch.inference_mode():
        return peer(ids).logits
