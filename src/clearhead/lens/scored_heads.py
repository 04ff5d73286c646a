"""What heads do: scores for known kinds of heads, measured on random tokens and on the weights."""

from __future__ import annotations

import numpy as np
import torch

from clearhead.config import GPTConfig
from clearhead.errors import InputError
from clearhead.lens.cache import run_with_cache
from clearhead.lens.head_matrices import head_weights
from clearhead.lens.labelled import LabelledArray, numbered
from clearhead.model import GPTModel

KINDS = ("previous token", "duplicate token", "induction", "copying")
"""Attention to the token before; to an earlier copy of the token; to the token after that copy; and whether what a head
reads raises the logit of the token that it reads."""


def head_scores(model: GPTModel, *, length: int | None = None, batch: int = 8, seed: int = 0) -> LabelledArray:
    """Return how much each head is of each kind, [kind, layer, head].

    The first three are mean attention weights, 0 to 1, on random tokens that are repeated once; a head that attends
    evenly has about 1 / tokens. Copying is, for the product of a head's value and output matrices between embedding and
    head, the sum of the eigenvalues over the sum of their magnitudes, -1 to 1 (Elhage et al. 2021).

    Args:
        model: the model.
        length: tokens before they repeat; by default 50, or as many as fit twice into the context.
        batch: how many random texts are averaged.
        seed: for the tokens.

    Raises:
        InputError: if two repetitions do not fit the context, or there are too few tokens.
    """
    config = model.config
    n = length or min(50, config.context_length // 2)
    if not 2 <= n <= config.context_length // 2:
        raise InputError(
            f"length is {n}, but two repetitions must fit the context of {config.context_length:,}: give 2 to "
            f"{config.context_length // 2:,}."
        )
    ids = repeated_tokens(config, n, batch, seed)
    values = np.empty((len(KINDS), config.n_layers, config.n_heads))
    for layer in range(config.n_layers):
        name = f"blocks.{layer}.attention.pattern"
        pattern = run_with_cache(model, ids, name)[name]  # [B, H, 2n, 2n]
        second = torch.arange(n, 2 * n)  # tokens that were seen before
        values[0, layer] = pattern.diagonal(-1, -2, -1).mean((0, -1)).cpu().numpy()
        values[1, layer] = pattern[:, :, second, second - n].mean((0, -1)).cpu().numpy()
        values[2, layer] = pattern[:, :, second, second - n + 1].mean((0, -1)).cpu().numpy()
        values[3, layer] = copying_scores(model, layer)
    layers = tuple(f"layer {i}" for i in numbered(config.n_layers))
    heads = tuple(f"head {i}" for i in numbered(config.n_heads))
    return LabelledArray(values, ("kind", "layer", "head"), (KINDS, layers, heads), "what heads do")


def repeated_tokens(config: GPTConfig, length: int, batch: int, seed: int) -> list[list[int]]:
    """Return texts of random tokens that are repeated once, [batch][2 * length]."""
    once = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))
    repeated: list[list[int]] = torch.cat([once, once], dim=1).tolist()
    return repeated


@torch.no_grad()
def copying_scores(model: GPTModel, layer: int) -> list[float]:
    """Return the copying score of each head of a layer.

    The V by V matrix from tokens read to logits has the same nonzero eigenvalues as a D by D one, which is computed
    here.
    """
    embedding, head = model.token_embedding.weight.double(), model.head.weight.double()  # [V, C] each
    around = head.T @ embedding  # [C, C]: from what a head writes back to what it reads, over all tokens
    weights = head_weights(model, layer)
    # tokens -> embedding @ W_V @ W_O @ head.T; cyclic: W_O @ head.T @ embedding @ W_V, [D, D]
    eigenvalues = torch.linalg.eigvals(weights.W_O.double() @ around @ weights.W_V.double())  # [H, D]
    total = eigenvalues.abs().sum(-1)
    scores: list[float] = torch.where(total > 0, eigenvalues.real.sum(-1) / total, 0.0).tolist()
    return scores
