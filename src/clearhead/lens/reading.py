"""Reading what is inside a model as text: tokens as pieces, residuals as predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from clearhead.errors import InputError
from clearhead.model import GPTModel

if TYPE_CHECKING:
    from clearhead.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token's text; `<F0 9F>` for bytes that are no whole character, `<50300>` for an id without text."""
    return [_piece(tokenizer, id) for id in ids]


def _piece(tokenizer: Tokenizer, id: int) -> str:
    if not 0 <= id < tokenizer.vocab_size:
        return f"<{id}>"
    data = tokenizer.token_bytes(id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<{data.hex(' ').upper()}>"


def logit_lens(model: GPTModel, residual: np.ndarray) -> np.ndarray:
    """The logits that a model would give if it ended at a residual: final norm and head, applied to it.

    nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Args:
        residual: float [..., C], such as a watched `blocks.3.residual_out`.

    Returns:
        float32 [..., V]

    Raises:
        InputError: where the last axis is not the model's.
    """
    width = model.config.emb_dim
    if residual.ndim < 1 or residual.shape[-1] != width:
        raise InputError(f"the residual has shape {list(residual.shape)}; [..., {width}] was expected.")
    weight = model.token_embedding.weight
    with torch.no_grad():
        x = torch.as_tensor(residual).to(device=weight.device, dtype=weight.dtype)
        return model.head(model.final_norm(x)).float().cpu().numpy()
