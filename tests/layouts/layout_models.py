"""The models of the book and of nanoGPT, and comparisons of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead import weights
from clearhead.config import GPTConfig
from clearhead.model import GPTModel
from clearhead.model_weights import load_into

V, T, C, H, L = 301, 16, 64, 2, 2


CONFIG = GPTConfig(V, T, C, H, L, qkv_bias=True, tie_weights=True)


IDS = torch.arange(30).reshape(2, 15) * 7 % V


def random_model(**changes: Any) -> GPT2LMHeadModel:
    """A GPT-2 of transformers' whose every parameter is random."""
    torch.manual_seed(1)
    shape = {"vocab_size": V, "n_positions": T, "n_embd": C, "n_head": H, "n_layer": L}
    model = GPT2LMHeadModel(GPT2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@torch.no_grad()
def logits_of(source: weights.Source) -> torch.Tensor:
    """What our model computes with weights from a source."""
    model = GPTModel(source.config).eval()
    load_into(model, source)
    return model(IDS)


@torch.no_grad()
def assert_logits(source: weights.Source, expected: nn.Module) -> None:
    out = expected(IDS)
    torch.testing.assert_close(logits_of(source), getattr(out, "logits", out), atol=1e-4, rtol=0)
