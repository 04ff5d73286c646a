"""Small random models that look trained, for tests of weights."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig

SMALL = GPTConfig(61, 16, 24, 3, 2, qkv_bias=True, tie_weights=True)
Tensors = dict[str, np.ndarray]


def perturbed_weights(config: GPTConfig = SMALL, seed: int = 0) -> Tensors:
    """Return random weights of a model, with its norms and biases perturbed as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    own = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        n_embd=config.emb_dim,
        n_head=config.n_heads,
        n_layer=config.n_layers,
    )
    model = GPT2LMHeadModel(own)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {name: values.copy() for name, values in weights.open(folder).load().items()}
