"""Read what is inside a model as text: tokens as pieces, residuals as predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clearhead.errors import InputError
from clearhead.numpy_model import NumpyModel

if TYPE_CHECKING:
    from torch import Tensor

    from clearhead.model import GPTModel
    from clearhead.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return each token's text; `<F0 9F>` for bytes that are no whole character, `<50300>` for unknown ids."""
    return [_piece(tokenizer, id) for id in ids]


def _piece(tokenizer: Tokenizer, id: int) -> str:
    if not 0 <= id < tokenizer.vocab_size:
        return f"<{id}>"
    data = tokenizer.token_bytes(id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"


def logit_lens(model: GPTModel | NumpyModel, residual: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return the logits that a model would give if it ended at a residual: the final norm and the head applied to it.

    nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Args:
        model: the network, in PyTorch or NumPy.
        residual: float [..., C], such as a recorded `blocks.3.residual_out`.

    Returns:
        float32 [..., V]

    Raises:
        InputError: if the last axis does not have the size emb_dim.
    """
    width = model.config.emb_dim
    if residual.ndim < 1 or residual.shape[-1] != width:
        raise InputError(f"the residual has shape {list(residual.shape)}; [..., {width}] was expected.")
    if isinstance(model, NumpyModel):
        return model.read_residual(residual.astype(np.float32))
    import torch

    weight = model.token_embedding.weight
    with torch.no_grad():
        x = torch.as_tensor(residual).to(device=weight.device, dtype=weight.dtype)
        logits: npt.NDArray[np.float32] = read_residual(model, x).float().cpu().numpy()
        return logits


def read_residual(model: GPTModel, residual: Tensor) -> Tensor:
    """Return the logits [..., V] that a model gives if it ends at a residual [..., C]: the final norm and the head."""
    logits: Tensor = model.head(model.final_norm(residual))
    return logits


def depth_names(n_layers: int, sublayers: bool) -> dict[str, str]:
    """Return the activation and the label of each depth, from the embedding to the last block."""
    found = {"blocks.0.residual_in": "embedding"}
    for layer in range(n_layers):
        if sublayers:
            found[f"blocks.{layer}.residual_mid"] = f"layer {layer} attention"
        found[f"blocks.{layer}.residual_out"] = f"layer {layer}"
    return found
