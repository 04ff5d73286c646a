"""A small model whose every parameter matters, and texts for it."""

from __future__ import annotations

import torch

from clearhead import GPTConfig, lens
from clearhead.model import GPTModel

CONFIG = GPTConfig(
    vocab_size=60, context_length=24, emb_dim=32, n_heads=4, n_layers=3, drop_rate=0.1, qkv_bias=True, tie_weights=True
)


def perturbed_model() -> GPTModel:
    """Return a model with biases and norms that are not at their start."""
    torch.manual_seed(3)
    found = GPTModel(CONFIG)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embedding" not in name:
                parameter.mul_(4)
    return found.eval()


TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]
CLEAN, CORRUPTED = [7, 3, 11, 4, 9, 12], [7, 3, 20, 4, 9, 12]
METRIC = lens.logit_difference(5, 6)
