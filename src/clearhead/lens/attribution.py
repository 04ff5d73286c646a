"""Which part of a model makes a logit: direct attribution, gradients times input, integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.inference.runner import check_token_ids
from clearhead.lens.cache import padded, run_with_cache
from clearhead.lens.head_matrices import head_weights
from clearhead.lens.labelled import LabelledArray, token_labels
from clearhead.lens.reading import read_residual
from clearhead.model import Block, GPTModel


@torch.no_grad()
def direct_logit_attribution(
    model: GPTModel, ids: Sequence[int], token: int, *, versus: int | None = None, position: int = -1
) -> LabelledArray:
    """Return how much each component adds to a token's logit. The values sum to the logit.

    The residual stream is a sum: token and position embedding, every head, every feed-forward layer and their biases.
    The final norm is linear once its mean and variance are fixed, so the logit is the sum of what each part contributes
    (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    Args:
        model: the model.
        ids: the text's tokens.
        token: the token whose logit is explained.
        versus: explain the difference to this token's logit instead.
        position: the token at which the logit is read; the last by default.

    Returns:
        one value for each component: "token embedding", "position embedding", "layer 0 head 0", ..., "layer 0 attention
        bias", "layer 0 feed-forward", "layer 0 feed-forward bias", ..., "final norm bias".

    Raises:
        InputError: if a token or the position is out of range.
    """
    at = _position(ids, position)
    check_token_ids([token] if versus is None else [token, versus], model.config.vocab_size)
    wanted = ["embedding.token", "embedding.position", "blocks.*.attention.mixed", "blocks.*.feed_forward.activated"]
    cache = run_with_cache(model, [ids], [*wanted, "final_norm.variance"])
    parts: dict[str, Tensor] = {
        "token embedding": cache["embedding.token"][0, at].double(),
        "position embedding": cache["embedding.position"][0, at].double(),
    }
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        mixed = cache[f"blocks.{layer}.attention.mixed"][0, :, at].double()  # [H, D]
        for head, added in enumerate(torch.einsum("hd,hdc->hc", mixed, head_weights(model, layer).W_O.double())):
            parts[f"layer {layer} head {head}"] = added
        parts[f"layer {layer} attention bias"] = block.attention.out.bias.double()
        activated = cache[f"blocks.{layer}.feed_forward.activated"][0, at].double()
        parts[f"layer {layer} feed-forward"] = block.feed_forward.down.weight.double() @ activated
        parts[f"layer {layer} feed-forward bias"] = block.feed_forward.down.bias.double()
    direction = model.head.weight[token].double()
    if versus is not None:
        direction = direction - model.head.weight[versus].double()
    norm = model.final_norm
    scale = (cache["final_norm.variance"][0, at].double() + norm.eps).sqrt()
    read = norm.weight.double() * direction / scale  # [C]
    values = [float((part - part.mean()) @ read) for part in parts.values()]
    values.append(float(norm.bias.double() @ direction))
    labels = (*parts, "final norm bias")
    title = f"logit of {token}" if versus is None else f"logit of {token} minus logit of {versus}"
    return LabelledArray(np.array(values), ("component",), (labels,), title)


def gradient_times_input(
    model: GPTModel, ids: Sequence[int], token: int, *, versus: int | None = None, tokens: Sequence[str] | None = None
) -> LabelledArray:
    """Return, for each token of a text, the gradient of the next token's logit times the token's embedding.

    Args:
        model: the model.
        ids: the text's tokens.
        token: the next token whose logit is explained.
        versus: explain the difference to this token's logit instead.
        tokens: the text of each id, for labels.

    Raises:
        InputError: if an id is out of range.
    """
    gradient, embedded = _embedding_gradient(model, ids, token, versus, [1.0])
    values = (gradient * embedded).sum(-1).double().cpu().numpy()
    return LabelledArray(values, ("position",), (token_labels(ids, tokens),), f"gradient × input for {token}")


def integrated_gradients(
    model: GPTModel,
    ids: Sequence[int],
    token: int,
    *,
    versus: int | None = None,
    steps: int = 64,
    tokens: Sequence[str] | None = None,
) -> LabelledArray:
    """Return each token's share of the next token's logit, integrated from embeddings of zeros to the text's own.

    The values sum to the logit minus the logit of a text of zero embeddings, up to the error of the integral, which
    falls with `steps` (Sundararajan et al. 2017, equation 1; midpoint rule).

    Args:
        model: the model.
        ids: the text's tokens.
        token: the next token whose logit is explained.
        versus: explain the difference to this token's logit instead.
        steps: points of the integral.
        tokens: the text of each id, for labels.

    Raises:
        InputError: if an id is out of range, or steps is less than 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; give at least 1.")
    points = [(step + 0.5) / steps for step in range(steps)]
    gradient, embedded = _embedding_gradient(model, ids, token, versus, points)
    values = (gradient * embedded).sum(-1).double().cpu().numpy()
    return LabelledArray(values, ("position",), (token_labels(ids, tokens),), f"integrated gradients for {token}")


def _embedding_gradient(
    model: GPTModel, ids: Sequence[int], token: int, versus: int | None, points: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Return the mean gradient over scaled token embeddings, [T, C], and the embeddings themselves, [T, C]."""
    check_token_ids([token] if versus is None else [token, versus], model.config.vocab_size)
    embedded = model.token_embedding(padded(model, [ids]))[0].detach()  # [T, C]
    positions = model.position_embedding.weight[: len(ids)].detach()
    total = torch.zeros_like(embedded)
    for start in range(0, len(points), 16):
        scales = torch.tensor(points[start : start + 16], device=embedded.device, dtype=embedded.dtype)
        x = (scales[:, None, None] * embedded).requires_grad_()  # [N, T, C]
        logits = last_logits_from(model, x + positions, 0)  # [N, V]
        wanted = logits[:, token] if versus is None else logits[:, token] - logits[:, versus]
        total += torch.autograd.grad(wanted.sum(), x)[0].sum(0)
    return total / len(points), embedded


def last_logits_from(model: GPTModel, residual: Tensor, layer: int) -> Tensor:
    """Return the logits after the last token, [B, V], when the model resumes from the residual stream before a block.

    Args:
        model: the model.
        residual: the residual stream before block `layer`, [B, T, C].
        layer: the block.
    """
    for block in model.blocks[layer:]:
        residual = block(residual)
    return read_residual(model, residual[:, -1])


def _position(ids: Sequence[int], position: int) -> int:
    at = position + len(ids) if position < 0 else position
    if not 0 <= at < len(ids):
        raise InputError(f"there is no position {position} in a text of {len(ids)} tokens.")
    return at
