"""The names of all activations of a GPT-2, from ids to logits, with shape and meaning.

A name is a path: `blocks.3.attention.pattern`. To name several, use wildcards as in file names:
`blocks.*.attention.pattern`, `*.residual_out`, `blocks.[0-2].*`.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from clearhead.config import GPTConfig
from clearhead.errors import InputError

# Name, letters of the shape, meaning; in the order in which a pass computes them. {i} is the block.
_START = (
    ("embedding.token", "T C", "the vector of each token, looked up by its id"),
    ("embedding.position", "T C", "the vector of each token's position in the text"),
    ("embedding", "T C", "the sum of both: the input of the first block"),
)
_BLOCK = (
    ("residual_in", "T C", "the residual stream as it enters the block"),
    ("norm_1.mean", "T", "the mean of each vector, which the norm subtracts"),
    ("norm_1.variance", "T", "the variance of each vector; the norm divides by sqrt(variance + eps)"),
    ("norm_1.output", "T C", "the normalized vectors, scaled and shifted: the input of attention"),
    ("attention.queries", "H T D", "the query of each token, in each head"),
    ("attention.keys", "H T D", "the key of each token, which queries are compared with"),
    ("attention.values", "H T D", "the value of each token, which attention passes on"),
    ("attention.scores", "H T T", "query times key / sqrt(D), before the mask: rows are queries, columns keys"),
    ("attention.pattern", "H T T", "the masked softmax of the scores: each row sums to 1"),
    ("attention.mixed", "H T D", "the values, weighted by the pattern and summed"),
    ("attention.output", "T C", "all heads together, projected: what attention adds"),
    ("residual_mid", "T C", "the residual stream after attention's output was added"),
    ("norm_2.mean", "T", "as norm_1.mean"),
    ("norm_2.variance", "T", "as norm_1.variance"),
    ("norm_2.output", "T C", "the input of the feed-forward layer"),
    ("feed_forward.up", "T F", "the hidden layer before GELU"),
    ("feed_forward.activated", "T F", "the hidden layer after GELU"),
    ("feed_forward.output", "T C", "projected back: what the feed-forward layer adds"),
    ("residual_out", "T C", "the residual stream as it leaves the block"),
)
_END = (
    ("final_norm.mean", "T", "as norm_1.mean, of the last block's vectors"),
    ("final_norm.variance", "T", "as norm_1.variance"),
    ("final_norm.output", "T C", "the input of the head"),
    ("logits", "T V", "at each token, the unnormalized log-probability of each next one"),
)


@dataclass(frozen=True, slots=True)
class Activation:
    """One activation inside the model.

    Attributes:
        name: its name, such as `blocks.3.attention.pattern`.
        letters: its shape for one text of T tokens, in letters: C emb_dim, H heads, D = C / H, F ff_dim, V vocab_size.
        meaning: what it is, in a few words.
    """

    name: str
    letters: tuple[str, ...]
    meaning: str

    @property
    def per_head(self) -> bool:
        """Whether each head has its own; the heads are then the first axis, and the tokens the second."""
        return self.letters[0] == "H"

    @property
    def token_axis(self) -> int:
        """The axis of the tokens; for scores and patterns, of the queries."""
        return self.letters.index("T")

    def shape(self, config: GPTConfig, tokens: int) -> tuple[int, ...]:
        """Return the shape in numbers for a text of this many tokens."""
        sizes = {
            "T": tokens,
            "C": config.emb_dim,
            "H": config.n_heads,
            "D": config.head_dim,
            "F": config.ff_dim,
            "V": config.vocab_size,
        }
        return tuple(sizes[letter] for letter in self.letters)


class Activations(Mapping[str, Activation]):
    """Every activation of a model by name, in the order in which a pass computes them; prints as a table."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self._activations = {one.name: one for one in _activations(config.n_layers)}

    def __getitem__(self, name: str) -> Activation:
        return self._activations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._activations)

    def __len__(self) -> int:
        return len(self._activations)

    def __repr__(self) -> str:
        rows = [*_START, *((f"blocks.{{i}}.{name}", *rest) for name, *rest in _BLOCK), *_END]
        table = [f"{name:<33} [{letters.replace(' ', ', ')}]".ljust(45) + meaning for name, letters, meaning in rows]
        config = self.config
        legend = (
            f"i = 0 to {config.n_layers - 1}, T tokens, C = {config.emb_dim}, H = {config.n_heads}, "
            f"D = {config.head_dim}, F = {config.ff_dim}, V = {config.vocab_size}"
        )
        return "\n".join([*table, legend])

    def find(self, names: str | Iterable[str]) -> tuple[Activation, ...]:
        """Return the activations that names or wildcards match, each once, in the order of the model.

        Raises:
            InputError: if a name matches none of them; the message lists near matches, or the range of the blocks.
        """
        found = set()
        for name in wanted_names(names):
            matches = [name] if name in self._activations else [known for known in self if fnmatchcase(known, name)]
            if not matches:
                raise InputError(self._unknown(name))
            found.update(matches)
        if not found:
            raise InputError("no activation is named; give at least one name, such as 'blocks.*.attention.pattern'.")
        return tuple(one for name, one in self._activations.items() if name in found)

    def _unknown(self, name: str) -> str:
        block = re.match(r"blocks\.(-?\d+)(\.|$)", name)
        last = self.config.n_layers - 1
        if block and not 0 <= int(block[1]) <= last:
            return f"{name!r} names block {block[1]}, but the model's blocks are 0 to {last}."
        near = difflib.get_close_matches(name, self._activations, n=3, cutoff=0.5)
        if not near and block is None:
            # A short name such as "pattern": the part after the last dot.
            endings = {known.rpartition(".")[2]: known for known in reversed(self._activations)}
            near = [endings[end] for end in difflib.get_close_matches(name.rpartition(".")[2], endings, n=3)]
        hint = f"; did you mean {', '.join(near)}?" if near else "."
        return f"{name!r} is not an activation of this model{hint} clearhead.lens.names(config) lists them all."


def names(config: GPTConfig) -> Activations:
    """Return every activation of a model of this shape: name, shape, meaning."""
    return Activations(config)


def wanted_names(names: object) -> list[str]:
    """Return one name, or an iterable of names, as a list.

    Raises:
        InputError: if it is something else.
    """
    found: list[str] = []
    for name in [names] if isinstance(names, str) or not isinstance(names, Iterable) else names:
        if not isinstance(name, str):
            raise InputError(f"an activation's name is {name!r}; give one such as 'logits', or a list of them.")
        found.append(name)
    return found


def check_indices(what: str, given: int | Sequence[int], size: int, of: str) -> list[int]:
    """Return heads or positions as a list.

    Raises:
        InputError: if there is none, one is out of range, or one appears twice.
    """
    try:
        indices = [given] if isinstance(given, int) else [operator.index(index) for index in given]
    except TypeError:
        raise InputError(f"{what}s is {given!r}; give a whole number, or a list of them.") from None
    if not indices:
        raise InputError(f"{what}s is empty; name at least one, or leave it out for all.")
    for index in indices:
        if not 0 <= index < size:
            raise InputError(f"there is no {what} {index}; the {of}'s {what}s are 0 to {size - 1:,}.")
    if len(set(indices)) < len(indices):
        raise InputError(f"{what}s contains a number twice: {indices}; give each once.")
    return indices


def _activations(n_layers: int) -> Iterator[Activation]:
    for name, letters, meaning in _START:
        yield Activation(name, tuple(letters.split()), meaning)
    for layer in range(n_layers):
        for name, letters, meaning in _BLOCK:
            yield Activation(f"blocks.{layer}.{name}", tuple(letters.split()), meaning)
    for name, letters, meaning in _END:
        yield Activation(name, tuple(letters.split()), meaning)
