"""Small random models that look trained, for tests of weights."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from reference_models import peer_config
from transformers import GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig

SMALL = GPTConfig(61, 16, 24, 3, 2, qkv_bias=True, tie_weights=True)
Tensors = dict[str, np.ndarray]


def perturbed_weights(config: GPTConfig = SMALL, seed: int = 0) -> Tensors:
    """Return random weights of a model, with its norms and biases perturbed as if it were trained."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT2LMHeadModel(peer_config(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {name: values.copy() for name, values in weights.open(folder).load().items()}
