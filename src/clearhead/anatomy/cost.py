"""What a GPT-2 costs to run and to train: bytes of memory, floating-point operations, bytes moved.

Every figure is a tree of parts, each with its formula, and a whole has its own formula too: that the parts sum to it is
checked wherever one is made. The symbols, beside those of the parameters' account (capitals are the model's, small
letters the work's):

    L  blocks                N  parameters
    H  heads                 K  parameters of the blocks and the final norm
                             M  weights in the matrices of the blocks and the head
    b  sequences at once     s  bytes of a number (in int8 and int4: of one in the cache)
    t  tokens in each

and, for the engine's formats with whole numbers:

    G  groups of up to 32 weights, each of one row, in the matrices of the blocks and the head
    R  rows of these matrices
    X  biases and norms
    c  groups in a token's row

A multiply-add is two operations, and only matrix products are counted (biases, norms, GELU and softmax are about one
operation in a hundred). Attention is counted as the products of all t tokens with all t, as the plain form computes
them and as Chowdhery et al. 2022 (PaLM, appendix B) count; a kernel that skips the masked half does less.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clearhead.anatomy.count import BITS, Account, count_parameters
from clearhead.config import GPTConfig
from clearhead.errors import InputError


@dataclass(frozen=True, slots=True)
class Cost:
    """One row: an amount, in bytes or operations, with its formula and what it is made of.

    Attributes:
        name: what it is, such as `gradients`.
        symbols: the formula in symbols, `4 × N`.
        numbers: the same in numbers, `4 × 124,439,808`.
        amount: what the formula gives.
        parts: what it is made of; their amounts sum to this one's.
    """

    name: str
    symbols: str
    numbers: str
    amount: int
    parts: tuple[Cost, ...] = ()

    def __post_init__(self) -> None:
        assert not self.parts or sum(part.amount for part in self.parts) == self.amount, f"{self.name}: parts differ"


class Costs:
    """The costs of a GPT-2 of one shape, for one number format and one size of work.

    Args:
        config: the shape.
        dtype: the number format, of `BITS`. Running holds everything in it; with int8 and int4 as the engine does,
            matrices in whole numbers with their scales, keys and values in bfloat16, the rest in float32. Training
            keeps parameters, gradients and averages in float32, as `clearhead train` does; a 16-bit format is that of
            the products (autocast).
        batch: b, sequences at once.
        context: t, tokens in each; the whole of context_length where it is 0.

    Attributes:
        letters: what each letter of the formulas stands for.

    Raises:
        InputError: where the format is unknown, or a number is out of range.
    """

    def __init__(self, config: GPTConfig, dtype: str = "float32", batch: int = 1, context: int = 0) -> None:
        if dtype not in BITS:
            near = difflib.get_close_matches(dtype, BITS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(f"there is no number format {dtype!r}{hint}; the formats are {', '.join(BITS)}.")
        if batch < 1:
            raise InputError(f"the batch is {batch}; it must have at least 1 sequence.")
        if not 0 <= context <= config.context_length:
            raise InputError(
                f"the context is {context:,} tokens; a model with {config.context_length:,} positions takes 1 to that "
                "many."
            )
        self.config = config
        self.dtype = dtype
        self.batch = batch
        self.context = context or config.context_length
        self.account: Account = count_parameters(config)
        self.whole_numbers = dtype in ("int8", "int4")
        blocks, norm = (part.count for _, part in self.account.rows() if part.name in ("blocks", "final_norm"))
        layers, width, wide, ids = config.n_layers, config.emb_dim, config.ff_dim, config.vocab_size
        weights = layers * (4 * width**2 + 2 * width * wide)
        self.letters: dict[str, int] = {
            "b": batch,
            "t": self.context,
            "T": config.context_length,
            "L": layers,
            "H": config.n_heads,
            "C": width,
            "F": wide,
            "V": ids,
            "N": self.account.total,
            "K": blocks + norm,
            "M": weights + ids * width,
            "s": 2 if self.whole_numbers else BITS[dtype] // 8,
            "G": layers * ((4 * width + wide) * _groups(width) + width * _groups(wide)) + ids * _groups(width),
            "R": layers * (5 * width + wide) + ids,
            "X": blocks + norm - weights,
            "c": _groups(width),
        }

    # Memory -----------------------------------------------------------------------------------------------------

    def cache_a_token(self) -> Cost:
        """Bytes of keys and values that a token leaves behind in all blocks."""
        return self._cost("keys and values of a token", "2 × L × C × s")

    def memory_to_run(self) -> Cost:
        """Bytes to read b prompts of t tokens and to write on from them, with fused attention.

        The activations are what is alive at once at the fullest moment of the pass: inside a feed-forward layer its
        two wide vectors, the normed and the shortcut's vector and the block's input; or the logits of each sequence's
        last token. Memory that a kernel takes for itself while it runs is not in it. With int8 and int4 there are none:
        the engine works in a space of its own that does not grow with the batch.
        """
        weights = self._together("weights", *self._weights()) if self.whole_numbers else self._cost("weights", "N × s")
        cache = self._cost("keys and values", "2 × b × t × L × C × s")
        if self.whole_numbers:
            return self._together("memory to run", weights, cache)
        sizes = self.letters
        moments = [
            "3 × b × t × C × s + 2 × b × t × F × s",  # in feed_forward, between up and down
            "7 × b × t × C × s",  # in attention; the fullest where ff_dim is under twice emb_dim
            "b × t × C × s + b × V × s" + (" + 4 × b × V" if sizes["s"] < 4 else ""),  # logits are given in float32
        ]
        fullest = max(moments, key=lambda formula: _value(formula, sizes))
        name = "activations (a block)" if fullest != moments[-1] else "activations (the logits)"
        return self._whole(
            "memory to run",
            f"N × s + 2 × b × t × L × C × s + {fullest}",
            weights,
            cache,
            self._cost(name, fullest),
        )

    def _weights(self) -> list[Cost]:
        """The parts of the weights in whole numbers, but for what fills up the engine's tiles."""
        group, scales = ("32 × G", "4 × R") if self.dtype == "int8" else ("16 × G", "2 × G")
        table = "32 × V × c + 4 × V" if self.dtype == "int8" else "18 × V × c"
        return [
            self._cost("matrices", group),
            self._cost("their scales", scales),
            *([] if self.config.tie_weights else [self._cost("the token table", table)]),
            self._cost("biases and norms", "4 × X"),
            self._cost("positions", "4 × T × C"),
        ]

    def memory_to_train(self, plain: bool = False) -> Cost:
        """Bytes that are held between the forward and the backward pass of a batch of b × t tokens, with AdamW.

        Activations are the tensors that autograd keeps, each storage once: on a CPU to the byte those that
        `torch.autograd.graph.saved_tensors_hooks` sees (but for one scalar of the loss), with the byte a value that a
        dropout's mask takes on a GPU. Not in it: what a kernel takes for itself while it runs, and the gradients of
        activations, of which few are alive at once.

        With a 16-bit format, autocast keeps copies of the matrices; softmax is counted in 16 bits, as on a CPU (a GPU
        computes it in float32 under autocast).

        Args:
            plain: attention step by step, which keeps all t × t weights, in place of the fused kernel.

        Raises:
            InputError: where the format is int8 or int4.
        """
        if self.whole_numbers:
            raise InputError(f"a model is not trained in {self.dtype}; give float32, bfloat16 or float16.")
        copies = [self._cost("16-bit copies of the matrices", "M × s")] if self.letters["s"] < 4 else []
        activations = self.activations(plain)
        return self._together(
            "memory to train",
            self._cost("parameters", "4 × N"),
            self._cost("gradients", "4 × N"),
            self._cost("AdamW's averages", "8 × N"),
            *copies,
            activations,
        )

    def activations(self, plain: bool = False) -> Cost:
        """The bytes that autograd keeps from a forward pass with the loss; see `memory_to_train`."""
        drops = self.config.drop_rate > 0
        attention = [
            self._cost("input of qkv", "L × b × t × C × s"),
            self._cost("queries, keys, values", "3 × L × b × t × C × s"),
            *self._kept_by_attention(plain, drops),
            self._cost("mixed values", "L × b × t × C × s"),
        ]
        feed_forward = [
            self._cost("input of up", "L × b × t × C × s"),
            self._cost("GELU's input and output", "2 × L × b × t × F × s"),
        ]
        masks = [self._cost("dropout's masks", "2 × L × b × t × C + b × t × C")] if drops else []
        return self._together(
            "activations" + (", plain attention" if plain else ""),
            self._cost("token ids and positions", "16 × b × t + 8 × t"),
            self._cost("the norms' inputs", "8 × L × b × t × C + 4 × b × t × C"),
            self._cost("the norms' means and deviations", "16 × L × b × t + 8 × b × t"),
            self._together("attention", *attention),
            self._together("feed_forward", *feed_forward),
            *masks,
            self._cost("input of the head", "b × t × C × s"),
            self._cost("log-probabilities", "4 × b × t × V"),
        )

    def _kept_by_attention(self, plain: bool, drops: bool) -> list[Cost]:
        """What either form keeps of the weights; the fused kernel computes them a second time from one number a row."""
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
        """Floating-point operations for a token among t, forward.

        For each of a sequence of t tokens together, or for the one that is written as the t-th with a cache.
        """
        return self._whole(
            "FLOPs forward",
            "2 × M + 4 × L × t × C",
            self._cost("queries, keys, values", "6 × L × C × C"),
            self._cost("attention's scores", "2 × L × t × C"),
            self._cost("attention's mix of values", "2 × L × t × C"),
            self._cost("attention's projection", "2 × L × C × C"),
            self._cost("feed-forward", "4 × L × C × F"),
            self._cost("logits", "2 × C × V"),
        )

    def training_flops(self) -> Cost:
        """Floating-point operations for a token among t, forward and backward.

        Backward is twice forward: each product has two factors, and each factor a gradient that is a product as
        large (Kaplan et al. 2020, section 2.1). What a fused kernel computes a second time is not counted, as in the
        "model FLOPs" of Chowdhery et al. 2022.
        """
        forward = "2 × M + 4 × L × t × C"
        return self._whole(
            "FLOPs to train",
            "6 × M + 12 × L × t × C",
            self._cost("forward", forward),
            self._cost("gradients of the weights and values", forward),
            self._cost("gradients of the inputs", forward),
        )

    def rules_of_thumb(self) -> tuple[Cost, Cost]:
        """What the common rules give for training on a token: 6N, and 6N + 12LtC.

        Kaplan et al. 2020, section 2.1 (there N leaves out the embeddings); Chowdhery et al. 2022, appendix B.
        """
        return self._cost("rule 6N", "6 × N"), self._cost("rule 6N + 12LtC", "6 × N + 12 × L × t × C")

    # Traffic ----------------------------------------------------------------------------------------------------

    def decoding_bytes(self) -> Cost:
        """Bytes that one pass reads and writes to give each of b sequences its t-th token.

        Every weight is read once for all sequences, but of the tables only the rows that are looked up (a tied token
        table is read whole, as the head); keys and values are each sequence's own.
        """
        cache = [
            self._cost("keys and values, read", "2 × b × t × L × C × s"),
            self._cost("keys and values, written", "2 × b × L × C × s"),
        ]
        if self.whole_numbers:
            read = [part for part in self._weights() if part.name not in ("the token table", "positions")]
            row = "32 × b × c + 4 × b" if self.dtype == "int8" else "18 × b × c"
            return self._together(
                "bytes moved", *read, self._cost("token's and position's row", f"{row} + 4 × b × C"), *cache
            )
        return self._whole(
            "bytes moved",
            "K × s + C × V × s + 2 × b × C × s + 2 × b × t × L × C × s + 2 × b × L × C × s",
            self._cost("blocks and final norm", "K × s"),
            self._cost("the head's matrix", "C × V × s"),
            self._cost("token's and position's row", "2 × b × C × s"),
            *cache,
        )

    # Rows -------------------------------------------------------------------------------------------------------

    def _cost(self, name: str, formula: str) -> Cost:
        """A row from a sum of products in symbols."""
        numbers = re.sub(r"[A-Za-z]", lambda letter: f"{self.letters[letter[0]]:,}", formula)
        return Cost(name, formula, numbers, _value(formula, self.letters))

    def _whole(self, name: str, formula: str, *parts: Cost) -> Cost:
        """A row with a formula of its own and with parts, which must agree."""
        row = self._cost(name, formula)
        return Cost(name, row.symbols, row.numbers, row.amount, parts)

    def _together(self, name: str, *parts: Cost) -> Cost:
        """A row that is the sum of others."""
        numbers = " + ".join(f"{part.amount:,}" for part in parts)
        return Cost(name, " + ".join(part.name for part in parts), numbers, sum(part.amount for part in parts), parts)


def _groups(columns: int) -> int:
    return -(-columns // 32)


def _value(formula: str, sizes: Mapping[str, int]) -> int:
    """What a sum of products such as `2 × L × C + C` gives."""
    return sum(
        math.prod(sizes[factor] if factor in sizes else int(factor) for factor in term.split(" × "))
        for term in formula.split(" + ")
    )
