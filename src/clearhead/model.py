"""The whole of GPT-2 in PyTorch, from top to bottom in the order in which a token travels.

Shapes are given at the end of the lines where they change, in these letters:

    B  sequences in a batch        C  emb_dim, the width of a token's vector
    T  tokens in a sequence        H  attention heads
    V  vocab_size                  D  = C / H, the width of one head

The architecture is described in "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019,
section 2.3): a decoder-only transformer with a norm before each sub-layer and one more after the last block. The names
follow the book "Build a Large Language Model (From Scratch)", chapter 4, without its abbreviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.config import GPTConfig

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of one layer: queries, keys and values [B, H, T, D] in, the weighted sums of values [B, H, T, D] out."""


class KVCache(Protocol):
    """Keys and values of earlier tokens, so that each token is computed once.

    `inference/torch_runner.py` implements it for generation. Without a cache, a call attends to its own tokens only.
    """

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Store a layer's new keys and values, and attend to all that are stored."""


class LayerNorm(nn.Module):
    """Normalize each token's vector to mean 0 and variance 1, then scale and shift each component.

    (x - mean) / sqrt(variance + eps) * weight + bias, with the biased variance (the sum is divided by C, not
    C - 1), as in the training of the released weights. Ba et al. 2016, equation 4.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.emb_dim))
        self.bias = nn.Parameter(torch.zeros(config.emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class GELU(nn.Module):
    """x times the standard normal CDF at x; GPT-2 uses the approximation with tanh.

    tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Hendrycks and Gimpel 2016, section 2.
    The exact form differs from it by up to 5e-4, enough to change the text that the released weights generate.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """Compute causal attention in the book's four steps: scores, mask, softmax, weights times values.

    softmax(Q K^T / sqrt(D)) V, Vaswani et al. 2017, equation 1.

    Args:
        queries, keys, values: [B, H, T, D]
        drop_rate: fraction of the attention weights set to zero (in training).

    Returns:
        [B, H, T, D]
    """
    T, D = queries.shape[-2:]  # noqa: N806
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(D)  # [B, H, T, T]: row = query token, column = key token
    future = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(diagonal=1)  # [T, T]
    scores = scores.masked_fill(future, -torch.inf)
    weights = scores.softmax(dim=-1)  # [B, H, T, T]: each row sums to 1
    weights = F.dropout(weights, drop_rate)
    return weights @ values  # [B, H, T, D]


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """Compute the same as `plain_attention` in one of torch's kernels, which never stores all the scores."""
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop_rate, is_causal=True)


class CausalSelfAttention(nn.Module):
    """Let each token attend to itself and all tokens before it, in H heads, and collect a mix of their values."""

    def __init__(self, config: GPTConfig, plain: bool = False) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.attention_fn = plain_attention if plain else fused_attention
        # W_query, W_key and W_value, stacked, so that one product computes all three.
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor, attend: AttentionFn | None = None) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        queries, keys, values = self.qkv(x).split(C, dim=-1)  # three times [B, T, C]
        queries, keys, values = (
            t.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)  # [B, T, C] -> [B, T, H, D] -> [B, H, T, D]
            for t in (queries, keys, values)
        )
        if attend is None:
            mixed = self.attention_fn(queries, keys, values, self.drop_rate if self.training else 0.0)
        else:
            mixed = attend(queries, keys, values)  # [B, H, T, D]
        mixed = mixed.transpose(1, 2).reshape(B, T, C)  # concatenate the heads
        out: Tensor = self.out(mixed)  # [B, T, C]
        return out


class FeedForward(nn.Module):
    """Expand each token's vector (fourfold in GPT-2), apply GELU, and project it back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.emb_dim, config.ff_dim)
        self.gelu = nn.ReLU() if config.activation == "relu" else GELU(config)
        self.down = nn.Linear(config.ff_dim, config.emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.gelu(self.up(x)))  # [B, T, C] -> [B, T, ff_dim] -> [B, T, C]
        return out


class Block(nn.Module):
    """Apply attention, then feed-forward; each reads a normalized copy and adds its output to the residual stream."""

    def __init__(self, config: GPTConfig, plain: bool = False) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(config)
        self.attention = CausalSelfAttention(config, plain)
        self.norm_2 = LayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, attend: AttentionFn | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), attend))  # [B, T, C]
        out: Tensor = x + self.dropout(self.feed_forward(self.norm_2(x)))  # [B, T, C]
        return out


class GPTModel(nn.Module):
    """GPT-2: token ids in, for each token the logits of the token after it out.

    Args:
        config: the shape.
        plain: compute attention step by step, as the book does, instead of in one of torch's kernels.

    The parameters are initialized as OpenAI's were: normal with standard deviation 0.02 (0.01 for positions). The two
    projections of a block whose outputs are added to the residual stream have it divided by sqrt(2 n_layers), so that
    the sum over the depth keeps its size (Radford et al. 2019, section 2.3). Biases start at 0, norm weights at 1.
    """

    def __init__(self, config: GPTConfig, plain: bool = False) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.emb_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.emb_dim)
        self.dropout = nn.Dropout(config.drop_rate)
        self.blocks = nn.ModuleList(Block(config, plain) for _ in range(config.n_layers))
        self.final_norm = LayerNorm(config)
        self.head = nn.Linear(config.emb_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            # One tensor with two uses: row i is the vector of token i, and the logit of i is the product with it.
            self.head.weight = self.token_embedding.weight
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Set every parameter to its random (or constant) initial value, from torch's global random state."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif name == "position_embedding.weight":
                parameter.normal_(std=0.01)
            elif name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                parameter.normal_(std=residual_std)
            else:
                parameter.normal_(std=0.02)

    def forward_hidden(self, ids: Tensor, positions: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Run everything but the head.

        Args:
            ids: token ids, int64 [B, T], with T at most context_length.
            positions: the position of each token in its sequence, int64 [B, T] or [T]; 0 to T-1 if not given.
            cache: keys and values of earlier tokens to attend to as well.

        Returns:
            the final norm's output, [B, T, C].
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)  # [T]
        x: Tensor = self.token_embedding(ids) + self.position_embedding(positions)  # [B, T, C]
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else partial(cache.attend, layer))  # [B, T, C]
        normed: Tensor = self.final_norm(x)  # [B, T, C]
        return normed

    def forward(self, ids: Tensor, positions: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Return logits [B, T, V] for ids [B, T]: at each token, unnormalized log-probabilities of the next one."""
        logits: Tensor = self.head(self.forward_hidden(ids, positions, cache))  # [B, T, C] -> [B, T, V]
        return logits

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats of the next tokens.

        Args:
            ids: int64 [B, T]
            targets: int64 [B, T], `ids` one token later; -100 for a token that does not count.

        Returns:
            a scalar, in float32.
        """
        logits: Tensor = self(ids)  # [B, T, V]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def greedy(model: GPTModel, ids: Tensor, new_tokens: int) -> Tensor:
    """Generate in the simplest way: run everything again for each token and take the most likely one.

    This is the book's `generate_text_simple`. It is slow and obviously right, so the fast ways are tested against it.

    Args:
        model: in evaluation mode.
        ids: the prompt, int64 [B, T]
        new_tokens: how many to generate; beyond context_length the oldest tokens are not looked at.

    Returns:
        prompt and continuation, int64 [B, T + new_tokens]
    """
    for _ in range(new_tokens):
        logits = model(ids[:, -model.config.context_length :])[:, -1]  # [B, V]: only the last token's
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)  # [B, T + 1]
    return ids
