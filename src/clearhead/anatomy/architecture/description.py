"""What a decoder-only transformer consists of: the facts that a chart, a table and a comparison are made from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

NormKind = Literal["LayerNorm", "RMSNorm"]
PositionKind = Literal["learned", "rotary", "alibi", "none"]


@dataclass(frozen=True, slots=True)
class ArchitectureTensor:
    """One tensor and the component of the model that it belongs to.

    Attributes:
        name: as the file or the state dict calls it.
        shape: of the stored array.
        role: the component, a key of `roles.ROLES`; "other" if the tensor was not recognized.
        layer: the block's index; None outside the blocks.
        tied: whether it is another tensor under a second name, so that it does not count.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None = None
    tied: bool = False

    @property
    def count(self) -> int:
        """The number of parameters; 0 for a tied tensor."""
        return 0 if self.tied else math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class AttentionFacts:
    """How attention is built.

    Attributes:
        n_heads: query heads; None if the source does not say.
        n_kv_heads: key and value heads; equal to `n_heads` without grouping.
        head_dim: numbers per head; None if the source does not say.
        fused: whether queries, keys and values come from one matrix.
        qkv_bias, out_bias: whether the projections add a bias.
        qk_norm: whether queries and keys are normalized before their product.
        sinks: whether each head has a learned logit that takes part in the softmax without a value.
        window: tokens that a layer with a sliding window sees; None if every layer sees the whole context.
        windowed_layers: how many layers have the window.
        softcap: the bound of a tanh over the attention scores; None without.
        scaled: whether scores are divided by the square root of `head_dim`.
    """

    n_heads: int | None
    n_kv_heads: int | None
    head_dim: int | None
    fused: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    window: int | None = None
    windowed_layers: int = 0
    softcap: float | None = None
    scaled: bool = True


@dataclass(frozen=True, slots=True)
class FeedForwardFacts:
    """How the feed-forward layer is built.

    Attributes:
        width: numbers per token between the two matrices, of one expert.
        activation: the name of the function.
        gated: whether a second projection multiplies the activated one (SwiGLU, GeGLU).
        bias: whether the matrices add a bias.
        n_experts: experts per block; 0 for one dense layer.
        n_active: experts that each token uses.
        dense_layers: how many layers have no experts in a model that has some.
    """

    width: int
    activation: str
    gated: bool = False
    bias: bool = False
    n_experts: int = 0
    n_active: int = 0
    dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer, from token ids to logits.

    Attributes:
        family: its model type, such as "llama".
        name: the title of a chart.
        vocab_size, emb_dim, n_layers: V, C and the number of blocks.
        context_length: the longest sequence that the source names; None if it names none.
        attention, feed_forward: the two halves of a block.
        norm: the kind of normalization.
        norm_bias: whether norms add a bias.
        pre_norm: whether a norm stands before each half.
        post_norm: whether a norm stands after each half.
        norm_after_sum: whether these norms follow the sum with the shortcut, as in the first transformers; else they
            stand before it.
        parallel: whether attention and feed-forward read the same input and are added together.
        shared_norm: in a parallel block, whether both halves read one norm's output.
        positions: how a token's position gets in.
        rope_theta: the base of the rotary angles.
        rope_share: the share of each head's numbers that is rotated.
        rope_scaling: the name of the method that stretches the rotary angles; "" for none.
        embedding_scale: a factor on the token embedding; None for 1.
        embedding_norm: whether a norm follows the token embedding.
        projected: the width of the token embedding if it differs from `emb_dim`, with projections in and out.
        final_norm: whether a norm stands before the head.
        tied: whether the head is the token embedding's matrix.
        head_bias: whether the head adds a bias.
        logit_softcap: the bound of a tanh over the logits; None without.
        tensors: every tensor, in the order of the source.
        notes: sentences about what the source leaves open.
    """

    family: str
    name: str
    vocab_size: int
    emb_dim: int
    n_layers: int
    context_length: int | None
    attention: AttentionFacts
    feed_forward: FeedForwardFacts
    norm: NormKind = "LayerNorm"
    norm_bias: bool = True
    pre_norm: bool = True
    post_norm: bool = False
    norm_after_sum: bool = False
    parallel: bool = False
    shared_norm: bool = False
    positions: PositionKind = "learned"
    rope_theta: float | None = None
    rope_share: float = 1.0
    rope_scaling: str = ""
    embedding_scale: float | None = None
    embedding_norm: bool = False
    projected: int | None = None
    final_norm: bool = True
    tied: bool = False
    head_bias: bool = False
    logit_softcap: float | None = None
    tensors: tuple[ArchitectureTensor, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        """The number of parameters; a tied matrix counts once."""
        return sum(tensor.count for tensor in self.tensors)

    def by_role(self) -> Mapping[str, tuple[ArchitectureTensor, ...]]:
        """Return the tensors of each role, in the order of the source."""
        found: dict[str, list[ArchitectureTensor]] = {}
        for tensor in self.tensors:
            found.setdefault(tensor.role, []).append(tensor)
        return {role: tuple(tensors) for role, tensors in found.items()}

    def in_block(self, *roles: str) -> int:
        """Return the parameters of these roles in one block, the largest if blocks differ."""
        layers: dict[int | None, int] = {}
        for tensor in self.tensors:
            if tensor.role in roles:
                layers[tensor.layer] = layers.get(tensor.layer, 0) + tensor.count
        return max(layers.values(), default=0)

    def has(self, *roles: str) -> bool:
        """Return whether any tensor has one of these roles."""
        return any(tensor.role in roles for tensor in self.tensors)

    def other(self) -> tuple[ArchitectureTensor, ...]:
        """Return the tensors that were not recognized."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "other")


def count(tensors: Iterable[ArchitectureTensor]) -> int:
    """Return the parameters of several tensors."""
    return sum(tensor.count for tensor in tensors)
