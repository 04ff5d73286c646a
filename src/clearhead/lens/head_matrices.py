"""The weights of each attention head on its own, in the shapes and under the names that TransformerLens gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.model import Block, GPTModel


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The weights of a layer's heads, as views: writing into them changes the model.

    A head reads the normalized residual x [C]: its query is x W_Q + b_Q, its key x W_K + b_K, its value x W_V + b_V. It
    adds z W_O to the residual, for z [D] the values weighted by its pattern; b_O is added once for all heads.

    Attributes:
        W_Q, W_K, W_V: [H, C, D].
        W_O: [H, D, C].
        b_Q, b_K, b_V: [H, D]; zeros if the model has no such biases.
        b_O: [C].
    """

    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor  # noqa: N815 - as TransformerLens spells it
    b_K: Tensor  # noqa: N815 - as TransformerLens spells it
    b_V: Tensor  # noqa: N815 - as TransformerLens spells it
    b_O: Tensor  # noqa: N815 - as TransformerLens spells it


def head_weights(model: GPTModel, layer: int) -> HeadWeights:
    """Return the weights of one layer's heads. Nothing is folded or centred.

    Args:
        model: the model.
        layer: the layer, from 0.

    Raises:
        InputError: if there is no such layer.
    """
    config = model.config
    if not 0 <= layer < config.n_layers:
        raise InputError(f"there is no layer {layer}; the model's layers are 0 to {config.n_layers - 1}.")
    attention = cast(Block, model.blocks[layer]).attention
    H, D, C = config.n_heads, config.head_dim, config.emb_dim  # noqa: N806
    qkv = attention.qkv.weight.detach().view(3, H, D, C).transpose(-2, -1)  # [3, H, C, D]
    bias = attention.qkv.bias
    biases = torch.zeros_like(qkv[:, :, 0]) if bias is None else bias.detach().view(3, H, D)
    out = attention.out.weight.detach().t().view(H, D, C)  # each head has D columns
    W_Q, W_K, W_V = qkv.unbind()  # noqa: N806
    b_Q, b_K, b_V = biases.unbind()  # noqa: N806
    return HeadWeights(W_Q, W_K, W_V, out, b_Q, b_K, b_V, attention.out.bias.detach())
