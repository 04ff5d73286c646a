"""The checkpoints among the fixtures, and what they contain."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from clearhead.config import GPTConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"


DATA = "model.ckpt.data-00000-of-00001"


SHAPE = GPTConfig(61, 16, 12, 3, 2, qkv_bias=True, tie_weights=True)


@functools.cache
def expected(name: str) -> dict[str, np.ndarray]:
    """What TensorFlow read from a fixture."""
    with np.load(FIXTURES / name / "expected.npz") as file:
        return {key.replace(".", "/"): file[key] for key in file}


def random_tensors(config: GPTConfig, seed: int = 5) -> dict[str, np.ndarray]:
    """Random values for every tensor of a model, by canonical name."""
    random = np.random.default_rng(seed)
    c, f = config.emb_dim, config.ff_dim
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (config.vocab_size, c),
        "position_embedding.weight": (config.context_length, c),
        "final_norm.weight": (c,),
        "final_norm.bias": (c,),
    }
    for i in range(config.n_layers):
        for name, shape in {
            "norm_1": (c,),
            "norm_2": (c,),
            "attention.qkv": (3 * c, c),
            "attention.out": (c, c),
            "feed_forward.up": (f, c),
            "feed_forward.down": (c, f),
        }.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            if name != "attention.qkv" or config.qkv_bias:
                shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    if not config.tie_weights:
        shapes["head.weight"] = (config.vocab_size, c)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
