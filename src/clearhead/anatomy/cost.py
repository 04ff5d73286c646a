"""What a GPT-2 costs to run and to train: bytes of memory, floating-point operations, bytes moved.

Every cost is a tree of parts with formulas, and the parts of each sum to its amount, which is checked when one is made.
The symbols, besides those of `count.py` (capitals belong to the model, small letters to the workload):

    L  blocks                N  parameters
    H  heads                 K  parameters of the blocks and the final norm
                             M  weights in the matrices of the blocks and the head
    b  sequences at once     s  bytes per number (with int8 and int4: per number in the cache)
    t  tokens in each

and, for the engine's quantized formats:

    G  groups of up to 32 weights of one row, in the matrices of the blocks and the head
    R  rows of these matrices
    X  biases and norms
    c  groups per row of the token embedding

A multiply-add is two operations, and only matrix products are counted (biases, norms, GELU and softmax are about one
operation in a hundred). Attention is counted as the product of all t tokens with all t, as an unfused implementation
computes it and as Chowdhery et al. 2022 (PaLM, appendix B) count it; a kernel that skips the masked half does less.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clearhead.anatomy.count import BITS, ParameterTree, count_parameters
from clearhead.config import GPTConfig
from clearhead.errors import InputError


@dataclass(frozen=True, slots=True)
class Cost:
    """An amount, in bytes or operations, with its formula and its parts.

    Attributes:
        name: what is counted, such as `gradients`.
        symbols: the formula in symbols, `4 × N`.
        numbers: the formula in numbers, `4 × 124,439,808`.
        amount: the formula's value.
        parts: the parts, if any; their amounts sum to this one.
    """

    name: str
    symbols: str
    numbers: str
    amount: int
    parts: tuple[Cost, ...] = ()

    def __post_init__(self) -> None:
        assert not self.parts or sum(part.amount for part in self.parts) == self.amount, f"{self.name}: parts differ"


class CostModel:
    """The costs of a GPT-2 of one shape, for one number format and one size of work.

    Args:
        config: the shape.
        dtype: the number format, a key of `BITS`. When running, everything is in it; with int8 and int4, as in the
            engine with 16-bit activations, matrices are quantized with scales, keys and values are bfloat16, and the
            rest is float32 (with 8-bit activations the scales of int8 take more, and the cache half). When training,
            parameters, gradients and moments are float32, as in `clearhead train`, and a 16-bit format is that of the
            matrix products (autocast).
        batch: b, sequences at once.
        context: t, tokens in each; 0 for context_length.

    Attributes:
        values: the value of each symbol.

    Raises:
        InputError: if the format is unknown, or a number is out of range.
    """

    def __init__(self, config: GPTConfig, dtype: str = "float32", batch: int = 1, context: int = 0) -> None:
        if dtype not in BITS:
            near = difflib.get_close_matches(dtype, BITS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"{dtype!r} is not a number format{hint}; choose one of {', '.join(BITS)}.")
        if batch < 1:
            raise InputError(f"the batch is {batch}; give at least 1 sequence.")
        if not 0 <= context <= config.context_length:
            raise InputError(
                f"the context is {context:,} tokens, but this model has {config.context_length:,} positions; give 1 to "
                f"{config.context_length:,}."
            )
        self.config = config
        self.dtype = dtype
        self.batch = batch
        self.context = context or config.context_length
        self.parameters: ParameterTree = count_parameters(config)
        self.quantized = dtype in ("int8", "int4")
        blocks, norm = (part.count for _, part in self.parameters.rows() if part.name in ("blocks", "final_norm"))
        layers, width, wide, ids = config.n_layers, config.emb_dim, config.ff_dim, config.vocab_size
        weights = layers * (4 * width**2 + 2 * width * wide)
        self.values: dict[str, int] = {
            "b": batch,
            "t": self.context,
            "T": config.context_length,
            "L": layers,
            "H": config.n_heads,
            "C": width,
            "F": wide,
            "V": ids,
            "N": self.parameters.total,
            "K": blocks + norm,
            "M": weights + ids * width,
            "s": 2 if self.quantized else BITS[dtype] // 8,
            "G": layers * ((4 * width + wide) * _groups(width) + width * _groups(wide)) + ids * _groups(width),
            "R": layers * (5 * width + wide) + ids,
            "X": blocks + norm - weights,
            "c": _groups(width),
        }

    # Memory -----------------------------------------------------------------------------------------------------

    def cache_per_token(self) -> Cost:
        """Return the bytes of keys and values that one token adds to the cache, over all blocks."""
        return self._cost("keys and values of a token", "2 × L × C × s")

    def memory_to_run(self) -> Cost:
        """Return the bytes to process b prompts of t tokens and to continue them, with fused attention.

        The activations are those alive at the peak of the forward pass: inside a feed-forward layer its two wide
        vectors, the normed vector, the shortcut's and the block's input; or the logits of each sequence's last token.
        A kernel's own scratch memory is not included. With int8 and int4 there are no activations: the engine's scratch
        does not grow with the batch.
        """
        weights = self._sum_of("weights", *self._weights()) if self.quantized else self._cost("weights", "N × s")
        cache = self._cost("keys and values", "2 × b × t × L × C × s")
        if self.quantized:
            return self._sum_of("memory to run", weights, cache)
        sizes = self.values
        moments = [
            "3 × b × t × C × s + 2 × b × t × F × s",  # in feed_forward, between up and down
            "7 × b × t × C × s",  # in attention; the peak if ff_dim is less than twice emb_dim
            "b × t × C × s + b × V × s" + (" + 4 × b × V" if sizes["s"] < 4 else ""),  # logits are given in float32
        ]
        peak = max(moments, key=lambda formula: _value(formula, sizes))
        name = "activations (a block)" if peak != moments[-1] else "activations (the logits)"
        return self._checked(
            "memory to run",
            f"N × s + 2 × b × t × L × C × s + {peak}",
            weights,
            cache,
            self._cost(name, peak),
        )

    def _weights(self) -> list[Cost]:
        """Return the parts of the quantized weights, without the padding of the engine's tiles."""
        group, scales = ("32 × G", "4 × R") if self.dtype == "int8" else ("16 × G", "2 × G")
        table = "32 × V × c + 4 × V" if self.dtype == "int8" else "18 × V × c"
        return [
            self._cost("matrices", group),
            self._cost("their scales", scales),
            *([] if self.config.tie_weights else [self._cost("the token embedding", table)]),
            self._cost("biases and norms", "4 × X"),
            self._cost("positions", "4 × T × C"),
        ]

    def memory_to_train(self, plain: bool = False) -> Cost:
        """Return the bytes between the forward and the backward pass of a batch of b × t tokens, with AdamW.

        Activations are the tensors that autograd saves, each storage once: on a CPU exactly those that
        `torch.autograd.graph.saved_tensors_hooks` sees (except one scalar of the loss), with one byte per element of a
        dropout mask, as on a GPU. Not included: a kernel's own scratch memory, and the gradients of activations, few of
        which are alive at once.

        With a 16-bit format, autocast saves copies of the matrices; softmax is counted in 16 bits, as on a CPU (a GPU
        computes it in float32 under autocast).

        Args:
            plain: attention step by step, which saves all t × t weights, instead of the fused kernel.

        Raises:
            InputError: if the format is int8 or int4.
        """
        if self.quantized:
            raise InputError(f"a model cannot be trained in {self.dtype}; choose float32, bfloat16 or float16.")
        copies = [self._cost("16-bit copies of the matrices", "M × s")] if self.values["s"] < 4 else []
        activations = self.activations(plain)
        return self._sum_of(
            "memory to train",
            self._cost("parameters", "4 × N"),
            self._cost("gradients", "4 × N"),
            self._cost("AdamW's moments", "8 × N"),
            *copies,
            activations,
        )

    def activations(self, plain: bool = False) -> Cost:
        """Return the bytes that autograd saves in a forward pass with the loss; see `memory_to_train`."""
        drops = self.config.drop_rate > 0
        attention = [
            self._cost("input of qkv", "L × b × t × C × s"),
            self._cost("queries, keys, values", "3 × L × b × t × C × s"),
            *self._kept_by_attention(plain, drops),
            self._cost("weighted sums of values", "L × b × t × C × s"),
        ]
        feed_forward = [
            self._cost("input of up", "L × b × t × C × s"),
            self._cost("GELU's input and output", "2 × L × b × t × F × s"),
        ]
        masks = [self._cost("dropout masks", "2 × L × b × t × C + b × t × C")] if drops else []
        return self._sum_of(
            "activations" + (", plain attention" if plain else ""),
            self._cost("token ids and positions", "16 × b × t + 8 × t"),
            self._cost("the norms' inputs", "8 × L × b × t × C + 4 × b × t × C"),
            self._cost("the norms' means and deviations", "16 × L × b × t + 8 × b × t"),
            self._sum_of("attention", *attention),
            self._sum_of("feed_forward", *feed_forward),
            *masks,
            self._cost("input of the head", "b × t × C × s"),
            self._cost("log-probabilities", "4 × b × t × V"),
        )

    def _kept_by_attention(self, plain: bool, drops: bool) -> list[Cost]:
        """Return what is saved of the attention weights; the fused kernel recomputes them from one number per row."""
        if not plain:
            return [self._cost("sums of the weights", "4 × L × b × H × t")]
        kept = [self._cost("attention weights", "L × b × H × t × t × s"), self._cost("causal masks", "L × t × t")]
        if drops:
            kept.append(
                self._cost("their dropout: weights and masks", "L × b × H × t × t × s + L × b × H × t × t"),
            )
        return kept

    # Operations -------------------------------------------------------------------------------------------------

    def forward_flops(self) -> Cost:
        """Return the floating-point operations of the forward pass per token.

        This holds for each token of a sequence of t tokens, and for the t-th token if it is generated with a cache.
        """
        return self._checked(
            "FLOPs forward",
            "2 × M + 4 × L × t × C",
            self._cost("queries, keys, values", "6 × L × C × C"),
            self._cost("attention's scores", "2 × L × t × C"),
            self._cost("attention's weighted sum", "2 × L × t × C"),
            self._cost("attention's projection", "2 × L × C × C"),
            self._cost("feed-forward", "4 × L × C × F"),
            self._cost("logits", "2 × C × V"),
        )

    def training_flops(self) -> Cost:
        """Return the floating-point operations of the forward and the backward pass per token.

        Backward costs twice as much as forward: each product has two factors, and the gradient of each factor is a
        product of the same size (Kaplan et al. 2020, section 2.1). What a fused kernel recomputes is not counted, as in
        the "model FLOPs" of Chowdhery et al. 2022.
        """
        forward = "2 × M + 4 × L × t × C"
        return self._checked(
            "FLOPs to train",
            "6 × M + 12 × L × t × C",
            self._cost("forward", forward),
            self._cost("gradients of the weights and values", forward),
            self._cost("gradients of the inputs", forward),
        )

    def rules_of_thumb(self) -> tuple[Cost, Cost]:
        """Return the common estimates for training per token: 6N, and 6N + 12LtC.

        Kaplan et al. 2020, section 2.1 (there N leaves out the embeddings); Chowdhery et al. 2022, appendix B.
        """
        return self._cost("rule 6N", "6 × N"), self._cost("rule 6N + 12LtC", "6 × N + 12 × L × t × C")

    # Traffic ----------------------------------------------------------------------------------------------------

    def decoding_bytes(self) -> Cost:
        """Return the bytes that are read and written to generate the t-th token of each of b sequences.

        Every weight is read once for all sequences; of an embedding, only the rows that are looked up are read (but a
        tied token embedding is read whole, as the head). Each sequence has its own keys and values.
        """
        cache = [
            self._cost("keys and values, read", "2 × b × t × L × C × s"),
            self._cost("keys and values, written", "2 × b × L × C × s"),
        ]
        if self.quantized:
            read = [part for part in self._weights() if part.name not in ("the token embedding", "positions")]
            row = "32 × b × c + 4 × b" if self.dtype == "int8" else "18 × b × c"
            return self._sum_of(
                "bytes moved", *read, self._cost("token's and position's row", f"{row} + 4 × b × C"), *cache
            )
        return self._checked(
            "bytes moved",
            "K × s + C × V × s + 2 × b × C × s + 2 × b × t × L × C × s + 2 × b × L × C × s",
            self._cost("blocks and final norm", "K × s"),
            self._cost("the head's matrix", "C × V × s"),
            self._cost("token's and position's row", "2 × b × C × s"),
            *cache,
        )

    # Rows -------------------------------------------------------------------------------------------------------

    def _cost(self, name: str, formula: str) -> Cost:
        """Return a cost from a sum of products in symbols."""
        numbers = re.sub(r"[A-Za-z]", lambda symbol: f"{self.values[symbol[0]]:,}", formula)
        return Cost(name, formula, numbers, _value(formula, self.values))

    def _checked(self, name: str, formula: str, *parts: Cost) -> Cost:
        """Return a cost with its own formula and with parts, which must agree."""
        row = self._cost(name, formula)
        return Cost(name, row.symbols, row.numbers, row.amount, parts)

    def _sum_of(self, name: str, *parts: Cost) -> Cost:
        """Return a cost that is the sum of others."""
        numbers = " + ".join(f"{part.amount:,}" for part in parts)
        return Cost(name, " + ".join(part.name for part in parts), numbers, sum(part.amount for part in parts), parts)


def _groups(columns: int) -> int:
    return -(-columns // 32)


def _value(formula: str, sizes: Mapping[str, int]) -> int:
    """Return the value of a sum of products such as `2 × L × C + C`."""
    return sum(
        math.prod(sizes[factor] if factor in sizes else int(factor) for factor in term.split(" × "))
        for term in formula.split(" + ")
    )
