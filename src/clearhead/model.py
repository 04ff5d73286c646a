"""The whole of GPT-2 in PyTorch, from top to bottom in the order in which a token travels.

Shapes stand at the end of the lines where they change, in these letters:

    B  sequences in a batch        C  emb_dim, the width of a token's vector
    T  tokens in a sequence        H  attention heads
    V  vocab_size                  D  = C / H, the width of one head

The architecture is that of "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019,
section 2.3): a decoder-only transformer with the norm before each sub-layer and one more after the last
block. The names are those of the book "Build a Large Language Model (From Scratch)", chapter 4, in words.
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

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Mixes values: queries, keys and values [B, H, T, D] in, the mixed values [B, H, T, D] out."""


class Memory(Protocol):
    """What remembers keys and values between calls, so that a token is computed once.

    `torch_runner.py` has the one that generation uses; without one, a call attends to its own tokens.
    """

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Stores the new keys and values of a layer, and attends to all that it holds."""


class LayerNorm(nn.Module):
    """Brings each token's vector to mean 0 and variance 1, then scales and shifts each of its numbers.

    (x - mean) / sqrt(variance + eps) * weight + bias, with the biased variance (the sum is divided by
    C and not by C - 1), as the released weights were trained. Ba et al. 2016, equation 4.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(config.emb_dim))
        self.bias = nn.Parameter(torch.zeros(config.emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class GELU(nn.Module):
    """x times the share of a normal distribution below x; GPT-2 uses the approximation by a tanh.

    tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). Hendrycks and Gimpel 2016, section 2.
    The exact form differs from it by up to 5e-4, enough to change what released weights write.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """Causal attention in the book's four steps: scores, mask, softmax, weights times values.

    softmax(Q K^T / sqrt(D)) V, Vaswani et al. 2017, equation 1.

    Args:
        queries, keys, values: [B, H, T, D]
        drop_rate: share of the attention weights set to zero (in training).

    Returns:
        [B, H, T, D]
    """
    T, D = queries.shape[-2:]  # noqa: N806
    scores = queries @ keys.transpose(-2, -1) / math.sqrt(D)  # [B, H, T, T]: row = asking token, column = asked token
    future = torch.ones(T, T, dtype=torch.bool, device=scores.device).triu(diagonal=1)  # [T, T]
    scores = scores.masked_fill(future, -torch.inf)
    weights = scores.softmax(dim=-1)  # [B, H, T, T]: each row sums to 1
    weights = F.dropout(weights, drop_rate)
    return weights @ values  # [B, H, T, D]


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, drop_rate: float = 0.0) -> Tensor:
    """The same as `plain_attention` in one kernel of torch's, which never holds all the scores."""
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop_rate, is_causal=True)


class CausalSelfAttention(nn.Module):
    """Each token asks all tokens before it (and itself) and takes in a mix of their values, in H heads."""

    def __init__(self, config: GPTConfig, plain: bool = False) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.drop_rate = config.drop_rate
        self.mix = plain_attention if plain else fused_attention
        # W_query, W_key and W_value, one above the other, so that one product computes all three.
        self.qkv = nn.Linear(config.emb_dim, 3 * config.emb_dim, bias=config.qkv_bias)
        self.out = nn.Linear(config.emb_dim, config.emb_dim)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        B, T, C = x.shape  # noqa: N806
        queries, keys, values = self.qkv(x).split(C, dim=-1)  # three times [B, T, C]
        queries, keys, values = (
            t.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)  # [B, T, C] -> [B, T, H, D] -> [B, H, T, D]
            for t in (queries, keys, values)
        )
        if attend is None:
            mixed = self.mix(queries, keys, values, self.drop_rate if self.training else 0.0)
        else:
            mixed = attend(queries, keys, values)  # [B, H, T, D]
        mixed = mixed.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return self.out(mixed)  # [B, T, C]


class FeedForward(nn.Module):
    """Widens each token's vector (fourfold in GPT-2), bends it with GELU, and narrows it again."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.emb_dim, config.ff_dim)
        self.gelu = GELU(config)
        self.down = nn.Linear(config.ff_dim, config.emb_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(x)))  # [B, T, C] -> [B, T, ff_dim] -> [B, T, C]


class Block(nn.Module):
    """Attention, then feed-forward; each reads a normed copy and is added to what came in (the shortcut)."""

    def __init__(self, config: GPTConfig, plain: bool = False) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(config)
        self.attention = CausalSelfAttention(config, plain)
        self.norm_2 = LayerNorm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.drop_rate)

    def forward(self, x: Tensor, attend: Attend | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), attend))  # [B, T, C]
        return x + self.dropout(self.feed_forward(self.norm_2(x)))  # [B, T, C]


class GPTModel(nn.Module):
    """GPT-2: token ids in, for each token the logits of the token after it out.

    Args:
        config: the shape.
        plain: compute attention step by step, as the book does, in place of torch's one kernel.

    The parameters start as OpenAI's did: normal with standard deviation 0.02 (0.01 for positions),
    the two projections of a block that are added to the shortcut divided by sqrt(2 n_layers), so that
    the sum over the depth keeps its size (Radford et al. 2019, section 2.3); biases at 0, norms at 1.
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
            # One tensor with two uses: row i is both the vector of token i and what the logit of i measures.
            self.head.weight = self.token_embedding.weight
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Gives every parameter its random (or constant) start; torch's global seed decides which."""
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

    def hidden(self, ids: Tensor, positions: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """Everything but the head.

        Args:
            ids: token ids, int64 [B, T], with T at most context_length.
            positions: the place of each token in its sequence, int64 [B, T] or [T]; 0 to T-1 where not given.
            memory: keys and values of earlier tokens to attend to as well.

        Returns:
            the final norm's output, [B, T, C].
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)  # [T]
        x = self.token_embedding(ids) + self.position_embedding(positions)  # [B, T, C]
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, None if memory is None else partial(memory.attend, layer))  # [B, T, C]
        return self.final_norm(x)  # [B, T, C]

    def forward(self, ids: Tensor, positions: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """Logits [B, T, V] for ids [B, T]: at each token, an unnormalised log-probability for each next one."""
        return self.head(self.hidden(ids, positions, memory))  # [B, T, C] -> [B, T, V]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy in nats of the next tokens.

        Args:
            ids: int64 [B, T]
            targets: int64 [B, T], `ids` one token later; -100 where a token does not count.

        Returns:
            a scalar, in float32.
        """
        logits = self(ids)  # [B, T, V]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


@torch.no_grad()
def greedy(model: GPTModel, ids: Tensor, new_tokens: int) -> Tensor:
    """The simplest way to write: run everything again for each token and take the likeliest.

    The book's `generate_text_simple`. It is slow and it is right, which makes it the measure of the fast ways.

    Args:
        ids: the prompt, int64 [B, T]
        new_tokens: how many to write; beyond context_length the oldest tokens are not looked at.

    Returns:
        prompt and continuation, int64 [B, T + new_tokens]
    """
    for _ in range(new_tokens):
        logits = model(ids[:, -model.config.context_length :])[:, -1]  # [B, V]: only the last token's
        ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)  # [B, T + 1]
    return ids
